"""Objects and arrays out of what their members may be."""

from dataclasses import dataclass

from inference.engine.json_schema.rules import Rules


@dataclass(frozen=True, slots=True)
class Member:
    """A property with its name, or an item: the name of a rule."""

    rule: str
    is_required: bool


def object_body(members: list[Member], other: str | None, rules: Rules) -> str:
    """Members in their order, optional ones left out in any combination, then any others.

    Two rules a member, so the size is linear: what may follow when nothing has been written
    yet, and what may follow, after a comma, when something has.
    """
    ws = rules.primitive("ws")
    rest = rules.add("more", f'"," {ws} {other}') + "*" if other else ""
    first = f"{other} {rest}" if other else ""
    for member in reversed(members):
        alone = f"{member.rule} {rest}".rstrip()
        following = f'"," {ws} {alone}'
        if member.is_required:
            first = rules.add("first", alone)
            rest = rules.add("rest", following)
        else:
            first = rules.add("first", f"{alone} | {first}" if first else alone)
            rest = rules.add("rest", f"{following} | {rest}" if rest else f'{following} | ""')
    is_empty_allowed = not any(member.is_required for member in members)
    return _enclosed("{", first, "}", ws, is_empty_allowed=is_empty_allowed)


def array_body(
    prefix: list[str], item: str | None, least: int, most: int | None, rules: Rules
) -> str:
    """Items with a place of their own, then any number of others."""
    ws = rules.primitive("ws")
    prefix = prefix if most is None else prefix[:most]
    if item and not prefix:
        return rules.enclosed("[", "]", item, least, most)
    rest = ""
    if item:
        more = rules.add("more", f'"," {ws} {item}')
        room = None if most is None else most - len(prefix)
        rest = rules.repeat(more, max(0, least - len(prefix)), room)
    for index in reversed(range(1, len(prefix))):
        following = f'"," {ws} {prefix[index]} {rest}'.rstrip()
        rest = rules.add("rest", following if index < least else f'{following} | ""')
    first = f"{prefix[0]} {rest}".rstrip() if prefix else ""
    return _enclosed("[", first, "]", ws, is_empty_allowed=least == 0)


def _enclosed(start: str, inner: str, end: str, ws: str, *, is_empty_allowed: bool) -> str:
    if inner:
        inner = f"({inner} {ws})?" if is_empty_allowed else f"({inner}) {ws}"
    return f'"{start}" {ws} {inner} "{end}"'
