"""What a constraint of each family's form allows, and which form a template has."""

import json
from typing import Any

import pytest

from inference.engine.byte_matcher import byte_matcher
from inference.engine.tool_forms import (
    HERMES,
    LLAMA,
    MISTRAL,
    Tool,
    ToolChoice,
    ToolForm,
    ToolsOffered,
    form_of,
    grammar_of,
    thinking_of,
)

CITY: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"$ref": "#/$defs/city"}},
    "required": ["city"],
    "$defs": {"city": {"enum": ["Bonn"]}},
}
FIND, ADD = Tool("find", CITY), Tool("add", {"type": "object", "properties": {}})
STRICT = Tool("find", CITY, is_strict=True)
GOOD = '{"name": "find", "arguments": {"city": "Bonn"}}'
BAD = '{"name": "find", "arguments": {"city": "Rome"}}'
OTHER = '{"name": "add", "arguments": {}}'


def fits(grammar: str | None, text: str) -> bool:
    assert grammar is not None
    matcher, encoded = byte_matcher(grammar), list(text.encode())
    return matcher.try_consume_tokens(encoded) == len(encoded) and bool(matcher.is_accepting())


@pytest.mark.parametrize(
    ("form", "one", "two"),
    [
        (
            HERMES,
            f"{GOOD}\n</tool_call>",
            f"{GOOD}\n</tool_call>\n<tool_call>\n{OTHER}\n</tool_call>",
        ),
        (MISTRAL, f"{GOOD}]", f"{GOOD}, {OTHER}]"),
        (
            LLAMA,
            GOOD.replace("arguments", "parameters"),
            f"{GOOD}; {OTHER}".replace("arguments", "parameters"),
        ),
    ],
)
def test_forced_calls_fit_their_schemas(form: ToolForm, one: str, two: str) -> None:
    grammar = grammar_of(ToolsOffered((FIND, ADD), ToolChoice.REQUIRED), form)
    assert fits(grammar, one)
    assert fits(grammar, two)
    assert not fits(grammar, one.replace("Bonn", "Rome"))
    assert not fits(grammar, one.replace("find", "drop"))
    assert not fits(grammar, f"No. {one}")
    single = ToolsOffered((FIND, ADD), ToolChoice.REQUIRED, is_parallel=False)
    assert fits(grammar_of(single, form), one)
    assert not fits(grammar_of(single, form), two)
    named = ToolsOffered((FIND, ADD), ToolChoice.REQUIRED, name="add")
    assert not fits(grammar_of(named, form), one)


def test_strict_calls_are_constrained_within_a_free_answer() -> None:
    grammar = grammar_of(ToolsOffered((STRICT, ADD)), HERMES)
    for text in ("Hello.", "a < b", f"See:\n<tool_call>\n{GOOD}\n</tool_call>\nDone.", ""):
        assert fits(grammar, text)
    assert not fits(grammar, f"<tool_call>{BAD}</tool_call>")
    bare = grammar_of(ToolsOffered((STRICT,)), LLAMA)
    assert fits(bare, "Hello {you}.")
    assert fits(bare, GOOD.replace("arguments", "parameters"))
    assert not fits(bare, BAD.replace("arguments", "parameters"))


@pytest.mark.parametrize(
    "offered",
    [
        ToolsOffered(()),
        ToolsOffered((FIND, ADD)),
        ToolsOffered((STRICT,), ToolChoice.NONE),
    ],
)
def test_answer_is_free_where_nothing_is_forced(offered: ToolsOffered) -> None:
    assert grammar_of(offered, HERMES) is None


def test_large_schemas_of_several_tools_make_one_grammar() -> None:
    properties = {f"field_{index}": {"type": "string"} for index in range(60)}
    tools = tuple(
        Tool(f"tool_{index}", {"type": "object", "properties": properties}) for index in range(30)
    )
    grammar = grammar_of(ToolsOffered(tools, ToolChoice.REQUIRED), HERMES)
    call = json.dumps({"name": "tool_29", "arguments": {"field_3": "x"}})
    assert fits(grammar, f"{call}\n</tool_call>")


@pytest.mark.parametrize(
    ("template", "form"),
    [
        ("{{ tools }} <tool_call> ", HERMES),
        ("{{ tools }} <tool_call><function=x>", None),
        ("{{ tools }} <tool_call><arg_key>", None),
        ("[TOOL_CALLS]", MISTRAL),
        ("<|python_tag|>", LLAMA),
        ("Environment: ipython", LLAMA),
        ("<|im_start|>", None),
        ("", None),
    ],
)
def test_form_is_known_by_the_template(template: str, form: ToolForm | None) -> None:
    assert form_of(template) == form


@pytest.mark.parametrize(
    ("template", "opens"),
    [("x</think>", "<think>"), ("[/THINK]", "[THINK]"), ("<|im_start|>", None)],
)
def test_thinking_is_known_by_the_template(template: str, opens: str | None) -> None:
    tags = thinking_of(template)
    assert (tags and tags.open) == opens
