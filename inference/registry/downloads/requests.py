"""What is to be brought: the rows, and messages to those who bring it."""

import threading

from inference import dispatch
from inference.loading import models_dir
from inference.models import ModelDownload, RegisteredModel
from inference.registry.downloads.paths import partial_path

Status = RegisteredModel.Status

# Set when the worker is told to stop: downloads of this process are put back.
stopping = threading.Event()


def start(model: RegisteredModel) -> bool:
    """Have a worker bring the file of the model, whose status then is `downloading`.

    False when that is under way already, or the model has its file.
    """
    if not ModelDownload.start(model):
        return False
    model.status, model.status_message = Status.DOWNLOADING, ""
    dispatch.enqueue([dispatch.DOWNLOAD])
    return True


def start_if_missing(model: RegisteredModel) -> bool:
    """Whether the file of the model is on its way, from now on if not already."""
    if model.status != Status.DOWNLOADING and not is_missing(model):
        return False
    return start(model) or model.status == Status.DOWNLOADING


def is_missing(model: RegisteredModel) -> bool:
    """Whether the model is to come from the hub, and has not come yet."""
    if not model.config.get("huggingface_repo"):
        return False
    return not models_dir.resolve(model.config["model_path"]).exists()


def why_missing(model: RegisteredModel) -> str | None:
    """What keeps tasks from a model whose file is not here; None for one that can be asked."""
    match model.status:
        case Status.DOWNLOADING:
            return f"{model.name} is being downloaded: wait until its status is available."
        case Status.REGISTERED:
            return f"{model.name} is not downloaded yet: POST /api/v1/models/load brings it."
        case Status.ERROR if is_missing(model):
            return f"{model.name} could not be downloaded. {model.status_message}"
    return None


def forget_partial_file(model: RegisteredModel) -> None:
    """Remove what has arrived of a model that is deleted.

    A worker that still brings it finds out by its row, and stops. Another model of the same file
    goes on with what is there.
    """
    if not model.config.get("huggingface_repo"):
        return
    others = RegisteredModel.objects.filter(
        status=Status.DOWNLOADING, config__model_path=model.config["model_path"]
    )
    if not others.exists():
        partial_path(model).unlink(missing_ok=True)


def stop() -> None:
    """Put the downloads of this process back: the next worker goes on with them."""
    stopping.set()
