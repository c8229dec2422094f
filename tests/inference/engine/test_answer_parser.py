"""Text, reasoning and tool calls told apart, however the text is split."""

import json
from dataclasses import dataclass, field
from itertools import count, pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.engine.answer_parser import AnswerParser
from inference.engine.deltas import AnswerDelta, Reasoning, ToolCallDelta
from inference.engine.tool_forms import HERMES, LLAMA, MISTRAL, ThinkingTags, ToolForm

TOOLS = {"find", "add"}
THINK = ThinkingTags("<think>", "</think>")
FIND = ("find", '{"city": "Bo\\"nn}"}')
ADD = ("add", '{"x": [1, {"y": 2}]}')
AS_JSON = '{"name": "find", "arguments": {"city": "Bo\\"nn}"}}'
ADD_AS_JSON = '{"name": "add", "arguments": {"x": [1, {"y": 2}]}}'


@dataclass
class Parsed:
    """An answer put together: its calls as name and arguments, in their order."""

    text: str = ""
    reasoning: str = ""
    calls: list[tuple[str, str]] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)

    def take(self, delta: AnswerDelta) -> None:
        match delta:
            case str():
                self.text += delta
            case Reasoning():
                self.reasoning += delta.text
            case ToolCallDelta(id=str() as call_id, name=str() as name):
                assert delta.index == len(self.calls)
                self.ids.append(call_id)
                self.calls.append((name, delta.arguments))
            case ToolCallDelta():
                assert delta.index == len(self.calls) - 1
                name, arguments = self.calls[-1]
                self.calls[-1] = name, arguments + delta.arguments


def parse(*parts: str, **options: Any) -> Parsed:
    ids = count()
    parser = AnswerParser(new_id=lambda: f"call_{next(ids)}", **options)
    parsed = Parsed()
    for delta in [each for part in parts for each in parser.feed(part)] + parser.finish():
        assert delta  # none is empty
        parsed.take(delta)
    return parsed


