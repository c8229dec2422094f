"""GBNF, the grammars of llama.cpp, as llguidance grammars of exactly the same texts.

Every character becomes a terminal of its own. llguidance's lexer takes the longest terminal that
fits, so that longer ones would change the meaning; its Earley parser then does what llama.cpp's
stacks do, at a cost that does not grow exponentially.
Source: grammars/README.md and src/llama-grammar.cpp of llama.cpp, docs/syntax.md of llguidance.
"""

import itertools
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from inference.engine.errors import GrammarError

MAX_GRAMMAR_BYTES = 128 * 1024
MAX_REPETITIONS = 2000
# So many take llguidance 0.2 s.
MAX_SYMBOLS = 40_000
# llguidance follows references by recursion: up to three for one of ours, with 3 kB of stack each.
MAX_DEPTH = 2000
# More alternatives are written as a tree of what they begin with: an Earley parser follows each.
_MANY_ALTERNATIVES = 100

_ESCAPE = r'\\(?:x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|[trn\\"\[\]-])'
_CHAR = re.compile(rf"{_ESCAPE}|[^\\]", re.DOTALL)
_RANGE = re.compile(rf"({_ESCAPE}|[^\\])(?:-({_ESCAPE}|[^\\]))?", re.DOTALL)
_UNCLOSED = re.compile(rf'"(?:{_ESCAPE}|[^"\\])*|\[(?:{_ESCAPE}|[^\]\\])*')
_TOKEN = re.compile(
    rf"""
    (?P<space> [ \t]+ | \#[^\r\n]* )
    | (?P<newline> [\r\n]+ )
    | (?P<rule> [a-zA-Z0-9_-]+ ) [ \t]* ::=
    | (?P<reference> [a-zA-Z0-9_-]+ )
    | "(?P<literal> (?: {_ESCAPE} | [^"\\] )* )"
    | \[ (?P<class> (?: {_ESCAPE} | [^\]\\] )* ) \]
    | (?P<repetition> [*+?] | \{{ \s* [0-9]{{1,9}} \s* (?: , \s* (?: [0-9]{{1,9}} \s* )? )? \}} )
    | (?P<mark> [().|] )
    """,
    re.VERBOSE,
)
_NAMED_ESCAPES = {"t": "\t", "r": "\r", "n": "\n"}
_LAST_CHAR = 0x10FFFF


class _Range(NamedTuple):
    """Code points, both included."""

    first: int
    last: int


# No text has them: llama.cpp never writes a NUL, surrogates have no UTF-8, and there are no more.
_IMPOSSIBLE = [_Range(0, 0), _Range(0xD800, 0xDFFF), _Range(_LAST_CHAR + 1, 0xFFFFFFFF)]


class _Symbol(NamedTuple):
    """What llguidance reads, the rule that it refers to, and whether it may be left out."""

    text: str
    rule: str | None = None
    is_optional: bool = False


@dataclass(slots=True)
class _Rule:
    """A rule, a group or what is repeated; its name is llguidance's."""

    name: str
    start: int
    alternatives: list[list[_Symbol]] = field(default_factory=lambda: [[]])

    def symbols(self) -> Iterator[_Symbol]:
        return (symbol for alternative in self.alternatives for symbol in alternative)


def compile_grammar(text: str) -> str:
    """An llguidance grammar of the texts that a GBNF grammar allows, from its rule `root` on.

    Alternatives that never end are left out. Raises GrammarError.
    """
    if len(text.encode(errors="replace")) > MAX_GRAMMAR_BYTES:
        raise GrammarError(f"The grammar is longer than {MAX_GRAMMAR_BYTES} bytes.")
    grammar = _Grammar(text)
    grammar.parse()
    root = grammar.names.get("root")
    if root is None:
        raise GrammarError('The grammar has no rule "root": that is where it starts.')
    for name, rule in grammar.names.items():
        if rule not in grammar.rules:
            raise GrammarError(f'The grammar uses a rule "{name}" that it does not define.')
    ending = _rules_that_end(grammar.rules)
    if root not in ending:
        raise GrammarError("No text that the grammar allows ever ends.")
    if _depth(grammar.rules, root) > MAX_DEPTH:
        raise GrammarError(f"More than {MAX_DEPTH} rules and groups lead from one to the next.")
    return "\n".join(
        [
            f"start: {root}",
            *(line for rule in grammar.rules.values() for line in _rule_lines(rule, ending)),
            *(_class_line(name, ranges) for ranges, name in grammar.classes.items()),
        ]
    )


