"""How the OpenAPI description differs from what drf-spectacular reads off the routes."""

from typing import Any

Endpoint = tuple[str, str, str, Any]


def without_trailing_slashes(endpoints: list[Endpoint]) -> list[Endpoint]:
    """Each route answers with and without one; the description names the shorter."""
    return [(path.rstrip("/"), regex, method, view) for path, regex, method, view in endpoints]
