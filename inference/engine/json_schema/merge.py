"""allOf: two schemas as one that asks for both."""

from collections.abc import Callable
from typing import Any

from inference.engine.errors import SchemaError
from inference.engine.json_schema.keywords import TYPES, Schema

_Both = Callable[[Any, Any], Any]


def merge(left: Schema, right: Schema) -> Schema:
    """What fits both; neither has $ref or allOf. Raises SchemaError where that cannot be said."""
    merged = left | right
    for keyword in (left.keys() & right.keys()) - _OBJECT_KEYWORDS:
        if keyword in _BOTH or left[keyword] != right[keyword]:
            merged[keyword] = _both(keyword)(left[keyword], right[keyword])
    if _has_open_prefix(left, right):
        raise SchemaError("prefixItems cannot be merged: write the array in one place.")
    return merged | _merge_properties(left, right)


def all_of(left: Any, right: Any) -> Any:
    """Both of two subschemas, to be merged when they are compiled."""
    if left is False or right is False:
        return False
    wanted = [schema for schema in (left, right) if schema not in (True, {})]
    if not wanted:
        return True
    return wanted[0] if len(wanted) == 1 or left == right else {"allOf": wanted}


def is_type(value: Any, name: str) -> bool:
    """Whether JSON Schema counts the value as of this type."""
    if isinstance(value, bool):
        return name == "boolean"
    if isinstance(value, float) and name == "integer":
        return value.is_integer()
    kinds: dict[str, type | tuple[type, ...]] = {
        "object": dict,
        "array": list,
        "string": str,
        "number": (int, float),
        "integer": int,
        "null": type(None),
    }
    return name in kinds and isinstance(value, kinds[name])


def type_names(value: Any) -> list[str]:
    return value if isinstance(value, list) else [value]


def same(left: Any, right: Any) -> bool:
    """Equal as JSON values: Python takes True for 1."""
    if isinstance(left, bool) or isinstance(right, bool):
        return left is right
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(same, left, right))
    return bool(left == right)


def _both(keyword: str) -> _Both:
    if keyword not in _BOTH:
        raise SchemaError(f"Two different values of {keyword} cannot be merged: write one.")
    return _BOTH[keyword]


def _both_types(left: Any, right: Any) -> list[str]:
    allowed = [_with_integer(type_names(value)) for value in (left, right)]
    names = [name for name in TYPES if all(name in types for types in allowed)]
    if not names:
        raise SchemaError(f"The types {left} and {right} exclude each other: correct one.")
    return [name for name in names if name != "integer" or "number" not in names]


def _with_integer(names: list[str]) -> list[str]:
    return [*names, "integer"] if "number" in names else names


def _both_values(left: list[Any], right: list[Any]) -> list[Any]:
    values = [value for value in left if any(same(value, other) for other in right)]
    if not values:
        raise SchemaError("Two lists of values have none in common: correct one.")
    return values


def _union(left: list[str], right: list[str]) -> list[str]:
    return list(dict.fromkeys([*left, *right]))


def _has_open_prefix(left: Schema, right: Schema) -> bool:
    """Whether `items` of one means other places of the array than `items` of the other."""
    return any(
        "prefixItems" in one and "prefixItems" not in other and "items" in other
        for one, other in ((left, right), (right, left))
    )


def _merge_properties(left: Schema, right: Schema) -> Schema:
    """Each property as its own schemas want it, or the additionalProperties of the other side."""
    if not (left.keys() | right.keys()) & _OBJECT_KEYWORDS:
        return {}
    names = _union(list(left.get("properties", {})), list(right.get("properties", {})))
    merged = {name: all_of(_property(left, name), _property(right, name)) for name in names}
    result: Schema = {"properties": merged} if "properties" in left | right else {}
    if "additionalProperties" in left | right:
        sides = [side.get("additionalProperties", True) for side in (left, right)]
        result["additionalProperties"] = all_of(*sides)
    return result


def _property(side: Schema, name: str) -> Any:
    return side.get("properties", {}).get(name, side.get("additionalProperties", True))


_OBJECT_KEYWORDS = {"properties", "additionalProperties"}
_BOTH: dict[str, _Both] = {
    "type": _both_types,
    "enum": _both_values,
    "required": _union,
    "items": all_of,
    **dict.fromkeys(("minLength", "minItems", "minProperties"), max),
    **dict.fromkeys(("minimum", "exclusiveMinimum"), max),
    **dict.fromkeys(("maxLength", "maxItems", "maxProperties"), min),
    **dict.fromkeys(("maximum", "exclusiveMaximum"), min),
}
