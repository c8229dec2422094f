"""Messages and tools to one prompt, by the Jinja template a GGUF carries."""

import json
from contextlib import suppress
from datetime import datetime
from hashlib import sha256
from typing import Any, NotRequired, TypedDict

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from inference.engine import tool_forms
from inference.engine.errors import ChatTemplateError
from inference.engine.tool_forms import GENERIC, Tool


class CalledFunction(TypedDict):
    """`arguments` is an object; a text only where the model wrote something else."""

    name: str
    arguments: dict[str, Any] | str


class Call(TypedDict):
    """A call of a tool as templates know it; `type` is function."""

    id: str
    type: str
    function: CalledFunction


class Turn(TypedDict):
    """One turn; `role` is system, user, assistant, or tool for the result of a call."""

    role: str
    content: str
    tool_calls: NotRequired[list[Call]]
    tool_call_id: NotRequired[str]


class ChatTemplate:
    """The chat template of a model; without one (a base model) the contents are joined raw.

    Source of the environment: `apply_chat_template` of Hugging Face transformers. The template
    comes with the file, so it runs sandboxed.
    """

    def __init__(self, source: str | None, *, bos_token: str = "", eos_token: str = "") -> None:
        """Raises ChatTemplateError when the template does not compile."""
        self.sha256 = source and sha256(source.encode()).hexdigest()
        self._tokens = {"bos_token": bos_token, "eos_token": eos_token}
        self._template: jinja2.Template | None = None
        own_form = tool_forms.form_of(source or "")
        # A form of the template's own, or else the one that its model is told of.
        self._has_own_form = own_form is not None
        self.form = own_form or GENERIC
        self.thinking = tool_forms.thinking_of(source or "")
        if source is None:
            return
        try:
            self._template = _environment().from_string(source)
        except jinja2.TemplateError as error:
            raise ChatTemplateError(f"The chat template does not compile: {error}.") from error

    def render(self, messages: list[Turn], tools: tuple[Tool, ...] = ()) -> str:
        """The prompt text up to where the answer begins; `tools`: those that it may call.

        BOS is as the template writes it (the tokenizer does not double it). Where the template
        refuses them, system messages are put before the first user message, and turns of one role
        that follow one another are joined. Raises ChatTemplateError in the template's own words.
        """
        variables: dict[str, Any] = dict(self._tokens)
        if self._has_own_form:
            messages = [_with_short_ids(message) for message in messages]
            if tools:
                variables["tools"] = [tool_forms.as_openai(tool) for tool in tools]
        else:
            messages = _in_words(messages, tools)
        if self._template is None:
            return "\n\n".join(message["content"] for message in messages)
        try:
            return self._render(self._template, messages, variables)
        except ChatTemplateError:
            single, merged = _one_call_each(messages), _merge_system(messages)
            for other in (single, merged, _join_turns(messages), _join_turns(merged)):
                with suppress(ChatTemplateError):
                    return self._render(self._template, other, variables)
            raise

    def _render(
        self, template: jinja2.Template, messages: list[Turn], variables: dict[str, Any]
    ) -> str:
        try:
            return template.render(messages=messages, add_generation_prompt=True, **variables)
        # Templates index, add and call what they find: any error of theirs may come out.
        except Exception as error:
            raise ChatTemplateError(
                f"The model's chat template refuses these messages: {error}."
            ) from error


def _merge_system(messages: list[Turn]) -> list[Turn]:
    """The same turns with all system messages at the head of the first user message."""
    system = [message["content"] for message in messages if message["role"] == "system"]
    turns = [message for message in messages if message["role"] != "system"]
    for index, message in enumerate(turns):
        if system and message["role"] == "user":
            content = "\n\n".join([*system, message["content"]])
            return [*turns[:index], {"role": "user", "content": content}, *turns[index + 1 :]]
    return messages


def _join_turns(messages: list[Turn]) -> list[Turn]:
    """One message for each run of messages of one role."""
    joined: list[Turn] = []
    for message in messages:
        has_calls = "tool_calls" in message or message["role"] == "tool"
        if joined and joined[-1]["role"] == message["role"] and not has_calls:
            content = f"{joined[-1]['content']}\n\n{message['content']}"
            joined[-1] = {"role": message["role"], "content": content}
        else:
            joined.append(message)
    return joined


def _with_short_ids(message: Turn) -> Turn:
    """With ids of nine letters and digits, as the templates of Mistral want them."""
    changed = message.copy()
    if "tool_calls" in message:
        changed["tool_calls"] = [
            {"id": _short(call["id"]), "type": call["type"], "function": call["function"]}
            for call in message["tool_calls"]
        ]
    if "tool_call_id" in message:
        changed["tool_call_id"] = _short(message["tool_call_id"])
    return changed


def _short(call_id: str) -> str:
    return sha256(call_id.encode(errors="replace")).hexdigest()[:9]


def _one_call_each(messages: list[Turn]) -> list[Turn]:
    """Each call in a message of its own, its result after it: some models know no others."""
    results = {each["tool_call_id"]: each for each in messages if "tool_call_id" in each}
    apart: list[Turn] = []
    for message in messages:
        if message["role"] == "tool":
            continue
        calls = message.get("tool_calls")
        if not calls:
            apart.append(message)
            continue
        for index, call in enumerate(calls):
            content = "" if index else message["content"]
            apart.append({"role": message["role"], "content": content, "tool_calls": [call]})
            if call["id"] in results:
                apart.append(results[call["id"]])
    return apart


def _in_words(messages: list[Turn], tools: tuple[Tool, ...]) -> list[Turn]:
    """Tools, calls and results as plain text, for templates that know none of them."""
    plain: list[Turn] = []
    for previous, message in zip([None, *messages], messages, strict=False):
        role, content = message["role"], message["content"]
        if role == "tool":
            content = f"<tool_response>\n{content}\n</tool_response>"
            if previous is not None and previous["role"] == "tool":
                content = f"{plain.pop()['content']}\n{content}"
            role = "user"
        for call in message.get("tool_calls", ()):
            written = json.dumps(call["function"], ensure_ascii=False)
            content = f"{content}\n{GENERIC.open}{written}{GENERIC.close}".lstrip("\n")
        plain.append({"role": role, "content": content})
    if tools:
        told: Turn = {"role": "system", "content": tool_forms.described(tools)}
        first = plain[0]
        if first["role"] == "system":
            plain[0] = {"role": "system", "content": f"{first['content']}\n\n{told['content']}"}
        else:
            plain = [told, *plain]
    return plain


class _GenerationBlock(Extension):
    """`{% generation %}`, by which templates mark the assistant's words for training."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None) -> str:
    # Jinja's own filter escapes characters for HTML, which a model has never seen.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(format: str) -> str:
    return datetime.now().astimezone().strftime(format)
