"""The keywords of JSON Schema: which are supported, and what their values must look like."""

import math
from collections.abc import Callable
from typing import Any

from inference.engine.errors import SchemaError

Schema = dict[str, Any]

TYPES = ("object", "array", "string", "number", "integer", "boolean", "null")
ANNOTATIONS = frozenset(
    {"title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly"}
    | {"$comment", "$schema", "$defs", "definitions"}
)


def _is_schema(value: Any) -> bool:
    return isinstance(value, dict | bool)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_list_of(is_item: Callable[[Any], bool], value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(is_item(item) for item in value)


def _is_type(value: Any) -> bool:
    names = value if isinstance(value, list) else [value]
    return _is_list_of(lambda name: isinstance(name, str) and name in TYPES, names)


def _is_schema_list(value: Any) -> bool:
    return _is_list_of(_is_schema, value)


# Of each keyword: what its value must be, in words and as a check.
_SHAPES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "$id": ("a string", _is_text),
    "$ref": ("a string", _is_text),
    "type": (f"one of {', '.join(TYPES)}, or a list of them", _is_type),
    "enum": ("a list of at least one value", lambda value: _is_list_of(lambda _: True, value)),
    "const": ("a value", lambda _: True),
    **dict.fromkeys(("anyOf", "oneOf", "allOf"), ("a list of schemas", _is_schema_list)),
    "properties": (
        "an object of schemas",
        lambda value: isinstance(value, dict) and all(map(_is_schema, value.values())),
    ),
    "required": (
        "a list of names",
        lambda value: isinstance(value, list) and all(map(_is_text, value)),
    ),
    **dict.fromkeys(("additionalProperties", "items"), ("a schema", _is_schema)),
    "prefixItems": ("a list of schemas", _is_schema_list),
    **dict.fromkeys(
        ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"),
        ("a whole number, 0 or more", _is_count),
    ),
    **dict.fromkeys(("pattern", "format"), ("a string", _is_text)),
    **dict.fromkeys(
        ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"), ("a number", _is_number)
    ),
}

# The types that a keyword says something about.
KEYWORDS_OF_TYPE = {
    "object": (
        *("properties", "required", "additionalProperties"),
        *("minProperties", "maxProperties"),
    ),
    "array": ("items", "prefixItems", "minItems", "maxItems"),
    "string": ("minLength", "maxLength", "pattern", "format"),
    "number": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"),
}

_HINTS = {
    "if": "write the cases as anyOf",
    "then": "write the cases as anyOf",
    "else": "write the cases as anyOf",
    "not": "say what is allowed instead",
    "nullable": 'write "type": [..., "null"]',
    "dependencies": "write the cases as anyOf",
    "additionalItems": "use items beside prefixItems",
    "uniqueItems": "check it when the answer is there",
    "multipleOf": "check it when the answer is there",
    "patternProperties": "name the properties, or use additionalProperties",
    "propertyNames": "name the properties, or use additionalProperties",
}


def check_keywords(schema: Schema, pointer: str) -> None:
    """Raises SchemaError on a keyword that is unknown, not supported or ill-formed."""
    for keyword, value in schema.items():
        if keyword in ANNOTATIONS:
            continue
        if keyword not in _SHAPES:
            hint = _HINTS.get(keyword, "check its spelling, or leave it out")
            raise SchemaError(f"{pointer}: the keyword {keyword} is not supported: {hint}.")
        words, is_right = _SHAPES[keyword]
        if not is_right(value):
            raise SchemaError(f"{pointer}/{keyword}: it must be {words}.")
    if "$id" in schema and pointer != "#":
        raise SchemaError(f"{pointer}: $id is supported at the root only: leave it out.")
