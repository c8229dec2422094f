"""A schema as a JSON document: its bounds, its keywords, and what its references point at."""

import json
import math
import re
from collections.abc import Callable, Iterator
from graphlib import CycleError, TopologicalSorter
from typing import Any
from urllib.parse import unquote

from inference.engine.byte_matcher import matches
from inference.engine.errors import GrammarError, SchemaError

MAX_SCHEMA_BYTES = 64 * 1024
MAX_DEPTH = 128
MAX_COUNT = 1_000_000
MAX_PATTERNS = 100
# The library compares each two of them.
MAX_NAME_PATTERNS = 40
# Where all of them are possible, each token is tried on each.
MAX_ALTERNATIVES = 600
MAX_NUMBER_DIGITS = 300

TYPES = ("null", "boolean", "integer", "number", "string", "array", "object")
# The types that a keyword says something about.
TYPES_OF_KEYWORD = {
    **dict.fromkeys(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"), "number"),
    "multipleOf": "number",
    **dict.fromkeys(("minLength", "maxLength", "pattern", "format"), "string"),
    **dict.fromkeys(("items", "prefixItems", "minItems", "maxItems", "uniqueItems"), "array"),
    **dict.fromkeys(("contains", "unevaluatedItems"), "array"),
    **dict.fromkeys(("properties", "patternProperties", "additionalProperties"), "object"),
    **dict.fromkeys(("required", "minProperties", "maxProperties", "propertyNames"), "object"),
    **dict.fromkeys(("dependentRequired", "dependentSchemas"), "object"),
    **dict.fromkeys(("dependencies", "unevaluatedProperties"), "object"),
}
_DRAFTS = {
    "http://json-schema.org/draft-04/schema": 4,
    "http://json-schema.org/draft-06/schema": 6,
    "http://json-schema.org/draft-07/schema": 7,
    "https://json-schema.org/draft/2019-09/schema": 2019,
    "https://json-schema.org/draft/2020-12/schema": 2020,
}


def draft_of(document: Any) -> int:
    """The draft that `$schema` names: 4, 6, 7, 2019 or 2020; 2020 where it names none of them."""
    named = document.get("$schema") if isinstance(document, dict) else None
    return _DRAFTS.get(named.rstrip("#") if isinstance(named, str) else "", 2020)


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


def check_keywords(document: Any) -> None:
    """Raises SchemaError on a keyword that is misspelled or ill-formed, in all that is used.

    Also on what never ends, because a schema is part of itself, and on patterns without support.
    """
    draft = draft_of(document)
    waiting, seen = [(document, "#")], {"#"}
    # Of each schema, those that speak of the same value.
    in_place: dict[str, list[str]] = {}
    patterns: dict[str, str] = {}
    num_name_patterns = num_alternatives = 0
    told_apart: dict[str, str] = {}
    while waiting:
        schema, pointer = waiting.pop()
        if isinstance(schema, bool):
            continue
        _check_schema(schema, pointer, draft)
        found = list(_subschemas(schema, pointer))
        in_place[pointer] = [below for keyword, _, below in found if keyword in _IN_PLACE]
        places = [(item, below) for _, item, below in found]
        if "$ref" in schema:
            places.append(resolve(document, schema["$ref"], pointer))
            in_place[pointer].append(places[-1][1])
        waiting += [place for place in places if place[1] not in seen]
        seen |= {where for _, where in places}
        of_names = schema.get("patternProperties", {})
        num_name_patterns += len(of_names)
        num_alternatives += sum(len(schema.get(keyword, ())) for keyword in ("anyOf", "oneOf"))
        num_alternatives += sum(isinstance(each, dict | list) for each in schema.get("enum", ()))
        for pattern in (*of_names, schema.get("pattern", "")):
            patterns.setdefault(pattern, pointer)
        told_apart |= dict.fromkeys(_TOLD_APART & schema.keys(), pointer)
    try:
        TopologicalSorter(in_place).prepare()
    except CycleError as error:
        message = "It refers to itself in a circle: no value ends it."
        raise SchemaError(f"{error.args[1][0]}: {message}") from error
    if told_apart.keys() == _TOLD_APART:
        pointer = told_apart["unevaluatedProperties"]
        message = "unevaluatedProperties is not supported in a schema with patternProperties."
        raise SchemaError(f"{pointer}: {message}")
    if num_name_patterns > MAX_NAME_PATTERNS:
        raise SchemaError(
            f"#: It has more than {MAX_NAME_PATTERNS} patternProperties: simplify it."
        )
    if num_alternatives > MAX_ALTERNATIVES:
        raise SchemaError(
            f"#: anyOf, oneOf, and the objects and arrays of enum have more than {MAX_ALTERNATIVES}"
            " members together: simplify it."
        )
    _check_patterns(patterns)


def _check_schema(schema: dict[str, Any], pointer: str, draft: int) -> None:
    for keyword, value in schema.items():
        if keyword in _SHAPES:
            words, is_right = _SHAPES[keyword]
            if not is_right(value, draft):
                raise SchemaError(f"{pointer}/{keyword}: It must be {words}.")
        elif (known := _meant(keyword)) is not None:
            raise SchemaError(f"{pointer}: The keyword {keyword} is unknown: write {known}.")
    if pointer != "#" and isinstance(schema.get("$id"), str):
        raise SchemaError(f"{pointer}: $id is supported at the root only: leave it out.")


def resolve(document: Any, reference: str, place: str) -> tuple[Any, str]:
    """The schema that a reference at some place points at, and its pointer. Raises SchemaError."""
    if isinstance(base := document.get("$id", document.get("id")), str) and base.rstrip("#"):
        reference = reference.removeprefix(base.rstrip("#")) or "#"
    if not reference.startswith("#"):
        raise SchemaError(f"{place}/$ref: {reference} leads out of the schema: use $defs.")
    found, pointer = document, "#"
    for part in unquote(reference[1:]).split("/")[1:]:
        key = part.replace("~1", "/").replace("~0", "~")
        pointer = f"{pointer}/{escaped(key)}"
        if isinstance(found, list) and key.isdecimal() and len(key) < 9 and int(key) < len(found):
            found = found[int(key)]
        else:
            found = found.get(key) if isinstance(found, dict) else None
    if not isinstance(found, dict | bool) or not re.match("#(/|$)", reference):
        raise SchemaError(f"{place}/$ref: {reference} leads to no schema: correct it.")
    return found, pointer


def escaped(name: str) -> str:
    """A name as a part of a JSON pointer."""
    return name.replace("~", "~0").replace("/", "~1")


def _children(value: Any) -> list[Any]:
    if isinstance(value, str) and "\0" in value:
        raise SchemaError("#: The schema must not contain NUL characters.")
    if isinstance(value, int) and abs(value) >= 10**MAX_NUMBER_DIGITS:
        raise SchemaError(f"#: A number has more than {MAX_NUMBER_DIGITS} digits: round it.")
    if isinstance(value, dict):
        return [*value, *value.values()]
    return value if isinstance(value, list) else []


def _check_patterns(patterns: dict[str, str]) -> None:
    """`patterns`: a pointer of each."""
    if len(patterns) > MAX_PATTERNS:
        raise SchemaError(f"#: The schema has more than {MAX_PATTERNS} patterns: simplify it.")
    for pattern, pointer in patterns.items():
        try:
            matches(pattern, "")
        except GrammarError as error:
            raise SchemaError(f"{pointer}: {error}") from error


def _subschemas(schema: dict[str, Any], pointer: str) -> Iterator[tuple[str, Any, str]]:
    """The schemas directly below, with their keywords and pointers; not those of $defs."""
    for keyword in sorted(_HOLD_SCHEMAS & schema.keys()):
        value, below = schema[keyword], f"{pointer}/{keyword}"
        if isinstance(value, list):
            yield from ((keyword, item, f"{below}/{i}") for i, item in enumerate(value))
        elif keyword in _HOLD_MAPS:
            for name, item in value.items():
                if isinstance(item, dict | bool):  # a dependency may be a list of names
                    yield keyword, item, f"{below}/{escaped(name)}"
        else:
            yield keyword, value, below


def _is_schema(value: Any, _: int = 0) -> bool:
    return isinstance(value, dict | bool)


def _is_schema_list(value: Any, _: int = 0) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_is_schema, value))


