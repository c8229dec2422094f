"""Structured output: what a task may ask for, the constraint of it, and the check of the answer."""

import json
import math
import re
from collections.abc import Iterable
from dataclasses import fields
from functools import lru_cache
from typing import Any, NoReturn, NotRequired, TypedDict, cast

from rest_framework.exceptions import ValidationError

from inference.engine import text_grammars
from inference.engine.errors import GrammarError, SchemaError
from inference.engine.schema_policy import Options, compile_schema, find_mismatch
from inference.engine.sequence import FinishReason
from inference.errors import ErrorCode, InferenceError
from monitoring.api import storable_json

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_CUT = "The answer reached its limit of tokens before its JSON was complete"
_ROOM = "raise max_tokens, or shorten the prompt if the context window is full"
_MAX_QUOTED = 200
_MAX_REASON = 500
_MAX_EVIDENCE = 40
_OPTIONS = frozenset(option.name for option in fields(Options))
# Formats of plain text: each has one field, of its name or another.
_TEXT_FIELDS = {"regex": "regex", "lark": "lark", "choice": "choices"}


class ResponseFormat(TypedDict):
    """What the answer must be, as the task's row keeps it.

    `schema` is JSON text: PostgreSQL does not keep the order of an object's members, which is the
    order of the properties in the answer. `options` are those of the policies that are turned off.
    """

    type: str
    name: NotRequired[str]
    schema: NotRequired[str]
    options: NotRequired[dict[str, bool]]
    regex: NotRequired[str]
    lark: NotRequired[str]
    choices: NotRequired[list[str]]


def is_text(response_format: ResponseFormat) -> bool:
    """Whether the answer is a text of a form, not JSON."""
    return response_format["type"] in _TEXT_FIELDS


def normalize(response_format: Any, output_schema: Any) -> ResponseFormat | None:
    """The format that a submission asks for; None for plain text.

    An explicit response_format wins over output_schema. Raises ValidationError naming the field.
    """
    if response_format is None:
        return _of_schema(output_schema, "output_schema") if output_schema is not None else None
    if not isinstance(response_format, dict):
        raise _refusal("response_format", 'Give an object, such as {"type": "json_object"}.')
    match response_format.get("type"):
        case "text":
            _check_keys(response_format, {"type"})
            return None
        case "json_object":
            _check_keys(response_format, {"type"})
            return ResponseFormat(type="json_object")
        case "json_schema":
            return _of_json_schema(response_format)
        case "regex" | "lark" | "choice" as kind:
            return _of_text(kind, response_format)
    message = "Its type is text, json_object, json_schema, regex, lark or choice."
    raise _refusal("response_format", message)


def constraint_for(response_format: ResponseFormat) -> str:
    """The grammar that an answer of this format is written by.

    Raises SchemaError or GrammarError, only for a format that `normalize` has not checked.
    """
    match response_format["type"]:
        case "regex":
            return text_grammars.of_regex(response_format["regex"])
        case "lark":
            return text_grammars.of_lark(response_format["lark"])
        case "choice":
            return text_grammars.of_choices(response_format["choices"])
        case "json_schema":
            return _grammar_of(response_format["schema"], _options_of(response_format))
    return _grammar_of('{"type": "object"}', Options())


def parse(text: str, finish_reason: FinishReason, response_format: ResponseFormat) -> Any:
    """The answer as a JSON value that the format allows; as it is for a format of plain text.

    Raises InferenceError with the reason and a little evidence, never the whole text.
    """
    was_cut = finish_reason == FinishReason.LENGTH
    if is_text(response_format):
        grammar = constraint_for(response_format)
        if "\0" in text or not text_grammars.is_complete(grammar, text, was_cut=was_cut):
            advice = f" It may have been cut off: {_ROOM}." if was_cut else ""
            kind = response_format["type"]
            raise _invalid(f"The answer does not follow the {kind} to its end.{advice}", text)
        return text
    try:
        value = _load(text, finish_reason)
        if "schema" not in response_format:
            if not isinstance(value, dict):
                raise _invalid("The answer is JSON, but no object.", text)
            return value
        has_formats = _options_of(response_format).formats
        mismatch = find_mismatch(response_format["schema"], value, has_formats=has_formats)
    except GrammarError as error:
        raise _invalid(f"The answer cannot be checked: {error}", text) from error
    except RecursionError as error:
        raise _invalid("The answer is nested too deep to be read.", text) from error
    if mismatch is not None:
        where, what = _pointer(mismatch.absolute_path), _shortened(mismatch.message)
        raise _invalid(f"The answer does not fit the schema at {where}: {what}.", text)
    return value


def check_arguments(arguments: str, schema: dict[str, Any]) -> None:
    """Raises InferenceError for what a tool was called with, unless it fits the tool's schema."""
    described = ResponseFormat(type="json_schema", schema=json.dumps(schema, ensure_ascii=False))
    parse(arguments, FinishReason.STOP, described)


