"""Bringing the file of a model from the Hugging Face hub, or from a mirror of it.

A row says what is to be brought; a message only wakes an api worker, which brings what is due:
`worker`. That alone imports the hub's library, which takes a second.
"""

from inference.registry.downloads.requests import (
    forget_partial_file,
    is_missing,
    start,
    start_if_missing,
    stop,
    why_missing,
)

__all__ = [
    "forget_partial_file",
    "is_missing",
    "start",
    "start_if_missing",
    "stop",
    "why_missing",
]
