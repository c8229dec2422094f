"""JSON Schema to GBNF."""

from os.path import commonprefix
from typing import Any

from inference.engine.errors import GrammarError, SchemaError
from inference.engine.gbnf import check_grammar
from inference.engine.json_schema.containers import Member, array_body, object_body
from inference.engine.json_schema.document import check_document, escaped, resolve
from inference.engine.json_schema.keywords import (
    ANNOTATIONS,
    KEYWORDS_OF_TYPE,
    TYPES,
    Schema,
    check_keywords,
)
from inference.engine.json_schema.merge import is_type, merge, type_names
from inference.engine.json_schema.names import other_name
from inference.engine.json_schema.readings import (
    Choice,
    Readings,
    beginnings,
    one_after_another,
    side_by_side,
)
from inference.engine.json_schema.rules import Rules, json_text, literal
from inference.engine.json_schema.scalars import integer_body, number_body, string_body

MAX_DEPTH = 32
MAX_NODES = 5000
_MAX_SHARED_PREFIXES = 16
_MERGED_FIRST = {"$ref", "allOf", "const", "$id"}


def compile_schema(schema: dict[str, Any] | bool) -> str:
    """GBNF, with a rule `root`, of which every text is JSON that the schema allows.

    The schema is of draft 2020-12. The grammar is narrower than the schema where a model would
    go astray: properties in the order of the schema, none that are not declared unless
    `additionalProperties` says so, white space and digits bounded.

    Raises SchemaError, with a JSON pointer, for what is not supported or allows nothing.
    """
    check_document(schema)
    rules = Rules()
    rules.define("root", _Compiler(schema, rules).reference("#"))
    try:
        grammar = rules.to_gbnf()
        check_grammar(grammar, must_end=True)
    except GrammarError as error:
        raise SchemaError(
            f"#: The schema is too large, or refers to itself in a circle. {error}"
        ) from error
    return grammar


