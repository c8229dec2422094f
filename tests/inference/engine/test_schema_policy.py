"""JSON Schemas as constraints: what can be written, what is narrowed, what is refused."""

import json
import re
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from inference.engine.byte_matcher import byte_matcher
from inference.engine.errors import SchemaError
from inference.engine.schema_policy import Options, compile_schema, find_mismatch
from inference.engine.schema_policy.document import KEYWORDS
from inference.engine.text_grammars import is_complete
from tests.inference.engine.schemas import SCHEMAS

AS_GIVEN = Options(closed=False, typed=False, bounded=False, formats=False)
INTEGER = {"type": "integer"}
PAIR = {"type": "object", "properties": {"a": INTEGER, "b": INTEGER}}
KIND = [
    {"properties": {"kind": {"const": "circle"}, "radius": INTEGER}, "required": ["kind"]},
    {"properties": {"kind": {"const": "square"}, "side": INTEGER}, "required": ["kind"]},
]
accepts = partial(is_complete, was_cut=False)
SUITE = json.loads(Path(__file__).with_name("json_schema_test_suite.json").read_text())["cases"]
DOCS = Path(__file__).parents[3] / "docs" / "structured-output.md"


def documented() -> dict[str, str]:
    """What the documentation says of each keyword."""
    kinds = "exact|narrowed|checked at the end|refused"
    rows = re.findall(rf"^\| (`.*`) \| ({kinds}) \|", DOCS.read_text(), re.MULTILINE)
    return {keyword: kind for names, kind in rows for keyword in re.findall(r"`([^`]+)`", names)}


def keywords_in(schema: Any) -> set[str]:
    """All that look like keywords, at any depth."""
    if isinstance(schema, list):
        return {keyword for item in schema for keyword in keywords_in(item)}
    if not isinstance(schema, dict):
        return set()
    return {*schema, *keywords_in(list(schema.values()))}


