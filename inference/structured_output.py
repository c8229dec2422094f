"""Structured output: what a task may ask for, the grammar of it, and the check of the answer."""

import json
import math
import re
from collections.abc import Iterable, Iterator
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, NoReturn, NotRequired, TypedDict

from rest_framework.exceptions import ValidationError

from inference.engine.errors import SchemaError
from inference.engine.json_schema import FORMATS, JSON_OBJECT_GRAMMAR, compile_schema, matches
from inference.engine.sequence import FinishReason
from inference.errors import ErrorCode, InferenceError
from monitoring.api import storable_json

if TYPE_CHECKING:
    from jsonschema.protocols import Validator

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_CUT = "The answer reached its limit of tokens before its JSON was complete"
_ROOM = "raise max_tokens, or shorten the prompt if the context window is full"
_MAX_QUOTED = 200
_MAX_REASON = 500
_MAX_EVIDENCE = 40


class ResponseFormat(TypedDict):
    """What the answer must be, as the task's row keeps it.

    `schema` is JSON text: PostgreSQL does not keep the order of an object's members, which is the
    order of the properties in the answer.
    """

    type: str
    name: NotRequired[str]
    schema: NotRequired[str]


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
            _check_keys(response_format, {"type", "json_schema"})
            described = response_format.get("json_schema")
            if not isinstance(described, dict) or "schema" not in described:
                raise _refusal("response_format", 'json_schema must be an object with "schema".')
            _check_keys(described, {"name", "schema", "strict"})
            name = described.get("name", "answer")
            if not isinstance(name, str) or not _NAME.fullmatch(name):
                message = "json_schema.name is made of 1 to 64 letters, digits, _ and -."
                raise _refusal("response_format", message)
            if not isinstance(described.get("strict", True), bool | None):
                message = "json_schema.strict is true or false; it is strict either way."
                raise _refusal("response_format", message)
            return _of_schema(described["schema"], "response_format", name)
    raise _refusal("response_format", "Its type is text, json_object or json_schema.")


def grammar_for(response_format: ResponseFormat) -> str:
    """GBNF, of which every complete text is JSON of that format. Raises SchemaError."""
    if "schema" not in response_format:
        return JSON_OBJECT_GRAMMAR
    return _grammar_of(response_format["schema"])


def parse(text: str, finish_reason: FinishReason, response_format: ResponseFormat) -> Any:
    """The answer as a JSON value that the format allows.

    Raises InferenceError with the reason and a little evidence, never the whole text.
    """
    try:
        value = _load(text, finish_reason)
        if "schema" not in response_format:
            if not isinstance(value, dict):
                raise _invalid("The answer is JSON, but no object.", text)
            return value
        from jsonschema.exceptions import best_match  # see _check_schema

        mismatch = best_match(_validator_of(response_format["schema"]).iter_errors(value))
    except RecursionError as error:
        raise _invalid("The answer is nested too deep to be read.", text) from error
    if mismatch is not None:
        where, what = _pointer(mismatch.absolute_path), _shortened(mismatch.message)
        raise _invalid(f"The answer does not fit the schema at {where}: {what}.", text)
    return value


def _of_schema(schema: Any, field: str, name: str = "answer") -> ResponseFormat:
    try:
        text = json.dumps(schema, ensure_ascii=False)
        _check_schema(text)
    except (SchemaError, RecursionError) as error:
        reason = str(error) if isinstance(error, SchemaError) else "It is nested too deep."
        message = f"The schema cannot be used. {_shortened(reason, _MAX_REASON)}"
        raise _refusal(field, message) from error
    return ResponseFormat(type="json_schema", name=name, schema=text)


def _check_keys(value: dict[str, Any], known: set[str]) -> None:
    if unknown := [str(key) for key in value if key not in known]:
        message = f"Unknown field {_shortened(unknown[0])}: check its spelling, or leave it out."
        raise _refusal("response_format", message)


@lru_cache(maxsize=256)
def _grammar_of(schema: str) -> str:
    return compile_schema(json.loads(schema))


@lru_cache(maxsize=256)
def _check_schema(schema: str) -> None:
    """Raises SchemaError unless it compiles, and is what the standard calls a schema."""
    # Takes 50 to 150 ms to import, and few requests need it.
    from jsonschema.exceptions import SchemaError as NoSchemaError

    _grammar_of(schema)
    validator = _validator_of(schema)
    try:
        validator.check_schema(validator.schema)
    except NoSchemaError as error:
        where = _pointer(error.absolute_path)
        raise SchemaError(f"{where}: {_shortened(error.message)}: correct it.") from error


@lru_cache(maxsize=256)
def _validator_of(schema: str) -> "Validator":
    """Checks by the patterns and formats that the grammar is made of.

    They are a part of what `re` understands, and none takes exponential time.
    """
    from jsonschema import Draft202012Validator, FormatChecker
    from jsonschema.exceptions import ValidationError as Mismatch
    from jsonschema.validators import extend

    def check_pattern(_: Any, pattern: str, value: Any, __: Any) -> Iterator[Mismatch]:
        if isinstance(value, str) and not matches(pattern, value):
            yield Mismatch(f"it does not match the pattern {pattern}")

    formats = FormatChecker(formats=())
    for name, pattern in FORMATS.items():
        formats.checks(name)(partial(_has_format, pattern))
    validator = extend(Draft202012Validator, {"pattern": check_pattern})
    return validator(json.loads(schema), format_checker=formats)


def _has_format(pattern: str, value: Any) -> bool:
    return not isinstance(value, str) or matches(pattern, value)


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
