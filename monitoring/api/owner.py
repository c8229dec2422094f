"""Whose a request is."""

from rest_framework.request import Request


def owner_of(request: Request) -> str:
    """What the rows belong to that it makes, and may see; "" without access control."""
    return str(getattr(request.user, "owner", ""))
