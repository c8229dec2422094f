"""Strings and numbers within their limits."""

import math
from decimal import Decimal
from typing import Any

from inference.engine.errors import SchemaError
from inference.engine.json_schema.formats import FORMATS
from inference.engine.json_schema.keywords import Schema
from inference.engine.json_schema.numbers import (
    MAX_BOUND_DIGITS,
    MAX_DIGITS,
    Bound,
    decimals,
    integers,
    num_fraction_digits,
)
from inference.engine.json_schema.pattern import parse_pattern
from inference.engine.json_schema.regex import limit_length, to_gbnf
from inference.engine.json_schema.rules import Rules


def string_body(schema: Schema, rules: Rules) -> str:
    least, most = schema.get("minLength", 0), schema.get("maxLength")
    if most is not None and least > most:
        raise SchemaError(f"minLength {least} is more than maxLength {most}: correct one.")
    if pattern := _pattern(schema):
        chars = to_gbnf(limit_length(parse_pattern(pattern), least, most), rules)
    elif least == 0 and most is None:
        return rules.primitive("string")
    else:
        rules.primitive("string")
        chars = rules.repeat("char", least, most)
    return rf'"\"" {chars} "\""'


def integer_body(schema: Schema, rules: Rules) -> str:
    low, high = _bounds(schema)
    if low is None and high is None:
        return rules.primitive("integer")
    first = None if low is None else math.ceil(low.value)
    if low and first == low.value and low.is_strict:
        first = math.ceil(low.value) + 1
    last = None if high is None else math.floor(high.value)
    if high and last == high.value and high.is_strict:
        last = math.floor(high.value) - 1
    most = _beyond(low, high)
    first, last = -most if first is None else first, most if last is None else last
    if first > last:
        raise SchemaError("No whole number lies between its minimum and maximum: correct one.")
    return integers(first, last)


def number_body(schema: Schema, rules: Rules) -> str:
    low, high = _bounds(schema)
    if low is None and high is None:
        return rules.primitive("number")
    most = Decimal(_beyond(low, high))
    body = decimals(low or Bound(-most), high or Bound(most))
    if body is None:
        raise SchemaError("No number lies between its minimum and maximum: correct one.")
    return body


def _pattern(schema: Schema) -> str | None:
    pattern: str | None = schema.get("pattern")
    name = schema.get("format")
    if name is None:
        return pattern
    if pattern is not None:
        raise SchemaError("pattern and format cannot be combined: leave one out.")
    if name not in FORMATS:
        known = ", ".join(FORMATS)
        raise SchemaError(f"The format {name} is not supported, only {known}: leave it out.")
    return FORMATS[name]


def _bounds(schema: Schema) -> tuple[Bound | None, Bound | None]:
    low = _tighter(schema, "minimum", "exclusiveMinimum", 1)
    high = _tighter(schema, "maximum", "exclusiveMaximum", -1)
    return low, high


def _tighter(schema: Schema, inclusive: str, exclusive: str, sign: int) -> Bound | None:
    """The bound that leaves less; at the same value, the strict one."""
    bounds = [
        Bound(_decimal(schema[keyword]), is_strict=keyword == exclusive)
        for keyword in (inclusive, exclusive)
        if keyword in schema
    ]
    return max(bounds, key=lambda bound: (sign * bound.value, bound.is_strict), default=None)


def _decimal(value: Any) -> Decimal:
    number = Decimal(repr(value))
    if abs(number) >= Decimal(10) ** MAX_BOUND_DIGITS or num_fraction_digits(number) > MAX_DIGITS:
        raise SchemaError(f"The bound {value} is too large or too fine: round it, or leave it out.")
    return number


def _beyond(*bounds: Bound | None) -> int:
    """Where a number ends that has no bound on one side, so that its digits do."""
    sizes = [len(str(abs(int(bound.value)))) + 1 for bound in bounds if bound]
    return int("9" * max(MAX_DIGITS, *sizes))
