"""The owner of a request."""

from rest_framework.request import Request


def owner_of(request: Request) -> str:
    """The owner of the rows that it may make and see; "" without access control."""
    return str(getattr(request.user, "owner", ""))
