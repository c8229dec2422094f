"""Numbers between two bounds, digit by digit."""

from dataclasses import dataclass
from decimal import Decimal
from itertools import pairwise

# What a number without a bound of its own may have, and what a bound may have.
MAX_DIGITS = 16
MAX_BOUND_DIGITS = 30


@dataclass(frozen=True, slots=True)
class Bound:
    """The least or greatest value; a strict one is itself outside."""

    value: Decimal
    is_strict: bool = False

    def __neg__(self) -> "Bound":
        return Bound(-self.value, self.is_strict)


def integers(low: int, high: int) -> str:
    """GBNF for the integers from low to high, both included; low <= high."""
    alternatives = []
    if low < 0:
        alternatives.append(f'"-" ({_natural(max(1, -high), -low)})')
    if high >= 0:
        alternatives.append(_natural(max(0, low), high))
    return " | ".join(alternatives)


def decimals(low: Bound, high: Bound) -> str | None:
    """GBNF for decimal fractions between two bounds, without exponents; None if there are none."""
    zero = Bound(Decimal(0))
    alternatives = []
    if low.value < 0:
        upper = -high if high.value <= 0 else zero
        alternatives += [f'"-" ({part})' for part in _magnitudes(upper, -low)]
    if high.value >= 0:
        alternatives += _magnitudes(low if low.value >= 0 else zero, high)
    return " | ".join(alternatives) or None


def num_fraction_digits(value: Decimal) -> int:
    exponent = value.as_tuple().exponent
    return max(0, -exponent) if isinstance(exponent, int) else 0


def _natural(low: int, high: int) -> str:
    """Split where the number of digits changes."""
    starts = [low, *(10**size for size in range(len(str(low)), len(str(high)))), high + 1]
    return " | ".join(_digits(str(a), str(b - 1)) for a, b in pairwise(starts))


def _digits(low: str, high: str) -> str:
    """Strings of digits, as long as the bounds, from low to high."""
    size = len(low)
    if low == "0" * size and high == "9" * size:
        return "[0-9]" if size == 1 else f"[0-9]{{{size}}}"
    if size == 1 or low[0] == high[0]:
        rest = f" {_digits(low[1:], high[1:])}" if size > 1 else ""
        return _digit(low[0], high[0]) + rest
    zeros, nines = "0" * (size - 1), "9" * (size - 1)
    first, last = int(low[0]), int(high[0])
    parts = []
    if low[1:] != zeros:
        parts.append(f"{_digit(low[0], low[0])} {_digits(low[1:], nines)}")
        first += 1
    if high[1:] != nines:
        last -= 1
    if first <= last:
        parts.append(f"{_digit(str(first), str(last))} {_digits(zeros, nines)}")
    if high[1:] != nines:
        parts.append(f"{_digit(high[0], high[0])} {_digits(zeros, high[1:])}")
    return f"({' | '.join(parts)})"


def _digit(low: str, high: str) -> str:
    return f'"{low}"' if low == high else f"[{low}-{high}]"


def _magnitudes(low: Bound, high: Bound) -> list[str]:
    """Alternatives for numbers without a sign: the first whole part, those between, the last."""
    if low.value > high.value:
        return []
    first, last = int(low.value), int(high.value)
    fraction_low, fraction_high = _Edge.of(low), _Edge.of(high)
    if first == last:
        return _with_fraction(first, first, fraction_low, fraction_high)
    parts = _with_fraction(first, first, fraction_low, None)
    if first + 1 < last:
        parts += _with_fraction(first + 1, last - 1, None, None)
    return parts + _with_fraction(last, last, None, fraction_high)


@dataclass(frozen=True, slots=True)
class _Edge:
    """A bound of the digits after the point, those that are still to be compared."""

    digits: str
    is_strict: bool

    @classmethod
    def of(cls, bound: Bound) -> "_Edge":
        text = f"{bound.value:f}"
        return cls(text.partition(".")[2].rstrip("0"), bound.is_strict)

    @property
    def next_digit(self) -> int:
        return int(self.digits[:1] or "0")

    def after(self, digit: int) -> "_Edge | None":
        """The edge behind a digit; None when that digit has decided the comparison."""
        return _Edge(self.digits[1:], self.is_strict) if digit == self.next_digit else None

    @property
    def is_zero(self) -> bool:
        """Only zeros are at or below it, and no digits are below: as a lower edge, it is none."""
        return not self.digits and not self.is_strict


def _with_fraction(first: int, last: int, low: _Edge | None, high: _Edge | None) -> list[str]:
    fraction = _fraction(low, high, MAX_DIGITS)
    point = f'"." {fraction}' if fraction else None
    whole = f"({_natural(first, last)})"
    if _zero_is_inside(low, high):
        return [f"{whole} ({point})?" if point else whole]
    return [f"{whole} {point}"] if point else []


def _zero_is_inside(low: _Edge | None, high: _Edge | None) -> bool:
    """Whether the number may end here."""
    is_above = low is None or low.is_zero
    return is_above and (high is None or bool(high.digits) or not high.is_strict)


def _fraction(low: _Edge | None, high: _Edge | None, room: int) -> str | None:
    """One to `room` digits between the edges; None if there are none."""
    if room == 0:
        return None
    if low is None or low.is_zero:
        if high is None:
            return f"[0-9]{{1,{room}}}"
        if high.is_zero:
            return f'"0"{{1,{room}}}'
        low = None
    elif not low.digits and high is None:
        return f'"0"{{0,{room - 1}}} [1-9] [0-9]{{0,{room - 1}}}'
    first, last = low.next_digit if low else 0, high.next_digit if high else 9
    parts = []
    for digits in _decisive(first, last, low is not None, high is not None):
        next_low = low.after(digits[0]) if low else None
        next_high = high.after(digits[0]) if high else None
        rest = _fraction(next_low, next_high, room - 1)
        is_end = _zero_is_inside(next_low, next_high)
        if rest or is_end:
            tail = f" ({rest}){'?' if is_end else ''}" if rest else ""
            parts.append(_digit(str(digits[0]), str(digits[-1])) + tail)
    return f"({' | '.join(parts)})" if parts else None


def _decisive(first: int, last: int, has_low: bool, has_high: bool) -> list[range]:
    """The digits from first to last, those that equal an edge by themselves."""
    edges = {first} if has_low else set()
    edges |= {last} if has_high else set()
    groups = [range(edge, edge + 1) for edge in edges if first <= edge <= last]
    start = first + has_low
    stop = last + 1 - has_high
    return sorted([*groups, range(start, stop)] if start < stop else groups, key=lambda r: r.start)
