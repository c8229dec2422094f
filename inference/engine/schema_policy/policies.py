"""The schema that an answer is written by: the given one in fewer keywords, and narrowed.

Keywords that have no equivalent are left out, so that the result allows more there, never less;
the answer is validated against the schema as given.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from inference.engine.errors import SchemaError
from inference.engine.schema_policy.declared import NOTHING, Declared, Place, declared_by
from inference.engine.schema_policy.document import (
    MAX_COUNT,
    TYPES,
    TYPES_OF_KEYWORD,
    draft_of,
    escaped,
    resolve,
)
from inference.engine.schema_policy.formats import FORMATS
from inference.engine.schema_policy.limits import (
    ANY,
    MAX_REMAINDERS,
    any_definitions,
    bounds_of,
    limits,
    num_remainders,
)

Schema = dict[str, Any]
Choice = tuple[str, list[list[Place]]]
"""A keyword, and its branches: of each, the schemas that it consists of."""

MAX_NODES = 10_000
# How many combinations of the choices of several anyOf, oneOf, if … at one place are written.
MAX_COMBINATIONS = 32

_COPIED = frozenset({"enum", "const", "required", "pattern"})
_COUNTS = frozenset(
    {f"{m}{of}" for m in ("min", "max") for of in ("Length", "Items", "Properties")}
)


@dataclass(frozen=True, slots=True)
class Options:
    """Which policies narrow the schema; each may be turned off by a task."""

    closed: bool = True
    typed: bool = True
    bounded: bool = True
    formats: bool = True


@dataclass(frozen=True, slots=True)
class Rewritten:
    """A schema, and what its references `#/$defs/…` point at.

    By a schema's identity: the pointer to where it comes from, and why it allows nothing.
    """

    root: Any
    definitions: dict[str, Any]
    pointers: dict[int, str]
    reasons: dict[int, str]


def rewrite(document: Any, options: Options, *, has_lengths: bool) -> Rewritten:
    """The schema that answers are written by. Raises SchemaError.

    `has_lengths`: whether the lengths of strings are kept that have a pattern too.
    """
    policies = _PolicyPass(document, options, has_lengths=has_lengths)
    root = policies.value((document, "#"))
    definitions = {name: policies.definitions[name] for name in sorted(policies.used)}
    if options.bounded:
        definitions |= any_definitions()
    return Rewritten(root, definitions, policies.pointers, policies.reasons)


class _PolicyPass:
    """One schema, read from its root; every place of a value is rewritten once."""

    def __init__(self, document: Any, options: Options, *, has_lengths: bool) -> None:
        self._document = document
        self._options = options
        self._has_lengths = has_lengths
        self._ref_stands_alone = draft_of(document) <= 7
        self._num_nodes = 0
        self._names: dict[str, str] = {}
        self._divisors: dict[float, int] = {}
        self.used: set[str] = set()
        self.definitions: dict[str, Any] = {}
        self.pointers: dict[int, str] = {}
        self.reasons: dict[int, str] = {}

    def value(self, place: Place) -> Any:
        """A schema that has a value of its own, with nothing around it that speaks of the same."""
        schema, pointer = self._followed(place)
        is_reference = pointer != place[1]
        if pointer not in self._names:
            name = self._names[pointer] = f"s{len(self._names)}"
            self.definitions[name] = self._all_of([(schema, pointer)], NOTHING)
            if not is_reference:
                return self.definitions[name]
        self.used.add(self._names[pointer])
        return {"$ref": f"#/$defs/{self._names[pointer]}"}

    def _followed(self, place: Place) -> Place:
        """Where a schema that is nothing but a reference leads, through any number of them."""
        schema, pointer = place
        while isinstance(schema, dict) and "$ref" in schema:
            others = schema.keys() & (TYPES_OF_KEYWORD.keys() | _IN_PLACE) - {"$ref"}
            if others and not self._ref_stands_alone:
                break
            schema, pointer = resolve(self._document, schema["$ref"], pointer)
        return schema, pointer

    def _parts(self, places: Iterable[Place]) -> list[Place]:
        """The schemas that must all be met: these, those of allOf, and what references mean."""
        parts = []
        for schema, pointer in places:
            self._count(1)
            inner = []
            if isinstance(schema, dict):
                inner += _listed(schema.get("allOf", ()), f"{pointer}/allOf")
                if "$ref" in schema:
                    inner.append(resolve(self._document, schema["$ref"], pointer))
                    if self._ref_stands_alone:
                        parts += self._parts(inner[-1:])
                        continue
            own, before = [(schema, pointer)], self._parts(inner)
            parts += before + own if inner and _is_first(schema) else own + before
        return parts

    def _can_count_in(self, divisor: float) -> bool:
        """Whether llguidance can, even where all divisors of the schema speak of one number.

        It makes a state for each combination of remainders before the first token is chosen.
        """
        divisors = self._divisors | {divisor: num_remainders(divisor)}
        if not 0 < math.prod(divisors.values()) <= MAX_REMAINDERS:
            return False
        self._divisors = divisors
        return True

    def _all_of(self, places: list[Place], around: Declared) -> Any:
        """Schemas of one value as one. `around`: what others say of it, written elsewhere."""
        parts = self._parts(places)
        pointer = places[0][1] if places else "#"
        if any(schema is False for schema, _ in parts):
            return self._nothing(pointer, "The schema false allows no value")
        real = [(schema, where) for schema, where in parts if schema is not True]
        own = declared_by(real)
        if own.types == ():
            return self._nothing(pointer, "Its types exclude each other")
        choices, left_out = self._choices(real)
        for _, branches in left_out:
            own |= self._declared_in(branches)
        is_literal = any(schema.keys() & {"enum", "const"} for schema, _ in real)
        if own.types is None and not choices and not is_literal:
            own = replace(own, types=around.types or self._inferred(real))
        written = [part for schema, where in real for part in self._part(schema, where)]
        if not is_literal:
            _drop_counts(written, around | own, has_choices=bool(choices))
        if choices:
            written += self._written_choices(choices, replace(around | own, types=own.types))
        elif not is_literal:
            written = self._narrowed(written, own, around | own)
        if own.types is not None:
            written = written or [{}]
            for part in written:
                part["type"] = list(own.types)
        if not written:
            return ANY if self._options.bounded and around == NOTHING else {}
        result = written[0] if len(written) == 1 else {"allOf": written}
        self.pointers[id(result)] = pointer
        return result

    def _written_choices(self, choices: list[Choice], around: Declared) -> list[Schema]:
        """Each branch is closed by itself, over what is declared around it and by other choices."""
        every = [self._declared_in(branches) for _, branches in choices]
        written: list[Schema] = []
        is_told = all(
            declared.names.keys() <= around.names.keys()
            and declared.patterns.keys() <= around.patterns.keys()
            and not declared.is_open
            for declared in every
        )
        if is_told and self._options.closed and around.names and not around.is_open:
            written.append(self._closed(around, False))
            around = replace(around, is_open=True)
        for index, (keyword, branches) in enumerate(choices):
            others = around
            for declared in every[:index] + every[index + 1 :]:
                others |= declared
            written.append({keyword: [self._branch(branch, others) for branch in branches]})
        return written

    def _branch(self, places: list[Place], around: Declared) -> Any:
        if len(places) == 1 and not (around.names or around.patterns or around.is_open):
            return self.value(places[0])
        return self._all_of(places, around)

    def _part(self, schema: Schema, pointer: str) -> list[Schema]:
        """The keywords of one schema that speak of the value itself and of what is in it."""
        part: Schema = {}
        more: list[Schema] = []
        has_list = isinstance(schema.get("items"), list)
        for keyword, value in schema.items():
            below = f"{pointer}/{keyword}"
            match keyword:
                case "properties" | "patternProperties":
                    part[keyword] = {
                        name: self.value((item, f"{below}/{escaped(name)}"))
                        for name, item in value.items()
                    }
                case "items" | "prefixItems" if isinstance(value, list):
                    part["prefixItems"] = [self.value(place) for place in _listed(value, below)]
                case "additionalItems" if has_list:
                    part["items"] = self.value((value, below))
                case "items" | "additionalProperties":
                    part[keyword] = False if value is False else self.value((value, below))
                case "format" if value in FORMATS and self._options.formats:
                    more.append({"pattern": FORMATS[value]})
                case _ if keyword in _COPIED:
                    part[keyword] = value
                case _ if keyword in _COUNTS and value <= MAX_COUNT:
                    part[keyword] = int(value)
                case "multipleOf" if self._can_count_in(value):
                    part[keyword] = value
        part |= bounds_of(schema, pointer)
        if more and "pattern" not in part:
            part |= more.pop()
        if "pattern" in part and not self._has_lengths:
            part = {word: value for word, value in part.items() if not word.endswith("Length")}
        self.pointers[id(part)] = pointer
        return [part, *more] if part else more

    def _declared_in(self, branches: list[list[Place]]) -> Declared:
        """What any of the branches declares, with the choices within it."""
        declared = NOTHING
        for branch in branches:
            parts = [part for part in self._parts(branch) if isinstance(part[0], dict)]
            declared |= declared_by(parts)
            chosen, left_out = self._choices(parts)
            for _, inner in chosen + left_out:
                declared |= self._declared_in(inner)
        return declared

    def _choices(self, parts: list[Place]) -> tuple[list[Choice], list[Choice]]:
        """What is written as one of several branches, each of them schemas to be met together.

        Then the choices that are left out since they would multiply to too many combinations, those
        first that the schema does not write as choices.
        """
        given, derived = [], []
        for schema, pointer in parts:
            for keyword in ("anyOf", "oneOf"):
                if keyword in schema:
                    places = _listed(schema[keyword], f"{pointer}/{keyword}")
                    given.append((keyword, [[place] for place in places]))
            if "if" in schema:
                met, unmet = (
                    [(schema[k], f"{pointer}/{k}")] if k in schema else [] for k in ("then", "else")
                )
                derived.append(("anyOf", [[(schema["if"], f"{pointer}/if"), *met], unmet]))
            of_drafts = ("dependencies",) if self._ref_stands_alone else ()
            for keyword in ("dependentRequired", "dependentSchemas", *of_drafts):
                for name, value in schema.get(keyword, {}).items():
                    below = f"{pointer}/{keyword}/{escaped(name)}"
                    needed = {"required": value} if isinstance(value, list) else value
                    absent = {"properties": {name: False}}
                    derived.append(("anyOf", [[(absent, f"{below}/absent")], [(needed, below)]]))
        choices, num_combinations = given + derived, 1
        for index, (_, branches) in enumerate(choices):
            num_combinations *= len(branches)
            if index and num_combinations > MAX_COMBINATIONS:
                return choices[:index], choices[index:]
        return choices, []

    def _inferred(self, parts: list[Place]) -> tuple[str, ...] | None:
        """Without `type`: those that the other keywords speak of."""
        keywords = {keyword for schema, _ in parts for keyword in schema}
        spoken_of = {TYPES_OF_KEYWORD[word] for word in keywords & TYPES_OF_KEYWORD.keys()}
        if not self._options.typed or not spoken_of:
            return None
        return tuple(name for name in TYPES if name in spoken_of)

    def _narrowed(self, written: list[Schema], own: Declared, declared: Declared) -> list[Schema]:
        """One more part with what the policies add, as one with the only other part."""
        types = own.types or TYPES
        said = {keyword for part in written for keyword in part}
        extra: Schema = {}
        any_value: Any = ANY if self._options.bounded else True
        if "object" in types and (own.types is not None or declared.has_properties):
            is_closed = self._options.closed and not declared.is_open and declared.has_properties
            if is_closed or "additionalProperties" not in said:
                extra |= self._closed(declared, not is_closed and any_value)
        if "array" in types and "items" not in said and own.types is not None:
            prefix = max((len(part.get("prefixItems", ())) for part in written), default=0)
            least = max((part.get("minItems", 0) for part in written), default=0)
            is_closed = self._options.closed and prefix > 0 and least <= prefix
            extra["items"] = False if is_closed else any_value
        if self._options.bounded and own.types is not None:
            extra |= limits(types, written, said)
        if not extra:
            return written
        if len(written) != 1:
            return [*written, extra]
        merged = extra | written[0]
        for keyword in ("properties", "patternProperties"):
            if keyword in extra or keyword in written[0]:
                merged[keyword] = written[0].get(keyword, {}) | {
                    name: value
                    for name, value in extra.get(keyword, {}).items()
                    if name not in written[0].get(keyword, {})
                }
        self.pointers[id(merged)] = self.pointers.get(id(written[0]), "#")
        return [merged]

    def _closed(self, declared: Declared, other: Any) -> Schema:
        """Only what is declared, and any `other`: False for none."""
        self._count(len(declared.names))
        closed: Schema = {"additionalProperties": other}
        if declared.names:
            closed["properties"] = dict.fromkeys(declared.names, True)
        if declared.patterns:
            closed["patternProperties"] = dict.fromkeys(declared.patterns, True)
        return closed

    def _count(self, num_nodes: int) -> None:
        self._num_nodes += num_nodes
        if self._num_nodes > MAX_NODES:
            message = "The schema gets too large where it is written out: simplify it."
            raise SchemaError(f"#: {message}")

    def _nothing(self, pointer: str, reason: str) -> Schema:
        nothing: Schema = {"enum": []}
        self.reasons[id(nothing)] = f"{pointer}: {reason}: correct it."
        return nothing


# What a schema says of the value itself besides the keywords of its types.
_IN_PLACE = frozenset(
    {"type", "enum", "const", "allOf", "anyOf", "oneOf", "$ref", "not", "if", "then", "else"}
)


def _is_first(schema: Schema) -> bool:
    """Whether other schemas stand before the properties, whose order is that of the answer."""
    keywords = [*schema]
    return "properties" in schema and any(
        keywords.index(keyword) < keywords.index("properties")
        for keyword in {"$ref", "allOf"} & schema.keys()
    )


def _listed(schemas: Iterable[Any], pointer: str) -> list[Place]:
    return [(schema, f"{pointer}/{index}") for index, schema in enumerate(schemas)]


def _drop_counts(written: list[Schema], declared: Declared, *, has_choices: bool) -> None:
    """Leave out how many properties there may be, unless llguidance can count them.

    It can where all that are declared are required, or one of them has to be or may be there.
    """
    if not declared.names.keys() - declared.required and not (has_choices and declared.names):
        return
    for part in written:
        least = part.pop("minProperties", 0)
        most = part.pop("maxProperties", None)
        is_one = least <= 1 and most in {None, 1}
        is_closed = part.get("additionalProperties") is False and len(written) == 1
        if is_one and is_closed and not (declared.required or declared.patterns or has_choices):
            counts = {"minProperties": least, "maxProperties": most}
            part |= {keyword: count for keyword, count in counts.items() if count is not None}
