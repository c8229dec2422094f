"""Items, of which the input and output of a response are made, and the messages they stand for."""

from collections.abc import Iterator, Sequence
from typing import Any

from rest_framework.exceptions import ValidationError

# By the type of an item, its members; others of the output come back as input, and are not used.
_MEMBERS = {
    "message": {"role", "content", "phase"},
    "function_call": {"call_id", "name", "arguments"},
    "function_call_output": {"call_id", "output"},
    "reasoning": {"summary", "content", "encrypted_content"},
}
_OF_EVERY_ITEM = {"id", "type", "status", "caller", "namespace", "created_by"}
_TEXT_PARTS = {"input_text", "output_text"}


def messages_of(given: Any) -> list[dict[str, Any]]:
    """The messages of an input, a text or items, as the API of tasks takes them, to be validated.

    Calls that follow one another are those of one message. Reasoning is left out: no model reads
    it. Raises ValidationError naming the input.
    """
    if isinstance(given, str):
        return [{"role": "user", "content": given}]
    if not isinstance(given, list) or not given:
        raise _refusal("#", "Give a text, or a list of items.")
    messages: list[dict[str, Any]] = []
    for index, item in enumerate(given):
        where = f"#/{index}"
        if not isinstance(item, dict):
            raise _refusal(where, "An item is an object, such as a message.")
        item = {name: value for name, value in item.items() if value is not None}  # noqa: PLW2901
        kind = item.get("type", "message")
        known = _MEMBERS.get(kind) if isinstance(kind, str) else None
        if known is None:
            message = f"Items are {', '.join(_MEMBERS)}: nothing here makes or reads others."
            raise _refusal(f"{where}/type", message)
        if unknown := [str(name)[:100] for name in item if name not in known | _OF_EVERY_ITEM]:
            raise _refusal(where, f"Unknown field {unknown[0]}: check its spelling.")
        if kind == "function_call":
            function = {name: item.get(name) for name in ("name", "arguments")}
            call = {"id": item.get("call_id"), "type": "function", "function": function}
            if not messages or messages[-1]["role"] != "assistant":
                messages.append({"role": "assistant", "content": None})
            messages[-1].setdefault("tool_calls", []).append(call)
        elif kind == "function_call_output":
            content = _content(item.get("output"), f"{where}/output")
            call_id = item.get("call_id")
            messages.append({"role": "tool", "tool_call_id": call_id, "content": content})
        elif kind == "message":
            role = "system" if item.get("role") == "developer" else item.get("role")
            content = _content(item.get("content"), f"{where}/content")
            if content or role != "assistant":  # an answer may have been empty
                messages.append({"role": role, "content": content})
    if not messages:
        raise _refusal("#", "Give an item that asks something, such as a message.")
    return messages


def _content(given: Any, where: str) -> Any:
    """Parts as a message has them; texts alone as one text."""
    if not isinstance(given, list):
        return given
    parts = [_part(part, f"{where}/{index}") for index, part in enumerate(given)]
    if all(part["type"] == "text" for part in parts):
        return "".join(part["text"] for part in parts)
    return parts


def _part(part: Any, where: str) -> dict[str, Any]:
    match part:
        case {"type": kind, "text": str() as text} if kind in _TEXT_PARTS:
            return {"type": "text", "text": text}
        case {"type": "refusal", "refusal": str() as text}:
            return {"type": "text", "text": text}
        case {"type": "input_image", "image_url": str() as url}:
            detail = {"detail": part["detail"]} if part.get("detail") else {}
            return {"type": "image_url", "image_url": {"url": url} | detail}
    message = "Parts are input_text and output_text with text, and input_image with image_url."
    raise _refusal(where, message)


def items_of(messages: Sequence[Any], key: str) -> Iterator[dict[str, Any]]:
    """The items that stand for messages; `key` tells their ids from those of other responses."""
    for index, message in enumerate(messages):
        own, content = f"{key}_{index}", message["content"]
        if message["role"] == "tool":
            output = {"call_id": message["tool_call_id"], "output": content}
            yield {
                "type": "function_call_output",
                "id": f"fco_{own}",
                "status": "completed",
            } | output
        elif message["role"] == "assistant":
            if content:
                yield message_item(own, text_part(content))
            for number, call in enumerate(message.get("tool_calls", ())):
                yield call_item(f"{own}_{number}", call)
        else:
            texts = [{"type": "text", "text": content}] if isinstance(content, str) else content
            parts = [_input_part(part) for part in texts]
            yield message_item(own, *parts) | {"role": message["role"]}


def _input_part(part: Any) -> dict[str, Any]:
    if part["type"] == "text":
        return {"type": "input_text", "text": part["text"]}
    image = part["image_url"]
    detail = image.get("detail", "auto")
    return {"type": "input_image", "image_url": image["url"], "detail": detail}


def message_item(key: str, *parts: dict[str, Any], status: str = "completed") -> dict[str, Any]:
    """A message of the assistant."""
    return {
        "type": "message",
        "id": f"msg_{key}",
        "status": status,
        "role": "assistant",
        "content": list(parts),
    }


def text_part(text: str, logprobs: Sequence[Any] = ()) -> dict[str, Any]:
    """The text of an answer, within its message."""
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": list(logprobs)}


def reasoning_item(key: str, *parts: dict[str, Any], status: str = "completed") -> dict[str, Any]:
    """What the model has thought, as it wrote it: nobody makes a summary of it."""
    return {
        "type": "reasoning",
        "id": f"rs_{key}",
        "status": status,
        "summary": [],
        "content": list(parts),
    }


def reasoning_part(text: str) -> dict[str, Any]:
    """The text within a reasoning item."""
    return {"type": "reasoning_text", "text": text}


def call_item(key: str, call: Any, status: str = "completed") -> dict[str, Any]:
    """The call of a function."""
    return {
        "type": "function_call",
        "id": f"fc_{key}",
        "status": status,
        "call_id": call["id"],
        **call["function"],
    }


def _refusal(where: str, message: str) -> ValidationError:
    return ValidationError({"input": [f"{where}: {message}"]})
