"""JSON Schemas as grammars: llama.cpp writes what the schema allows, and nothing else."""

import json
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference.engine.engine import Engine
from inference.engine.errors import SchemaError
from inference.engine.json_schema import JSON_OBJECT_GRAMMAR, compile_schema
from inference.engine.llama_runner import LlamaRunner
from inference.engine.sequence import FinishReason, SamplingParams
from tests.inference.engine.grammar_acceptor import GrammarAcceptor
from tests.inference.engine.schemas import SCHEMAS

INTEGER = {"type": "integer"}
PAIR = {"type": "object", "properties": {"a": INTEGER, "b": INTEGER}}
OPEN_PAIR = {**PAIR, "additionalProperties": {"type": "null"}}
LINKED = {
    "$defs": {"a/b": {"type": "object", "properties": {"next": {"$ref": "#/$defs/a~1b"}}}},
    "$ref": "#/$defs/a~1b",
}

# Of each schema, texts that the grammar allows and texts that it does not.
CASES: list[tuple[Any, list[str], list[str]]] = [
    (True, ["{}", "[1, [null]]", '"a"', "-1.5e+10"], ["", "nul", "01", "1.", "[1,]", '{"a"}']),
    ({"type": "object"}, ['{"a": {"b": []}}', "{ }"], ["[]", "1", '{"a": 1,}', "{}}"]),
    (PAIR, ["{}", '{"a":1}', '{"b": 2}', '{"a":1, "b":2}'], ['{"b":2, "a":1}', '{"c":1}']),
    ({**PAIR, "required": ["b"]}, ['{"b":1}', '{"a":1,"b":1}'], ["{}", '{"a":1}', '{,"b":1}']),
    ({**PAIR, "required": ["c"]}, ['{"c":[]}', '{"b": 2, "c": 1}'], ["{}", '{"b":1}']),
    (
        OPEN_PAIR,
        ['{"aa": null, "": null}', '{"a":1, "c": null}', '{"é": null}', '{"\\"": null}'],
        ['{"a": null}', '{"b":1, "a":null}', '{"\\u0061": null}', '{"c": 1}', '{"c":null,}'],
    ),
    (
        {**OPEN_PAIR, "properties": {"a": False, 'é"\n': INTEGER}},
        ['{"é\\"\\n": 1, "b": null}', '{"é": null}'],
        ['{"a": null}', '{"é\\"\\n": null}'],
    ),
    ({"additionalProperties": False}, ["{}"], ['{"a":1}', "1"]),
    ({"type": "object", "minProperties": 1, "maxProperties": 2}, ['{"a":1}'], ["{}"]),
    (LINKED, ["{}", '{"next":{"next":{}}}'], ['{"next":1}']),
    ({"type": "array"}, ["[]", "[1, 2, {}]"], ["[", "{}", "[1 2]"]),
    ({"items": INTEGER, "minItems": 1, "maxItems": 2}, ["[1]", "[1, 2]"], ["[]", "[1,2,3]"]),
    ({"items": False}, ["[]", "[ ]"], ["[1]"]),
    (
        {"prefixItems": [INTEGER, {"type": "null"}], "items": {"type": "boolean"}},
        ["[]", "[1]", "[1,null]", "[1,null,true,false]"],
        ["[null]", "[1,true]", "[1,null,1]"],
    ),
    ({"prefixItems": [INTEGER], "maxItems": 2, "items": True}, ["[1,{}]"], ["[1,2,3]"]),
    ({"prefixItems": [INTEGER, True], "minItems": 1}, ["[1]", "[1,[]]"], ["[]", "[1,2,3]"]),
    ({"prefixItems": [INTEGER, INTEGER], "maxItems": 1}, ["[]", "[1]"], ["[1,2]"]),
    ({"type": "string"}, ['""', '"é😀\\n\\u00e9\\ud83d\\ude00\\/"'], ['"', '"\n"', '"\\x"', "a"]),
    ({"type": "string"}, [], ['"\\ud83d"', '"\\ude00\\ud83d"', '"\\u0000"', '"\\u00g0"']),
    ({"minLength": 1, "maxLength": 2}, ['"a"', '"😀\\n"', '"\\u00e9b"'], ['""', '"abc"']),
    ({"maxLength": 0}, ['""'], ['"a"']),
    ({"maxLength": 2501}, ['"' + n * "a" + '"' for n in (0, 999, 1000, 2500, 2501)], []),
    ({"maxLength": 2501}, [], ['"' + 2502 * "a" + '"']),
    ({"minLength": 3, "maxLength": 2003}, ['"abc"', '"' + 2003 * "a" + '"'], ['"ab"']),
    ({"type": "integer"}, ["0", "-7", "1234567890123456"], ["-0", "01", "1.0", "1e3", 17 * "9"]),
    ({"type": "number"}, ["0", "-0.5", "1e9", "1.25E-10"], ["+1", ".5", "1.", "1e999", "NaN"]),
    ({"type": ["null", "boolean"]}, ["null", "true", "false"], ["0", "nulltrue"]),
    ({"type": ["integer", "number"]}, ["1.5", "1"], ['"1"']),
    (
        {"enum": ["a", "ab", "b", 1, 12, None, [1, {"a": 2}], {}]},
        ['"ab"', "12", '[1, {"a":2}]'],
        [],
    ),
    ({"enum": ["a", "ab", 'ü"', 1]}, ['"a"', '"ü\\""', "1"], ['"', '"b"', "11", '"aba"']),
    ({"enum": ["a", None, True, 1], "type": ["string", "boolean"]}, ['"a"', "true"], ["null", "1"]),
    ({"const": {"k": [1.5]}}, ['{"k":[1.5]}', '{ "k": [1.5] }'], ["{}", '{"k":[1.5],"l":1}']),
    ({"anyOf": [INTEGER, False, {"type": "null"}]}, ["1", "null"], ["true"]),
    ({"oneOf": [PAIR, {"type": "array"}]}, ["{}", "[1]"], ["1"]),
    (
        {**PAIR, "anyOf": [{"required": ["a"]}, {"required": ["b"]}]},
        ['{"a":1}', '{"b":1}', '{"a":1,"b":1}'],
        ["{}"],
    ),
    (
        {"type": "string", "anyOf": [True, {"maxLength": 3}], "oneOf": [{"minLength": 2}]},
        ['"ab"', '"abcd"'],
        ['"a"', "1"],
    ),
    ({"allOf": [{"minimum": 2}, {"type": "integer"}, {"maximum": 3}]}, ["2", "3"], ["1", "2.5"]),
    ({"allOf": [{"enum": [1, True, "a"]}, {"const": 1}]}, ["1"], ["true", '"a"']),
    (
        {"allOf": [{**PAIR, "additionalProperties": False}, {"properties": {"b": {"minimum": 5}}}]},
        ['{"a":1,"b":5}'],
        ['{"b":1}'],
    ),
    (
        {"allOf": [{**PAIR, "additionalProperties": False}, {"properties": {"c": INTEGER}}]},
        ['{"a":1}'],
        ['{"c":1}'],
    ),
    (
        {"allOf": [PAIR, {"additionalProperties": {"maximum": 5}}], "required": ["a"]},
        ['{"a":5}', '{"a":1,"c":4}'],
        ['{"a":6}', '{"a":1,"c":9}'],
    ),
    ({"allOf": [{"items": INTEGER}, {"items": {"minimum": 5}}, {}]}, ["[5]"], ["[1]", "[5.5]"]),
    (
        {"$ref": "#/$defs/n", "maximum": 3, "$defs": {"n": {"type": "integer", "minimum": 2}}},
        ["2", "3"],
        ["1", "4"],
    ),
    (
        {"$defs": {"x": {"unknown": 1}}, "type": "null", "$id": "urn:x", "$comment": ""},
        ["null"],
        [],
    ),
]


