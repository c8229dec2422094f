"""Answers that come through LiteLLM, event by event."""

import json
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from functools import cache
from typing import Any

from inference.providers.cloud.library import MAX_BYTES, library
from inference.providers.cloud.wire import ProviderError, TooLargeError

_MALFORMED = "It sent what is no JSON."


async def events(arguments: dict[str, Any]) -> AsyncGenerator[Any, None]:
    """One call, from `litellm.acompletion(**arguments)` to its last event.

    The events are JSON of OpenAI's shape, if the provider keeps to it. Raises what LiteLLM raises,
    or ProviderError.
    """
    stream = await library().acompletion(**arguments)
    try:
        async for event in _events(stream):
            yield event
    finally:
        await stream.aclose()


async def _events(stream: Any) -> AsyncIterator[Any]:
    """The events of an answer, with its end and its usage where the provider tells them.

    LiteLLM's own wrapper makes up both, a reason to end and a usage, when they are missing; takes
    a whole answer, or an error in its place, for none; and is slower than all the rest. So
    the protocols of OpenAI and Anthropic are read without it.
    """
    received: Any = stream.completion_stream
    openai, openai_by_lines, anthropic = _kinds_of_streams()
    if isinstance(received, openai):
        async for event in server_sent_events(received.response.aiter_lines()):
            yield event
    elif isinstance(received, openai_by_lines):
        async for event in server_sent_events(received.http_response.aiter_lines()):
            yield event
    elif isinstance(received, anthropic):
        async for event in server_sent_events(received.streaming_response):
            for part in _parts_of_message(event):
                yield _as_openai(received, part)
    else:
        async for chunk in stream:
            told = chunk.model_dump()
            for choice in told.get("choices") or ():
                choice["finish_reason"] = None
            yield told | {"usage": None}
        usages = [usage for chunk in stream.chunks if (usage := getattr(chunk, "usage", None))]
        yield {
            "choices": [{"delta": {}, "finish_reason": stream.received_finish_reason}],
            "usage": usages[-1].model_dump() if usages else None,
        }


@cache
def _kinds_of_streams() -> tuple[Any, Any, Any]:
    # Loaded with LiteLLM.
    from litellm.llms.anthropic.chat.handler import ModelResponseIterator
    from litellm.llms.openai.chat.gpt_transformation import OpenAIChatCompletionStreamingHandler
    from openai import AsyncStream

    return AsyncStream, OpenAIChatCompletionStreamingHandler, ModelResponseIterator


async def server_sent_events(lines: AsyncIterator[str]) -> AsyncIterator[Any]:
    """The JSON of each event; what comes without the protocol around it is one event."""
    name, data, plain, num_plain = "", "", [], 0
    async for line in lines:
        field, _, value = line.partition(":")
        if field == "event":
            name = value.strip()
        elif field == "data":
            is_first, data = not data, f"{data}\n{value}" if data else value
            if data.strip() == "[DONE]":
                return
            if is_first and (event := _json(data)) is not None:
                yield _named(name, event)
                data = ""
        elif not line.strip():
            if data.strip():
                if (event := _json(data)) is None:
                    raise ProviderError(_MALFORMED)
                yield _named(name, event)
            name = data = ""
        elif field not in {"", "id", "retry"}:
            plain.append(line)
        num_plain += len(line) if plain or data else 0
        if num_plain > MAX_BYTES:
            raise TooLargeError(f"It sent more than {MAX_BYTES} bytes in one event.")
    if plain and (event := _json("\n".join(plain))) is not None:
        yield event


def _json(text: str) -> Any:
    """None for what is no JSON; null is an event that says nothing."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return {} if value is None else value


def _named(name: str, event: Any) -> Any:
    """An event called `error` is one, whatever its shape."""
    is_bare = name == "error" and not (isinstance(event, dict) and "error" in event)
    return {"error": event} if is_bare else event


def _parts_of_message(event: Any) -> Iterator[Any]:
    """A whole message of Anthropic's as the events of a stream; other events as they are."""
    if not (isinstance(event, dict) and event.get("type") == "message"):
        yield event
        return
    yield {"type": "message_start", "message": event}
    for index, block in enumerate(event["content"]):
        deltas = {
            "text": ("text", {"type": "text_delta", "text": block.get("text")}),
            "thinking": ("thinking", {"type": "thinking_delta", "thinking": block.get("thinking")}),
            "tool_use": (
                "input",
                {"type": "input_json_delta", "partial_json": json.dumps(block.get("input"))},
            ),
        }
        if block["type"] in deltas:
            member, delta = deltas[block["type"]]
            start = block | {member: {} if member == "input" else ""}
            yield {"type": "content_block_start", "index": index, "content_block": start}
            yield {"type": "content_block_delta", "index": index, "delta": delta}
            yield {"type": "content_block_stop", "index": index}
    stop = {"stop_reason": event.get("stop_reason"), "stop_sequence": event.get("stop_sequence")}
    yield {"type": "message_delta", "delta": stop, "usage": event.get("usage") or {}}


def _as_openai(received: Any, event: Any) -> Any:
    """An event of Anthropic's in OpenAI's shape; an error, or what has no shape, as it is."""
    if not isinstance(event, dict) or event.get("error"):
        return event
    try:
        told = received.chunk_parser(event).model_dump()
    except Exception:  # noqa: BLE001 (of a shape that LiteLLM does not expect)
        told = event
    stop = event.get("delta")
    if event.get("type") == "message_delta" and isinstance(stop, dict):
        # LiteLLM would say "stop" for a reason that it does not know.
        told = told | {"choices": [{"delta": {}, "finish_reason": stop.get("stop_reason")}]}
    return told
