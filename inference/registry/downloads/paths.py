"""Where the file of a model goes, and what has arrived of it until it is complete."""

from pathlib import Path

from inference.loading import models_dir
from inference.models import RegisteredModel


def target_path(model: RegisteredModel) -> Path:
    """Raises ValueError unless it lies in MODELS_DIR."""
    return models_dir.resolve(model.config["model_path"])


def partial_path(model: RegisteredModel) -> Path:
    """Next to the file; raises ValueError as above."""
    path = target_path(model)
    return path.with_name(f"{path.name}.partial")
