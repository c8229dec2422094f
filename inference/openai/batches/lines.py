"""The lines of a batch's input: read one by one, and checked."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from rest_framework.exceptions import ValidationError
from rest_framework.utils.json import strict_constant

from inference.models import Batch, BatchError
from monitoring.api import storable_json
from monitoring.api.errors import sentences
from monitoring.api.json_parser import object_of

MAX_LINE_BYTES = 10 * 1024 * 1024
MAX_CUSTOM_ID_CHARS = 512
_MEMBERS = {"custom_id", "method", "url", "body"}


@dataclass(frozen=True, slots=True)
class Line:
    """A line that is not blank; `number` counts all from 1, `end` is the offset of what follows."""

    number: int
    end: int
    text: bytes


@dataclass(frozen=True, slots=True)
class LineRequest:
    """What a line asks for."""

    custom_id: str
    body: Any


class LineError(Exception):
    """The line is no request of the batch."""

    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.param = param

    @classmethod
    def of_body(cls, error: ValidationError) -> "LineError":
        """For what the route itself would say to the body."""
        detail: Any = error.detail
        names = detail if isinstance(detail, dict) else ()
        param = next((name for name in names if name != "non_field_errors"), None)
        return cls("invalid_request", next(sentences(detail)), param and f"body.{param}")

    def at(self, line: Line) -> BatchError:
        """As databases keep it: what it quotes of the line may be no text."""
        message, param = _storable(self.message[:1000]), self.param and _storable(self.param[:100])
        return BatchError(code=self.code, line=line.number, message=message, param=param)


def read_lines(path: Path, offset: int, number: int) -> Iterator[Line]:
    """The lines from an offset on, before which there are `number` of them.

    Of one that is too long, only the beginning is read into memory.
    """
    with path.open("rb") as file:
        file.seek(offset)
        while text := file.readline(MAX_LINE_BYTES + 1):
            rest = text
            while len(rest) > MAX_LINE_BYTES and not rest.endswith(b"\n"):
                rest = file.readline(MAX_LINE_BYTES + 1)
            number += 1
            if text.strip():
                yield Line(number, file.tell(), text)


def next_lines(batch: Batch, most: int) -> list[Line]:
    """Those after the ones that are submitted."""
    assert batch.input_file is not None, "it cannot be deleted before the batch has ended"
    lines = read_lines(batch.input_file.path, batch.input_offset, batch.input_line)
    return list(islice(lines, most))


def parse(line: Line, batch: Batch) -> LineRequest:
    """What the line asks for, whose body is not checked yet. Raises LineError."""
    if len(line.text) > MAX_LINE_BYTES:
        message = f"The line is longer than {MAX_LINE_BYTES} bytes: send less in one."
        raise LineError("line_too_long", message)
    try:
        text = line.text.decode("utf-8-sig" if line.number == 1 else "utf-8")
        found = json.loads(text, object_pairs_hook=object_of, parse_constant=strict_constant)
    except (ValueError, RecursionError) as error:
        raise LineError("invalid_json_line", f"The line is no valid JSON: {error}.") from error
    if not isinstance(found, dict):
        raise LineError(
            "invalid_json_line", "The line is no JSON object: write one request a line."
        )
    if unknown := sorted(found.keys() - _MEMBERS):
        message = f"A line has no {unknown[0][:100]}: it has custom_id, method, url and body."
        raise LineError("invalid_request", message, unknown[0][:100])
    custom_id = found.get("custom_id")
    if not isinstance(custom_id, str) or not 1 <= len(custom_id) <= MAX_CUSTOM_ID_CHARS:
        message = f"Give custom_id, a text of 1 to {MAX_CUSTOM_ID_CHARS} characters."
        raise LineError("missing_required_parameter", message, "custom_id")
    if not _is_storable(custom_id):
        message = "It has a NUL, or half of a surrogate pair, which is no character."
        raise LineError("invalid_custom_id", message, "custom_id")
    if found.get("method") != "POST":
        raise LineError("invalid_method", "The method has to be POST.", "method")
    if found.get("url") != batch.endpoint:
        message = f"The url has to be that of the batch: {batch.endpoint}."
        raise LineError("mismatched_endpoint", message, "url")
    return LineRequest(custom_id, found.get("body"))


def _storable(text: str) -> str:
    return text.encode(errors="replace").decode().replace("\0", "?")


def _is_storable(text: str) -> bool:
    try:
        return not storable_json.has_nul(storable_json.encode(text))
    except ValueError:
        return False
