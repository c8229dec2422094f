"""Where the weights of models are, and what their files say, without loading them.

Nothing that a registration names may lie outside of MODELS_DIR.
"""

import json
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from django.conf import settings

from inference.engine.errors import InvalidGGUFError
from inference.engine.gguf_header import read_header
from inference.loading.sizes import default_context_window
from inference.models import RegisteredModel

# The `format` of a model that ranks texts, and gives no vectors.
CROSS_ENCODER = "cross-encoder"
PACKAGE_NAME = re.compile(r"^[a-z][a-z0-9_]*$")


def resolve(model_path: str) -> Path:
    """The path of that name, links followed. Raises ValueError unless it lies in MODELS_DIR."""
    models_dir = Path(settings.MODELS_DIR).resolve()
    try:
        path = (models_dir / model_path).resolve()
        path.exists()
    except (OSError, RuntimeError) as error:  # a name too long, a loop of links
        raise ValueError(f"{model_path} cannot be read: {error}") from error
    if not path.is_relative_to(models_dir):
        raise ValueError(f"{model_path} lies outside of MODELS_DIR: put the file in there.")
    return path


def resolve_file(model_path: str) -> Path:
    """The file behind a `model_path`. Raises ValueError unless it lies in MODELS_DIR."""
    path = resolve(model_path)
    if not path.is_file():
        raise ValueError(f"There is no file {model_path} in MODELS_DIR.")
    return path


def resolve_draft(config: dict[str, Any]) -> Path | None:
    """The file of a local model's `draft_model`; None without one.

    Raises ValueError where no local model of that name is registered, or its file is not here.
    """
    if (name := config.get("draft_model")) is None:
        return None
    local = RegisteredModel.objects.filter(provider=RegisteredModel.Provider.LOCAL)
    model = local.filter(name=name).first()
    if model is None:
        message = f"There is no local model {name}: register it first, or leave out draft_model."
        raise ValueError(message)
    return resolve_file(model.config["model_path"])


def find_embedding(config: dict[str, Any]) -> Path:
    """A folder of sentence-transformers, or a GGUF file. Raises ValueError saying what is wrong."""
    if package := config.get("package"):
        return _folder_in_package(package)
    model_path = config["model_path"]
    if is_gguf(model_path):
        return resolve_file(model_path)
    path = resolve(model_path)
    if not path.is_dir() or path == resolve(""):
        raise ValueError(f"There is no folder {model_path} in MODELS_DIR.")
    return path


def is_gguf(path: str | Path) -> bool:
    return str(path).endswith(".gguf")


def describe_embedding(path: Path) -> dict[str, Any]:
    """Fields of the model's row. Raises ValueError for files that cannot be a model."""
    if not is_gguf(path):
        return _folder_fields(path)
    try:
        header = read_header(path)
    except InvalidGGUFError as error:
        raise ValueError(str(error)) from error
    return {
        "size_bytes": header.size_bytes,
        "context_window": default_context_window(header),
        "extra": {
            "format": CROSS_ENCODER if header.is_ranking else "gguf",
            "architecture": header.architecture,
            "parameters": header.num_parameters,
            "quantization": header.quantization,
            "dimensions": 1 if header.is_ranking else header.embedding_length,
        },
    }


def _folder_fields(folder: Path) -> dict[str, Any]:
    if not _is_model_folder(folder):
        raise ValueError(f"{folder.name} has neither modules.json nor config.json: it is no model.")
    weights = list(folder.rglob("*.safetensors"))
    if not weights:
        message = (
            f"{folder.name} has no weights as safetensors, and no others are loaded, since those "
            "can run code: convert them, or take another revision."
        )
        raise ValueError(message)
    config = _read_json(folder / "config.json")
    names = config.get("architectures") or []
    is_ranking = any(str(name).endswith("ForSequenceClassification") for name in names)
    kind = CROSS_ENCODER if is_ranking else "sentence-transformers"
    return {
        "size_bytes": sum(path.stat().st_size for path in weights),
        "context_window": _read_json(folder / "sentence_bert_config.json").get("max_seq_length"),
        "extra": {"format": kind, "architecture": config.get("model_type")},
    }


def _folder_in_package(package: str) -> Path:
    """The first folder of an installed package that has a model in it; its code is not run."""
    spec = find_spec(package)
    for place in (spec.submodule_search_locations or []) if spec else []:
        root = Path(place)
        for folder in (root, *sorted(path for path in root.iterdir() if path.is_dir())):
            if _is_model_folder(folder):
                return folder
    raise ValueError(f"There is no installed package {package} with a model in it: install it.")


def _is_model_folder(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("modules.json", "config.json"))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ValueError(f"{path.name} cannot be read: {error}") from error
    return content if isinstance(content, dict) else {}