@pytest.mark.parametrize(("schema", "good", "bad"), CASES, ids=lambda value: str(value)[:50])
def test_grammar_allows_what_the_schema_does(
    acceptor: GrammarAcceptor, schema: Any, good: list[str], bad: list[str]
) -> None:
    grammar = compile_schema(schema)
    for text in good:
        assert acceptor.accepts(grammar, text), text
        jsonschema.validate(json.loads(text), schema)
    for text in bad:
        assert not acceptor.accepts(grammar, text), text


@pytest.mark.parametrize("indent", [None, 2, 4, "\t"])
def test_grammar_allows_indented_json(acceptor: GrammarAcceptor, indent: int | str | None) -> None:
    value = {"a": {"b": [1, {"c": None}], "d": {}}, "e": "x"}
    text = json.dumps(value, indent=indent)
    assert acceptor.accepts(JSON_OBJECT_GRAMMAR, text)
    assert not acceptor.accepts(JSON_OBJECT_GRAMMAR, "\n" + text)
    assert not acceptor.accepts(JSON_OBJECT_GRAMMAR, text + " ")


def test_white_space_ends(acceptor: GrammarAcceptor) -> None:
    for space in ("  ", "\n\n", "\n" + 33 * " ", "\r"):
        assert not acceptor.accepts(JSON_OBJECT_GRAMMAR, "{" + space + "}")


