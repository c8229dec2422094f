"""What may be asked for as structured output, and the check of the answers."""

import json
import sys
from typing import Any

import pytest
from rest_framework.exceptions import ValidationError

from inference.engine.sequence import FinishReason
from inference.errors import ErrorCode, InferenceError
from inference.structured_output import ResponseFormat, constraint_for, normalize, parse
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
        ({}, "Its type is text, json_object, json_schema, regex, lark or choice"),
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
        ({"properties": {"a": {"uniqueItem": True}}}, "#/properties/a: The keyword uniqueItem is"),
        ({"$ref": "http://example.com"}, "leads out of the schema"),
        ({"pattern": "(?=a)"}, "#: The pattern is not supported"),
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
    assert len(refusal(None, {"properties": {"a" * 10_000: {"type": "b" * 10_000}}})[1]) < 600


# Four million times /a/, in one terminal.
HUGE = "start: T0\n" + "\n".join(f"T{n}: T{n + 1} T{n + 1}" for n in range(22)) + "\nT22: /a/"

TEXT_FORMATS: list[tuple[dict[str, Any], list[str], list[str]]] = [
    ({"type": "regex", "regex": "[a-z]{2}-[0-9]"}, ["ab-1"], ["ab-", "ab-12", "xab-1", ""]),
    ({"type": "regex", "regex": "^a|b$"}, ["a", "b"], ["ab"]),
    ({"type": "choice", "choices": ["a.b", "a.b c\n", "é(["]}, ["a.b", "a.b c\n", "é(["], ["aXb"]),
    (
        {"type": "choice", "choices": [f"item {number}" for number in range(5000)]},
        ["item 4999", "item 1"],
        ["item 5000", "item "],
    ),
    ({"type": "lark", "lark": 'start: "(" start ")" | "x"'}, ["x", "((x))"], ["((x)", "y"]),
    ({"type": "lark", "lark": 'start: "<[5]>" /[<@%]/ // <a>'}, ["<[5]>%"], ["<[5]>"]),
]


@pytest.mark.parametrize(("asked", "good", "bad"), TEXT_FORMATS, ids=str)
def test_text_format_is_kept_and_its_answers_are_checked(
    asked: Any, good: list[str], bad: list[str]
) -> None:
    response_format = normalize(asked, None)
    assert response_format == asked
    assert constraint_for(asked)
    for text in good:
        assert parse(text, FinishReason.STOP, asked) == text
    for text in bad:
        with pytest.raises(InferenceError, match="does not follow") as refused:
            parse(text, FinishReason.STOP, asked)
        assert refused.value.code == ErrorCode.STRUCTURED_OUTPUT_INVALID


@pytest.mark.parametrize(
    ("asked", "text", "is_complete"),
    [
        ({"type": "choice", "choices": ["yes", "yes, please"]}, "yes", False),
        ({"type": "choice", "choices": ["yes", "yes, please"]}, "yes, please", True),
        ({"type": "regex", "regex": "a+"}, "aa", False),
        ({"type": "regex", "regex": "a{2}"}, "aa", True),
        ({"type": "lark", "lark": 'start: "a"+'}, "aa", False),
    ],
)
def test_text_that_may_have_been_cut_is_refused(asked: Any, text: str, is_complete: bool) -> None:
    if is_complete:
        assert parse(text, FinishReason.LENGTH, asked) == text
    else:
        with pytest.raises(InferenceError, match="cut off: raise max_tokens"):
            parse(text, FinishReason.LENGTH, asked)
    assert parse(text, FinishReason.STOP, asked) == text