CASES: list[tuple[ToolForm | None, str, str, list[tuple[str, str]]]] = [
    (None, f"<tool_call>{AS_JSON}", f"<tool_call>{AS_JSON}", []),
    (HERMES, f"<tool_call>\n{AS_JSON}\n</tool_call>", "", [FIND]),
    (
        HERMES,
        f"Let me see.\n<tool_call>\n{AS_JSON}\n</tool_call>\n<tool_call>{ADD_AS_JSON}</tool_call>",
        "Let me see.",
        [FIND, ADD],
    ),
    (HERMES, f"<tool_call>{AS_JSON}</tool_call>\nDone. ", "Done.", [FIND]),
    (HERMES, f"<tool_call>{AS_JSON}", "", [FIND]),
    (HERMES, "a < b, <tool> <tool_call", "a < b, <tool> <tool_call", []),
    (HERMES, "a  <tool_call> b", "a  <tool_call> b", []),
    (HERMES, "<tool_call></tool_call>", "<tool_call></tool_call>", []),
    (
        HERMES,
        '<tool_call>{"name": "rm", "arguments": {}}</tool_call>',
        '<tool_call>{"name": "rm", "arguments": {}}</tool_call>',
        [],
    ),
    (HERMES, '<tool_call>{"name": "find", "argu', '<tool_call>{"name": "find", "argu', []),
    (HERMES, '<tool_call>{"name": "find", "arguments": {"c', "", [("find", '{"c')]),
    (HERMES, '<tool_call>{"name": "find"}</tool_call>', "", [("find", "{}")]),
    (
        HERMES,
        '<tool_call>{"arguments": {"a": 1}, "name": "add"}</tool_call>',
        "",
        [("add", '{"a": 1}')],
    ),
    (
        HERMES,
        '<tool_call>{"name": "add", "arguments": "{\\"a\\": 1}"}</tool_call>',
        "",
        [("add", '{"a": 1}')],
    ),
    # Text between calls does not run together.
    (
        HERMES,
        f"Here: \n<tool_call>{AS_JSON}</tool_call> Next:\n<tool_call>{ADD_AS_JSON}</tool_call>See?",
        "Here:\nNext:\nSee?",
        [FIND, ADD],
    ),
    # Several calls in one mark, a mark written twice, a call that is none before one that is.
    (HERMES, f"<tool_call>[{AS_JSON}, {ADD_AS_JSON}]</tool_call>", "", [FIND, ADD]),
    (HERMES, f"<tool_call>\n<tool_call>{AS_JSON}</tool_call>", "", [FIND]),
    (
        HERMES,
        f"<tool_call>{{bad}}</tool_call><tool_call>{AS_JSON}</tool_call>",
        "<tool_call>{bad}</tool_call>",
        [FIND],
    ),
    # Arguments that are no object are no call's; none are an empty one.
    *(
        (HERMES, call, call, [])
        for value in ('"hello"', "[1]", "5", '"[1]"')
        for call in [f'<tool_call>{{"name": "find", "arguments": {value}}}</tool_call>']
    ),
    *(
        (HERMES, f'<tool_call>{{"name": "find", "arguments": {value}}}', "", [("find", "{}")])
        for value in ("{}", "null", '""')
    ),
    # Line breaks in strings are escaped, characters and escapes stay as they are.
    *(
        (
            HERMES,
            f"<tool_call>{call}</tool_call>",
            "",
            [("find", '{"a": "\\n\\t\\u0001", "b": "é\\ud83d"}')],
        )
        for arguments in ['{"a": "\n\t\x01", "b": "é\\ud83d"}']
        for call in (
            f'{{"name": "find", "arguments": {arguments}}}',
            f'{{"id": "a\nb", "name": "find", "arguments": {arguments}, "x": "\n"}}',
            f'{{"arguments": {arguments}, "name": "find"}}',
            f'{{"name": "fi\\u006ed", "arguments": {arguments}}}',
        )
    ),
    # The marks of calls may stand in arguments.
    (
        HERMES,
        '<tool_call>{"name": "find", "arguments": {"q": "</tool_call><tool_call>"}}</tool_call>',
        "",
        [("find", '{"q": "</tool_call><tool_call>"}')],
    ),
    (LLAMA, AS_JSON.replace("arguments", "parameters"), "", [FIND]),
    *((LLAMA, f"{AS_JSON}{s}{ADD_AS_JSON}", "", [FIND, ADD]) for s in (";", ";\n", "\n", " ; ")),
    (LLAMA, f'{AS_JSON} I used {{find}} and {{"q": 1}}', 'I used {find} and {"q": 1}', [FIND]),
    (LLAMA, f"<|python_tag|>{AS_JSON}; {ADD_AS_JSON}", "", [FIND, ADD]),
    (LLAMA, f'\n{{"type": "function", "function": {AS_JSON}}}', "", [FIND]),
    (LLAMA, '{"type": "function", "name": "add", "parameters": {}}', "", [("add", "{}")]),
    (LLAMA, '{"city": "Bonn"} is it', '{"city": "Bonn"} is it', []),
    (LLAMA, '{"name": "Bonn", "size": 3} ', '{"name": "Bonn", "size": 3} ', []),
    (LLAMA, "<|python_tag|>print(1)", "<|python_tag|>print(1)", []),
    (LLAMA, f"I say {AS_JSON}", f"I say {AS_JSON}", []),
    (LLAMA, "{", "{", []),
    (MISTRAL, f"[TOOL_CALLS][{AS_JSON}, {ADD_AS_JSON}]", "", [FIND, ADD]),
    (MISTRAL, f"[TOOL_CALLS] [{AS_JSON}]", "", [FIND]),
    (MISTRAL, f"See: [TOOL_CALLS]find[ARGS]{FIND[1]}", "See:", [FIND]),
    (
        MISTRAL,
        f"[TOOL_CALLS]find[CALL_ID]abc123def[ARGS]{FIND[1]}[TOOL_CALLS]add[ARGS] {ADD[1]}",
        "",
        [FIND, ADD],
    ),
    # The mark of the arguments may be missing.
    (MISTRAL, f"Hi{{[TOOL_CALLS]find{FIND[1]}[TOOL_CALLS]add {ADD[1]}", "Hi{", [FIND, ADD]),
    (MISTRAL, f"[TOOL_CALLS][{AS_JSON}]\nFound {{it}}", "Found {it}", [FIND]),
    (MISTRAL, f"[TOOL_CALLS]rm{{}}[TOOL_CALLS]find{FIND[1]}", "[TOOL_CALLS]rm{}", [FIND]),
    *((MISTRAL, text, text, []) for text in ("[TOOL_CALLS]find", "[TOOL_CALLS] find it: []")),
    (MISTRAL, "[TOOL_CALLS]rm[ARGS]{}", "[TOOL_CALLS]rm[ARGS]{}", []),
    (MISTRAL, "[1] [TOOL", "[1] [TOOL", []),
]


@pytest.mark.parametrize(("form", "answer", "text", "calls"), CASES)
def test_calls_of_each_family(
    form: ToolForm | None, answer: str, text: str, calls: list[tuple[str, str]]
) -> None:
    parsed = parse(answer, form=form, tools=TOOLS)
    assert (parsed.text, parsed.calls) == (text, calls)
    assert parsed.ids == [f"call_{index}" for index in range(len(calls))]
    for size in range(1, 8):
        parts = [answer[start : start + size] for start in range(0, len(answer), size)]
        assert parse(*parts, form=form, tools=TOOLS) == parsed
    for cut in range(len(answer)):
        assert parse(answer[:cut], answer[cut:], form=form, tools=TOOLS) == parsed


