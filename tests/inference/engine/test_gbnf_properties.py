"""Grammars of all kinds, also ambiguous, left-recursive and never-ending ones, and what they mean.

The reference reads a text from each place with each rule until nothing new is found.
"""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference.engine.errors import GrammarError
from inference.engine.gbnf import compile_grammar
from tests.inference.engine.byte_constraint import accepts

CHARS = "ab\né"
RULES = ["root", "x", "y"]
TIMES = {
    "*": (0, None),
    "+": (1, None),
    "?": (0, 1),
    "{2}": (2, 2),
    "{0}": (0, 0),
    "{2,}": (2, None),
    "{1,3}": (1, 3),
    "{0,13}": (0, 13),
}
TEXTS = ["".join(chars) for size in range(3) for chars in itertools.product(CHARS, repeat=size)]
TEXTS += ["aba", "abé", "baab", "a" * 6, "b" * 14]


@dataclass(frozen=True)
class Literal:
    text: str

    def __str__(self) -> str:
        return f'"{_escaped(self.text)}"'


@dataclass(frozen=True)
class CharClass:
    chars: frozenset[str]
    is_negated: bool

    def __str__(self) -> str:
        chars = _escaped("".join(sorted(self.chars)))
        return f"[{'^' * self.is_negated}{chars}]" if chars else "."


@dataclass(frozen=True)
class Reference:
    name: str

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Choice:
    alternatives: tuple[tuple[Any, ...], ...]

    def __str__(self) -> str:
        return " | ".join(" ".join(map(_grouped, parts)) or '""' for parts in self.alternatives)


@dataclass(frozen=True)
class Repetition:
    item: Any
    times: str

    def __str__(self) -> str:
        return f"{_grouped(self.item)}{self.times}"


def _grouped(node: Any) -> str:
    is_group = isinstance(node, Choice) or node == Literal("")
    return f"({node})" if is_group else str(node)


def _escaped(text: str) -> str:
    return text.replace("\n", "\\n").replace("é", "\\u00e9")


LEAVES = (
    st.builds(Literal, st.text(CHARS, max_size=2))
    | st.builds(CharClass, st.frozensets(st.sampled_from(CHARS), min_size=1), st.booleans())
    | st.just(CharClass(frozenset(), is_negated=True))
    | st.builds(Reference, st.sampled_from(RULES))
)


def _choices(nodes: st.SearchStrategy[Any]) -> st.SearchStrategy[Choice]:
    sequences = st.lists(nodes, max_size=3).map(tuple)
    return st.builds(Choice, st.lists(sequences, min_size=1, max_size=4).map(tuple))


NODES = st.recursive(
    LEAVES,
    lambda nodes: _choices(nodes) | st.builds(Repetition, nodes, st.sampled_from(list(TIMES))),
    max_leaves=6,
)
GRAMMARS = st.fixed_dictionaries({name: _choices(NODES) for name in RULES})


def _ends(
    node: Any, text: str, starts: set[int], known: Mapping[tuple[str, int], set[int]]
) -> set[int]:
    """Where the node may end that begins at one of the starts, as far as known of the rules."""
    match node:
        case Literal(literal):
            return {at + len(literal) for at in starts if text.startswith(literal, at)}
        case CharClass(chars, is_negated):
            inside = {at for at in starts if at < len(text)}
            return {at + 1 for at in inside if (text[at] in chars) != is_negated}
        case Reference(name):
            return {end for at in starts for end in known[name, at]}
        case Choice(alternatives):
            found: set[int] = set()
            for parts in alternatives:
                places = starts
                for part in parts:
                    places = _ends(part, text, places, known)
                found |= places
            return found
        case Repetition(item, times):
            least, most = TIMES[times]
            places, found = starts, set() if least else starts
            # Without a limit, whatever is reached at all is reached after so many times.
            for number in range(1, (least + len(text) if most is None else most) + 1):
                previous, places = places, _ends(item, text, places, known)
                if number >= least or places == previous:
                    found = found | places
                if places == previous:
                    break
            return found
    raise AssertionError(node)


def is_allowed(grammar: dict[str, Choice], text: str) -> bool:
    starts = range(len(text) + 1)
    known: dict[tuple[str, int], set[int]] = {(name, at): set() for name in RULES for at in starts}
    while True:
        found = {(name, at): _ends(grammar[name], text, {at}, known) for name, at in known}
        if found == known:
            return len(text) in known["root", 0]
        known = found


@settings(max_examples=50, deadline=None)
@given(GRAMMARS)
def test_grammar_means_the_same_to_llguidance(grammar: dict[str, Choice]) -> None:
    expected = [text for text in TEXTS if is_allowed(grammar, text)]
    gbnf = "\n".join(f"{name} ::= {grammar[name]}" for name in RULES)
    try:
        compiled = compile_grammar(gbnf)
    except GrammarError:
        assert not expected
        with pytest.raises(GrammarError, match="No text that the grammar allows ever ends"):
            compile_grammar(gbnf)
        return
    assert [text for text in TEXTS if accepts(compiled, text)] == expected