# Of each schema, texts that can be written and texts that cannot.
CASES: list[tuple[Any, list[str], list[str]]] = [
    (True, ["{}", "[1, [null]]", '"a"', "-1.5"], ["", "nul", "01", "1.", "[1, ]", '{"a"}']),
    ({"type": "object"}, ['{"a": {"b": []}}', "{}"], ["[]", "1", '{"a": 1, }', "{}}"]),
    (PAIR, ["{}", '{"a": 1}', '{"b": 2}', '{"a": 1, "b": 2}'], ['{"b": 2, "a": 1}', '{"c": 1}']),
    (
        {**PAIR, "required": ["b"]},
        ['{"b": 1}', '{"a": 1, "b": 1}'],
        ["{}", '{"a": 1}', '{, "b": 1}'],
    ),
    ({**PAIR, "required": ["c"]}, ['{"c": []}', '{"b": 2, "c": 1}'], ["{}", '{"b": 1}']),
    (
        {**PAIR, "additionalProperties": {"type": "null"}},
        ['{"aa": null, "": null}', '{"a": 1, "c": null}', '{"é": null}', '{"\\"": null}'],
        ['{"a": null}', '{"b": 1, "a": null}', '{"\\u0061": null}', '{"c": 1}', '{"c": null, }'],
    ),
    ({"properties": {}}, ["{}"], ['{"a": 1}']),
    ({"type": "object", "required": ["a"]}, ['{"a": 1, "b": 2}'], ["{}"]),
    ({"type": "object", "minProperties": 1, "maxProperties": 2}, ['{"a": 1}'], ["{}"]),
    ({"patternProperties": {"^x": INTEGER}}, ['{"x1": 1}', "{}"], ['{"x1": "a"}', '{"a": 1}']),
    # Closed over all that is declared of the same value.
    ({"allOf": [PAIR, {"properties": {"c": INTEGER}}]}, ['{"a": 1, "c": 1}'], ['{"d": 1}']),
    (
        {"$ref": "#/$defs/p", "properties": {"c": INTEGER}, "$defs": {"p": PAIR}},
        ['{"a": 1, "c": 2}'],
        ['{"d": 1}'],
    ),
    (
        {"anyOf": KIND},
        ['{"kind": "circle", "radius": 1}'],
        ['{"kind": "circle", "side": 1}', '{"kind": "square", "x": 1}'],
    ),
    (
        {"properties": {"id": INTEGER}, "oneOf": KIND},
        ['{"id": 1, "kind": "square", "side": 1}'],
        ['{"id": 1, "kind": "square", "radius": 1}', '{"kind": "circle", "x": 1}'],
    ),
    (
        {**PAIR, "anyOf": [{"required": ["a"]}, {"required": ["b"]}]},
        ['{"a": 1}', '{"b": 1}'],
        ["{}", '{"a": 1, "c": 1}'],
    ),
    ({**PAIR, "allOf": [{"additionalProperties": True}]}, ['{"a": 1, "c": 1}'], ['{"a": "x"}']),
    (
        {**PAIR, "if": {"required": ["a"]}, "then": {"properties": {"c": INTEGER}}},
        ['{"a": 1, "c": 1}'],
        ['{"d": 1}'],
    ),
    (
        {**PAIR, "dependentRequired": {"a": ["b"]}},
        ["{}", '{"b": 1}', '{"a": 1, "b": 1}'],
        ['{"a": 1}'],
    ),
    ({**PAIR, "unevaluatedProperties": False}, ['{"a": 1}'], ['{"c": 1}']),
    ({"items": INTEGER, "minItems": 1, "maxItems": 2}, ["[1]", "[1, 2]"], ["[]", "[1, 2, 3]"]),
    ({"items": False}, ["[]"], ["[1]"]),
    ({"prefixItems": [INTEGER]}, ["[]", "[1]"], ["[null]", "[1, 2]"]),
    ({"prefixItems": [INTEGER], "minItems": 2}, ["[1, null]"], ["[1]"]),
    ({"prefixItems": [INTEGER], "items": {"type": "null"}}, ["[1, null, null]"], ["[1, 2]"]),
    ({"type": "string"}, ['"é😀\\n"', '""'], ['"', '"\n"', '"\\x"', "a", '"\\u0000"', '"\\ud83d"']),
    ({"minLength": 1, "maxLength": 2}, ['"a"', '"😀\\n"'], ['""', '"abc"', "1"]),
    ({"type": "integer"}, ["0", "-7", "9007199254740991"], ["01", "1.0", "1e3", 17 * "9"]),
    (
        {"type": "number"},
        ["0", "-0.5", "1.123456789"],
        ["+1", ".5", "1.", "1e9", "1.1234567891", 17 * "9"],
    ),
    ({"minimum": 0, "maximum": 1}, ["0.25", "1"], ["1.1", "-1", '"a"', "0." + 10 * "3"]),
    ({"multipleOf": 0.5}, ["1.5", "-2"], ["1.25"]),
    ({"multipleOf": 0.07}, ["0.14", "0"], ['"a"']),  # 0.07 * 10 * 10 is not 7 in binary
    ({"type": ["null", "boolean"]}, ["null", "true", "false"], ["0", "nulltrue"]),
    ({"enum": ["a", 'ü"', 1, None, {"k": [1.5]}]}, ['"ü\\""', "1", '{"k": [1.5]}'], ['"b"', "11"]),
    ({"enum": ["a", None, True], "type": ["string", "boolean"]}, ['"a"', "true"], ["null"]),
    ({"pattern": "b"}, ['"abc"'], ['"a"']),
    ({"format": "date", "pattern": "^2024"}, ['"2024-02-29"'], ['"2023-01-01"', '"2024-13-01"']),
    ({"format": "color", "type": "string"}, ['"red"'], ["1"]),
    (
        {"$defs": {"x": {"requird": 1}}, "type": "null", "$id": "urn:x", "nullable": True},
        ["null"],
        [],
    ),
    ({"type": "null", "x-guidance": {"whitespace_pattern": "x*"}}, ["null"], ["xnull"]),
    (
        {
            "$defs": {"a/b": {"properties": {"next": {"$ref": "#/$defs/a~1b"}}}},
            "$ref": "#/$defs/a~1b",
        },
        ["{}", '{"next": {"next": {}}}'],
        ['{"next": 1}'],
    ),
    (
        {
            "$schema": "http://json-schema.org/draft-07/schema#",
            "items": [INTEGER],
            "additionalItems": {"$ref": "#/definitions/n", "type": "string"},
            "definitions": {"n": {"type": "null"}},
        },
        ["[1, null]"],
        ['[1, "a"]', "[null]"],
    ),
    (
        {
            "$schema": "http://json-schema.org/draft-04/schema#",
            "minimum": 1,
            "exclusiveMinimum": True,
        },
        ["2"],
        ["1"],
    ),
]


