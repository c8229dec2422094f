"""Checks a GBNF grammar before llama.cpp sees it, and says what is wrong with it.

llama.cpp prints the reason of a refusal to stderr only, and some grammars end its process: `{5,2}`,
brackets nested without end, a `<token>` after a character (the two checks of a candidate disagree,
and the second throws through C). Needs no llama.cpp, so that a request can be refused before it is
queued. Source: grammars/README.md and src/llama-grammar.cpp of llama.cpp.
"""

import re
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter

from inference.engine.errors import GrammarError

MAX_GRAMMAR_BYTES = 128 * 1024
MAX_NESTING = 64
MAX_REPETITIONS = 2000
MAX_ELEMENTS = 1_000_000

_SPACE = re.compile(r"(?:[ \t]|#[^\r\n]*)*")
_SPACE_AND_LINES = re.compile(r"(?:[ \t\r\n]|#[^\r\n]*)*")
_NAME = re.compile(r"[a-zA-Z0-9-]+")
_ESCAPE = r'\\(?:x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|[trn\\"\[\]-])'
_CHAR = re.compile(rf"{_ESCAPE}|[^\\]", re.DOTALL)
_TIMES = re.compile(r"\{[ \t]*(\d{1,9})[ \t]*(?:(,)[ \t]*(\d{1,9})?[ \t]*)?\}")

# A symbol of a rule is the name of another rule, or None for what consumes text.
_Symbol = str | None


@dataclass(slots=True)
class _Grammar:
    text: str
    pos: int = 0
    rules: dict[str, list[list[_Symbol]]] = field(default_factory=dict)
    num_elements: int = 0


def check_grammar(text: str, *, must_end: bool = False) -> None:
    """Raises GrammarError unless the text is GBNF that llama.cpp can run, with a rule `root`.

    `must_end`: also unless there is a text, however long, that is complete.
    """
    if len(text.encode(errors="replace")) > MAX_GRAMMAR_BYTES:
        raise GrammarError(f"The grammar is longer than {MAX_GRAMMAR_BYTES} bytes.")
    grammar = _Grammar(text)
    if "\0" in text:
        raise _error(grammar, "a NUL character", text.index("\0"))
    _skip(grammar, lines=True)
    while grammar.pos < len(text):
        _parse_rule(grammar)
    if "root" not in grammar.rules:
        raise GrammarError('The grammar has no rule "root": that is where it starts.')
    symbols = (symbol for rule in grammar.rules.values() for each in rule for symbol in each)
    for symbol in symbols:
        if symbol is not None and symbol not in grammar.rules:
            raise GrammarError(f'The grammar uses a rule "{symbol}" that it does not define.')
    _check_left_recursion(grammar.rules)
    if must_end and "root" not in _rules_of(grammar.rules, {None}):
        raise GrammarError("No text that the grammar allows ever ends.")


def _parse_rule(grammar: _Grammar) -> None:
    name = _take(grammar, _NAME, "the name of a rule")
    _skip(grammar)
    if not grammar.text.startswith("::=", grammar.pos):
        raise _error(grammar, "expected ::=")
    grammar.pos += len("::=")
    _skip(grammar, lines=True)
    grammar.rules[name] = _parse_alternates(grammar, nesting=0)
    if grammar.pos < len(grammar.text) and grammar.text[grammar.pos] not in "\r\n":
        raise _error(grammar, "expected the end of the rule")
    _skip(grammar, lines=True)


def _parse_alternates(grammar: _Grammar, nesting: int) -> list[list[_Symbol]]:
    alternates = [_parse_sequence(grammar, nesting)]
    while grammar.text.startswith("|", grammar.pos):
        grammar.pos += 1
        _skip(grammar, lines=True)
        alternates.append(_parse_sequence(grammar, nesting))
    return alternates


def _parse_sequence(grammar: _Grammar, nesting: int) -> list[_Symbol]:
    symbols: list[_Symbol] = []
    last: list[_Symbol] = []
    last_size = 0
    while grammar.pos < len(grammar.text) and (char := grammar.text[grammar.pos]) not in "|)\r\n":
        before = grammar.num_elements
        if char in "*+?{":
            if not last:
                raise _error(grammar, "there is nothing to repeat here")
            last = [_parse_repetition(grammar, last, last_size)]
            symbols[-1:] = last
        else:
            last = _parse_item(grammar, nesting)
            last_size = grammar.num_elements - before if char in '"[' else 1
            symbols.extend(last)
        _skip(grammar, lines=nesting > 0)
    return symbols


def _parse_item(grammar: _Grammar, nesting: int) -> list[_Symbol]:
    """One literal, class, token, rule reference, group or dot; no symbols for an empty literal."""
    char = grammar.text[grammar.pos]
    if char in '"[':
        return _parse_quoted(grammar, '"' if char == '"' else "]")
    _count(grammar, 1)
    if char == "(":
        return [_parse_group(grammar, nesting)]
    if char == ".":
        grammar.pos += 1
        return [None]
    if char in "<!":
        raise _error(grammar, "<tokens> are not supported, write a literal")
    return [_take(grammar, _NAME, "a rule name, literal, character class or group")]


