"""Ends of what a schema leaves without: numbers with many digits, long strings, deep values."""

from collections.abc import Iterable
from decimal import Decimal
from typing import Any

from inference.engine.errors import SchemaError
from inference.engine.schema_policy.document import TYPES

Schema = dict[str, Any]

MAX_STRING_CHARS = 16_384
# How deep a value that the schema leaves open may be nested.
MAX_ANY_DEPTH = 10
# Whole numbers that every JSON parser reads exactly.
MAX_NUMBER = 2**53 - 1
MAX_FRACTION_DIGITS = 9
MAX_REMAINDERS = 10_000

ANY = {"$ref": f"#/$defs/any-{MAX_ANY_DEPTH}"}
_LOWER, _UPPER = ("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")


def limits(types: Iterable[str], written: list[Schema], said: set[str]) -> Schema:
    """Ends of what the schema leaves without: long strings, numbers with many digits."""
    found: Schema = {}
    if "string" in types and not said & {"maxLength", "pattern"}:
        least = max((part.get("minLength", 0) for part in written), default=0)
        found["maxLength"] = max(MAX_STRING_CHARS, least)
    if {"number", "integer"} & set(types):
        if not said & set(_LOWER):
            found["minimum"] = -MAX_NUMBER
        if not said & set(_UPPER):
            found["maximum"] = MAX_NUMBER
    if "number" in types and "multipleOf" not in said:
        bounds = [part[word] for part in written for word in (*_LOWER, *_UPPER) if word in part]
        if all(_num_fraction_digits(bound) < MAX_FRACTION_DIGITS for bound in bounds):
            found["multipleOf"] = float(f"1e-{MAX_FRACTION_DIGITS}")
    return found


def bounds_of(schema: Schema, pointer: str) -> Schema:
    """The bounds of a number, those aside that are beyond all that is written."""
    bounds: Schema = {}
    for (inclusive, strict), sign in ((_LOWER, -1), (_UPPER, 1)):
        for keyword in (inclusive, strict):
            value = schema.get(keyword)
            if value is True and inclusive in schema:  # draft 4
                value = schema[inclusive]
            if value is None or isinstance(value, bool) or sign * value > MAX_NUMBER:
                continue
            if -sign * value > MAX_NUMBER:
                message = f"A bound beyond {MAX_NUMBER} cannot be used: round it, or leave it out."
                raise SchemaError(f"{pointer}/{keyword}: {message}")
            bounds[keyword] = value
    return bounds


def num_remainders(divisor: float) -> int:
    """How many states llguidance counts in it with: the divisor without its decimal point.

    0 if it has too many decimals for that, or is not exact where the library multiplies it by ten.
    """
    scaled, num_digits = float(divisor), _num_fraction_digits(divisor)
    for _ in range(num_digits):
        scaled *= 10
    return int(scaled) if num_digits <= MAX_FRACTION_DIGITS and scaled.is_integer() else 0


def _num_fraction_digits(value: float) -> int:
    exponent = Decimal(repr(value)).normalize().as_tuple().exponent
    return max(0, -exponent) if isinstance(exponent, int) else 0


def any_definitions() -> dict[str, Any]:
    """Any JSON value, nested to a depth, with numbers and strings that end."""
    definitions: dict[str, Any] = {}
    for depth in range(MAX_ANY_DEPTH + 1):
        plain = {"type": ["null", "boolean", "number", "string"], **limits(TYPES, [], set())}
        inner = {"$ref": f"#/$defs/any-{depth - 1}"}
        nested = [
            {"type": "object", "additionalProperties": inner},
            {"type": "array", "items": inner},
        ]
        definitions[f"any-{depth}"] = {"anyOf": [*nested, plain]} if depth else plain
    return definitions