@pytest.mark.parametrize(("schema", "good", "bad"), CASES, ids=lambda value: str(value)[:50])
def test_constraint_allows_what_the_schema_does(
    schema: Any, good: list[str], bad: list[str]
) -> None:
    grammar = compile_schema(schema)
    assert [text for text in good if not accepts(grammar, text)] == []
    assert [text for text in bad if accepts(grammar, text)] == []
    for text in good:
        assert find_mismatch(json.dumps(schema), json.loads(text), has_formats=True) is None


@pytest.mark.parametrize("name", SCHEMAS)
def test_schemas_as_clients_send_them_are_accepted(name: str) -> None:
    byte_matcher(compile_schema(SCHEMAS[name]))


@pytest.mark.parametrize(
    ("option", "schema", "text"),
    [
        ("closed", PAIR, '{"a": 1, "c": null}'),
        ("closed", {"prefixItems": [INTEGER]}, "[1, 2]"),
        ("typed", {"minimum": 1}, '"a"'),
        ("bounded", {"type": "number"}, "1e20"),
        ("bounded", {"type": "object"}, "{\t\r\n}"),
        ("bounded", {"type": "string"}, '"' + 20_000 * "a" + '"'),
        ("bounded", True, 20 * "[" + 20 * "]"),
        ("formats", {"type": "string", "format": "date"}, '"tomorrow"'),
    ],
)
def test_policy_can_be_turned_off(option: str, schema: Any, text: str) -> None:
    assert not accepts(compile_schema(schema), text)
    assert accepts(compile_schema(schema, Options(**{option: False})), text)


def test_white_space_is_a_space_after_commas_and_colons() -> None:
    value = {"a": {"b": [1, {"c": None}], "d": {}}, "e": [], "f": "x"}
    schemas: list[Any] = [{"type": "object"}, {"const": value}]
    for grammar in map(compile_schema, schemas):
        text = json.dumps(value)
        assert accepts(grammar, text)
        for other in (text.replace(" ", ""), text.replace("{", "{ "), text.replace(":", " :")):
            assert not accepts(grammar, other)
        assert not accepts(grammar, json.dumps(value, indent=2))
        assert not accepts(grammar, "\n" + text)
        assert not accepts(grammar, text + " ")


def test_properties_stay_in_the_order_of_the_schema() -> None:
    properties = dict.fromkeys("zyxwvutsrqponmlkjihgfedcba", INTEGER)
    grammar = compile_schema({"properties": properties})
    for names in ("z", "a", "zma", "".join(properties)):
        assert accepts(grammar, json.dumps(dict.fromkeys(names, 1)))
    assert not accepts(grammar, '{"a": 1, "z": 1}')


