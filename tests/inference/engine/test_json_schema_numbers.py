"""Numbers: the grammar allows those between the bounds, and no others."""

from decimal import Decimal

import jsonschema
from hypothesis import example, given, settings
from hypothesis import strategies as st

from inference.engine.errors import SchemaError
from inference.engine.json_schema import compile_schema
from tests.inference.engine.grammar_acceptor import GrammarAcceptor

INTEGERS = st.integers(-1200, 1200) | st.integers(-(10**20), 10**20)
DECIMALS = st.decimals(-200, 200, places=2) | st.decimals(-1, 1, places=4)
LOW = st.sampled_from(["minimum", "exclusiveMinimum"])
HIGH = st.sampled_from(["maximum", "exclusiveMaximum"])


@settings(max_examples=200, deadline=None)
@given(low=INTEGERS, high=INTEGERS, value=INTEGERS, low_keyword=LOW, high_keyword=HIGH)
def test_integers_between_two_bounds(
    acceptor: GrammarAcceptor, low: int, high: int, value: int, low_keyword: str, high_keyword: str
) -> None:
    schema = {"type": "integer", low_keyword: low, high_keyword: high}
    try:
        grammar = compile_schema(schema)
    except SchemaError:
        assert not any(_is_valid(number, schema) for number in range(low, min(high, low + 2) + 1))
        return
    for number in (value, low - 1, low, low + 1, high - 1, high, high + 1):
        assert acceptor.accepts(grammar, str(number)) == _is_valid(number, schema)


@settings(max_examples=100, deadline=None)
@given(bound=INTEGERS, value=INTEGERS, keyword=LOW | HIGH)
def test_integers_with_one_bound(
    acceptor: GrammarAcceptor, bound: int, value: int, keyword: str
) -> None:
    schema = {"type": "integer", keyword: bound}
    grammar = compile_schema(schema)
    for number in (bound - 1, bound, bound + 1, value % 10**15, -value % 10**15):
        assert acceptor.accepts(grammar, str(number)) == _is_valid(number, schema)


@settings(max_examples=200, deadline=None)
@given(low=DECIMALS, high=DECIMALS, value=DECIMALS, low_keyword=LOW, high_keyword=HIGH)
@example(Decimal(-1), Decimal(0), Decimal("-0.0"), "minimum", "exclusiveMaximum")
@example(Decimal(0), Decimal(1), Decimal("1.000"), "exclusiveMinimum", "maximum")
def test_numbers_between_two_bounds(
    acceptor: GrammarAcceptor,
    low: Decimal,
    high: Decimal,
    value: Decimal,
    low_keyword: str,
    high_keyword: str,
) -> None:
    schema = {"type": "number", low_keyword: float(low), high_keyword: float(high)}
    try:
        grammar = compile_schema(schema)
    except SchemaError:
        assert not _is_valid(float((low + high) / 2), schema)
        return
    near = Decimal("0.00001")
    for number in (
        value,
        low - near,
        low,
        low + near,
        high - near,
        high,
        high + near,
        (low + high) / 2,
    ):
        assert acceptor.accepts(grammar, f"{number:f}") == _is_valid(float(number), schema), number


@settings(max_examples=100, deadline=None)
@given(
    bounds=st.lists(DECIMALS, min_size=1, max_size=2), low=LOW, high=HIGH, seed=st.integers(0, 99)
)
def test_written_numbers_are_within_the_bounds(
    acceptor: GrammarAcceptor, bounds: list[Decimal], low: str, high: str, seed: int
) -> None:
    schema: dict[str, object] = dict(zip((low, high), map(float, sorted(bounds)), strict=False))
    try:
        grammar = compile_schema(schema)
    except SchemaError:
        assert len(bounds) == 2
        return
    written = acceptor.write(grammar, seed, 60)
    assert written is not None
    jsonschema.validate(float(written), schema)


def _is_valid(value: float, schema: dict[str, object]) -> bool:
    return bool(jsonschema.Draft202012Validator(schema).is_valid(value))
