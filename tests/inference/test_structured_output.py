"""What may be asked for as structured output, and the check of the answers."""

import json
import sys
from typing import Any

import pytest
from rest_framework.exceptions import ValidationError

from inference.engine.gbnf import check_grammar
from inference.engine.sequence import FinishReason
from inference.errors import ErrorCode, InferenceError
from inference.structured_output import ResponseFormat, grammar_for, normalize, parse
from tests.inference.engine.schemas import SCHEMAS

OBJECT = ResponseFormat(type="json_object")
SCHEMA = {"type": "object", "properties": {"b": {"type": "integer"}, "a": {"format": "date"}}}


def as_format(schema: Any) -> ResponseFormat:
    response_format = normalize({"type": "json_schema", "json_schema": {"schema": schema}}, None)
    assert response_format is not None
    return response_format


def refusal(response_format: Any, output_schema: Any = None) -> tuple[str, str]:
    """The field that is blamed, and the message."""
    with pytest.raises(ValidationError) as refused:
        normalize(response_format, output_schema)
    details: Any = refused.value.detail
    ((field, [message]),) = details.items()
    return field, message


# What may be asked for


def test_plain_text_is_no_format() -> None:
    assert normalize(None, None) is None
    assert normalize({"type": "text"}, None) is None


def test_json_object_is_kept() -> None:
    assert normalize({"type": "json_object"}, None) == OBJECT


def test_schema_is_kept_as_text_with_the_order_of_its_properties() -> None:
    described = {"name": "my-answer_1", "schema": SCHEMA, "strict": True}
    response_format = normalize({"type": "json_schema", "json_schema": described}, None)
    assert response_format == {
        "type": "json_schema",
        "name": "my-answer_1",
        "schema": json.dumps(SCHEMA),
    }
    assert json.loads(json.dumps(response_format)) == response_format


@pytest.mark.parametrize("schema", [SCHEMA, True, {}])
def test_output_schema_is_a_json_schema_format(schema: Any) -> None:
    assert normalize(None, schema) == as_format(schema)


def test_explicit_response_format_wins_over_output_schema() -> None:
    assert normalize({"type": "json_object"}, SCHEMA) == OBJECT
    assert normalize({"type": "text"}, SCHEMA) is None


@pytest.mark.parametrize(
    ("response_format", "reason"),
    [
        ("json_object", "Give an object"),
        ([], "Give an object"),
        ({}, "Its type is text, json_object or json_schema"),
        ({"type": "xml"}, "Its type is"),
        ({"type": ["json_object"]}, "Its type is"),
        ({"type": "json_object", "schema": {}}, "Unknown field schema"),
        ({"type": "json_schema"}, "json_schema must be an object"),
        ({"type": "json_schema", "json_schema": {"name": "a"}}, 'must be an object with "schema"'),
        ({"type": "json_schema", "json_schema": {"schema": {}, "shema": 1}}, "Unknown field shema"),
        (
            {"type": "json_schema", "json_schema": {"schema": {}}, "strict": 1},
            "Unknown field strict",
        ),
        ({"type": "json_schema", "json_schema": {"schema": {}, "strict": "yes"}}, "strict is true"),
        ({"type": "json_schema", "json_schema": {"schema": {}, "name": "a b"}}, "name is made of"),
        ({"type": "json_schema", "json_schema": {"schema": {}, "name": 1}}, "name is made of"),
        ({"type": "json_schema", "json_schema": {"schema": None}}, "A schema is a JSON object"),
    ],
)
def test_bad_response_format_is_refused(response_format: Any, reason: str) -> None:
    field, message = refusal(response_format)
    assert field == "response_format"
    assert reason in message


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ({"properties": {"a": {"uniqueItems": True}}}, "#/properties/a: the keyword uniqueItems"),
        ({"$ref": "http://example.com"}, "leads out of the schema"),
        ({"pattern": "(a+)+"}, "exponential"),
        ({"title": 7}, "#/title: 7 is not of type 'string'"),
        ({"required": ["a", "a"]}, "#/required"),
        ({"default": float("nan")}, "cannot be written as JSON"),
        ("text", "A schema is a JSON object"),
    ],
)
def test_bad_schema_is_refused_by_the_field_that_holds_it(schema: Any, reason: str) -> None:
    field, message = refusal(None, schema)
    assert field == "output_schema"
    assert reason in message
    described = {"type": "json_schema", "json_schema": {"schema": schema}}
    assert refusal(described) == ("response_format", message)


def test_schema_nested_without_end_is_refused() -> None:
    deep: Any = {}
    for _ in range(sys.getrecursionlimit() * 2):
        deep = {"items": deep}
    assert "nested" in refusal(None, deep)[1]