class _Compiler:
    def __init__(self, document: dict[str, Any] | bool, rules: Rules) -> None:
        self._document = document
        self._rules = rules
        self._references: dict[str, str] = {}
        self._readings_of: dict[str, Readings] = {}
        # Those of the parts compiled so far, of each schema that is being compiled.
        self._readings: list[list[Readings]] = [[]]
        self._num_nodes = 0
        self._depth = 0

    def reference(self, pointer: str) -> str:
        """The rule of a part of the document: one for all that refer to it, itself included."""
        if pointer not in self._references:
            name = self._references[pointer] = self._rules.reserve("ref")
            self._rules.define(name, self._value(resolve(self._document, pointer), pointer))
            self._readings_of[pointer] = self._readings[-1].pop()
        readings = self._readings_of.get(pointer, Readings(loops=frozenset({pointer})))
        loops = readings.loops - self._readings_of.keys()
        self._readings[-1].append(Readings(readings.num, loops))
        return self._references[pointer]

    def _value(self, schema: Any, pointer: str) -> str:
        """The name of the rule of a schema. Errors get the pointer of the innermost one."""
        self._depth += 1
        self._readings.append([])
        try:
            self._count_node()
            rule = self._rules.add("value", self._body(schema, pointer))
        except SchemaError as error:
            if str(error).startswith("#"):
                raise
            raise SchemaError(f"{pointer}: {error}") from error
        self._depth -= 1
        readings = one_after_another(self._readings.pop())
        self._readings[-1].append(readings)
        return rule

    def _body(self, schema: Any, pointer: str) -> str:
        if schema is False:
            raise SchemaError("The schema false allows no value: leave it out, or correct it.")
        if schema is True:
            return self._rules.any_value()
        check_keywords(schema, pointer)
        if schema.keys() - ANNOTATIONS == {"$ref"}:
            return self.reference(schema["$ref"])
        plain = self._plain(schema, pointer)
        for keyword in ("anyOf", "oneOf"):
            if keyword in plain:
                return self._any_of(plain, keyword, pointer)
        if "enum" in plain:
            return self._enum(plain, pointer)
        bodies = [self._of_type(name, plain, pointer) for name in _types(plain)]
        return " | ".join(bodies) or self._rules.any_value()

    def _plain(self, schema: Schema, pointer: str) -> Schema:
        """The schema with what it refers to and its allOf merged in, const as enum."""
        self._count_node()
        check_keywords(schema, pointer)
        plain = {k: v for k, v in schema.items() if k not in ANNOTATIONS | _MERGED_FIRST}
        parts = [(part, f"{pointer}/allOf/{i}") for i, part in enumerate(schema.get("allOf", ()))]
        if "$ref" in schema:
            parts.append((resolve(self._document, schema["$ref"]), schema["$ref"]))
        if "const" in schema:
            plain = merge(plain, {"enum": [schema["const"]]})
        self._depth += 1
        for part, where in parts:
            if part is False:
                raise SchemaError("The schema false allows no value: leave it out, or correct it.")
            plain = merge(plain, {} if part is True else self._plain(part, where))
        self._depth -= 1
        return plain

    def _any_of(self, plain: Schema, keyword: str, pointer: str) -> str:
        """One of several schemas, each with what stands beside them."""
        others = {k: v for k, v in plain.items() if k != keyword}
        choices: dict[str, Choice] = {}
        for index, choice in enumerate(plain[keyword]):
            where = f"{pointer}/{keyword}/{index}"
            if choice is False:
                continue
            merged = merge(others, {} if choice is True else self._plain(choice, where))
            rule = self._value(merged if others else choice, where)
            choices[rule] = Choice(beginnings(merged), self._readings[-1].pop())
        if not choices:
            raise SchemaError(f"{keyword} has no choice that allows a value: correct one.")
        self._readings[-1].append(side_by_side(list(choices.values())))
        return " | ".join(choices)

    def _enum(self, plain: Schema, pointer: str) -> str:
        if others := plain.keys() - {"enum", "type"}:
            raise SchemaError(f"enum or const cannot be combined with {', '.join(sorted(others))}.")
        names = type_names(plain.get("type", list(TYPES)))
        values = [v for v in plain["enum"] if any(is_type(v, name) for name in names)]
        if not values:
            raise SchemaError(f"No value of enum or const is of type {names}: correct one.")
        scalars = [json_text(value) for value in values if not isinstance(value, dict | list)]
        nested = [self._value(_exactly(v), pointer) for v in values if isinstance(v, dict | list)]
        texts = [self._one_of(list(dict.fromkeys(scalars)))] if scalars else []
        return " | ".join(texts + nested)

    def _one_of(self, texts: list[str], depth: int = 0) -> str:
        """One of these texts. What they have in common is written once: choices cost time."""
        if len(texts) == 1 or depth == _MAX_SHARED_PREFIXES:
            return " | ".join(map(literal, texts))
        prefix = commonprefix(texts)  # noqa: RUF071 - character by character is what we want
        by_first: dict[str, list[str]] = {}
        for text in texts:
            rest = text[len(prefix) :]
            by_first.setdefault(rest[:1], []).append(rest)
        choices = [self._one_of(group, depth + 1) for group in by_first.values()]
        body = " | ".join(choices)
        return f"{literal(prefix)} {self._rules.add('choice', body)}" if prefix else body

    def _of_type(self, name: str, plain: Schema, pointer: str) -> str:
        match name:
            case "object":
                return self._object(plain, pointer)
            case "array":
                return self._array(plain, pointer)
            case "string":
                return string_body(plain, self._rules)
            case "integer":
                return integer_body(plain, self._rules)
            case "number":
                return number_body(plain, self._rules)
        return self._rules.primitive(name)

    def _object(self, plain: Schema, pointer: str) -> str:
        members, other = self._members(plain, pointer), self._other(plain, pointer)
        least, most = _counts(plain, "Properties")
        if other and not members:
            return self._rules.enclosed("{", "}", other, least, most)
        num_required = sum(member.is_required for member in members)
        if least > num_required or (most is not None and (other or most < len(members))):
            raise SchemaError(
                "minProperties and maxProperties are supported beside additionalProperties alone,"
                " not beside properties: say with required what must be there."
            )
        return object_body(members, other, self._rules)

    def _members(self, plain: Schema, pointer: str) -> list[Member]:
        """The declared properties, then those that are required though not declared."""
        additional = plain.get("additionalProperties", True)
        declared, required = plain.get("properties", {}), plain.get("required", [])
        undeclared = {name: additional for name in required if name not in declared}
        members = []
        for name, schema in (declared | undeclared).items():
            if schema is not False:
                value = self._value(schema, f"{pointer}/properties/{escaped(name)}")
                key = f"{literal(json_text(name) + ':')} {self._rules.primitive('ws')}"
                rule = self._rules.add("member", f"{key} {value}")
                members.append(Member(rule, is_required=name in required))
            elif name in required:
                raise SchemaError(f"The property {name} is required, but forbidden: correct one.")
        return members

    def _other(self, plain: Schema, pointer: str) -> str | None:
        """Any property that is not declared; None when there is to be no such."""
        additional = plain.get("additionalProperties", "properties" not in plain)
        if additional is False:
            return None
        value = self._value(additional, f"{pointer}/additionalProperties")
        names = {*plain.get("properties", {}), *plain.get("required", ())}
        return self._rules.add("member", f"{other_name(names, self._rules)} {value}")

    def _array(self, plain: Schema, pointer: str) -> str:
        least, most = _counts(plain, "Items")
        prefix = plain.get("prefixItems", [])
        item = None
        if (items := plain.get("items", len(prefix) < max(1, least))) is False:
            most = len(prefix) if most is None else min(most, len(prefix))
            if least > most:
                raise SchemaError(f"minItems is {least}, but only {most} are allowed: correct one.")
        elif most is None or most > len(prefix):
            item = self._value(items, f"{pointer}/items")
        places = [self._value(p, f"{pointer}/prefixItems/{i}") for i, p in enumerate(prefix[:most])]
        return array_body(places, item, least, most, self._rules)

    def _count_node(self) -> None:
        self._num_nodes += 1
        if self._num_nodes > MAX_NODES:
            raise SchemaError("The schema gets too large where references are followed: simplify.")
        if self._depth > MAX_DEPTH:
            raise SchemaError(
                f"Schemas are nested more than {MAX_DEPTH} levels deep: flatten them."
            )


def _types(plain: Schema) -> list[str]:
    """The types to write: without `type`, those that the other keywords speak of."""
    if "type" not in plain:
        return [name for name, keywords in KEYWORDS_OF_TYPE.items() if plain.keys() & {*keywords}]
    names = type_names(plain["type"])
    return [name for name in names if name != "integer" or "number" not in names]


def _counts(plain: Schema, of_what: str) -> tuple[int, int | None]:
    least, most = plain.get(f"min{of_what}", 0), plain.get(f"max{of_what}")
    if most is not None and least > most:
        raise SchemaError(f"min{of_what} {least} is more than max{of_what} {most}: correct one.")
    return least, most


def _exactly(value: dict[str, Any] | list[Any]) -> Schema:
    """A schema of this value alone."""
    if isinstance(value, list):
        prefix = {"prefixItems": [{"const": item} for item in value]} if value else {}
        return {"type": "array", **prefix, "items": False, "minItems": len(value)}
    properties = {name: {"const": item} for name, item in value.items()}
    return {"type": "object", "properties": properties, "required": list(value)}
