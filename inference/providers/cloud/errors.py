"""What goes wrong between this service and a provider, as InferenceErrors that say what to do."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from urllib.parse import quote

import httpx

from inference.errors import ErrorCode, InferenceError
from inference.models import RegisteredModel
from inference.providers.api_keys import KeySource, key_source
from inference.providers.cloud.library import RedirectError, is_loaded
from inference.providers.cloud.wire import TooLargeError, whole
from inference.retries import retry_after_seconds
from monitoring.logs.redaction import redact

_MAX_QUOTED = 300
# Some patterns take time by the square of the length.
_MAX_SEARCHED = 4000
_HIDDEN = "***"
# Of a key; what is shorter tells nothing.
_MIN_PART_CHARS = 8
_MAX_CAUSES = 10

_MESSAGE = re.compile(r'"message":\s*"((?:[^"\\]|\\.)*)(?:"|\\?$)')
# What LiteLLM puts around it, as in "litellm.RateLimitError: OpenAIException - ".
_PREFIXES = re.compile(r"^(?:(?:litellm\.)?\w*(?:Error|Exception|Timeout)\w*(?::| -| )\s*)+")
# Its advice to those who run it themselves, and its stack.
_SUFFIXES = re.compile(
    r"(?:Traceback \(most recent|Handle with `litellm|To drop (?:these|unsupported)).*", re.DOTALL
)
_BYTES = re.compile(r"b(['\"])(.*)\1", re.DOTALL)
_TAGS = re.compile(r"<[^>]*>")

# In the words of OpenAI, Anthropic, vLLM, SGLang and llama-server.
_TOO_LONG = re.compile(
    r"context_length_exceeded|prompt is too long|maximum context length"
    r"|longer than the model's context length|exceed_context_size_error",
    re.IGNORECASE,
)
_FILTERED = re.compile(r"content_policy_violation|content filter", re.IGNORECASE)
_LIMITED = re.compile(r"rate_limit|rate limit", re.IGNORECASE)
_NO_MONEY = re.compile(
    r"insufficient_quota|exceeded your current quota|credit balance|insufficient balance",
    re.IGNORECASE,
)
_NO_PROVIDER = re.compile(r"LLM Provider NOT provided", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class _Verdict:
    """The advice is a sentence about `name`, the model, and `model_name`, its provider's name.

    `embedding_advice` is for a request that has neither messages nor fallback_models.
    """

    code: ErrorCode
    advice: str
    is_passing: bool = False
    embedding_advice: str = ""

    def advice_for(self, model: RegisteredModel) -> str:
        is_embedding = model.provider == RegisteredModel.Provider.EMBEDDING
        return self.embedding_advice if is_embedding and self.embedding_advice else self.advice


_CONTEXT_TOO_LONG = _Verdict(
    ErrorCode.CONTEXT_LENGTH_EXCEEDED,
    "The messages are too long for {name}: shorten them, or have the model registered with its "
    "context_window, so that the oldest are dropped.",
    embedding_advice="A text is too long for {name}: split it.",
)
_CONTENT_FILTERED = _Verdict(
    ErrorCode.CONTENT_FILTERED, "The provider of {name} filtered this out: change the prompt."
)
_UNSUPPORTED = _Verdict(
    ErrorCode.INVALID_REQUEST,
    "{name} does not take a parameter as it is given: leave it out, or have the model registered "
    "with drop_params.",
)
_NO_SUCH_PROVIDER = _Verdict(
    ErrorCode.PROVIDER_ERROR,
    "LiteLLM does not know the provider of {model_name}: register {name} anew, with a model_name "
    "such as groq/llama-3.3-70b-versatile.",
    embedding_advice="LiteLLM does not know the provider of {model_name}: register {name} anew, "
    "with a model_name such as openai/text-embedding-3-small.",
)
_NO_QUOTA = _Verdict(
    ErrorCode.RATE_LIMITED,
    "The account behind {name} has nothing left to spend: see to its billing, or name "
    "fallback_models.",
    embedding_advice="The account behind {name} has nothing left to spend: see to its billing.",
)
_RATE_LIMITED = _Verdict(
    ErrorCode.RATE_LIMITED,
    "{name} is asked more often than its provider allows: submit again later, or name "
    "fallback_models.",
    is_passing=True,
    embedding_advice="{name} is asked more often than its provider allows: try again later.",
)
_TIMED_OUT = _Verdict(
    ErrorCode.PROVIDER_TIMEOUT,
    "The provider of {name} did not answer in time: submit again, name fallback_models, or have "
    "the model registered with a longer timeout.",
    is_passing=True,
    embedding_advice="The provider of {name} did not answer in time: try again, or have the model "
    "registered with a longer timeout.",
)
_UNAVAILABLE = _Verdict(
    ErrorCode.PROVIDER_UNAVAILABLE,
    "The provider of {name} fails or cannot be reached: submit again later, or name "
    "fallback_models.",
    is_passing=True,
    embedding_advice="The provider of {name} fails or cannot be reached: try again later.",
)
_REFUSED_KEY = _Verdict(
    ErrorCode.AUTHENTICATION_FAILED, "The provider of {name} refuses its key: {remedy}."
)
_NO_SUCH_MODEL = _Verdict(
    ErrorCode.PROVIDER_ERROR,
    "The provider of {name} has no {model_name} at this address: check the model_name and the "
    "base_url that it is registered with.",
)
_INVALID = _Verdict(
    ErrorCode.INVALID_REQUEST, "The provider of {name} refuses the request: correct it."
)
_TOO_LARGE = _Verdict(
    ErrorCode.PROVIDER_ERROR,
    "The answer of {name} has no end: ask for a shorter one, or name fallback_models.",
)
_REDIRECTED = _Verdict(
    ErrorCode.PROVIDER_ERROR,
    "The provider of {name} sends requests on to another host, which gets neither key nor prompt: "
    "register {name} anew with the base_url of that host, if it is to be trusted.",
)
_UNKNOWN = _Verdict(
    ErrorCode.PROVIDER_ERROR,
    "The provider of {name} failed in a way that is not known: name fallback_models.",
    embedding_advice="The provider of {name} failed in a way that is not known: take another one.",
)

# What the status leaves open: of a request that was refused, or of an error without a status.
_BY_WORDS = (
    (_NO_PROVIDER, _NO_SUCH_PROVIDER),
    (_NO_MONEY, _NO_QUOTA),
    (_TOO_LONG, _CONTEXT_TOO_LONG),
    (_FILTERED, _CONTENT_FILTERED),
)
_BY_STATUS = {
    400: _INVALID,
    401: _REFUSED_KEY,
    402: _NO_QUOTA,
    403: _REFUSED_KEY,
    404: _NO_SUCH_MODEL,
    408: _TIMED_OUT,
    413: _INVALID,
    422: _INVALID,
    429: _RATE_LIMITED,
    504: _TIMED_OUT,
}


def failure_of(error: Exception, model: RegisteredModel, key: str | None) -> InferenceError:
    """What was raised while `model` was asked with `key`, which the message never has."""
    while isinstance(original := getattr(error, "original_exception", None), Exception):
        error = original
    body = getattr(error, "body", None)
    code = body.get("code") or body.get("type") if isinstance(body, Mapping) else None
    text = str(getattr(error, "message", None) or error)[:_MAX_SEARCHED]
    text = f"{text} ({code})" if code else text
    verdict = _verdict(error, text)
    match key_source(model):
        case KeySource.REGISTRATION:
            remedy = "register the model anew with a valid api_key"
        case KeySource.ENVIRONMENT:
            remedy = f"check {model.config['api_key_env_var']} in the worker's environment"
        case None:
            remedy = "register the model anew with api_key or api_key_env_var"
    names = {"name": model.name, "model_name": model.config["model_name"]}
    message = verdict.advice_for(model).format(**names, remedy=remedy)
    # A provider that refuses a key tends to quote it.
    if verdict is not _REFUSED_KEY and (words := _words(text, key)):
        message = f"{message} It says: {words}"
    retry_after = None
    if verdict.is_passing:
        for cause in _causes(error):
            # LiteLLM has the headers of an answer in several places.
            response = getattr(cause, "response", None)
            of_answer = getattr(response, "headers", None)
            of_error = getattr(cause, "litellm_response_headers", None)
            for headers in (of_answer, of_error, getattr(cause, "headers", None)):
                if retry_after is None and isinstance(headers, Mapping):
                    retry_after = retry_after_seconds(headers)
    return InferenceError(
        message, verdict.code, retryable=verdict.is_passing, retry_after=retry_after
    )


def silence(model: RegisteredModel, seconds: float) -> InferenceError:
    """The provider has said nothing for longer than the model's timeout."""
    return _own_failure(_TIMED_OUT, model, f"Nothing came for {seconds:g} s.")


