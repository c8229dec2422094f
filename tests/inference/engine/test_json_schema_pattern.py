"""Patterns and formats: the grammar, the check and Python's `re` agree."""

import ipaddress
import json
import re
import uuid
from datetime import date, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference.engine.errors import SchemaError
from inference.engine.json_schema import FORMATS, compile_schema, matches
from tests.inference.engine.grammar_acceptor import GrammarAcceptor

# Of each pattern, texts that match and texts that do not.
CASES: list[tuple[str, list[str], list[str]]] = [
    ("", ["", "a b"], []),
    ("^$", [""], ["a"]),
    ("^abc$", ["abc"], ["", "abcd", "xabc"]),
    ("b", ["b", "abc", "bb"], ["", "ac"]),
    ("^a", ["a", "ab"], ["ba", ""]),
    ("a$", ["a", "ba"], ["ab"]),
    ("^a|b$", ["ax", "xb"], ["xa", "bx"]),
    ("^(a|b|)$", ["a", "b", ""], ["ab"]),
    ("^(?:ab)+c?$", ["ab", "ababc"], ["", "abcc"]),
    ("^a{2}b{1,2}c{0,}$", ["aab", "aabbcc"], ["ab", "aabbb"]),
    ("^a{0}b??c*?d+?$", ["d", "bccd"], ["abd"]),
    (r"^\d{3}-[0-9]$", ["123-4"], ["12-34", "123-x"]),
    (r"^\w+@\W\S\D$", ["a_1@!éx"], ["a@ab1", "é@!ab"]),
    (r"^a\sb$", ["a b", "a\tb", "a\nb"], ["ab", "a_b"]),
    (r"^[^a-c\s\\\]]+$", ["xyz", "é😀"], ["a", "x y", "\\", "]"]),
    (r"^[^\d,]+$", ["ab"], ["1", "a,"]),
    (r"^[\w.-]+$", ["a.b-c_1"], ["a b"]),
    (r"^[-+*/]$", ["-", "+"], ["a"]),
    (r"^[a\-z]$", ["-", "a", "z"], ["b"]),
    (r"^.\.\/\"\\$", ['x./"\\', 'é./"\\'], ["\n./\"\\"]),
    (r"^\u00e9\x41é\t$", ["éAé\t"], ["é"]),
    ("^[é-ü日😀]+$", ["éü日", "😀"], ["a"]),
    ("^[a-z0-9]+(?:-[a-z0-9]+)*$", ["a", "a-b2-c"], ["-a", "a--b"]),
    (r"^([^\",]*,)*$", ["", "a,b,"], ["a"]),
    (r"^(\d+[a-z])+$", ["1a22b"], ["a1"]),
]  # fmt: skip


@pytest.mark.parametrize(("pattern", "good", "bad"), CASES, ids=lambda value: str(value)[:30])
def test_grammar_check_and_python_agree(
    acceptor: GrammarAcceptor, pattern: str, good: list[str], bad: list[str]
) -> None:
    grammar = compile_schema({"pattern": pattern})
    for text in good:
        assert re.search(pattern, text), text
        assert matches(pattern, text), text
        assert acceptor.accepts(grammar, json.dumps(text, ensure_ascii=False)), text
    for text in bad:
        assert not matches(pattern, text), text
        assert not acceptor.accepts(grammar, json.dumps(text, ensure_ascii=False)), text


REFUSED = {
    "(?=a)": "no look-around",
    "(?!a)": "no look-around",
    "(?<=a)b": "no look-around",
    "(?P<n>a)": "no names",
    "(?i)a": "no look-around, no names",
    r"(a)\1": r"\\1 is not supported",
    r"\ba": r"\\b is not supported",
    r"\p{L}": r"\\p is not supported",
    r"\A": r"\\A is not supported",
    r"\0": r"\\0 is not supported",
    "(a+)+": "exponential",
    "(a*)*": "exponential",
    "(a|b*)+": "exponential",
    "([a-z]+-?)*": "exponential",
    "(a?)*": "exponential",
    "(.*,)*": "exponential",
    "a**": "a repetition of a repetition",
    "a++": "a repetition of a repetition",
    "*a": "nothing to repeat",
    "^*": "nothing to repeat",
    "a{,3}": "expected a number",
    "a{3,2}": "at least 3 times, but at most 2",
    "a{2001}": "more than 2000",
    "a{1": "expected {times}",
    "(a{100}){100}": "too large",
    "a)": "a .* without",
    "(a": "is missing",
    "(a$)": "inside a group",
    "a$b": "not at the end",
    "a^b": "must be escaped, or anchor",
    "a]": "must be escaped",
    "a}": "must be escaped",
    "[]a]": "an empty character class",
    "[a": "ends too early",
    "[z-a]": "ends before it starts",
    r"[\w-z]": "must be escaped",
    "[[:alpha:]]": "in a class must be escaped",
    "[a&&b]": "one by one",
    r"\x0": "2 hexadecimal digits",
    r"\u{e9}": "4 hexadecimal digits",
    r"\x01": "no character that an answer may contain",
    r"[\ud800]": "no character that an answer may contain",
    "\\": "ends too early",
    "(" * 40 + ")" * 40: "nested too deep",
}


