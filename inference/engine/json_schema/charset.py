"""Sets of characters, as a JSON string may hold them."""

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass

# How JSON writes the characters that cannot stand for themselves.
ESCAPES = {"\b": "b", "\t": "t", "\n": "n", "\f": "f", "\r": "r", '"': '"', "\\": "\\"}


@dataclass(frozen=True, slots=True)
class CharSet:
    """Code points as sorted, disjoint ranges with both ends included."""

    ranges: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, ranges: Iterable[tuple[int, int]]) -> "CharSet":
        joined: list[tuple[int, int]] = []
        for low, high in sorted(ranges):
            if joined and low <= joined[-1][1] + 1:
                joined[-1] = (joined[-1][0], max(high, joined[-1][1]))
            else:
                joined.append((low, high))
        return cls(tuple(joined))

    @classmethod
    def chars(cls, text: str) -> "CharSet":
        return cls.of((ord(char), ord(char)) for char in text)

    def __contains__(self, char: str) -> bool:
        code = ord(char)
        index = bisect_right(self.ranges, (code, 0x110000)) - 1
        return index >= 0 and code <= self.ranges[index][1]

    def __or__(self, other: "CharSet") -> "CharSet":
        return CharSet.of(self.ranges + other.ranges)

    def __sub__(self, other: "CharSet") -> "CharSet":
        kept: list[tuple[int, int]] = []
        for start, end in self.ranges:
            low = start
            for cut_low, cut_high in other.ranges:
                if low <= cut_high and cut_low <= end:
                    if low < cut_low:
                        kept.append((low, cut_low - 1))
                    low = cut_high + 1
            if low <= end:
                kept.append((low, end))
        return CharSet(tuple(kept))

    def overlaps(self, other: "CharSet") -> bool:
        return (self - other) != self

    def to_gbnf(self) -> str:
        """One character of the set in a JSON string; escaped where JSON asks for it."""
        alternatives = []
        if plain := (self - _ESCAPED).ranges:
            alternatives.append("[" + "".join(_range(low, high) for low, high in plain) + "]")
        for char, letter in ESCAPES.items():
            if char in self:
                escaped = letter if letter.isalpha() else "\\" + letter
                alternatives.append(f'"\\\\{escaped}"')
        return alternatives[0] if len(alternatives) == 1 else f"({' | '.join(alternatives)})"


_ESCAPED = CharSet.chars("".join(ESCAPES))
# No control characters but the white space, no surrogates.
ANY = CharSet.of([(0x09, 0x0A), (0x0D, 0x0D), (0x20, 0x7E), (0xA0, 0xD7FF), (0xE000, 0x10FFFF)])
ASCII = CharSet.of([(0x09, 0x0A), (0x0D, 0x0D), (0x20, 0x7E)])


def _range(low: int, high: int) -> str:
    return _char(low) if low == high else f"{_char(low)}-{_char(high)}"


def _char(code: int) -> str:
    if code < 0x80:
        return chr(code) if chr(code).isalnum() else f"\\x{code:02X}"
    return f"\\u{code:04X}" if code < 0x10000 else f"\\U{code:08X}"
