"""Regular expressions as trees: how long, how large, what they match, and their grammar."""

from collections.abc import Callable
from dataclasses import dataclass

from inference.engine.errors import SchemaError
from inference.engine.json_schema.charset import CharSet
from inference.engine.json_schema.rules import Rules, json_text, literal


@dataclass(frozen=True, slots=True)
class OneOf:
    """One character."""

    chars: CharSet


@dataclass(frozen=True, slots=True)
class Concat:
    parts: "tuple[Node, ...]"


@dataclass(frozen=True, slots=True)
class Either:
    choices: "tuple[Node, ...]"


@dataclass(frozen=True, slots=True)
class Repeat:
    """`most` None: without a limit."""

    item: "Node"
    least: int
    most: int | None


Node = OneOf | Concat | Either | Repeat


def to_gbnf(node: Node, rules: Rules) -> str:
    """A string whose characters match the node, without its quotes."""
    match node:
        case OneOf(chars):
            return _chars_to_gbnf(chars)
        case Concat(parts):
            return " ".join(to_gbnf(part, rules) for part in parts) or '""'
        case Either(choices):
            return rules.add("either", " | ".join(to_gbnf(choice, rules) for choice in choices))
        case Repeat(item, least, most):
            body = to_gbnf(item, rules)
            is_one_symbol = isinstance(item, OneOf | Either) and not body.startswith("(")
            return rules.repeat(body if is_one_symbol else rules.add("item", body), least, most)


def limit_length(node: Node, least: int, most: int | None) -> Node:
    """The node with its lengths cut to a range. Raises SchemaError where that cannot be said."""
    shortest, longest = _lengths(node)
    highest = float("inf") if most is None else most
    if shortest >= least and longest <= highest:
        return node
    if longest < least or shortest > highest:
        raise SchemaError("No text has this pattern or format and this length: correct one.")
    parts = list(node.parts) if isinstance(node, Concat) else [node]
    elastic = [i for i, part in enumerate(parts) if len(set(_lengths(part))) > 1]
    part = parts[elastic[0]]
    if len(elastic) > 1 or not (isinstance(part, Repeat) and _lengths(part.item) == (1, 1)):
        raise SchemaError("Put the length into the pattern: it cannot be combined with this one.")
    others = shortest - part.least
    limits = [part.most] if part.most is not None else []
    limits += [most - others] if most is not None else []
    least = max(part.least, least - others)
    parts[elastic[0]] = Repeat(part.item, least, min(limits) if limits else None)
    return Concat(tuple(parts))


def can_be_told_apart(item: Node) -> bool:
    """Whether a text can be cut into repetitions of the item in one way only.

    It can when nothing in the item is unlimited, or when each starts or ends with a character
    that occurs nowhere else in it, as in `(-[a-z]+)*`.
    """
    if _lengths(item)[1] != float("inf"):
        return _lengths(item)[0] > 0
    parts = item.parts if isinstance(item, Concat) else (item,)
    for index in (0, -1):
        mark = parts[index]
        others = parts[1:] if index == 0 else parts[:-1]
        if isinstance(mark, OneOf) and not any(
            mark.chars.overlaps(chars) for other in others for chars in _char_sets(other)
        ):
            return True
    return False


def _char_sets(node: Node) -> list[CharSet]:
    if isinstance(node, OneOf):
        return [node.chars]
    return [chars for child in _children(node) for chars in _char_sets(child)]


def _children(node: Node) -> tuple[Node, ...]:
    match node:
        case OneOf():
            return ()
        case Concat(nodes) | Either(nodes):
            return nodes
        case Repeat(item):
            return (item,)


def size(node: Node) -> int:
    """How many characters the expression has when its repetitions are written out."""
    once = 1 + sum(size(child) for child in _children(node))
    return once * max(1, node.least, node.most or 0) if isinstance(node, Repeat) else once


def _lengths(node: Node) -> tuple[int, float]:
    """Shortest and longest text that matches."""
    match node:
        case OneOf():
            return 1, 1
        case Repeat(item, least, most):
            shortest, longest = _lengths(item)
            if most is None:
                return shortest * least, float("inf")
            return shortest * least, longest * most if most else 0
        case Concat(parts):
            lengths = [_lengths(part) for part in parts]
            return sum(low for low, _ in lengths), sum(high for _, high in lengths)
        case Either(choices):
            lengths = [_lengths(choice) for choice in choices]
            return min(low for low, _ in lengths), max(high for _, high in lengths)


def ends(node: Node, text: str, starts: set[int]) -> set[int]:
    """Where a match can end that begins at one of the starts."""
    match node:
        case OneOf(chars):
            return {start + 1 for start in starts if start < len(text) and text[start] in chars}
        case Either(choices):
            return {end for choice in choices for end in ends(choice, text, starts)}
        case Concat(parts):
            for part in parts:
                starts = ends(part, text, starts)
            return starts
        case Repeat(item, least, most):
            return _ends_of_repeat(lambda at: ends(item, text, at), least, most, starts)


def _ends_of_repeat(
    step: Callable[[set[int]], set[int]], least: int, most: int | None, starts: set[int]
) -> set[int]:
    for _ in range(least):
        starts = step(starts)
    found, num_times = set(starts), least
    while starts and (most is None or num_times < most):
        starts = step(starts) - found
        found |= starts
        num_times += 1
    return found


def _chars_to_gbnf(chars: CharSet) -> str:
    (low, high), *more = chars.ranges
    if low == high and not more:
        return literal(json_text(chr(low))[1:-1])
    return chars.to_gbnf()