def test_properties_stay_in_the_order_of_the_schema(acceptor: GrammarAcceptor) -> None:
    properties = dict.fromkeys("zyxwvutsrqponmlkjihgfedcba", INTEGER)
    grammar = compile_schema({"properties": properties})
    assert len(grammar) < 4000
    for names in ("z", "a", "zma", "".join(properties)):
        assert acceptor.accepts(grammar, json.dumps(dict.fromkeys(names, 1)))
    assert not acceptor.accepts(grammar, '{"a": 1, "z": 1}')


CHAIN: dict[str, Any] = {f"d{n}": {"items": {"$ref": f"#/$defs/d{n + 1}"}} for n in range(40)}
WIDE = {
    f"d{n}": {"properties": {k: {"allOf": [{"$ref": f"#/$defs/d{n + 1}"}, {}]} for k in "ab"}}
    for n in range(20)
}


def tree(*choices: dict[str, Any]) -> dict[str, Any]:
    """A schema of nodes, each one of the choices; "child" in them is such a node again."""
    nodes = [
        {
            "type": "object",
            "properties": {k: {"$ref": "#"} if v == "child" else v for k, v in choice.items()},
            "required": list(choice),
        }
        for choice in choices
    ]
    return {"anyOf": [{"type": "null"}, *nodes]}