def test_answer_that_is_too_ambiguous_to_be_checked_is_refused() -> None:
    rules = 'start: x\nx: "a" y | "a" z | ""\ny: "a" x x | "b"\nz: "a" x x | "c"'
    asked: Any = {"type": "lark", "lark": rules}
    assert parse(30 * "a", FinishReason.STOP, asked) == 30 * "a"
    with pytest.raises(InferenceError, match="does not follow"):
        parse(5000 * "a", FinishReason.STOP, asked)


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        ({"type": "regex"}, "regex must be a text"),
        ({"type": "regex", "regex": "a", "flags": "i"}, "Unknown field flags"),
        ({"type": "regex", "regex": "(?=a)b"}, "look-around"),
        ({"type": "regex", "regex": "("}, "unclosed group"),
        ({"type": "regex", "regex": "a\0"}, "NUL"),
        ({"type": "regex", "regex": "[a&&b]"}, "No text follows it"),
        ({"type": "regex", "regex": 20_000 * "a"}, "larger than 16384 bytes"),
        ({"type": "choice", "choices": []}, "Give 1 to 10000 texts"),
        ({"type": "choice", "choices": ["a", "a"]}, "none of them twice"),
        ({"type": "choice", "choices": [f"{n:09}" for n in range(20_000)]}, "Give 1 to 10000"),
        ({"type": "choice", "choices": [140_000 * "a"]}, "larger than 131072 bytes"),
        ({"type": "choice", "choices": ["a", 1]}, "must be a list of texts"),
        ({"type": "choice", "choices": "a"}, "must be a list of texts"),
        ({"type": "lark", "lark": "start: <|im_end|>"}, "Line 1: Tokens in <…>"),
        ({"type": "lark", "lark": 'start: "a" <[5]>'}, "Tokens in <…>"),
        ({"type": "lark", "lark": "start: <[*]>"}, "Tokens in <…>"),
        ({"type": "lark", "lark": 'start: "a\\"" <[5]> "b"'}, "Tokens in <…>"),
        ({"type": "lark", "lark": "start: /a\\/<b/ <[5]>"}, "Tokens in <…>"),
        ({"type": "lark", "lark": 'start: "a"\nb: %json {"x-guidance": {}}'}, "Line 2: Only the"),
        ({"type": "lark", "lark": '%llguidance {}\nstart: "a"'}, "Only the directive %ignore"),
        ({"type": "lark", "lark": '%import common.INT\nstart: "a"'}, "Only the directive"),
        ({"type": "lark", "lark": "start: @other"}, "Other grammars"),
        ({"type": "lark", "lark": "start[max_tokens=1]: /a+/"}, "options"),
        ({"type": "lark", "lark": "start: T\nT: /a*/ & ~/aa/"}, "Line 2: The operators & and ~"),
        ({"type": "lark", "lark": "start: x"}, "unknown name"),
        ({"type": "lark", "lark": HUGE}, "takes too long"),
        ({"type": "lark", "lark": 'start: start "a"'}, "No text follows it"),
        ({"type": "lark", "lark": 'a: "a"'}, "no start rule"),
    ],
)
def test_bad_text_format_is_refused(asked: Any, reason: str) -> None:
    field, message = refusal(asked)
    assert field == "response_format"
    assert reason in message


@pytest.mark.parametrize(
    ("options", "reason"),
    [({"close": False}, "Unknown field close"), ({"closed": 0}, "options is"), ([], "options is")],
)
def test_bad_options_are_refused(options: Any, reason: str) -> None:
    described = {"schema": {}, "options": options}
    assert reason in refusal({"type": "json_schema", "json_schema": described})[1]


def test_options_are_kept_and_reach_the_constraint_and_the_check() -> None:
    described = {"schema": {"format": "date"}, "options": {"formats": False}}
    asked = normalize({"type": "json_schema", "json_schema": described}, None)
    assert asked is not None
    assert asked["options"] == {"formats": False}
    assert constraint_for(asked) != constraint_for(as_format({"format": "date"}))
    assert parse('"tomorrow"', FinishReason.STOP, asked) == "tomorrow"
    with pytest.raises(InferenceError, match="is not a 'date'"):
        parse('"tomorrow"', FinishReason.STOP, as_format({"format": "date"}))


@pytest.mark.parametrize("schema", [*SCHEMAS.values(), {}, True])
def test_every_format_has_a_constraint(schema: Any) -> None:
    assert constraint_for(as_format(schema)) != constraint_for(OBJECT)


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
    ({"uniqueItems": True}, "[1, 1.0]", FinishReason.STOP, "two items of it are equal"),
    ({"uniqueItems": True}, '[{"a": 1}, {"a": 1}]', FinishReason.STOP, "two items of it are equal"),
    ({"multipleOf": 0.01}, "19.999", FinishReason.STOP, "is not a multiple of 0.01"),
    ({"patternProperties": {"^a": False}}, '{"ab": 1}', FinishReason.STOP, "at #: False schema"),
    ({"additionalProperties": False}, '{"a": 1}', FinishReason.STOP, "property a is not allowed"),
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
