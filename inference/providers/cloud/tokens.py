"""How many tokens messages are, about, where only the provider knows exactly."""

import os
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from conversations import context
from conversations.models import ChatMessage, text_of
from inference.errors import ErrorCode, InferenceError
from inference.models import RegisteredModel
from inference.providers.base import GenerationRequest

if TYPE_CHECKING:
    from tiktoken import Encoding

# Of GPT-4o: it is fast, and near enough for other models.
_ENCODING = "o200k_base"
# What a chat format adds to each message; about what an image takes.
_TOKENS_PER_MESSAGE = 4
_TOKENS_PER_IMAGE = 1000


def count(text: str) -> int:
    """Tokens of a text."""
    return len(_encoding().encode(text, disallowed_special=()))


@cache
def _encoding() -> "Encoding":
    """Its file comes with LiteLLM, which takes seconds to import, and need not be."""
    import tiktoken

    litellm = find_spec("litellm")
    assert litellm is not None
    assert litellm.origin is not None
    folder = Path(litellm.origin).parent / "litellm_core_utils" / "tokenizers"
    os.environ["TIKTOKEN_CACHE_DIR"] = str(folder)
    return tiktoken.get_encoding(_ENCODING)


def count_messages(messages: list[ChatMessage]) -> int:
    """Tokens of a prompt."""
    return sum(count(_text(message)) + _num_beside(message) for message in messages)


def _text(message: ChatMessage) -> str:
    calls = [call["function"] for call in message.get("tool_calls", [])]
    return text_of(message) + "".join(call["name"] + call["arguments"] for call in calls)


def _num_beside(message: ChatMessage) -> int:
    """Tokens beside the text."""
    content = message["content"]
    parts = content if isinstance(content, list) else []
    num_images = len([part for part in parts if part["type"] != "text"])
    return _TOKENS_PER_MESSAGE + num_images * _TOKENS_PER_IMAGE


def fit(model: RegisteredModel, request: GenerationRequest) -> tuple[list[ChatMessage], int]:
    """The messages that the model's window has room for, and how many were dropped for it.

    Raises InferenceError, CONTEXT_LENGTH_EXCEEDED, when they are too long, and none may be dropped.
    """
    window = model.context_window
    if window is None:
        return request.messages, 0
    tools = request.tools["tools"] if request.tools is not None else ""
    answer_room = request.answer_room(window)
    # No token is shorter than a byte: so most prompts need no counting.
    most = sum(len(_text(each).encode()) + _num_beside(each) for each in request.messages)
    if most + len(tools.encode()) <= window - answer_room:
        return request.messages, 0
    counted = cache(count)
    num_of_tools = count(tools)

    def tokens_of(messages: list[ChatMessage]) -> int:
        of_messages = sum(counted(_text(each)) + _num_beside(each) for each in messages)
        return num_of_tools + of_messages

    messages, num_dropped = request.messages, 0
    if request.context_overflow == "truncate":
        messages, num_dropped = context.fit(messages, window, answer_room, tokens_of)
    # Near the limit only the provider knows; it gets what may fit without an answer's room.
    if (num_tokens := tokens_of(messages)) >= window:
        message = (
            f"The messages are about {num_tokens} tokens long, and the context window of "
            f"{model.name} has {window}: shorten them."
        )
        raise InferenceError(message, ErrorCode.CONTEXT_LENGTH_EXCEEDED)
    return messages, num_dropped