# Of each schema that is refused, what the message says.
REFUSED: list[tuple[Any, str]] = [
    (5, "A schema is a JSON object"),
    (False, "^#: The schema false allows no value"),
    ({"properties": {"a": {"tpye": "string"}}}, "^#/properties/a: the keyword tpye is not supp"),
    *(
        ({keyword: value}, f"^#: the keyword {keyword} is not supported")
        for keyword, value in [
            *[("if", True), ("then", True), ("else", True), ("not", {}), ("contains", {})],
            *[("patternProperties", {}), ("propertyNames", {}), ("dependentRequired", {})],
            *[("dependentSchemas", {}), ("uniqueItems", True), ("unevaluatedProperties", False)],
            *[("unevaluatedItems", False), ("multipleOf", 2), ("dynamicRef", "#"), ("anchor", "a")],
            *[
                ("nullable", True),
                ("dependencies", {}),
                ("minContains", 1),
                ("contentEncoding", ""),
            ],
        ]
    ),
    *(
        ({keyword: value}, f"^#/{keyword.replace('$', '.')}: it must be")
        for keyword, value in [
            *[("type", "text"), ("type", []), ("type", [[]]), ("enum", []), ("enum", "a")],
            *[("properties", []), ("properties", {"a": 1}), ("required", "a"), ("required", [1])],
            *[("items", []), ("prefixItems", []), ("minItems", -1), ("maxLength", 1.5)],
            *[("minimum", "1"), ("minimum", True), ("anyOf", []), ("allOf", {}), ("pattern", 1)],
            *[("$ref", 1), ("additionalProperties", None), ("minLength", True)],
        ]
    ),
    ({"properties": {"a/b": {"$id": "x"}}}, "^#/properties/a~1b: .id is supported at the root"),
    ({"$ref": "https://example.com/schema"}, "leads out of the schema"),
    ({"$ref": "other.json#/a"}, "leads out of the schema"),
    ({"$ref": "#anchor"}, "leads to no schema"),
    ({"$ref": "#/$defs/a"}, "leads to no schema"),
    ({"$ref": "#/enum", "enum": [1]}, "leads to no schema"),
    ({"$ref": "#"}, "refers to itself in a circle"),
    ({"allOf": [{"$ref": "#"}]}, "levels deep"),
    ({"anyOf": [{"$ref": "#"}, {"type": "null"}]}, "circle"),
    ({"properties": {"a": {"$ref": "#"}}, "required": ["a"]}, "circle"),
    ({"items": {"$ref": "#"}, "minItems": 1}, "circle"),
    ({"$defs": {**CHAIN, "d40": {}}, "$ref": "#/$defs/d0"}, "more than 32 levels deep"),
    ({"$defs": {**WIDE, "d20": {}}, "$ref": "#/$defs/d0"}, "too large"),
    ({"minLength": 3, "maxLength": 2}, "^#: minLength 3 is more than maxLength 2"),
    ({"minItems": 3, "maxItems": 2}, "minItems 3 is more than maxItems 2"),
    ({"minProperties": 3, "maxProperties": 2}, "minProperties 3 is more"),
    ({"minProperties": 1, "properties": {"a": {}}}, "not beside properties"),
    ({"items": False, "minItems": 1}, "only 0 are allowed"),
    ({"type": "integer", "minimum": 1.2, "maximum": 1.8}, "No whole number lies between"),
    ({"type": "integer", "exclusiveMinimum": 1, "maximum": 1}, "No whole number lies between"),
    ({"minimum": 1, "exclusiveMaximum": 1}, "No number lies between"),
    ({"exclusiveMinimum": 0, "exclusiveMaximum": 0}, "No number lies between"),
    ({"minimum": 1e30}, "too large or too fine"),
    ({"minimum": 1e-30}, "too large or too fine"),
    ({"enum": ["a"], "type": "integer"}, "No value of enum"),
    ({"const": True, "type": "integer"}, "No value of enum"),
    ({"const": 1, "enum": [True]}, "none in common"),
    ({"enum": ["a"], "minLength": 3}, "cannot be combined with minLength"),
    ({"required": ["a"], "properties": {"a": False}}, "property a is required, but forbidden"),
    ({"required": ["a"], "additionalProperties": False}, "property a is required, but forb"),
    ({"anyOf": [False]}, "no choice that allows"),
    ({"properties": {"a": {"anyOf": [{}, {"x": 1}]}}}, "^#/properties/a/anyOf/1: the keyword x"),
    ({"type": "string", "anyOf": [{"type": "null"}]}, "exclude each other"),
    ({"allOf": [{"pattern": "a"}, {"pattern": "b"}]}, "values of pattern cannot be merged"),
    ({"allOf": [False]}, "allows no value"),
    ({"allOf": [{"prefixItems": [{}]}, {"items": INTEGER}]}, "prefixItems cannot be merged"),
    ({"allOf": [{"anyOf": [{}]}, {"anyOf": [True]}]}, "anyOf cannot be merged"),
    ({"type": "string", "format": "hostname"}, "^#: The format hostname is not supported, only"),
    ({"format": "date", "pattern": "a"}, "cannot be combined"),
    ({"format": "uuid", "maxLength": 5}, "No text has this pattern or format and this length"),
    ({"pattern": "(a|bb)*$", "maxLength": 5}, "Put the length into the pattern"),
    ({"properties": {"a": {"pattern": "(?=a)"}}}, "^#/properties/a: The pattern is not supp"),
    ({"maxLength": 3_000_000}, "repetitions are too many"),
    ({"minItems": 2500}, "repetitions are too many"),
    ({"properties": {65 * "k": {}}, "additionalProperties": True}, "more than 64 characters"),
    (tree({"a": "child", "b": True}, {"a": "child", "c": True}), "^#: Two choices begin alike"),
    (tree({"kind": True, "a": "child"}, {"kind": True, "b": "child"}), "Two choices begin alike"),
    ({"anyOf": [{"items": {"$ref": "#"}}, {"items": {"$ref": "#"}, "minItems": 1}]}, "alike"),
    ({"anyOf": [{"items": {"const": n}} for n in range(201)]}, "Too many choices begin alike"),
    ({"enum": ["\0"]}, "NUL"),
    ({"enum": ["\ud800"]}, "cannot be written"),
    ({"const": float("inf")}, "cannot be written"),
    ({"description": 70_000 * "x"}, "larger than 65536 bytes"),
    ({"default": json.loads(200 * "[" + 200 * "]")}, "nested more than 128"),
]


