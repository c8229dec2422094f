"""Regular expressions: the part of them that JavaScript, Python and a grammar agree about."""

from functools import lru_cache

from inference.engine.errors import SchemaError
from inference.engine.gbnf import MAX_NESTING, MAX_REPETITIONS
from inference.engine.json_schema.charset import ANY, ASCII, CharSet
from inference.engine.json_schema.regex import (
    Concat,
    Either,
    Node,
    OneOf,
    Repeat,
    can_be_told_apart,
    ends,
    size,
)

MAX_SIZE = 4000

_DIGIT = CharSet.of([(0x30, 0x39)])
_WORD = CharSet.of([(0x30, 0x39), (0x41, 0x5A), (0x5F, 0x5F), (0x61, 0x7A)])
_SPACE = CharSet.chars("\t\n\r\f ")
# What any of the languages takes for white space, so that none finds it in a negated class.
_ALL_SPACE = CharSet.of(
    [(0x09, 0x0D), (0x1C, 0x20), (0x85, 0x85), (0xA0, 0xA0), (0x1680, 0x1680), (0x2000, 0x200A)]
) | CharSet.chars("\u2028\u2029\u202f\u205f\u3000\ufeff")
# Python counts digits and letters of all scripts, JavaScript those of ASCII: negated, both agree
# about ASCII only.
_CLASSES = {
    "d": _DIGIT,
    "D": ASCII - _DIGIT,
    "w": _WORD,
    "W": ASCII - _WORD,
    "s": _SPACE,
    "S": ANY - _ALL_SPACE,
}
_ALLOWED = ANY | _SPACE
_NOT_NEWLINE = ANY - CharSet.chars("\n\r\u2028\u2029")
_CONTROLS = {"t": "\t", "n": "\n", "r": "\r", "f": "\f"}
_ANYTHING = Repeat(OneOf(ANY), 0, None)
_HEX_SIZES = {"x": 2, "u": 4}


@lru_cache(maxsize=256)
def parse_pattern(pattern: str) -> Node:
    """The expression as one for the whole text: unanchored ends become "anything".

    Raises SchemaError on what is no regular expression, what JavaScript and Python read
    differently, look-around, backreferences, and repetitions that take exponential time to match.
    """
    node = _Parser(pattern).parse()
    if size(node) > MAX_SIZE:
        raise SchemaError("The pattern is too large: repeat less often.")
    return node


def matches(pattern: str, text: str) -> bool:
    """Whether the text has the pattern; in a time that no pattern makes exponential."""
    return len(text) in ends(parse_pattern(pattern), text, {0})