def incomplete(model: RegisteredModel, reason: str) -> InferenceError:
    """The stream has ended without an end of the answer, or for the provider's own `reason`."""
    what = f"It ended its answer with {reason}." if reason else "Its answer broke off."
    return _own_failure(_UNAVAILABLE, model, what)


def filtered(model: RegisteredModel) -> InferenceError:
    """The provider has cut its own answer."""
    return _own_failure(_CONTENT_FILTERED, model, "Its answer was cut off.")


def _own_failure(verdict: _Verdict, model: RegisteredModel, what: str) -> InferenceError:
    message = f"{what} {verdict.advice.format(name=model.name)}"
    return InferenceError(message, verdict.code, retryable=verdict.is_passing)


def _verdict(error: Exception, text: str) -> _Verdict:
    """By the status that came over the network, then by LiteLLM's class, then by the words."""
    status = getattr(error, "status_code", None)
    for cause in _causes(error):
        if isinstance(cause, RedirectError):
            return _REDIRECTED
        if isinstance(cause, httpx.HTTPStatusError):
            status = cause.response.status_code
    if not isinstance(status, int):  # an error in the middle of a stream, a broken connection
        status = None
    if status is None or status < 500:
        for class_, verdict in _by_class():
            if isinstance(error, class_):
                return verdict
        for pattern, verdict in _BY_WORDS:
            if pattern.search(text):
                return verdict
    if status is None:
        return _RATE_LIMITED if _LIMITED.search(text) else _UNAVAILABLE
    return _BY_STATUS.get(status) or (_UNAVAILABLE if status >= 500 else _UNKNOWN)