@pytest.mark.parametrize(("schema", "reason"), REFUSED, ids=lambda value: str(value)[:50])
def test_schema_is_refused_with_place_and_reason(schema: Any, reason: str) -> None:
    with pytest.raises(SchemaError, match=reason) as refusal:
        compile_schema(schema)
    assert str(refusal.value).startswith("#")


@pytest.mark.parametrize(
    ("schema", "start", "end"),
    [
        (
            tree({"kind": {"const": "x"}, "a": "child"}, {"kind": {"const": "y"}, "a": "child"}),
            '{"kind": "x", "a": ',
            "}",
        ),
        (tree({"a": "child"}, {"b": "child"}), '{"a": ', "}"),
        (tree({"a": "child"}, {"a": INTEGER}), '{"a": ', "}"),
        (tree({"b": True, "a": "child"}, {"b": True, "c": INTEGER}), '{"b": [], "a": ', "}"),
        ({"type": ["array", "null"], "items": {"$ref": "#"}}, "[null, ", "]"),
    ],
)
def test_choices_that_are_told_apart_may_lead_back(
    acceptor: GrammarAcceptor, schema: dict[str, Any], start: str, end: str
) -> None:
    text = 40 * start + "null" + 40 * end
    jsonschema.validate(json.loads(text), schema)
    assert acceptor.accepts(compile_schema(schema), text)


@pytest.mark.parametrize("name", SCHEMAS)
def test_whatever_ends_under_the_grammar_validates(acceptor: GrammarAcceptor, name: str) -> None:
    grammar = compile_schema(SCHEMAS[name])
    written = [acceptor.write(grammar, seed, 300) for seed in range(10)]
    ended = [text for text in written if text is not None]
    assert ended
    for text in ended:
        jsonschema.validate(json.loads(text), SCHEMAS[name])


def test_answers_of_a_real_model_validate_unless_they_are_cut(runner: LlamaRunner) -> None:
    engine = Engine(runner)
    sequences = {}
    for number, (name, schema) in enumerate(SCHEMAS.items()):
        tokens = runner.tokenize(f"A {name} as JSON: ")
        params = SamplingParams(max_tokens=40, seed=number, grammar=compile_schema(schema))
        sequences[name] = engine.add_request(name, tokens, params)
    while engine.num_unfinished:
        engine.step()
    assert any(sequence.finish_reason == FinishReason.STOP for sequence in sequences.values())
    for name, sequence in sequences.items():
        assert sequence.finish_reason in (FinishReason.STOP, FinishReason.LENGTH)
        if sequence.finish_reason == FinishReason.STOP:
            jsonschema.validate(json.loads(sequence.text), SCHEMAS[name])


