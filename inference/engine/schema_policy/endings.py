"""Whether a value can be written to its end, in a schema that the policies have rewritten."""

import math
from typing import Any

from inference.engine.schema_policy.document import TYPES
from inference.engine.schema_policy.policies import Rewritten

# Each round finds more that ends; schemas as people write them take two or three.
_MAX_ROUNDS = 100
_ENDLESS = "Each value of it holds another one, without end: let one be left out."


def why_endless(rewritten: Rewritten) -> str | None:
    """Why no value satisfies the schema, with a pointer; None if one does, as far as is seen.

    Seen are a schema's own keywords: what excludes each other in different parts of allOf is not.
    """
    return _Endings(rewritten).of_root()


class _Endings:
    """What is known of each definition: why it does not end, or None."""

    def __init__(self, rewritten: Rewritten) -> None:
        self._rewritten = rewritten
        self._reasons: dict[str, str | None] = {
            name: f"{self._pointer(schema)}: {_ENDLESS}"
            for name, schema in rewritten.definitions.items()
        }

    def of_root(self) -> str | None:
        for _ in range(_MAX_ROUNDS):
            endless = [name for name, reason in self._reasons.items() if reason is not None]
            for name in endless:
                self._reasons[name] = self._of(self._rewritten.definitions[name])
            if all(self._reasons[name] is not None for name in endless):
                break
        return self._of(self._rewritten.root)

    def _pointer(self, schema: Any) -> str:
        return self._rewritten.pointers.get(id(schema), "#")

    def _of(self, schema: Any) -> str | None:
        if isinstance(schema, bool):
            return None if schema else "#: The schema false allows no value: correct it."
        if id(schema) in self._rewritten.reasons:
            return self._rewritten.reasons[id(schema)]
        if "$ref" in schema:
            return self._reasons[schema["$ref"].removeprefix("#/$defs/")]
        needed = [self._of(part) for part in schema.get("allOf", ())]
        for keyword in ("anyOf", "oneOf"):
            branches = [self._of(branch) for branch in schema.get(keyword, ())]
            if all(branches):
                needed += branches[:1]
        if found := next(filter(None, needed), None):
            return found
        of_types = [self._of_type(schema, name) for name in schema.get("type", TYPES)]
        reason = None if None in of_types else of_types[0]
        if reason is None or reason.startswith("#"):
            return reason
        return f"{self._pointer(schema)}: {reason}: correct it."

    def _of_type(self, schema: dict[str, Any], name: str) -> str | None:
        match name:
            case "object":
                return self._of_object(schema)
            case "array":
                return self._of_array(schema)
            case "string":
                return _order("Length", schema)
            case "number" | "integer":
                return _interval(schema, is_whole=name == "integer")
        return None

    def _of_object(self, schema: dict[str, Any]) -> str | None:
        properties, required = schema.get("properties", {}), schema.get("required", ())
        other = "patternProperties" in schema or schema.get("additionalProperties", True)
        least = schema.get("minProperties", 0)
        if other is False and least > len(properties.keys() | required):
            return f"minProperties is {least}, but only {len(properties)} are declared"
        if forbidden := [name for name in required if properties.get(name, other) is False]:
            return f"The property {forbidden[0]} is required, but forbidden"
        values = [self._of(properties.get(name, other)) for name in required]
        return next(filter(None, values), None) or _order("Properties", schema, len({*required}))

    def _of_array(self, schema: dict[str, Any]) -> str | None:
        least = schema.get("minItems", 0)
        items = schema.get("prefixItems", [])[:least]
        if least > len(items):
            if (other := schema.get("items", True)) is False:
                return f"minItems is {least}, but only {len(items)} are allowed"
            items = [*items, other]
        return next(filter(None, map(self._of, items)), None) or _order("Items", schema)


def _order(of_what: str, schema: dict[str, Any], least: int = 0) -> str | None:
    least = max(least, schema.get(f"min{of_what}", 0))
    most = schema.get(f"max{of_what}", least)
    return f"min{of_what} {least} is more than max{of_what} {most}" if least > most else None


def _interval(schema: dict[str, Any], *, is_whole: bool) -> str | None:
    low = max((schema[k] for k in ("minimum", "exclusiveMinimum") if k in schema), default=None)
    high = min((schema[k] for k in ("maximum", "exclusiveMaximum") if k in schema), default=None)
    if low is None or high is None:
        return None
    first, last = (math.ceil(low), math.floor(high)) if is_whole else (low, high)
    is_first_out = schema.get("exclusiveMinimum") == first
    is_last_out = schema.get("exclusiveMaximum") == last
    if is_whole and first + is_first_out > last - is_last_out:
        return "No whole number lies between its minimum and maximum"
    if first > last or (first == last and (is_first_out or is_last_out)):
        return "No number lies between its minimum and maximum"
    return None