NARROW = {"properties": {name: {} for name in "abc"}, "additionalProperties": False}
CHAIN = {f"d{n}": {"items": {"$ref": f"#/$defs/d{n + 1}"}} for n in range(1000)}
WIDE = {f"d{n}": {"allOf": 2 * [{"$ref": f"#/$defs/d{n + 1}"}]} for n in range(20)}
# Of each schema that is refused, what the message says.
REFUSED: list[tuple[Any, str]] = [
    (5, "^#: A schema is a JSON object"),
    (False, "^#: The schema false allows no value"),
    ({"properties": {"a": {"tpye": "string"}}}, "^#/properties/a: The keyword tpye .* write type"),
    ({"requird": ["a"]}, "write required"),
    ({"propertes": {}}, "write properties"),
    ({"addtionalProperties": False}, "write additionalProperties"),
    ({"min_length": 1}, "write minLength"),
    ({"not": {"enumm": [1]}}, "^#/not: The keyword enumm"),
    *(
        ({keyword: value}, f"^#/{re.escape(keyword)}: It must be")
        for keyword, value in [
            *[("type", "text"), ("type", []), ("type", [[]]), ("enum", []), ("enum", "a")],
            *[("properties", []), ("properties", {"a": 1}), ("required", "a"), ("required", [1])],
            *[("items", []), ("items", [{}]), ("prefixItems", []), ("minItems", -1)],
            *[("minimum", "1"), ("minimum", True), ("exclusiveMinimum", True), ("anyOf", [])],
            *[("allOf", {}), ("pattern", 1), ("$ref", 1), ("additionalProperties", None)],
            *[("minLength", True), ("maxLength", 1.5), ("multipleOf", 0), ("uniqueItems", 1)],
            *[("minItems", 10**9), ("dependentRequired", {"a": [1]}), ("not", 1), ("if", [])],
            *[("$dynamicRef", "#"), ("contains", []), ("propertyNames", "a")],
        ]
    ),
    ({"properties": {"a/b": {"$id": "x"}}}, r"^#/properties/a~1b: \$id is supported at the root"),
    ({"items": {"$ref": "https://example.com/schema"}}, r"^#/items/\$ref: .* leads out of"),
    ({"$ref": "#anchor"}, "leads to no schema"),
    ({"$ref": "#/$defs/a"}, "leads to no schema"),
    ({"$ref": "#/enum", "enum": [1]}, "leads to no schema"),
    ({"$ref": "#"}, "^#: It refers to itself in a circle"),
    ({"allOf": [{"$ref": "#"}]}, "circle"),
    ({"anyOf": [{"$ref": "#"}, {"type": "null"}]}, "circle"),
    ({"not": {"$ref": "#"}}, "circle"),
    ({"properties": {"a": {"$ref": "#"}}, "required": ["a"]}, "^#: Each value of it holds another"),
    ({"items": {"$ref": "#"}, "minItems": 1}, "Each value of it holds another"),
    ({"$defs": {**WIDE, "d20": {}}, "$ref": "#/$defs/d0"}, "too large"),
    ({"items": {"minLength": 3, "maxLength": 2}, "minItems": 1}, "^#/items: minLength 3 is more"),
    ({"minItems": 3, "maxItems": 2}, "minItems 3 is more than maxItems 2"),
    ({"minProperties": 3, "maxProperties": 2}, "minProperties 3 is more"),
    ({**NARROW, "minProperties": 4, "required": [*"abc"]}, "only 3 are declared"),
    ({"items": False, "minItems": 1}, "only 0 are allowed"),
    ({"type": "integer", "minimum": 1.2, "maximum": 1.8}, "No whole number lies between"),
    ({"type": "integer", "exclusiveMinimum": 1, "maximum": 1}, "No whole number lies between"),
    ({"minimum": 1, "exclusiveMaximum": 1}, "No number lies between"),
    ({"minimum": 2, "maximum": 1}, "No number lies between"),
    ({"minimum": 1e30}, "^#/minimum: A bound beyond"),
    ({"minimum": 10**400}, "^#: A number has more than 300 digits"),
    ({"enum": [10**400]}, "more than 300 digits"),
    ({"minLength": 10**400}, "more than 300 digits"),
    ({"default": float("inf")}, "cannot be written as JSON"),
    ({"const": "a\0"}, "must not contain NUL"),
    ({"title": 70_000 * "a"}, "larger than 65536 bytes"),
    ({"enum": ["a"], "type": "integer"}, "^#: No value satisfies it"),
    ({"const": 1, "enum": [True]}, "No value satisfies it"),
    ({"required": ["a"], "properties": {"a": False}}, "^#/properties/a: The schema false allows"),
    ({"required": ["a"], "additionalProperties": False}, "property a is required, but forbidden"),
    ({"anyOf": [False]}, "^#/anyOf/0: The schema false"),
    ({"type": "string", "allOf": [{"type": "null"}]}, "^#: Its types exclude each other"),
    ({"properties": {"a": {"pattern": "(?=a)"}}}, "^#/properties/a: The pattern is not supported"),
    ({"not": {"pattern": r"(a)\1"}}, "^#/not: The pattern is not supported"),
    ({"properties": {str(n): {"pattern": str(n)} for n in range(200)}}, "more than 100 patterns"),
    ({"patternProperties": {f"^{n}": {} for n in range(50)}}, "more than 40 patternProp"),
    ({"items": {"anyOf": [{"const": n} for n in range(700)]}}, "more than 600 members together"),
    ({"enum": [[n] for n in range(700)]}, "^#: .* more than 600 members together"),
    ({"patternProperties": {"a": {}, "b": {}}}, "must not match the same name"),
    ({"unevaluatedProperties": False, "patternProperties": {"a": {}}}, "unevaluatedProperties is"),
]


@pytest.mark.parametrize(("schema", "reason"), REFUSED, ids=lambda value: str(value)[:50])
def test_schema_is_refused_with_the_reason(schema: Any, reason: str) -> None:
    with pytest.raises(SchemaError, match=reason):
        compile_schema(schema)


