"""The rules of one grammar while it is being written."""

import json

from inference.engine.errors import SchemaError
from inference.engine.gbnf import MAX_GRAMMAR_BYTES, MAX_REPETITIONS

# How deep a value that the schema leaves open may be nested.
MAX_ANY_DEPTH = 10
# A longer repetition is written as blocks of this size.
_BLOCK = 1000
_HEX = "[0-9a-fA-F]"

# White space is bounded, so that a model cannot go on writing nothing but that; so are the digits
# of a number. An escape is no NUL, which PostgreSQL cannot store, and no half of a surrogate pair.
_PRIMITIVES = {
    "ws": r'| " " | "\n" [ \t]{0,32}',
    "null": '"null"',
    "boolean": '"true" | "false"',
    "integer": '"0" | "-"? [1-9] [0-9]{0,15}',
    "number": '"-"? ("0" | [1-9] [0-9]{0,15}) ("." [0-9]{1,16})? ([eE] [-+]? [0-9]{1,2})?',
    "string": r'"\"" char* "\""',
    "char": r'[\x20-\x21\x23-\x5B\x5D-\uD7FF\uE000-\U0010FFFF] | "\\" escape',
    "escape": r'["\\/bfnrt] | "u" (unit | pair)',
    "unit": (
        f'"000" [1-9a-fA-F] | "00" [1-9a-fA-F] {_HEX} | "0" [1-9a-fA-F] {_HEX} {_HEX}'
        f" | [1-9a-cA-CeEfF] {_HEX} {_HEX} {_HEX} | [dD] [0-7] {_HEX} {_HEX}"
    ),
    "pair": rf'[dD] [89abAB] {_HEX} {_HEX} "\\u" [dD] [c-fC-F] {_HEX} {_HEX}',
    "any-0": "string | number | boolean | null",
}
_NEEDS = {
    "string": ["char", "escape", "unit", "pair"],
    "any-0": ["string", "number", "boolean", "null"],
}


class Rules:
    """Named rules. Equal ones are written once."""

    def __init__(self) -> None:
        self._bodies: dict[str, str] = {}
        self._names: dict[str, str] = {}
        self._num_bytes = 0
        self._num_reserved = 0

    def add(self, kind: str, body: str) -> str:
        """The name of a rule with this body; of the rule itself when that is all the body is."""
        if body in self._bodies:
            return body
        if body not in self._names:
            self._names[body] = self.reserve(kind)
            self.define(self._names[body], body)
        return self._names[body]

    def reserve(self, kind: str) -> str:
        """A name that `define` will be called for: what refers to itself needs it beforehand."""
        self._num_reserved += 1
        return f"{kind}-{self._num_reserved}"

    def define(self, name: str, body: str) -> None:
        self._bodies[name] = body
        self._num_bytes += len(f"{name} ::= {body}\n".encode())
        if self._num_bytes > MAX_GRAMMAR_BYTES:
            raise SchemaError("The schema's grammar gets too large: split it, or simplify it.")

    def primitive(self, name: str) -> str:
        """One of the rules that every grammar may use."""
        if name not in self._bodies:
            self.define(name, _PRIMITIVES[name])
            for needed in _NEEDS.get(name, ()):
                self.primitive(needed)
        return name

    def any_value(self, depth: int = MAX_ANY_DEPTH) -> str:
        """Any JSON value."""
        name = f"any-{depth}"
        if depth == 0:
            return self.primitive(name)
        if name not in self._bodies:
            inner = self.any_value(depth - 1)
            members = self.enclosed("{", "}", f"{self.key()} {inner}", 0, None)
            items = self.enclosed("[", "]", inner, 0, None)
            self.define(name, f"{members} | {items} | any-0")
        return name

    def key(self) -> str:
        """Any name of a property, and its colon."""
        return self.add("key", f'{self.primitive("string")} ":" {self.primitive("ws")}')

    def enclosed(self, start: str, end: str, item: str, least: int, most: int | None) -> str:
        """A list of one thing in brackets."""
        ws = self.primitive("ws")
        if most == 0:
            return self.add("empty", f'"{start}" {ws} "{end}"')
        more = self.add("more", f'"," {ws} {item}')
        rest = self.repeat(more, max(0, least - 1), None if most is None else most - 1)
        filled = f"{item} {rest} {ws}"
        inner = f"({filled})?" if least == 0 else filled
        return self.add("list", f'"{start}" {ws} {inner} "{end}"')

    def repeat(self, item: str, least: int, most: int | None) -> str:
        """`item`, a name or a character class, so many times.

        llama.cpp repeats at most 2000 times: more are blocks of a thousand and a rest, which stays
        exact, with two ways to read a text at most.
        """
        if least > MAX_REPETITIONS or (most or 0) > MAX_REPETITIONS * _BLOCK:
            raise SchemaError(f"{max(least, most or 0)} repetitions are too many: allow fewer.")
        if most is None:
            return f"{item}*" if least == 0 else f"{item}{{{least},}}"
        if most <= MAX_REPETITIONS:
            return f"{item}{{{least},{most}}}" if most else '""'
        return f"{item}{{{least}}} {self._at_most(item, most - least)}"

    def _at_most(self, item: str, most: int) -> str:
        num_blocks, num_left = divmod(most, _BLOCK)
        if num_blocks == 0:
            return f"{item}{{0,{num_left}}}"
        block = self.add("block", f"{item}{{{_BLOCK}}}")
        fewer = f"{block}{{0,{num_blocks - 1}}} {item}{{0,{_BLOCK - 1}}}"
        return self.add("repeated", f"{fewer} | {block}{{{num_blocks}}} {item}{{0,{num_left}}}")

    def to_gbnf(self) -> str:
        return "\n".join(f"{name} ::= {body}" for name, body in self._bodies.items()) + "\n"


def literal(text: str) -> str:
    """GBNF for exactly this text."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def json_text(value: object) -> str:
    """A value as JSON writes it, in one way only."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