SCALARS = st.none() | st.booleans() | st.integers(-(10**15), 10**15)
TEXTS = st.text(
    st.characters(max_codepoint=0x7FF, exclude_characters="\0") | st.just("😀"), max_size=6
)


@st.composite
def schema_and_value(draw: st.DrawFn, depth: int = 3) -> tuple[Any, Any]:
    """A schema of the supported subset, and a value in the order that the grammar wants."""
    kinds = ["enum", "integer", "number", "string", "scalar", "any"]
    kind = draw(st.sampled_from(kinds + ["object", "array", "anyOf"] * (depth > 0)))
    if kind == "object":
        members = draw(st.dictionaries(TEXTS, schema_and_value(depth - 1), max_size=4))
        required = draw(st.sets(st.sampled_from(list(members)))) if members else set()
        kept = required | (draw(st.sets(st.sampled_from(list(members)))) if members else set())
        properties = {name: schema for name, (schema, _) in members.items()}
        schema = {"type": "object", "properties": properties, "required": sorted(required)}
        return schema, {name: value for name, (_, value) in members.items() if name in kept}
    if kind == "array":
        schema, value = draw(schema_and_value(depth - 1))
        size = draw(st.integers(0, 3))
        limits = {"minItems": draw(st.integers(0, size)), "maxItems": draw(st.integers(size, 5))}
        return {"type": "array", "items": schema, **limits}, [value] * size
    if kind == "anyOf":
        choices = draw(st.lists(schema_and_value(depth - 1), min_size=1, max_size=3))
        return {"anyOf": [schema for schema, _ in choices]}, choices[-1][1]
    return draw(scalar_schema_and_value(kind))


@st.composite
def scalar_schema_and_value(draw: st.DrawFn, kind: str) -> tuple[Any, Any]:
    if kind == "enum":
        values = draw(st.lists(SCALARS | TEXTS, min_size=1, max_size=5))
        return {"enum": values}, values[-1]
    if kind == "integer":
        low, value, high = sorted(draw(st.tuples(*[st.integers(-(10**12), 10**12)] * 3)))
        return {"type": "integer", "minimum": low, "maximum": high}, value
    if kind == "number":
        low, value, high = sorted(draw(st.tuples(*[st.integers(-(10**6), 10**6)] * 3)))
        return {"type": "number", "minimum": low / 1000, "maximum": high / 1000}, value / 1000
    if kind == "string":
        text = draw(TEXTS)
        least, most = draw(st.integers(0, len(text))), draw(st.integers(len(text), 9))
        return {"type": "string", "minLength": least, "maxLength": most}, text
    value = draw(SCALARS | TEXTS)
    if kind == "any":
        return draw(st.sampled_from([True, {}])), [value, {"": value}]
    types = {type(None): "null", bool: "boolean", int: "integer", str: "string"}
    return {"type": types[type(value)]}, value


@settings(max_examples=200, deadline=None)
@given(
    pair=schema_and_value(),
    layout=st.sampled_from([{}, {"separators": (",", ":")}, {"indent": 2}, {"indent": "\t"}]),
)
def test_valid_values_are_allowed_in_any_layout(
    acceptor: GrammarAcceptor, pair: tuple[Any, Any], layout: dict[str, Any]
) -> None:
    schema, value = pair
    jsonschema.validate(value, schema)
    grammar = compile_schema(schema)
    text = json.dumps(value, ensure_ascii=False, **layout)
    assert acceptor.accepts(grammar, text)
    assert not acceptor.accepts(grammar, text + ",")


@settings(max_examples=300, deadline=None)
@given(pair=schema_and_value(), seed=st.integers(0, 1000))
def test_whatever_ends_under_a_random_grammar_validates(
    acceptor: GrammarAcceptor, pair: tuple[Any, Any], seed: int
) -> None:
    text = acceptor.write(compile_schema(pair[0]), seed, 120)
    if text is not None:
        jsonschema.validate(json.loads(text), pair[0])
