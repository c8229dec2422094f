"""What several schemas together say of one value: its types, and which properties it has."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from inference.engine.schema_policy.document import TYPES

Place = tuple[Any, str]
"""A subschema and its pointer."""


@dataclass(frozen=True, slots=True)
class Declared:
    """What schemas say of one value: its types, and its properties in their order.

    It is open where they say themselves which other properties there may be.
    """

    types: tuple[str, ...] | None = None
    names: dict[str, None] = field(default_factory=dict)
    patterns: dict[str, None] = field(default_factory=dict)
    required: frozenset[str] = frozenset()
    has_properties: bool = False
    is_open: bool = False

    def __or__(self, other: "Declared") -> "Declared":
        """What both say; the types are this one's."""
        return Declared(
            self.types,
            self.names | other.names,
            self.patterns | other.patterns,
            self.required | other.required,
            self.has_properties or other.has_properties,
            self.is_open or other.is_open,
        )


NOTHING = Declared()


def declared_by(parts: list[Place]) -> Declared:
    """What schemas that are met together say; no types where they exclude each other."""
    types: tuple[str, ...] | None = None
    declared = NOTHING
    for schema, _ in parts:
        if "type" in schema:
            named = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
            types = tuple(named) if types is None else _both_types(types, named)
        other = schema.get("additionalProperties", schema.get("unevaluatedProperties", False))
        declared |= Declared(
            names=dict.fromkeys(schema.get("properties", ())),
            patterns=dict.fromkeys(schema.get("patternProperties", ())),
            required=frozenset(schema.get("required", ())),
            has_properties=bool(schema.keys() & {"properties", "patternProperties"}),
            is_open=other is not False,
        )
    if declared.has_properties:
        required = (name for schema, _ in parts for name in schema.get("required", ()))
        declared |= Declared(names=dict.fromkeys(required))
    return replace(declared, types=types)


def _both_types(left: tuple[str, ...], right: list[str]) -> tuple[str, ...]:
    def has(names: Iterable[str], name: str) -> bool:
        return name in names or (name == "integer" and "number" in names)

    both = [name for name in TYPES if has(left, name) and has(right, name)]
    return tuple(name for name in both if name != "integer" or "number" not in both)
