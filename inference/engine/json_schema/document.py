"""A schema as a JSON document: what it may hold, and what its references point at."""

import json
import re
from typing import Any
from urllib.parse import unquote

from inference.engine.errors import SchemaError

MAX_SCHEMA_BYTES = 64 * 1024
MAX_DEPTH = 128


def check_document(document: Any) -> None:
    """Raises SchemaError on what no JSON document in UTF-8 holds, or one that is too large."""
    if not isinstance(document, dict | bool):
        raise SchemaError("#: A schema is a JSON object, true or false.")
    level = [document]
    for _ in range(MAX_DEPTH):
        level = [child for value in level for child in _children(value)]
    if level:
        raise SchemaError(f"#: The schema is nested more than {MAX_DEPTH} levels deep.")
    try:
        encoded = json.dumps(document, allow_nan=False, ensure_ascii=False).encode()
    except ValueError as error:  # infinite numbers, half surrogate pairs
        raise SchemaError(f"#: It cannot be written as JSON in UTF-8: {error}.") from error
    if len(encoded) > MAX_SCHEMA_BYTES:
        raise SchemaError(f"#: The schema is larger than {MAX_SCHEMA_BYTES} bytes: simplify it.")


def resolve(document: Any, pointer: str) -> Any:
    """The schema that a reference within the document points at. Raises SchemaError."""
    if not pointer.startswith("#"):
        raise SchemaError(f"$ref {pointer} leads out of the schema: move it into $defs.")
    found = document
    for part in unquote(pointer[1:]).split("/")[1:]:
        key = part.replace("~1", "/").replace("~0", "~")
        if isinstance(found, list) and key.isdecimal() and int(key) < len(found):
            found = found[int(key)]
        else:
            found = found.get(key) if isinstance(found, dict) else None
    if not isinstance(found, dict | bool) or not re.match("#(/|$)", pointer):
        raise SchemaError(f"$ref {pointer} leads to no schema: correct it.")
    return found


def escaped(name: str) -> str:
    """A name as a part of a JSON pointer."""
    return name.replace("~", "~0").replace("/", "~1")


def _children(value: Any) -> list[Any]:
    if isinstance(value, str) and "\0" in value:
        raise SchemaError("#: The schema must not contain NUL characters.")
    if isinstance(value, dict):
        return [*value, *value.values()]
    return value if isinstance(value, list) else []