def _is_items(value: Any, draft: int) -> bool:
    return _is_schema(value) or (
        draft < 2020 and isinstance(value, list) and all(map(_is_schema, value))
    )


def _is_schema_map(value: Any, _: int = 0) -> bool:
    return isinstance(value, dict) and all(map(_is_schema, value.values()))


def _is_names(value: Any, _: int = 0) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _is_names_map(value: Any, _: int = 0) -> bool:
    return isinstance(value, dict) and all(map(_is_names, value.values()))


def _is_dependencies(value: Any, _: int = 0) -> bool:
    return isinstance(value, dict) and all(
        _is_schema(item) or _is_names(item) for item in value.values()
    )


def _is_number(value: Any, _: int = 0) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_strict_bound(value: Any, draft: int) -> bool:
    return isinstance(value, bool) if draft == 4 else _is_number(value)


def _is_count(value: Any, _: int = 0) -> bool:
    return _is_number(value) and value >= 0 and value == int(value)


def _is_least(value: Any, _: int = 0) -> bool:
    return _is_count(value) and value <= MAX_COUNT


def _is_type(value: Any, _: int = 0) -> bool:
    names = value if isinstance(value, list) else [value]
    return bool(names) and all(isinstance(name, str) and name in TYPES for name in names)


_Shape = tuple[str, Callable[[Any, int], bool]]
# Of each keyword that asserts something: what its value must be, in words and as a check.
_SHAPES: dict[str, _Shape] = {
    "$ref": ("a string", lambda value, _: isinstance(value, str)),
    **dict.fromkeys(("$dynamicRef", "$recursiveRef"), ("written as $ref", lambda _, __: False)),
    "type": (f"one of {', '.join(TYPES)}, or a list of them", _is_type),
    "enum": (
        "a list of at least one value",
        lambda value, _: isinstance(value, list) and value != [],
    ),
    "const": ("a value", lambda _, __: True),
    **dict.fromkeys(("anyOf", "oneOf", "allOf"), ("a list of schemas", _is_schema_list)),
    **dict.fromkeys(("not", "if", "then", "else"), ("a schema", _is_schema)),
    **dict.fromkeys(("properties", "patternProperties"), ("an object of schemas", _is_schema_map)),
    **dict.fromkeys(("additionalProperties", "propertyNames"), ("a schema", _is_schema)),
    **dict.fromkeys(("unevaluatedProperties", "unevaluatedItems"), ("a schema", _is_schema)),
    **dict.fromkeys(("additionalItems", "contains"), ("a schema", _is_schema)),
    "dependentSchemas": ("an object of schemas", _is_schema_map),
    "dependentRequired": ("an object of lists of names", _is_names_map),
    "dependencies": ("an object of schemas or lists of names", _is_dependencies),
    "required": ("a list of names", _is_names),
    "items": ("a schema (write a list of them as prefixItems)", _is_items),
    "prefixItems": ("a list of schemas", _is_schema_list),
    **dict.fromkeys(
        ("minLength", "minItems", "minProperties", "minContains"),
        (f"a whole number from 0 to {MAX_COUNT}", _is_least),
    ),
    **dict.fromkeys(
        ("maxLength", "maxItems", "maxProperties", "maxContains"),
        ("a whole number, 0 or more", _is_count),
    ),
    "uniqueItems": ("true or false", lambda value, _: isinstance(value, bool)),
    **dict.fromkeys(("pattern", "format"), ("a string", lambda value, _: isinstance(value, str))),
    **dict.fromkeys(("minimum", "maximum"), ("a number", _is_number)),
    **dict.fromkeys(
        ("exclusiveMinimum", "exclusiveMaximum"),
        ("a number (in draft 4: true or false)", _is_strict_bound),
    ),
    "multipleOf": ("a number above 0", lambda value, _: _is_number(value) and value > 0),
}
KEYWORDS = frozenset(_SHAPES)
"""All that assert something; docs/structured-output.md says what is done with each."""

