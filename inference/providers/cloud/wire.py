"""The boundary to providers: what they send becomes well-formed here, and is trusted behind it.

Whole Unicode without NUL, finite and bounded numbers, known shapes.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from inference.models import Usage

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_MAX_COUNT = 10**9
# As OpenAI writes that a token is out of the question.
_MAX_LOGPROB = 9999.0
_MAX_DEPTH = 8
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"

# By the codes and types that come without a number; the more exact ones first.
_STATUS_BY_NAME = {
    "invalid_api_key": 401,
    "authentication_error": 401,
    "unauthenticated": 401,
    "billing_error": 402,
    "permission_error": 403,
    "permission_denied": 403,
    "model_not_found": 404,
    "not_found_error": 404,
    "not_found": 404,
    "request_too_large": 413,
    "rate_limit_exceeded": 429,
    "rate_limit_error": 429,
    "insufficient_quota": 429,
    "resource_exhausted": 429,
    "overloaded_error": 529,
    "api_error": 500,
    "server_error": 500,
    "internal": 500,
    "unavailable": 503,
    "timeout_error": 504,
    "deadline_exceeded": 504,
    "invalid_request_error": 400,
    "invalid_argument": 400,
}


class ProviderError(Exception):
    """An error that came in the place of an answer; `status_code` None where it told none."""

    # Of the answer that was an error.
    headers: Mapping[str, str] | None = None

    def __init__(self, message: str, status_code: int | None = None) -> None:
        super().__init__(message)
        self.status_code = status_code


class TooLargeError(ProviderError):
    """An answer without an end."""


@dataclass(frozen=True, slots=True)
class ToolCallPart:
    """What an event says of a tool call; `arguments` is JSON text, or a part of it."""

    id: str
    index: int | None
    name: str
    arguments: str


def whole(text: str) -> str:
    """The text in valid Unicode: pairs of surrogates joined, lone halves and NUL replaced."""
    text = text.replace("\0", _REPLACEMENT)
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


class WholeText:
    """A text that comes in parts, of which each is given out in valid Unicode."""

    def __init__(self) -> None:
        self._half = ""

    def add(self, text: str, *, is_last: bool = False) -> str:
        """What is certain now; half of a pair waits for the other one."""
        text = self._half + text
        if not text:
            return ""
        is_half = not is_last and "\ud800" <= text[-1] <= "\udbff"
        text, self._half = (text[:-1], text[-1]) if is_half else (text, "")
        return whole(text)


def content(value: Any, depth: int = 0) -> tuple[str, str]:
    """Text and reasoning of what should be a text: a list of blocks, a number. Not yet whole."""
    match value:
        case str():
            return value, ""
        case list() | dict() if depth == _MAX_DEPTH:
            pass
        case list():
            told = [content(each, depth + 1) for each in value]
            return "".join(text for text, _ in told), "".join(thought for _, thought in told)
        case {"thinking": told} | {"reasoning": told}:
            return "", "".join(content(told, depth + 1))
        case {"text": told}:
            return content(told, depth + 1)
        case int() | float():
            return json.dumps(value), ""
    return "", ""


def tool_calls(message: dict[str, Any]) -> list[ToolCallPart]:
    """What a delta or a message says of tool calls, also of the one in the old `function_call`."""
    told = message.get("tool_calls") or message.get("function_call") or ()
    parts = []
    for call in told if isinstance(told, list | tuple) else [told]:
        if not isinstance(call, dict):
            continue
        function = call.get("function")
        function = function if isinstance(function, dict) else call
        name, arguments = function.get("name"), function.get("arguments")
        if not isinstance(arguments, str):
            arguments = "" if arguments is None else json.dumps(arguments)
        parts.append(
            ToolCallPart(
                id=whole(str(call.get("id") or "")),
                index=count(call.get("index")),
                name=whole(name) if isinstance(name, str) else "",
                arguments=arguments,
            )
        )
    return parts


def usage(value: Any) -> Usage | None:
    """None for one that says nothing, or what cannot be."""
    if not isinstance(value, dict):
        return None
    prompt_tokens = count(value.get("prompt_tokens"))
    completion_tokens = count(value.get("completion_tokens"))
    if prompt_tokens is None or completion_tokens is None:
        return None
    # Some leave the tokens of reasoning to the sum.
    total_tokens = count(value.get("total_tokens")) or 0
    completion_tokens = max(completion_tokens, total_tokens - prompt_tokens)
    details = value.get("prompt_tokens_details")
    cached_tokens = count(details.get("cached_tokens")) if isinstance(details, dict) else None
    details = value.get("completion_tokens_details")
    reasoning_tokens = count(details.get("reasoning_tokens")) if isinstance(details, dict) else None
    return Usage(
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        total_tokens=prompt_tokens + completion_tokens,
        cached_tokens=min(cached_tokens or 0, prompt_tokens),
        reasoning_tokens=min(reasoning_tokens or 0, completion_tokens),
    )


def counts(value: Any, depth: int = 0) -> dict[str, Any]:
    """All numbers of things in an object, and in the objects within; else nothing."""
    kept: dict[str, Any] = {}
    if isinstance(value, dict) and depth < _MAX_DEPTH:
        for name, told in value.items():
            number = counts(told, depth + 1) if isinstance(told, dict) else count(told)
            if number is not None:
                kept[str(name)] = number
    return kept


def error_in(event: dict[str, Any]) -> ProviderError | None:
    """The error that an event tells; None for one that tells none."""
    error = event.get("error")
    if not error and "error" in (event.get("object"), event.get("type")):
        error = event
    if not error:
        return None
    told = error if isinstance(error, dict) else {"message": error}
    names = [told.get(name) for name in ("code", "status_code", "status", "type")]
    statuses = [_status(name) for name in (*names, event.get("code"), event.get("status"))]
    status = next((number for number in statuses if number is not None), None)
    words = [told.get("message"), *(name for name in names if isinstance(name, str))]
    return ProviderError(" ".join(map(str, filter(None, words))), status)


def vectors(data: Any, num_texts: int, num_dimensions: int | None) -> "NDArray[np.float32] | None":
    """The embeddings of an answer in the order of their texts, by index where they have one.

    A row of float32 a text. None for what is not that, or has other dimensions than asked for.
    """
    import numpy as np  # takes 0.1 s, and tasks need none

    try:
        found = [(each.get("index"), each["embedding"]) for each in data]
        if any(index is not None for index, _ in found):
            found.sort(key=lambda each: int(each[0]))
            if [index for index, _ in found] != list(range(num_texts)):
                return None
        with np.errstate(over="ignore"):
            rows = np.array([embedding for _, embedding in found], dtype=np.float32)
    except (AttributeError, LookupError, TypeError, ValueError, OverflowError):
        return None
    is_asked_for = rows.ndim == 2 and num_dimensions in (None, rows.shape[1])
    return rows if is_asked_for and len(rows) == num_texts and np.isfinite(rows).all() else None


def scores(data: Any, num_texts: int) -> "NDArray[np.float32] | None":
    """The scores of a ranking in the order of its texts, as a column; None for what is not that."""
    try:
        found = [{"index": each["index"], "embedding": [each["relevance_score"]]} for each in data]
    except (LookupError, TypeError):
        return None
    return vectors(found, num_texts, 1)


def num_ranked_tokens(meta: Any) -> int:
    """What a provider says that a ranking has read, by one of the names that LiteLLM has for it."""
    told = meta if isinstance(meta, dict) else {}
    read, billed = told.get("tokens") or {}, told.get("billed_units") or {}
    return count(read.get("input_tokens")) or count(billed.get("total_tokens")) or 0


def well_formed(value: Any, depth: int = 0) -> Any:
    """JSON that every database keeps; what is nested too deep is left out."""
    kept: Any = None
    match value:
        case bool():
            kept = value
        case str():
            kept = whole(value)
        case int():
            kept = max(-_MAX_COUNT, min(_MAX_COUNT, value))
        case float() if not math.isnan(value):
            kept = max(-_MAX_LOGPROB, min(_MAX_LOGPROB, value))
        case list() if depth < _MAX_DEPTH:
            kept = [well_formed(each, depth + 1) for each in value]
        case dict() if depth < _MAX_DEPTH:
            kept = {whole(str(name)): well_formed(each, depth + 1) for name, each in value.items()}
    return kept


def logprob(value: Any) -> dict[str, Any] | None:
    """What is said of a token, in OpenAI's shape; None for what has no token."""
    if not isinstance(value, dict) or not isinstance(value.get("token"), str):
        return None
    top = value.get("top_logprobs")
    tops = [logprob(each) for each in top] if isinstance(top, list) else []
    told = {name: well_formed(value.get(name)) for name in ("token", "logprob", "bytes")}
    known = [{n: v for n, v in each.items() if n in told} for each in tops if each is not None]
    return told | {"top_logprobs": known}


def count(value: Any) -> int | None:
    """None for what is no number of things."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return int(value) if 0 <= value <= _MAX_COUNT else None


def _status(value: Any) -> int | None:
    """An HTTP status of failures: as a number, in digits, or by its name."""
    if isinstance(value, str):
        is_number = value.isdecimal() and len(value) == 3
        value = int(value) if is_number else _STATUS_BY_NAME.get(value.lower())
    is_status = isinstance(value, int) and 400 <= value < 600
    return value if is_status else None
