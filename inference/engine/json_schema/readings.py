"""How many readings of one text a schema leaves open at a time: llama.cpp follows them all.

Choices that begin alike are read at the same time until the text tells them apart. Where two of
them lead back to the choice before it does, each level of the answer doubles the readings, and the
fifteenth takes half a minute.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from inference.engine.errors import SchemaError
from inference.engine.json_schema.keywords import Schema
from inference.engine.json_schema.merge import type_names
from inference.engine.json_schema.rules import json_text

MAX_READINGS = 1000
MAX_CHOICES = 200
_MAX_VALUES = 16


@dataclass(frozen=True, slots=True)
class Readings:
    """`loops`: the pointers of the schemas around this one that it leads back to."""

    num: int = 1
    loops: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Choice:
    """`beginnings`: how its texts can begin that are objects or arrays, white space aside."""

    beginnings: frozenset[str]
    readings: Readings


def one_after_another(parts: Iterable[Readings]) -> Readings:
    parts = [Readings(), *parts]
    loops = frozenset(loop for part in parts for loop in part.loops)
    return Readings(max(part.num for part in parts), loops)


def side_by_side(choices: list[Choice]) -> Readings:
    """Raises SchemaError where the readings grow without a limit, or beyond it."""
    containers = [choice for choice in choices if choice.beginnings]
    most = MAX_READINGS + 1 if len(containers) > MAX_CHOICES else 1
    for choice in containers[:MAX_CHOICES]:
        alike = [other for other in containers if _begin_alike(choice, other)]
        most = max(most, sum(other.readings.num for other in alike))
        for other in alike:
            if other is not choice and other.readings.loops & choice.readings.loops:
                raise SchemaError(
                    "Two choices begin alike and both lead back to this one: put a property first"
                    " in each that is required and has a name or a const of its own."
                )
    if most > MAX_READINGS:
        raise SchemaError("Too many choices begin alike: put what differs first in each.")
    return Readings(most, one_after_another(choice.readings for choice in containers).loops)


def beginnings(plain: Schema) -> frozenset[str]:
    """How objects and arrays of a schema can begin; "" where that is not said.

    The schema has no $ref and no allOf.
    """
    if plain.keys() & {"anyOf", "oneOf"} or not plain.keys() & {"type", "enum", "properties"}:
        return frozenset({""})
    if "enum" in plain:
        starts = (json_text(value)[0] for value in plain["enum"])
        return frozenset(start for start in starts if start in "{[")
    names = type_names(plain.get("type", "object"))
    found = _object_beginnings(plain) if "object" in names else set()
    return frozenset(found | {"["} if "array" in names else found)


def _object_beginnings(plain: Schema) -> set[str]:
    """Up to the first property that is required: its name, and its value where that is fixed."""
    found = set()
    for name, schema in plain.get("properties", {}).items():
        fixed = schema if isinstance(schema, dict) else {}
        values = fixed.get("enum", [fixed["const"]] if "const" in fixed else [])
        scalars = [json_text(value) for value in values if not isinstance(value, dict | list)]
        is_fixed = 0 < len(scalars) == len(values) <= _MAX_VALUES
        found |= {f"{{{json_text(name)}:{text}" for text in (scalars if is_fixed else [""])}
        if name in plain.get("required", ()):
            return found
    return {"{"}


def _begin_alike(one: Choice, other: Choice) -> bool:
    return any(a.startswith(b) or b.startswith(a) for a in one.beginnings for b in other.beginnings)
