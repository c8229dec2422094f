"""Whether the embeddings worker is told to stop: set in its main process, asked in its child."""

import multiprocessing

# The child inherits it by fork, so this module is loaded before.
_stopping = multiprocessing.Event()


def begin() -> None:
    """Take nothing new from now on."""
    _stopping.set()


def has_begun() -> bool:
    return _stopping.is_set()
