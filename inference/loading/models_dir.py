"""The folder of model files, which nothing that a registration names may lie outside of."""

from pathlib import Path

from django.conf import settings


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
    """The file behind a `model_path`; ValueError unless it lies in MODELS_DIR, links followed."""
    path = resolve(model_path)
    if not path.is_file():
        raise ValueError(f"There is no file {model_path} in MODELS_DIR.")
    return path