def _of_json_schema(response_format: dict[str, Any]) -> ResponseFormat:
    _check_keys(response_format, {"type", "json_schema"})
    described = response_format.get("json_schema")
    if not isinstance(described, dict) or "schema" not in described:
        raise _refusal("response_format", 'json_schema must be an object with "schema".')
    _check_keys(described, {"name", "description", "schema", "strict", "options"})
    name = described.get("name", "answer")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        message = "json_schema.name is made of 1 to 64 letters, digits, _ and -."
        raise _refusal("response_format", message)
    if not isinstance(described.get("strict", True), bool | None):
        message = "json_schema.strict is true or false; it is strict either way."
        raise _refusal("response_format", message)
    options = described.get("options", {})
    if not isinstance(options, dict) or not all(isinstance(v, bool) for v in options.values()):
        message = f"json_schema.options is an object of {', '.join(sorted(_OPTIONS))}: true, false."
        raise _refusal("response_format", message)
    _check_keys(options, _OPTIONS)
    return _of_schema(described["schema"], "response_format", name, options)


def _of_schema(
    schema: Any, field: str, name: str = "answer", options: dict[str, bool] | None = None
) -> ResponseFormat:
    asked = ResponseFormat(type="json_schema", name=name)
    if options:
        asked["options"] = options
    try:
        asked["schema"] = json.dumps(schema, ensure_ascii=False)
        constraint_for(asked)
    except (SchemaError, RecursionError) as error:
        reason = str(error) if isinstance(error, SchemaError) else "It is nested too deep."
        message = f"The schema cannot be used. {_shortened(reason, _MAX_REASON)}"
        raise _refusal(field, message) from error
    return asked


def _of_text(kind: str, response_format: dict[str, Any]) -> ResponseFormat:
    field = _TEXT_FIELDS[kind]
    _check_keys(response_format, {"type", field})
    value = response_format.get(field)
    if kind == "choice":
        if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
            raise _refusal("response_format", "choices must be a list of texts.")
    elif not isinstance(value, str):
        raise _refusal("response_format", f"{field} must be a text.")
    asked = cast("ResponseFormat", {"type": kind, field: value})
    try:
        constraint_for(asked)
    except GrammarError as error:
        message = f"The {field} cannot be used. {_shortened(str(error), _MAX_REASON)}"
        raise _refusal("response_format", message) from error
    return asked


def _options_of(response_format: ResponseFormat) -> Options:
    return Options(**response_format.get("options", {}))


@lru_cache(maxsize=256)
def _grammar_of(schema: str, options: Options) -> str:
    return compile_schema(json.loads(schema), options)


def _check_keys(value: dict[str, Any], known: Iterable[str]) -> None:
    if unknown := [str(key) for key in value if key not in known]:
        message = f"Unknown field {_shortened(unknown[0])}: check its spelling, or leave it out."
        raise _refusal("response_format", message)


def _load(text: str, finish_reason: FinishReason) -> Any:
    """Strict JSON: each name once, numbers that Python can hold, nothing after the value."""
    try:
        value = json.loads(
            text, parse_constant=_no_constant, parse_float=_finite, object_pairs_hook=_unique
        )
        _check_storable(value)
    except ValueError as error:
        if finish_reason == FinishReason.LENGTH:
            raise _invalid(f"{_CUT}: {_ROOM}.", text) from error
        raise _invalid(f"The answer is no valid JSON: {error}.", text) from error
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if is_number and finish_reason == FinishReason.LENGTH:
        raise _invalid(f"A number may have been cut off: {_ROOM}.", text)
    return value


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _finite(digits: str) -> float:
    if not math.isfinite(number := float(digits)):
        raise ValueError(f"the number {_shortened(digits)} is too large")
    return number


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"an object has the property {_shortened(twice)} twice")
    return members


def _check_storable(value: Any) -> None:
    """Raises ValueError on half surrogate pairs, and on NUL, which PostgreSQL does not store."""
    if storable_json.has_nul(storable_json.encode(value)):
        raise ValueError("it contains a NUL character")


def _pointer(path: Iterable[str | int]) -> str:
    return "#" + "".join(f"/{_shortened(str(part))}" for part in path)


def _shortened(text: str, max_length: int = _MAX_QUOTED) -> str:
    return text if len(text) <= max_length else f"{text[:max_length]}…"


def _invalid(message: str, text: str) -> InferenceError:
    evidence = f"It has {len(text)} characters and ends with {text[-_MAX_EVIDENCE:]!r}."
    return InferenceError(f"{message} {evidence}", ErrorCode.STRUCTURED_OUTPUT_INVALID)


def _refusal(field: str, message: str) -> ValidationError:
    return ValidationError({field: [message]})
