"""Random schemas: what can be written is valid, or is found out at the end."""

import json
import random
from functools import partial
from typing import Any

import jsonschema
import numpy as np
from hypothesis import assume, given
from hypothesis import strategies as st

from inference.engine.byte_matcher import byte_matcher
from inference.engine.errors import SchemaError
from inference.engine.schema_policy import Options, compile_schema, find_mismatch
from inference.engine.text_grammars import is_complete

AS_GIVEN = Options(closed=False, typed=False, bounded=False, formats=False)
accepts = partial(is_complete, was_cut=False)
NAMES = st.sampled_from(["a", "b", 'c"', "é"])
COUNTS = st.integers(0, 3)
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.sampled_from(["", "a", "ab", "1.5", 0.5]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=5,
)
ANY_TYPE = st.sampled_from(["null", "boolean", "integer", "number", "string", "array", "object"])
# Keywords that are kept while an answer is written.
PLAIN: dict[str, st.SearchStrategy[Any]] = {
    "type": ANY_TYPE | st.lists(ANY_TYPE, min_size=1, max_size=3, unique=True),
    "enum": st.lists(VALUES, min_size=1, max_size=3),
    "const": VALUES,
    "minLength": COUNTS,
    "maxLength": COUNTS,
    "pattern": st.sampled_from(["^a", "b$", "^[ab]*$", r"^\d", "a|b"]),
    "minimum": st.integers(-5, 5) | st.sampled_from([0.5, -1.25]),
    "exclusiveMinimum": st.integers(-5, 5),
    "maximum": st.integers(-5, 5) | st.sampled_from([2.5]),
    "exclusiveMaximum": st.integers(-5, 5),
    "multipleOf": st.sampled_from([1, 2, 0.5]),
    "minItems": COUNTS,
    "maxItems": COUNTS,
    "required": st.lists(NAMES, max_size=2, unique=True),
    "dependentRequired": st.dictionaries(NAMES, st.lists(NAMES, max_size=2), max_size=1),
}
# Those that are checked at the end.
CHECKED: dict[str, st.SearchStrategy[Any]] = {
    "uniqueItems": st.booleans(),
    "minProperties": COUNTS,
    "maxProperties": COUNTS,
    "minContains": COUNTS,
}


def schemas_of(inner: st.SearchStrategy[Any], *, with_checked: bool) -> st.SearchStrategy[Any]:
    listed = st.lists(inner, min_size=1, max_size=2)
    keywords = PLAIN | {
        "properties": st.dictionaries(NAMES, inner, max_size=3),
        "additionalProperties": inner,
        "items": inner,
        "prefixItems": listed,
        "allOf": listed,
        "anyOf": listed,
        "$ref": st.just("#/$defs/node"),
    }
    if with_checked:
        keywords |= CHECKED | {
            **dict.fromkeys(("not", "if", "then", "else", "contains", "propertyNames"), inner),
            "oneOf": listed,
            "unevaluatedProperties": inner,
            "unevaluatedItems": inner,
            "dependentSchemas": st.dictionaries(NAMES, inner, max_size=1),
        }
    chosen = st.lists(st.sampled_from(sorted(keywords)), min_size=1, max_size=4, unique=True)
    return chosen.flatmap(lambda names: st.fixed_dictionaries({k: keywords[k] for k in names}))


def schemas(*, with_checked: bool) -> st.SearchStrategy[Any]:
    inner: st.SearchStrategy[Any] = st.recursive(
        st.booleans() | st.just({}),
        lambda below: schemas_of(below, with_checked=with_checked),
        max_leaves=4,
    )
    whole = schemas_of(inner, with_checked=with_checked)
    return st.builds(lambda schema, node: {**schema, "$defs": {"node": node}}, whole, inner)


def written_by(grammar: str, chooser: random.Random, max_bytes: int = 400) -> str | None:
    """A text that the grammar allows, chosen byte by byte; None for one that does not end."""
    matcher, written = byte_matcher(grammar), bytearray()
    while len(written) < max_bytes and not matcher.is_stopped():
        mask = np.frombuffer(matcher.compute_bitmask(), dtype=np.uint8)
        allowed = [int(i) for i in np.flatnonzero(np.unpackbits(mask, bitorder="little")[:256])]
        if not allowed or (matcher.is_accepting() and chooser.random() < 0.3):
            break
        ends = [byte for byte in allowed if byte in b'"}],']
        byte = chooser.choice(ends if ends and chooser.random() < 0.6 else allowed)
        assert matcher.consume_token(byte)
        written.append(byte)
    return written.decode() if matcher.is_accepting() else None


def is_valid(schema: Any, value: Any) -> bool:
    """As the library says, without anything of ours."""
    return bool(jsonschema.Draft202012Validator(schema).is_valid(value))


def is_completed(schema: Any, value: Any) -> bool:
    return find_mismatch(json.dumps(schema), value, has_formats=False) is None


def compiled(schema: Any, options: Options) -> str:
    try:
        return compile_schema(schema, options)
    except SchemaError:
        assume(False)
        raise


@given(schemas(with_checked=False), st.randoms(use_true_random=False))
def test_what_is_written_by_plain_keywords_is_valid(schema: Any, chooser: random.Random) -> None:
    for options in (Options(), AS_GIVEN):
        text = written_by(compiled(schema, options), chooser)
        if text is not None:
            assert is_valid(schema, json.loads(text))


@given(schemas(with_checked=True), VALUES, st.randoms(use_true_random=False))
def test_no_invalid_value_is_completed(schema: Any, value: Any, chooser: random.Random) -> None:
    texts = [written_by(compiled(schema, options), chooser) for options in (Options(), AS_GIVEN)]
    for candidate in [value, *(json.loads(text) for text in texts if text is not None)]:
        assert is_completed(schema, candidate) == is_valid(schema, candidate)


@given(schemas(with_checked=False), st.lists(VALUES, min_size=5, max_size=5))
def test_valid_values_can_be_written(schema: Any, values: list[Any]) -> None:
    grammar = compiled(schema, AS_GIVEN)
    for value in values:
        # Members are written in the order of the schema.
        text = json.dumps(value, ensure_ascii=False)
        if "," not in text and is_valid(schema, value):
            assert accepts(grammar, text)