class _Parser:
    def __init__(self, pattern: str) -> None:
        self._text = pattern
        self._pos = 0
        self._nesting = 0

    def parse(self) -> Node:
        node = self._choices(is_top=True)
        if self._pos < len(self._text):
            raise self._error("a ) without a (, or a $ that is not at the end")
        return node

    def _choices(self, *, is_top: bool = False) -> Node:
        choices = [self._sequence(is_top=is_top)]
        while self._take("|"):
            choices.append(self._sequence(is_top=is_top))
        return choices[0] if len(choices) == 1 else Either(tuple(choices))

    def _sequence(self, *, is_top: bool) -> Node:
        """One alternative; at the top it may be anchored, else anything may stand around it."""
        parts: list[Node] = []
        if is_top and not self._take("^"):
            parts.append(_ANYTHING)
        while self._pos < len(self._text) and self._text[self._pos] not in "|)$":
            parts.append(self._repeated(self._atom()))
        if is_top and not self._take("$"):
            parts.append(_ANYTHING)
        return parts[0] if len(parts) == 1 else Concat(tuple(parts))

    def _atom(self) -> Node:
        char = self._next()
        if char == "(":
            return self._group()
        if char == "[":
            return OneOf(self._class())
        if char == ".":
            return OneOf(_NOT_NEWLINE)
        if char == "\\":
            return OneOf(self._checked(self._escape()))
        if char in "*+?{":
            raise self._error("there is nothing to repeat")
        if char in "^$]}":
            raise self._error(f"{char} must be escaped, or anchor the whole pattern")
        return OneOf(self._checked(CharSet.chars(char)))

    def _group(self) -> Node:
        self._nesting += 1
        if self._nesting > MAX_NESTING // 2:
            raise self._error("groups are nested too deep")
        if self._take("?") and not self._take(":"):
            raise self._error("only plain groups and (?: are supported, no look-around, no names")
        node = self._choices()
        if not self._take(")"):
            raise self._error("a ) is missing, or $ stands inside a group")
        self._nesting -= 1
        return node

    def _repeated(self, item: Node) -> Node:
        times = self._times()
        if times is None:
            return item
        self._take("?")  # lazy or not, the same texts match
        if self._text[self._pos : self._pos + 1] in ("*", "+", "?", "{"):
            raise self._error("a repetition of a repetition")
        least, most = times
        if max(least, most or 0) > MAX_REPETITIONS:
            raise self._error(f"more than {MAX_REPETITIONS} repetitions")
        if most is not None and most < least:
            raise self._error(f"at least {least} times, but at most {most}")
        if most is None and not can_be_told_apart(item):
            raise self._error("an unlimited repetition of an unlimited one takes exponential time")
        return Repeat(item, least, most)

    def _times(self) -> tuple[int, int | None] | None:
        for sign, times in (("*", (0, None)), ("+", (1, None)), ("?", (0, 1))):
            if self._take(sign):
                return times
        if not self._take("{"):
            return None
        least = self._number()
        most: int | None = least
        if self._take(","):
            most = None if self._text[self._pos : self._pos + 1] == "}" else self._number()
        if not self._take("}"):
            raise self._error("expected {times}, {least,} or {least,most}")
        return least, most

    def _number(self) -> int:
        start = self._pos
        while self._text[self._pos : self._pos + 1] in tuple("0123456789"):
            self._pos += 1
        if not 0 < self._pos - start < 10:
            raise self._error("expected a number of times")
        return int(self._text[start : self._pos])

    def _class(self) -> CharSet:
        is_negated = self._take("^")
        chars, universe = CharSet(()), _ALLOWED
        if self._text[self._pos : self._pos + 1] == "]":
            raise self._error("an empty character class, or a ] that must be escaped")
        while not self._take("]"):
            if self._text[self._pos : self._pos + 2] in ("--", "&&", "~~", "||"):
                raise self._error("write the characters of a class one by one")
            part, is_single = self._class_part()
            if self._is_range():
                if not is_single:
                    raise self._error("the - after a class of characters must be escaped")
                part = self._range(part)
            elif is_negated and not is_single:
                universe = universe if part == _SPACE else ASCII
                part = _ALL_SPACE if part == _SPACE else part
            chars |= part
        return self._checked(universe - chars if is_negated else chars)

    def _class_part(self) -> tuple[CharSet, bool]:
        """A character or a class such as \\d, and whether it is a single character."""
        char = self._next()
        if char == "\\":
            is_single = self._text[self._pos : self._pos + 1] not in _CLASSES
            return self._escape(), is_single
        if char == "[":
            raise self._error("a [ in a class must be escaped")
        return CharSet.chars(char), True

    def _is_range(self) -> bool:
        following = self._text[self._pos : self._pos + 2]
        return following.startswith("-") and following != "-]"

    def _range(self, low: CharSet) -> CharSet:
        self._pos += 1
        high, is_single = self._class_part()
        start, end = low.ranges[0][0], high.ranges[0][0]
        if not is_single or end < start:
            raise self._error("a range of characters that has no end, or ends before it starts")
        return CharSet.of([(start, end)])

    def _escape(self) -> CharSet:
        char = self._next()
        if char in _CLASSES:
            return _CLASSES[char]
        if char in _CONTROLS:
            return CharSet.chars(_CONTROLS[char])
        if char in _HEX_SIZES:
            return CharSet.chars(self._hex(_HEX_SIZES[char]))
        if char.isalnum() or not char.isascii():
            raise self._error(f"\\{char} is not supported")
        return CharSet.chars(char)

    def _hex(self, num_digits: int) -> str:
        digits = self._text[self._pos : self._pos + num_digits]
        if len(digits) < num_digits or not set(digits) <= set("0123456789abcdefABCDEF"):
            raise self._error(f"expected {num_digits} hexadecimal digits")
        self._pos += num_digits
        return chr(int(digits, 16))

    def _checked(self, chars: CharSet) -> CharSet:
        """What an answer may contain of these."""
        chars -= chars - _ALLOWED
        if not chars.ranges:
            raise self._error("no character that an answer may contain")
        return chars

    def _next(self) -> str:
        if self._pos >= len(self._text):
            raise self._error("it ends too early")
        self._pos += 1
        return self._text[self._pos - 1]

    def _take(self, text: str) -> bool:
        if self._text.startswith(text, self._pos):
            self._pos += len(text)
            return True
        return False

    def _error(self, what: str) -> SchemaError:
        return SchemaError(f"The pattern is not supported at character {self._pos}: {what}.")