class _Grammar:
    """The rules of a GBNF text, by llguidance's names: r0, r1, ... and C0, C1, ... for classes."""

    def __init__(self, text: str) -> None:
        self.rules: dict[str, _Rule] = {}
        self.names: dict[str, str] = {}
        self.classes: dict[tuple[_Range, ...], str] = {}
        self._text = text
        self._num_names = 0
        self._num_symbols = 0
        # The rule that is being read, and the groups in it.
        self._open: list[_Rule] = []

    def parse(self) -> None:
        """Raises GrammarError with the place."""
        pos = 0
        # After ::= and | a rule goes on in the next line.
        may_end = False
        while pos < len(self._text):
            token = _TOKEN.match(self._text, pos)
            if token is None:
                raise self._unreadable(pos)
            start, pos = token.span()
            kind = token.lastgroup
            if kind == "newline" and may_end and len(self._open) == 1:
                self._close()
            elif kind == "rule" and not self._open:
                self._open.append(_Rule(self._reference(token["rule"]), start))
                may_end = False
            elif kind not in {"space", "newline"}:
                if not self._open:
                    is_name = kind == "reference"
                    what = "expected ::=" if is_name else "expected the name of a rule"
                    raise self._error(what, pos if is_name else start)
                self._read(token, start)
                if self._num_symbols > MAX_SYMBOLS:
                    what = f"the grammar has more than {MAX_SYMBOLS} characters and references"
                    raise self._error(what, start)
                may_end = token[0] != "|"
        if len(self._open) > 1:
            raise self._error(") is missing", self._open[-1].start)
        if self._open:
            self._close()

    def _read(self, token: re.Match[str], start: int) -> None:
        """Take what belongs to the innermost rule or group."""
        alternatives = self._open[-1].alternatives
        symbols = alternatives[-1]
        self._num_symbols += 1
        match token.lastgroup, token[0]:
            case "reference", name:
                symbols.append(_Symbol(rule := self._reference(name), rule))
            case "literal", _:
                symbols.append(self._literal(token["literal"], start))
            case "class", _:
                symbols.append(self._char_class(token["class"], start))
            case "mark", ".":
                symbols.append(_Symbol(self._terminal(_others(_IMPOSSIBLE))))
            case "mark", "|":
                alternatives.append([])
            case "mark", "(":
                self._open.append(_Rule(self._new_name(), start))
            case "mark", ")" if len(self._open) > 1:
                group = self._close()
                self._open[-1].alternatives[-1].append(_Symbol(group, group))
            case "repetition", times if symbols:
                symbols.append(self._repetition(symbols.pop(), times, start))
            case "repetition", _:
                raise self._error("there is nothing to repeat here", start)
            case _ if len(self._open) > 1:
                raise self._error(") is missing", self._open[-1].start)
            case _:
                raise self._error("expected the end of the rule", start)

    def _repetition(self, item: _Symbol, times: str, start: int) -> _Symbol:
        repeated = _Rule(self._new_name(), start, [[item]])
        self.rules[repeated.name] = repeated
        # llguidance writes {times} out as rules for powers of four.
        self._num_symbols += 75 if "{" in times else 2
        if times in {"*", "+", "?"}:
            return _Symbol(repeated.name + times, repeated.name, is_optional=times != "+")
        numbers = [int(number) for number in re.findall("[0-9]+", times)]
        is_limited = len(numbers) == 2 or "," not in times
        least, most = numbers[0], numbers[-1]
        if most < least:
            raise self._error(f"at least {least} times, but at most {most}", start)
        if most > MAX_REPETITIONS:
            raise self._error(f"more than {MAX_REPETITIONS} repetitions", start)
        if is_limited and most == 0:
            return _Symbol("")
        text = f"{repeated.name}{{{least},{most if is_limited else ''}}}"
        return _Symbol(text, repeated.name, is_optional=least == 0)

    def _literal(self, content: str, start: int) -> _Symbol:
        names: list[str] = []
        for char in _CHAR.findall(content):
            code = _code_point(char)
            if any(first <= code <= last for first, last in _IMPOSSIBLE):
                raise self._error(f"no text has the character {char!a}", start)
            names.append(self._terminal([_Range(code, code)]))
        self._num_symbols += len(names)
        return _Symbol(" ".join(names))

    def _char_class(self, content: str, start: int) -> _Symbol:
        is_negated = content.startswith("^")
        found = _RANGE.findall(content[is_negated:])
        ranges = [_Range(_code_point(first), _code_point(last or first)) for first, last in found]
        if not ranges:
            raise self._error("an empty character class", start)
        allowed = _others([*(ranges if is_negated else _others(ranges)), *_IMPOSSIBLE])
        if not allowed:
            raise self._error("no character is in this class", start)
        return _Symbol(self._terminal(allowed))

    def _terminal(self, ranges: list[_Range]) -> str:
        key = tuple(ranges)
        if key not in self.classes:
            # A new one takes llguidance as long as ten references.
            self._num_symbols += 10 + len(key)
            self.classes[key] = f"C{len(self.classes)}"
        return self.classes[key]

    def _reference(self, name: str) -> str:
        if name not in self.names:
            self.names[name] = self._new_name()
        return self.names[name]

    def _new_name(self) -> str:
        self._num_names += 1
        return f"r{self._num_names}"

    def _close(self) -> str:
        rule = self._open.pop()
        self.rules[rule.name] = rule
        return rule.name

    def _unreadable(self, pos: int) -> GrammarError:
        char = self._text[pos]
        if not self._open:
            return self._error("expected the name of a rule", pos)
        if char in '"[':
            unclosed = _UNCLOSED.match(self._text, pos)
            if unclosed is None or unclosed.end() == len(self._text):
                return self._error(f"{char.replace('[', ']')} is missing", pos)
            what = "expected a character or an escape such as \\n, \\x41 or \\u0041"
            return self._error(what, unclosed.end())
        if char == "{":
            return self._error("expected {times}, {least,} or {least,most}", pos)
        if char in "<!":
            return self._error("<tokens> are not supported, write a literal", pos)
        return self._error("expected a rule name, literal, character class or group", pos)

    def _error(self, what: str, pos: int) -> GrammarError:
        line = self._text.count("\n", 0, pos) + 1
        column = pos - self._text.rfind("\n", 0, pos)
        return GrammarError(f"The grammar does not parse at line {line}, column {column}: {what}.")


