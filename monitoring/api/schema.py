"""The description of bodies that are TypedDicts."""

from typing import Any

from drf_spectacular.plumbing import resolve_type_hint


def schema_of(body: Any) -> Any:
    """A TypedDict as OpenAPI describes it, for `extend_schema`."""
    resolve: Any = resolve_type_hint  # which has no annotations itself
    return resolve(body)
