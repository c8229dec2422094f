"""The forms in which families of models call tools and think, each recognised by its template."""

import json
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import Any

from inference.engine.schema_policy import compile_schema

# A model that is made to call tools may do so this often in an answer.
MAX_FORCED_CALLS = 16
_ANY_ARGUMENTS = {"type": "object"}


class ToolChoice(StrEnum):
    """Whether the answer calls tools."""

    NONE = "none"
    AUTO = "auto"
    REQUIRED = "required"


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that a model may call; `parameters` is the JSON Schema of its arguments."""

    name: str
    parameters: dict[str, Any]
    description: str = ""
    is_strict: bool = False


@dataclass(frozen=True, slots=True)
class ToolsOffered:
    """The tools of one request; `name`: the only one of them that may be called."""

    tools: tuple[Tool, ...]
    choice: ToolChoice = ToolChoice.AUTO
    name: str | None = None
    is_parallel: bool = True

    @property
    def callable(self) -> tuple[Tool, ...]:
        """Those that the answer may call."""
        if self.choice == ToolChoice.NONE:
            return ()
        return tuple(tool for tool in self.tools if self.name in (None, tool.name))


@dataclass(frozen=True, slots=True)
class ToolForm:
    """How a family of models writes a call: a JSON object with a name and arguments.

    Calls begin after the mark `open`, or at the beginning of the answer where it `is_bare`.
    `arguments` is the member with the arguments. `has_names`: newer models of the family write
    name[ARGS]{…}. `begin`, `between` and `end` are what is written around calls.
    """

    open: str
    close: str = ""
    arguments: str = "arguments"
    is_bare: bool = False
    has_names: bool = False
    begin: str = ""
    between: str = ", "
    end: str = ""

    @property
    def marks(self) -> tuple[str, ...]:
        """What may be control tokens of the model, and has to be seen as text."""
        names = ("[ARGS]", "[CALL_ID]") if self.has_names else ()
        return tuple(mark for mark in (self.open, self.close, *names) if mark)


@dataclass(frozen=True, slots=True)
class ThinkingTags:
    """What stands around the reasoning of a model."""

    open: str
    close: str


HERMES = ToolForm(
    "<tool_call>",
    "</tool_call>",
    begin="<tool_call>\n",
    between="\n</tool_call>\n<tool_call>\n",
    end="\n</tool_call>",
)
LLAMA = ToolForm("<|python_tag|>", arguments="parameters", is_bare=True, between="; ")
MISTRAL = ToolForm("[TOOL_CALLS]", has_names=True, begin="[TOOL_CALLS][", end="]")
# Described in words to models whose template knows no tools, or writes calls in a form of its own.
GENERIC = HERMES

# The first whose mark is in the template, and none of the texts that tell another form.
_FORMS = (
    (HERMES, "<tool_call>", ("<function=", "<arg_key>", "<invoke")),
    (MISTRAL, "[TOOL_CALLS]", ()),
    (LLAMA, "<|python_tag|>", ("<function=",)),
    (LLAMA, "Environment: ipython", ("<function=",)),
)
# The most usual ones.
THINK = ThinkingTags("<think>", "</think>")
_TAGS = (
    THINK,
    ThinkingTags("<thinking>", "</thinking>"),
    ThinkingTags("<seed:think>", "</seed:think>"),
    ThinkingTags("[THINK]", "[/THINK]"),
    ThinkingTags("<|START_THINKING|>", "<|END_THINKING|>"),
    ThinkingTags("◁think▷", "◁/think▷"),
)


def form_of(template: str) -> ToolForm | None:
    """The form that a chat template has for calls; None for one that is not known."""
    for form, mark, others in _FORMS:
        if mark in template and not any(other in template for other in others):
            return form
    return None


def thinking_of(template: str) -> ThinkingTags | None:
    """The tags of a model that thinks before it answers; None for one that does not."""
    return next((tags for tags in _TAGS if tags.close in template), None)


def described(tools: tuple[Tool, ...]) -> str:
    """What a model is told that has no form of its own."""
    functions = "\n".join(
        json.dumps(as_openai(tool)["function"], ensure_ascii=False) for tool in tools
    )
    return (
        "You can call functions. To call one, answer with nothing but its name and arguments, as "
        f'{HERMES.open}{{"name": "…", "arguments": {{…}}}}{HERMES.close}; for several calls, write '
        "several of these. Their results come between <tool_response> and </tool_response>. "
        f"These are the functions, with the JSON Schemas of their arguments:\n{functions}"
    )


def as_openai(tool: Tool) -> dict[str, Any]:
    """A tool as templates know it."""
    function = {"name": tool.name, "description": tool.description, "parameters": tool.parameters}
    return {"type": "function", "function": function}


def grammar_of(offered: ToolsOffered, form: ToolForm) -> str | None:
    """The grammar that the answer is constrained by; None where it is free.

    One that has to call tools begins after `form.begin`, which is the prompt's. Raises SchemaError.
    """
    is_forced = offered.choice == ToolChoice.REQUIRED
    if not offered.callable or not (is_forced or any(tool.is_strict for tool in offered.callable)):
        return None
    calls, lines = "call", []
    if offered.is_parallel:
        calls += f" (BETWEEN call){{0,{MAX_FORCED_CALLS - 1}}}"
        lines.append(f"BETWEEN: {json.dumps(form.between)}")
    if is_forced:
        start = f"{calls} {json.dumps(form.end) if form.end else ''}"
    elif form.is_bare:
        start = f"{calls} | TEXT"
        lines.append(r"TEXT: /\s*([^\s{](?s:.*))?/")
    elif form == HERMES:
        start = f'(until "\\n"? call end){"*" if offered.is_parallel else "?"} text'
        lines = [
            f"until[lazy]: /(?s:.*){form.open}/",
            f'end: "\\n"? {json.dumps(form.close)}',
            "text: /(?s:.*)/",
        ]
    else:
        # A constraint lets no control token through, which the mark of this form is.
        return None
    grammars: list[dict[str, Any]] = []
    for index, tool in enumerate(offered.callable):
        head = json.dumps(f'{{"name": "{tool.name}", "{form.arguments}": ')
        lines.append(f'call_{index}: {head} @arguments_{index} "}}"')
        schema = tool.parameters if is_forced or tool.is_strict else _ANY_ARGUMENTS
        [compiled] = json.loads(_compiled(json.dumps(schema)))["grammars"]
        grammars.append(compiled | {"name": f"arguments_{index}"})
    names = " | ".join(f"call_{index}" for index in range(len(grammars)))
    lark = "\n".join([f"start: {start}", f"call: {names}", *lines])
    return json.dumps({"grammars": [{"name": "answer", "lark_grammar": lark}, *grammars]})


@lru_cache(maxsize=256)
def _compiled(schema: str) -> str:
    return compile_schema(json.loads(schema))