def test_endless_chain_of_references_is_no_endless_loop() -> None:
    with pytest.raises((SchemaError, RecursionError)):
        compile_schema({"$defs": {**CHAIN, "d1000": {}}, "$ref": "#/$defs/d0"})


@pytest.mark.parametrize(
    "schema",
    [
        {"properties": {f"p{n}": PAIR for n in range(600)}},
        {"enum": [{"a": n, "b": [n]} for n in range(2000)]},
        {
            "properties": {f"p{n}": {} for n in range(2000)},
            "anyOf": [{"required": [f"p{n}"]} for n in range(900)],
        },
        {"allOf": [{"anyOf": [{"properties": {f"p{n}": {}}}, PAIR]} for n in range(200)]},
        {"allOf": [{"if": {"const": n}, "then": {"required": [f"p{n}"]}} for n in range(500)]},
        {f"keyword{n}": n for n in range(4000)},
    ],
)
def test_large_schema_takes_little_time(schema: Any) -> None:
    # It takes 0.05 to 0.3 s; what grows exponentially or by the square would take minutes.
    started = time.process_time()
    with suppress(SchemaError):
        compile_schema(schema)
    assert time.process_time() - started < 10


# The documentation, by the official test suite


def suite_cases() -> Iterator[tuple[Any, list[Any], list[Any], str]]:
    """The schemas of the suite that are accepted, with valid and invalid values, and grammars."""
    for cases in SUITE.values():
        for schema, valid, invalid in cases:
            try:
                yield schema, valid, invalid, compile_schema(schema, AS_GIVEN)
            except SchemaError:
                continue


def test_documentation_names_every_keyword() -> None:
    assert documented().keys() - {"$id"} == KEYWORDS


def test_official_suite_is_accepted_but_for_few_schemas() -> None:
    num_schemas = sum(len(cases) for cases in SUITE.values())
    assert len(list(suite_cases())) / num_schemas > 0.85


def test_check_at_the_end_agrees_with_the_official_suite() -> None:
    wrong = [
        (schema, value)
        for schema, valid, invalid, _ in suite_cases()
        for values, is_valid in ((valid, True), (invalid, False))
        for value in values
        if (find_mismatch(json.dumps(schema), value, has_formats=False) is None) != is_valid
    ]
    assert wrong == []


def test_only_keywords_that_are_checked_at_the_end_let_invalid_values_be_written() -> None:
    kinds = documented()
    checked = {keyword for keyword, kind in kinds.items() if kind == "checked at the end"}
    let_through: set[str] = set()
    unexplained = []
    for schema, _, invalid, grammar in suite_cases():
        for value in invalid:
            if accepts(grammar, json.dumps(value, ensure_ascii=False)):
                found = keywords_in(schema) & checked
                let_through |= found
                if not found:
                    unexplained.append((schema, value))
    assert unexplained == []
    grammar = compile_schema({**NARROW, "minProperties": 2, "maxProperties": 2})
    assert accepts(grammar, '{"a": 1}')
    assert checked - let_through <= {"minProperties", "maxProperties"}


def test_valid_values_can_be_written_but_for_their_spelling() -> None:
    """Members in another order than the schema's, and 1.0 for 1, are not written."""
    refused = [
        (schema, value)
        for schema, valid, _, grammar in suite_cases()
        for value in valid
        if not accepts(grammar, text := json.dumps(value, ensure_ascii=False))
        and not re.search(r"\.0\b|,", text)
    ]
    assert refused == []


def test_recursive_choices_take_no_exponential_time() -> None:
    nodes = [
        {"properties": {"a": {"$ref": "#"}, name: {"const": 1}}, "required": [name]}
        for name in "bc"
    ]
    schema = json.dumps({"anyOf": [{"type": "null"}, *nodes]})
    value: Any = None
    for _ in range(60):
        value = {"a": value, "c": 1}
    assert find_mismatch(schema, value, has_formats=True) is None
    assert find_mismatch(schema, {"a": value}, has_formats=True) is not None


def test_divisors_with_too_many_remainders_are_left_to_the_check_at_the_end() -> None:
    def allows(text: str, *divisors: int) -> bool:
        grammar = compile_schema(
            {"type": "integer", "allOf": [{"multipleOf": divisor} for divisor in divisors]}
        )
        matcher = byte_matcher(grammar)
        return matcher.try_consume_tokens(list(text.encode())) == len(text)

    assert not allows("8,", 7, 11)
    assert allows("997", 997, 9973)
