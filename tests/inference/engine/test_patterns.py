"""Patterns and formats of strings: what they match, in a constraint and at the end."""

import ipaddress
import json
import uuid
from collections.abc import Callable
from datetime import date, datetime
from functools import partial

import pytest

from inference.engine.byte_matcher import matches
from inference.engine.errors import GrammarError
from inference.engine.schema_policy import compile_schema, find_mismatch
from inference.engine.schema_policy.formats import FORMATS
from inference.engine.text_grammars import is_complete

accepts = partial(is_complete, was_cut=False)


@pytest.mark.parametrize(
    ("pattern", "good", "bad"),
    [
        ("a", ["bab", "a"], ["b", ""]),
        ("^a$", ["a"], ["a\n", "ba"]),
        ("^(yes|no)$", ["yes"], ["yes no"]),
        (r"^\d\w\s$", ["1a "], ["٣a ", "1é "]),
        (r"^[\u00e9]\/\-$", ["é/-"], ["e/-"]),
        ("^.$", ["\x01", "\x7f", "😀", '"', "\\"], ["\n", "ab"]),
    ],
)
def test_pattern_is_found(pattern: str, good: list[str], bad: list[str]) -> None:
    assert [text for text in good if not matches(pattern, text)] == []
    assert [text for text in bad if matches(pattern, text)] == []


def test_pattern_takes_no_exponential_time() -> None:
    text = 400 * "a"
    for pattern in ("^a*a*a*a*a*a*b$", "^(a+)+b$", "^(a|a)*b$"):
        assert not matches(pattern, text)
        assert matches(pattern, text + "b")


def test_pattern_that_is_not_supported_fails_closed() -> None:
    with pytest.raises(GrammarError, match="look-around"):
        matches("(?=a)", "a")


GOOD_FORMATS = {
    "date": ["2024-02-29", "1900-12-31", "2000-02-29"],
    "time": ["23:59:59Z", "00:00:00.123456+01:00"],
    "date-time": ["2024-01-31T12:00:00Z", "2024-01-31T12:00:00.5-00:30"],
    "uuid": ["123e4567-E89b-12d3-a456-426614174000"],
    "ipv4": ["0.0.0.10", "255.249.199.1"],
    "email": ["a@example.org", "first.last+tag@mail-1.example.co"],
    "uri": ["https://example.org/a?b=c#d", "urn:isbn:1", "mailto:a%20b@c.de"],
}
BAD_FORMATS = {
    "date": ["2023-02-29", "1900-02-29", "2024-13-01", "2024-04-31", "24-01-01", "2024-01-01 "],
    "time": ["24:00:00Z", "12:60:00Z", "12:00:00", "12:00Z"],
    "date-time": ["2024-01-31 12:00:00Z", "2024-02-30T12:00:00Z", "2024-01-31"],
    "uuid": ["123e4567e89b12d3a456426614174000", "123e4567-e89b-12d3-a456-42661417400g"],
    "ipv4": ["256.0.0.1", "1.2.3", "01.2.3.4", "1.2.3.4.5"],
    "email": ["a", "@b.de", "a@b", "a b@c.de", "a@-b.de"],
    "uri": ["example.org", "https:", "http://a b", "http://a#b#c", "http://%zz"],
}
PARSERS: dict[str, Callable[[str], object]] = {
    "date": date.fromisoformat,
    "date-time": datetime.fromisoformat,
    "uuid": uuid.UUID,
    "ipv4": ipaddress.IPv4Address,
}


@pytest.mark.parametrize("name", FORMATS)
def test_format_is_written_and_checked(name: str) -> None:
    schema = {"format": name}
    grammar = compile_schema(schema)
    for text in GOOD_FORMATS[name]:
        assert accepts(grammar, f'"{text}"'), text
        assert find_mismatch(json.dumps(schema), text, has_formats=True) is None
        PARSERS.get(name, str)(text)
    for text in BAD_FORMATS[name]:
        assert not accepts(grammar, f'"{text}"'), text
        assert find_mismatch(json.dumps(schema), text, has_formats=True) is not None
        assert find_mismatch(json.dumps(schema), text, has_formats=False) is None