def _code_point(char: str) -> int:
    if not char.startswith("\\"):
        return ord(char)
    kind, digits = char[1], char[2:]
    return int(digits, 16) if digits else ord(_NAMED_ESCAPES.get(kind, kind))


def _others(ranges: list[_Range]) -> list[_Range]:
    """The characters that are in none of the ranges; one that ends before its start is empty."""
    others, start = [], 0
    for first, last in sorted(ranges):
        if start < first:
            others.append(_Range(start, first - 1))
        start = max(start, last + 1)
    return [*others, _Range(start, _LAST_CHAR)] if start <= _LAST_CHAR else others


def _rules_that_end(rules: dict[str, _Rule]) -> set[str]:
    """Those that some text completes, however long."""
    waiting: dict[str, list[tuple[str, set[str]]]] = defaultdict(list)
    todo: list[str] = []
    for rule in rules.values():
        for alternative in rule.alternatives:
            needed = {each.rule for each in alternative if each.rule and not each.is_optional}
            for name in needed:
                waiting[name].append((rule.name, needed))
            if not needed:
                todo.append(rule.name)
    ending: set[str] = set()
    while todo:
        if (name := todo.pop()) in ending:
            continue
        ending.add(name)
        for user, needed in waiting[name]:
            needed.discard(name)
            if not needed:
                todo.append(user)
    return ending