def _by_class() -> list[tuple[type[Exception], _Verdict]]:
    return [
        (httpx.TimeoutException, _TIMED_OUT),
        (TimeoutError, _TIMED_OUT),
        (TooLargeError, _TOO_LARGE),
        # Not while it is being loaded, for which the event loop would wait.
        *(_by_class_of_litellm() if is_loaded() else ()),
    ]


@cache
def _by_class_of_litellm() -> list[tuple[type[Exception], _Verdict]]:
    from litellm import exceptions
    from openai import APITimeoutError

    return [
        (exceptions.ContextWindowExceededError, _CONTEXT_TOO_LONG),
        (exceptions.ContentPolicyViolationError, _CONTENT_FILTERED),
        (exceptions.UnsupportedParamsError, _UNSUPPORTED),
        (APITimeoutError, _TIMED_OUT),
    ]


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error and those that it was raised for."""
    for _ in range(_MAX_CAUSES):
        if error is None:
            return
        yield error
        error = error.__cause__ or error.__context__


def _words(text: str, key: str | None) -> str:
    """What the provider itself says, in one short line without secrets."""
    if found := _MESSAGE.search(text):
        try:
            text = str(json.loads(f'"{found[1]}"'))
        except ValueError:  # cut, or quoted twice
            text = found[1].replace("\\", "")
    text = _SUFFIXES.sub("", _PREFIXES.sub("", text)).strip()
    if found := _BYTES.fullmatch(text):
        text = found[2]
    text = whole(" ".join(_TAGS.sub(" ", text).split()))
    text = redact(_without_key(text, key)).rstrip(" :")
    return text if len(text) <= _MAX_QUOTED else f"{text[:_MAX_QUOTED]}…"


def _without_key(text: str, key: str | None) -> str:
    """The text without any part of the key that tells something, also as it is in a URL."""
    if not key:
        return text
    for secret in {key, quote(key, safe="")}:
        length = min(_MIN_PART_CHARS, len(secret))
        parts = {secret[i : i + length].lower() for i in range(len(secret) - length + 1)}
        lowered = text.lower()
        if len(lowered) != len(text):  # a letter whose small form is longer
            lowered = text
        shown: list[str] = []
        end = 0
        for start in range(len(text) - length + 1):
            if lowered[start : start + length] in parts:
                if start > end or not shown:
                    shown += [text[end:start], _HIDDEN]
                end = start + length
        text = "".join([*shown, text[end:]])
    return text