def test_refusal_holds_little_of_a_long_schema() -> None:
    assert len(refusal(None, {"properties": {"a" * 10_000: {"b" * 10_000: 1}}})[1]) < 600


@pytest.mark.parametrize("name", SCHEMAS)
def test_every_schema_has_a_grammar(name: str) -> None:
    check_grammar(grammar_for(as_format(SCHEMAS[name])), must_end=True)


def test_json_object_has_a_grammar() -> None:
    check_grammar(grammar_for(OBJECT), must_end=True)


# The answers


def test_valid_answer_is_parsed() -> None:
    text = ' {"b": 1, "a": "2024-02-29"}\n'
    assert parse(text, FinishReason.STOP, as_format(SCHEMA)) == {"b": 1, "a": "2024-02-29"}
    text = r'{"x": [1.5, null, "\\u0000", "\ud83d\ude00"]}'
    assert parse(text, FinishReason.STOP, OBJECT) == {"x": [1.5, None, "\\u0000", "😀"]}


def test_answer_that_ends_with_the_last_token_allowed_is_valid() -> None:
    assert parse('{"b": 1}', FinishReason.LENGTH, as_format(SCHEMA)) == {"b": 1}


# Of each format, an answer that is refused and what the message says.
INVALID: list[tuple[Any, str, FinishReason, str]] = [
    ({}, '{"b": 1', FinishReason.LENGTH, "limit of tokens .* raise max_tokens"),
    ({}, "12", FinishReason.LENGTH, "number may have been cut off: raise max_tokens"),
    ({}, "", FinishReason.STOP, "no valid JSON: Expecting value: line 1 column 1"),
    ({}, '{"b": 1} and more', FinishReason.STOP, "no valid JSON: Extra data.*column 10"),
    ({}, '{"b": 1, "b": 2}', FinishReason.STOP, "property b twice"),
    ({}, "[NaN]", FinishReason.STOP, "NaN is no JSON number"),
    ({}, "[-Infinity]", FinishReason.STOP, "-Infinity is no JSON number"),
    ({}, "[1e999]", FinishReason.STOP, "number 1e999 is too large"),
    ({}, 5000 * "9", FinishReason.STOP, "no valid JSON: Exceeds the limit"),
    ({}, r'["\ud800"]', FinishReason.STOP, "surrogates not allowed"),
    ({}, r'["a\u0000"]', FinishReason.STOP, "contains a NUL"),
    ({}, r'{"\\\u0000": 1}', FinishReason.STOP, "contains a NUL"),
    ({}, '"\n"', FinishReason.STOP, "control character"),
    ({}, 100_000 * "[", FinishReason.LENGTH, "nested too deep"),
    (SCHEMA, '{"b": "1"}', FinishReason.STOP, "at #/b: '1' is not of type 'integer'"),
    (SCHEMA, '{"a": "2023-02-29"}', FinishReason.STOP, "at #/a: .* is not a 'date'"),
    (SCHEMA, "[1]", FinishReason.STOP, "at #: .* is not of type 'object'"),
    ({"pattern": "^a+$"}, '"ab"', FinishReason.STOP, r"at #: it does not match the pattern \^a\+"),
    ({"oneOf": [{"type": "integer"}, {"minimum": 1}]}, "5", FinishReason.STOP, "valid under each"),
]


@pytest.mark.parametrize(("schema", "text", "finish_reason", "reason"), INVALID)
def test_invalid_answer_is_refused_with_the_reason(
    schema: Any, text: str, finish_reason: FinishReason, reason: str
) -> None:
    with pytest.raises(InferenceError, match=reason) as refused:
        parse(text, finish_reason, as_format(schema))
    assert refused.value.code == ErrorCode.STRUCTURED_OUTPUT_INVALID
    assert f"It has {len(text)} characters and ends with " in refused.value.message


@pytest.mark.parametrize("text", ["[1]", "1", '"a"', "null", ""])
def test_json_object_is_an_object(text: str) -> None:
    with pytest.raises(InferenceError, match=r"no object|no valid JSON"):
        parse(text, FinishReason.STOP, OBJECT)


@pytest.mark.parametrize("value", [{"b": "x" * 10_000}, {"b" * 10_000: 1}, ["x" * 10_000]])
def test_message_holds_little_of_a_long_answer(value: Any) -> None:
    schema = {"type": "object", "additionalProperties": {"type": "null"}}
    with pytest.raises(InferenceError) as refused:
        parse(json.dumps(value), FinishReason.STOP, as_format(schema))
    assert len(refused.value.message) < 700