def _rule_lines(rule: _Rule, ending: set[str]) -> list[str]:
    """Without the alternatives that never end."""
    possible = [
        [symbol.text for symbol in alternative]
        for alternative in rule.alternatives
        if all(each.is_optional or each.rule in ending for each in alternative if each.rule)
    ]
    # x: a x | b is a* b. An Earley parser would hold every x open until the last one ends.
    repeated = [symbols[:-1] for symbols in possible if symbols[-1:] == [rule.name]]
    if not repeated:
        return _alternatives(rule.name, possible)
    last = [symbols for symbols in possible if symbols[-1:] != [rule.name]]
    return [
        f"{rule.name}: {rule.name}x* {rule.name}y",
        *_alternatives(f"{rule.name}x", repeated),
        *_alternatives(f"{rule.name}y", last),
    ]


def _alternatives(name: str, alternatives: list[list[str]]) -> list[str]:
    """As a rule with two at most, of other rules.

    Where many fit the same text, they are one before the parser looks for all uses of the rule.
    """
    texts = [" ".join(symbols) for symbols in alternatives]
    below: list[str] = []
    if len(texts) > _MANY_ALTERNATIVES:
        texts, below = _tree(name, {tuple(text.split()) for text in texts})
    if len(texts) <= 2:
        return [f"{name}: {' | '.join(texts)}", *below]
    half = len(texts) // 2
    return [
        f"{name}: {name}a | {name}b",
        f"{name}a: {' | '.join(texts[:half])}",
        f"{name}b: {' | '.join(texts[half:])}",
        *below,
    ]


def _tree(name: str, alternatives: set[tuple[str, ...]]) -> tuple[list[str], list[str]]:
    """Alternatives of which no two begin with the same symbol, and the rules that they refer to."""
    by_first: dict[str, list[tuple[str, ...]]] = defaultdict(list)
    for symbols in sorted(alternatives):
        by_first[symbols[0] if symbols else ""].append(symbols)
    texts, below = [], []
    for number, group in enumerate(by_first.values()):
        # The first and the last in order have in common what all have.
        pairs = zip(group[0], group[-1], strict=False)
        common = [symbol for symbol, other in itertools.takewhile(lambda p: p[0] == p[1], pairs)]
        if len(group) > 1:
            rest = f"{name}t{number}"
            rests, rules = _tree(rest, {symbols[len(common) :] for symbols in group})
            below += [f"{rest}: {' | '.join(rests)}", *rules]
            common.append(rest)
        texts.append(" ".join(common))
    return texts, below


def _class_line(name: str, ranges: tuple[_Range, ...]) -> str:
    chars = "".join(rf"\u{{{first:x}}}-\u{{{last:x}}}" for first, last in ranges)
    return f"{name}: /[{chars}]/"


def _depth(rules: dict[str, _Rule], root: str) -> int:
    """How far a walk gets that follows every reference to a rule where it is met first."""
    seen = {root}
    path = [rules[root].symbols()]
    deepest = 1
    while path:
        symbol = next(path[-1], None)
        if symbol is None:
            path.pop()
        elif symbol.rule and symbol.rule not in seen:
            seen.add(symbol.rule)
            path.append(rules[symbol.rule].symbols())
            deepest = max(deepest, len(path))
    return deepest
