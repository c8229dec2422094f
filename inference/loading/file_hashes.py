"""The hashes of the files of local models, computed once and not by those who run them."""

import hashlib
import logging
import threading
from pathlib import Path

from django.conf import settings

from inference.loading import weights
from inference.models import FileIdentity, ModelFile, RegisteredModel

logger = logging.getLogger(__name__)

_one_at_a_time = threading.Lock()


def identity(path: Path) -> FileIdentity:
    """Of a file in MODELS_DIR, links followed. Raises OSError."""
    status = path.stat()
    return FileIdentity(
        path=str(path.relative_to(Path(settings.MODELS_DIR).resolve())),
        size_bytes=status.st_size,
        modified_ns=status.st_mtime_ns,
    )


def hash_new_files() -> None:
    """Compute what is missing for the registered local models; nothing while a thread does."""
    if not _one_at_a_time.acquire(blocking=False):
        return
    try:
        for model in RegisteredModel.objects.filter(provider=RegisteredModel.Provider.LOCAL):
            try:
                path = weights.resolve_file(model.config["model_path"])
                before = identity(path)
                if ModelFile.sha256_of(before) is None:
                    with path.open("rb") as file:
                        digest = hashlib.file_digest(file, "sha256").hexdigest()
                    if identity(path) == before:  # it was not replaced meanwhile
                        ModelFile.store(before, digest)
            except (ValueError, OSError) as error:  # still to be downloaded, or gone
                logger.debug("Model %s has no file to hash: %s", model.name, error)
    finally:
        _one_at_a_time.release()
