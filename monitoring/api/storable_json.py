"""JSON as every database keeps it: in UTF-8, and without NUL, which PostgreSQL refuses."""

import json
import re
from typing import Any

# An escaped NUL, but not a backslash followed by letters.
_NUL = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")


def encode(value: Any) -> bytes:
    """As UTF-8. Raises ValueError for infinite numbers and half surrogate pairs."""
    return json.dumps(value, allow_nan=False, ensure_ascii=False).encode()


def has_nul(encoded: bytes) -> bool:
    """Whether a text in there has a NUL character."""
    return _NUL.search(encoded) is not None