@pytest.mark.parametrize(
    ("answer", "is_thinking", "reasoning", "text"),
    [
        ("<think>\nHm.\n</think>\n\nYes.\n", False, "Hm.", "Yes.\n"),
        ("\n <think>Hm.</think>Yes.", False, "Hm.", "Yes."),
        ("\nHm.\n</think>\n\nYes.", True, "Hm.", "Yes."),
        ("Yes, <think>no</think>.", False, "", "Yes, <think>no</think>."),
        ("<think>a</think>b<think>c</think>", False, "a", "b<think>c</think>"),
        ("<think>Hm. </thin", False, "Hm. </thin", ""),
        ("<thin ice", False, "", "<thin ice"),
        ("<think></think>Yes.", False, "", "Yes."),
        ("  Yes. ", False, "", "  Yes. "),
    ],
)
def test_reasoning_stands_at_the_beginning(
    answer: str, is_thinking: bool, reasoning: str, text: str
) -> None:
    parsed = parse(answer, thinking=THINK, is_thinking=is_thinking)
    assert (parsed.reasoning, parsed.text) == (reasoning, text)


def test_calls_follow_the_reasoning() -> None:
    answer = f"<think>\n{AS_JSON}\n</think>\n\n{ADD_AS_JSON}"
    parsed = parse(answer, form=LLAMA, tools=TOOLS, thinking=THINK)
    assert (parsed.reasoning, parsed.text, parsed.calls) == (AS_JSON, "", [ADD])


def test_only_the_first_of_calls_that_are_not_parallel() -> None:
    answer = f"[TOOL_CALLS][{AS_JSON}, {ADD_AS_JSON}]"
    assert parse(answer, form=MISTRAL, tools=TOOLS, is_parallel=False).calls == [FIND]


def test_arguments_come_while_they_are_written() -> None:
    parser = AnswerParser(form=HERMES, tools=TOOLS)
    assert parser.feed('<tool_call>{"name": "find", "arguments": ') == []
    [first] = parser.feed('{"city": "B')
    assert isinstance(first, ToolCallDelta)
    assert (first.name, first.arguments) == ("find", '{"city": "B')
    assert parser.feed("onn") == [ToolCallDelta(0, "onn")]


def test_text_is_given_out_as_soon_as_it_is_clear() -> None:
    parser = AnswerParser(form=HERMES, tools=TOOLS, thinking=THINK)
    assert parser.feed("<th") == []
    assert parser.feed("e") == ["<the"]
    assert parser.feed("n <tool") == ["n"]
    assert parser.feed("box") == [" <toolbox"]


_words = st.sampled_from(
    [
        *(
            "<tool_call>",
            "</tool_call>",
            "[TOOL_CALLS]",
            "<|python_tag|>",
            "[ARGS]",
            "find",
            "[",
            "]",
        ),
        *("<think>", "</think>", AS_JSON, ADD_AS_JSON, FIND[1], "{", "}", '"', "\\", ", ", "; "),
        *(" ", "\n", "a", '"name"', ":", '{"name": "find", "arguments": ', '{"x": ', "<", "TOOL"),
        *('{"name": "rm", "arguments": {}}', "[CALL_ID]abc", "\N{SNOWMAN}"),
    ]
)


@given(
    answer=st.lists(_words, max_size=12).map("".join),
    cuts=st.lists(st.integers(0, 200), max_size=6).map(sorted),
    form=st.sampled_from([None, HERMES, LLAMA, MISTRAL]),
    is_thinking=st.booleans(),
)
def test_any_cut_gives_the_same(
    answer: str, cuts: list[int], form: ToolForm | None, is_thinking: bool
) -> None:
    options = {"form": form, "tools": TOOLS, "thinking": THINK, "is_thinking": is_thinking}
    whole = parse(answer, **options)
    parts = [answer[start:stop] for start, stop in pairwise([0, *cuts, len(answer)])]
    assert parse(*parts, **options) == whole
    assert parse(*answer, **options) == whole
    for name, _ in whole.calls:
        assert name in TOOLS
    is_reasoning = is_thinking or answer.lstrip().startswith("<think>")
    if not whole.calls and not is_reasoning:
        assert whole.text == answer  # what is no call is text, to the letter


@given(st.text(), st.lists(st.integers(0, 30), max_size=4).map(sorted))
def test_plain_text_stays_as_it_is(text: str, cuts: list[int]) -> None:
    parts = [text[start:stop] for start, stop in pairwise([0, *cuts, len(text)])]
    if not text.lstrip().startswith(("<think>", "{")):
        assert parse(*parts, form=LLAMA, tools=TOOLS, thinking=THINK).text == text
    assert json.dumps(parse(*parts).text) == json.dumps(text)
