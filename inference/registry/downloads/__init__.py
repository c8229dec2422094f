"""Starting downloads, and where their files go."""

import threading
from pathlib import Path

from inference import dispatch
from inference.loading import weights
from inference.models import ModelDownload, RegisteredModel

Status = RegisteredModel.Status

# Set when the worker shuts down: the downloads of this process become due again.
stopping = threading.Event()


def start(model: RegisteredModel) -> bool:
    """Have a worker download the file of the model, whose status then is `downloading`.

    False when that is under way already, or the model has its file.
    """
    if not ModelDownload.start(model):
        return False
    model.status, model.status_message = Status.DOWNLOADING, ""
    dispatch.enqueue([dispatch.DOWNLOAD])
    return True


def start_if_missing(model: RegisteredModel) -> bool:
    """Start the download unless the file is here; whether it is being downloaded now."""
    if model.status != Status.DOWNLOADING and not is_missing(model):
        return False
    return start(model) or model.status == Status.DOWNLOADING


def is_missing(model: RegisteredModel) -> bool:
    """Whether the model's file comes from the hub, and has not arrived yet."""
    if not model.config.get("huggingface_repo"):
        return False
    return not target_path(model).exists()


def why_missing(model: RegisteredModel) -> str | None:
    """Why no task can use the model, whose file is not here; None when it can be used."""
    match model.status:
        case Status.DOWNLOADING:
            return f"{model.name} is being downloaded: wait until its status is available."
        case Status.REGISTERED:
            return f"{model.name} is not downloaded yet: POST /api/v1/models/load brings it."
        case Status.ERROR if is_missing(model):
            return f"{model.name} could not be downloaded. {model.status_message}"
    return None


def forget_partial_file(model: RegisteredModel) -> None:
    """Remove the partial file of a deleted model.

    A worker that still downloads it finds its row gone, and stops. Another model of the same file
    goes on with what is there.
    """
    if not model.config.get("huggingface_repo"):
        return
    others = RegisteredModel.objects.filter(
        status=Status.DOWNLOADING, config__model_path=model.config["model_path"]
    )
    if not others.exists():
        partial_path(model).unlink(missing_ok=True)


def target_path(model: RegisteredModel) -> Path:
    """Raises ValueError unless it lies in MODELS_DIR."""
    return weights.resolve(model.config["model_path"])


def partial_path(model: RegisteredModel) -> Path:
    """The partial file beside the target; raises ValueError as above."""
    path = target_path(model)
    return path.with_name(f"{path.name}.partial")


def stop() -> None:
    """Put the downloads of this process back: the next worker goes on with them."""
    stopping.set()