# The library matches names for both of them together, with expressions of Python.
_TOLD_APART = {"patternProperties", "unevaluatedProperties"}
_HOLD_MAPS = frozenset({"properties", "patternProperties", "dependentSchemas", "dependencies"})
_IN_PLACE = frozenset(
    {"allOf", "anyOf", "oneOf", "not", "if", "then", "else", "dependentSchemas", "dependencies"}
)
_HOLD_SCHEMAS = (
    _HOLD_MAPS
    | _IN_PLACE
    | {
        *("prefixItems", "items", "additionalItems", "contains", "unevaluatedItems"),
        *("additionalProperties", "propertyNames", "unevaluatedProperties"),
    }
)


def _variants(word: str) -> set[str]:
    """The word, and what is left of it without one letter."""
    return {word, *(word[:i] + word[i + 1 :] for i in range(len(word)))}


# Two words with a variant in common differ by one letter, or by two neighbours' order.
_MEANT = {
    variant: known
    for known in _SHAPES.keys() - {"if", "not", "then", "else"}
    for variant in _variants(known.lower())
}
_MAX_KEYWORD_CHARS = 32


def _meant(keyword: str) -> str | None:
    """The keyword that an unknown one is likely a misspelling of, as min_length or requird."""
    plain = keyword.replace("_", "").replace("-", "").lower()
    if len(plain) > _MAX_KEYWORD_CHARS:
        return None
    return next((_MEANT[word] for word in sorted(_variants(plain)) if word in _MEANT), None)
