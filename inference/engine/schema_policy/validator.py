"""The check of an answer against the schema as it was given, by the draft that it names."""

import json
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from fractions import Fraction
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any

from inference.engine.byte_matcher import matches
from inference.engine.schema_policy.document import draft_of
from inference.engine.schema_policy.formats import FORMATS

if TYPE_CHECKING:
    from jsonschema.exceptions import ValidationError as Mismatch
    from jsonschema.protocols import Validator

_Errors = Iterator["Mismatch"]
# What references said of which values, within one check: schemas that refer to themselves from
# several branches would be tried in exponentially many ways.
_checked: ContextVar[dict[tuple[str, int], list["Mismatch"]]] = ContextVar("checked")


def find_mismatch(schema: str, value: Any, *, has_formats: bool) -> "Mismatch | None":
    """The most telling error of a value; None if it is valid. `schema`: JSON text.

    `message` and `absolute_path` of the error say what and where.
    """
    # Takes 50 to 400 ms to import, and few requests need it.
    from jsonschema.exceptions import best_match

    _checked.set({})
    return best_match(_validator_of(schema, has_formats).iter_errors(value))


@lru_cache(maxsize=256)
def _validator_of(schema: str, has_formats: bool) -> "Validator":
    from jsonschema import FormatChecker
    from referencing import Registry

    document = json.loads(schema)
    formats = FormatChecker(formats=())
    for name, pattern in FORMATS.items() if has_formats else ():
        formats.checks(name)(_format_check(pattern))
    # A registry of its own, that fetches nothing.
    return _class_of(draft_of(document))(document, format_checker=formats, registry=Registry())


def _format_check(pattern: str) -> Callable[[Any], bool]:
    return lambda value: not isinstance(value, str) or matches(pattern, value)


@cache
def _class_of(draft: int) -> Any:
    """The library's validator of a draft, with keywords of ours that take no exponential time.

    `multipleOf` is exact in decimals.
    """
    import jsonschema
    from jsonschema.exceptions import ValidationError as Mismatch
    from jsonschema.validators import extend

    base = getattr(
        jsonschema,
        f"Draft{'202012' if draft == 2020 else '201909' if draft == 2019 else draft}Validator",
    )
    refer = base.VALIDATORS["$ref"]

    def ref(validator: Any, reference: str, value: Any, schema: Any) -> _Errors:
        seen = _checked.get()
        key = (reference, id(value))
        if key not in seen:
            seen[key] = list(refer(validator, reference, value, schema))
            yield from seen[key]
        elif seen[key]:
            yield Mismatch(f"it does not fit {reference}")

    def pattern(_: Any, expression: str, value: Any, __: Any) -> _Errors:
        if isinstance(value, str) and not matches(expression, value):
            yield Mismatch(f"it does not match the pattern {expression}")

    def pattern_properties(validator: Any, patterns: Any, value: Any, _: Any) -> _Errors:
        for name, item in value.items() if isinstance(value, dict) else ():
            for expression, schema in patterns.items():
                if matches(expression, name):
                    yield from validator.descend(item, schema, path=name, schema_path=expression)

    def additional_properties(validator: Any, other: Any, value: Any, schema: Any) -> _Errors:
        patterns = schema.get("patternProperties", ())
        for name, item in value.items() if isinstance(value, dict) else ():
            if name in schema.get("properties", ()) or any(matches(p, name) for p in patterns):
                continue
            if other is False:
                yield Mismatch(f"the property {name} is not allowed")
            else:
                yield from validator.descend(item, other, path=name)

    def multiple_of(_: Any, divisor: Any, value: Any, __: Any) -> _Errors:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if is_number and Fraction(repr(value)) % Fraction(repr(divisor)):
            yield Mismatch(f"{value} is not a multiple of {divisor}")

    def unique_items(_: Any, is_wanted: bool, value: Any, __: Any) -> _Errors:
        items = value if is_wanted and isinstance(value, list) else []
        if len({_canonical(item) for item in items}) < len(items):
            yield Mismatch("two items of it are equal")

    own = {
        "$ref": ref,
        "pattern": pattern,
        "patternProperties": pattern_properties,
        "additionalProperties": additional_properties,
        "multipleOf": multiple_of,
        "uniqueItems": unique_items,
    }
    return extend(base, own)


def _canonical(value: Any) -> str:
    """Equal for equal JSON values: 1 and 1.0 are, 1 and true are not."""

    def plain(item: Any) -> Any:
        if isinstance(item, float) and item.is_integer():
            return int(item)
        if isinstance(item, dict):
            return {name: plain(inner) for name, inner in item.items()}
        return [plain(inner) for inner in item] if isinstance(item, list) else item

    return json.dumps(plain(value), sort_keys=True)