@pytest.mark.parametrize("pattern", REFUSED)
def test_pattern_is_refused_with_the_reason(pattern: str) -> None:
    with pytest.raises(SchemaError, match=REFUSED[pattern]):
        matches(pattern, "")


PIECES = st.sampled_from(
    [
        *("a", "b", "1", " ", ".", "é", r"\d", r"\w", r"\s", r"\S", r"\W", r"\D"),
        *("[a-c]", "[^a]", r"[^\s1]", r"\.", "[-x]", r"\"", r"\\"),
    ]
)
QUANTIFIERS = st.sampled_from(["", "", "", "*", "+", "?", "{2}", "{1,3}", "{2,}"])
PATTERNS = st.recursive(
    st.builds(lambda piece, times: piece + times, PIECES, QUANTIFIERS),
    lambda inner: (
        st.builds("({}|{})".format, inner, inner)
        | st.builds("{}{}".format, inner, inner)
        | st.builds("(?:{}){{1,2}}".format, inner)
    ),
    max_leaves=6,
)


@settings(max_examples=200, deadline=None)
@given(pattern=PATTERNS, is_anchored=st.booleans(), seed=st.integers(0, 1000))
def test_what_is_written_under_a_random_pattern_matches_it(
    acceptor: GrammarAcceptor, pattern: str, is_anchored: bool, seed: int
) -> None:
    pattern = f"^{pattern}$" if is_anchored else pattern
    written = acceptor.write(compile_schema({"pattern": pattern}), seed, 60)
    if written is not None:
        text = json.loads(written)
        assert re.search(pattern, text)
        assert matches(pattern, text)


@settings(max_examples=300, deadline=None)
@given(pattern=PATTERNS, text=st.text('ab1 .\n"\\x-', max_size=8))
def test_check_agrees_with_python_about_ascii(pattern: str, text: str) -> None:
    # Python's $ also matches before a newline at the end, and its \w an é.
    assert matches(f"^{pattern}$", text) == bool(re.search(rf"^(?:{pattern})\Z", text))
    assert matches(pattern, text) == bool(re.search(pattern, text))


def test_check_takes_no_exponential_time() -> None:
    # Python's `re` would try all ways to cut the text into six parts.
    text = 400 * "a"
    assert not matches("^a*a*a*a*a*a*b$", text)
    assert matches("^a*a*a*a*a*a*b$", text + "b")


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        ({"pattern": "^[a-z]+$", "maxLength": 3}, ["a", "abc"], ["", "abcd"]),
        ({"pattern": "^[A-Z]{2}[0-9]*$", "minLength": 3, "maxLength": 4}, ["AB1", "AB12"], ["AB"]),
        ({"pattern": "^a{2,9}$", "minLength": 4}, ["aaaa"], ["aaa"]),
        ({"pattern": "^(yes|no)$", "minLength": 1, "maxLength": 5}, ["yes", "no"], ["y"]),
        ({"format": "date", "maxLength": 10}, ["2024-01-31"], ["2024-1-31"]),
    ],
)
def test_pattern_and_length_combine(
    acceptor: GrammarAcceptor, schema: dict[str, object], good: list[str], bad: list[str]
) -> None:
    grammar = compile_schema(schema)
    assert all(acceptor.accepts(grammar, f'"{text}"') for text in good)
    assert not any(acceptor.accepts(grammar, f'"{text}"') for text in bad)


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


@pytest.mark.parametrize("name", FORMATS)
def test_format_is_written_and_checked(acceptor: GrammarAcceptor, name: str) -> None:
    grammar = compile_schema({"format": name})
    for text in GOOD_FORMATS[name]:
        assert matches(FORMATS[name], text), text
        assert acceptor.accepts(grammar, f'"{text}"'), text
    for text in BAD_FORMATS[name]:
        assert not matches(FORMATS[name], text), text
        assert not acceptor.accepts(grammar, f'"{text}"'), text


@pytest.mark.parametrize(
    ("name", "parse"),
    [
        ("date", date.fromisoformat),
        ("date-time", datetime.fromisoformat),
        ("uuid", uuid.UUID),
        ("ipv4", ipaddress.IPv4Address),
    ],
)
def test_what_is_written_in_a_format_is_understood(
    acceptor: GrammarAcceptor, name: str, parse: type
) -> None:
    grammar = compile_schema({"format": name})
    for seed in range(100):
        written = acceptor.write(grammar, seed, 60)
        assert written is not None
        parse(json.loads(written))