def _parse_quoted(grammar: _Grammar, end: str) -> list[_Symbol]:
    """A literal or a character class."""
    start = grammar.pos
    grammar.pos += 2 if grammar.text.startswith("[^", start) else 1
    is_empty = True
    while not grammar.text.startswith(end, grammar.pos):
        if grammar.pos >= len(grammar.text):
            raise _error(grammar, f"{end} is missing", start)
        _take(grammar, _CHAR, "a character or an escape such as \\n, \\x41 or \\u0041")
        _count(grammar, 1)
        is_empty = False
    grammar.pos += 1
    if is_empty and end == "]":
        raise _error(grammar, "an empty character class", start)
    return [] if is_empty else [None]


def _parse_group(grammar: _Grammar, nesting: int) -> str:
    if nesting >= MAX_NESTING:
        raise _error(grammar, f"groups are nested deeper than {MAX_NESTING}")
    start = grammar.pos
    grammar.pos += 1
    _skip(grammar, lines=True)
    alternates = _parse_alternates(grammar, nesting + 1)
    if not grammar.text.startswith(")", grammar.pos):
        raise _error(grammar, ") is missing", start)
    grammar.pos += 1
    return _add_rule(grammar, alternates)


def _parse_repetition(grammar: _Grammar, item: list[_Symbol], item_size: int) -> str:
    """The name of a rule for the repeated item.

    The rule does not refer to itself as llama.cpp's does: that reference comes last, where it is
    harmless, and would be taken for a left recursion when the item may be empty.
    """
    start = grammar.pos
    if (simple := grammar.text[start]) in "*+?":
        grammar.pos += 1
        least = most = 1 if simple == "+" else 0
    else:
        least, most = _parse_times(grammar)
    if max(least, most) > MAX_REPETITIONS:
        raise _error(grammar, f"more than {MAX_REPETITIONS} repetitions", start)
    # llama.cpp writes the item out `least` times, and a rule for each time more.
    _count(grammar, item_size * (least + most))
    return _add_rule(grammar, [item, []] if least == 0 else [item])


def _parse_times(grammar: _Grammar) -> tuple[int, int]:
    """Least and greatest number of times; without a limit, the least twice."""
    match = _TIMES.match(grammar.text, grammar.pos)
    if match is None:
        raise _error(grammar, "expected {times}, {least,} or {least,most}")
    least = int(match[1])
    most = int(match[3]) if match[3] else least
    if most < least:
        raise _error(grammar, f"at least {least} times, but at most {most}")
    grammar.pos = match.end()
    return least, most


def _add_rule(grammar: _Grammar, alternates: list[list[_Symbol]]) -> str:
    name = f"#{len(grammar.rules)}"
    grammar.rules[name] = alternates
    return name


def _check_left_recursion(rules: dict[str, list[list[_Symbol]]]) -> None:
    """A rule that comes back to itself without consuming text would never end."""
    nullable = _rules_of(rules, set())
    graph: dict[str, set[str]] = {name: set() for name in rules}
    for name, alternates in rules.items():
        for symbols in alternates:
            for symbol in symbols:
                if symbol is not None:
                    graph[name].add(symbol)
                if symbol not in nullable:
                    break
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        named = [name for name in error.args[1] if not name.startswith("#")]
        where = f' in rule "{named[0]}"' if named else ": what is repeated may be empty"
        raise GrammarError(f"The grammar has a left recursion{where}.") from error


def _rules_of(rules: dict[str, list[list[_Symbol]]], symbols: set[_Symbol]) -> set[_Symbol]:
    """The rules that have an alternative of these symbols, or of such rules, alone.

    Of no symbols: the rules that may be empty. Of what consumes text: those that may end.
    """
    found = set(symbols)
    size = -1
    while size != len(found):
        size = len(found)
        for name, alternates in rules.items():
            if any(all(symbol in found for symbol in alternate) for alternate in alternates):
                found.add(name)
    return found


def _count(grammar: _Grammar, num_elements: int) -> None:
    grammar.num_elements += num_elements
    if grammar.num_elements > MAX_ELEMENTS:
        raise _error(grammar, f"the grammar has more than {MAX_ELEMENTS} elements")


def _skip(grammar: _Grammar, *, lines: bool = False) -> None:
    match = (_SPACE_AND_LINES if lines else _SPACE).match(grammar.text, grammar.pos)
    grammar.pos = match.end() if match else grammar.pos


def _take(grammar: _Grammar, pattern: re.Pattern[str], what: str) -> str:
    match = pattern.match(grammar.text, grammar.pos)
    if match is None:
        raise _error(grammar, f"expected {what}")
    grammar.pos = match.end()
    return match[0]


def _error(grammar: _Grammar, what: str, pos: int | None = None) -> GrammarError:
    pos = grammar.pos if pos is None else pos
    line = grammar.text.count("\n", 0, pos) + 1
    column = pos - grammar.text.rfind("\n", 0, pos)
    return GrammarError(f"The grammar does not parse at line {line}, column {column}: {what}.")
