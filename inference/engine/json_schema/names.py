"""Names of properties beyond the declared ones."""

from collections.abc import Iterable

from inference.engine.errors import SchemaError
from inference.engine.json_schema.charset import ANY, CharSet
from inference.engine.json_schema.rules import Rules, json_text, literal

MAX_LENGTH = 64


def other_name(names: Iterable[str], rules: Rules) -> str:
    """A rule for any name but these, in quotes and with its colon.

    Its characters are written in one way each, so that no escape can spell a declared name.
    """
    declared = set(names)
    if not declared:
        return rules.key()
    if max(map(len, declared)) > MAX_LENGTH:
        raise SchemaError(
            f"additionalProperties beside names of more than {MAX_LENGTH} characters is not"
            " supported: shorten the names, or forbid additionalProperties."
        )
    return rules.add("key", rf'"\"" {_other(declared, rules)} "\":" {rules.primitive("ws")}')


def _other(texts: set[str], rules: Rules) -> str:
    """Any text but these: it leaves them at some character, or ends before they do."""
    by_first: dict[str, set[str]] = {}
    for text in texts - {""}:
        by_first.setdefault(text[0], set()).add(text[1:])
    others = ANY - CharSet.chars("".join(by_first))
    alternatives = [f"{others.to_gbnf()} {rules.add('text', f'{ANY.to_gbnf()}*')}"]
    for first in sorted(by_first):
        rest = _other(by_first[first], rules)
        alternatives.append(f"{literal(json_text(first)[1:-1])} {rest}")
    if "" not in texts:
        alternatives.append('""')
    return rules.add("other", " | ".join(alternatives))
