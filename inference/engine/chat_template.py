"""Messages to one prompt, by the Jinja template a GGUF carries."""

import json
from contextlib import suppress
from datetime import datetime
from typing import Any, TypedDict

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from inference.engine.errors import ChatTemplateError


class Turn(TypedDict):
    """One turn; `role` is system, user or assistant."""

    role: str
    content: str


class ChatTemplate:
    """The chat template of a model; without one (a base model) the contents are joined raw.

    Source of the environment: `apply_chat_template` of Hugging Face transformers. The template
    comes with the file, so it runs sandboxed.
    """

    def __init__(self, source: str | None, *, bos_token: str = "", eos_token: str = "") -> None:
        """Raises ChatTemplateError when the template does not compile."""
        self._tokens = {"bos_token": bos_token, "eos_token": eos_token}
        self._template: jinja2.Template | None = None
        if source is None:
            return
        try:
            self._template = _environment().from_string(source)
        except jinja2.TemplateError as error:
            raise ChatTemplateError(f"The chat template does not compile: {error}.") from error

    def render(self, messages: list[Turn]) -> str:
        """The prompt text up to where the answer begins.

        BOS is as the template writes it (the tokenizer does not double it). Where the template
        refuses them, system messages are put before the first user message, and turns of one role
        that follow one another are joined. Raises ChatTemplateError in the template's own words.
        """
        if self._template is None:
            return "\n\n".join(message["content"] for message in messages)
        merged = _merge_system(messages)
        try:
            return self._render(self._template, messages)
        except ChatTemplateError:
            for other in (merged, _join_turns(messages), _join_turns(merged)):
                with suppress(ChatTemplateError):
                    return self._render(self._template, other)
            raise

    def _render(self, template: jinja2.Template, messages: list[Turn]) -> str:
        try:
            return template.render(messages=messages, add_generation_prompt=True, **self._tokens)
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
        if joined and joined[-1]["role"] == message["role"]:
            content = f"{joined[-1]['content']}\n\n{message['content']}"
            joined[-1] = {"role": message["role"], "content": content}
        else:
            joined.append(message)
    return joined


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
