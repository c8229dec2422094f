"""Which scopes a view asks for. One that names none is closed."""

from collections.abc import Callable
from typing import Any, TypeVar

from rest_framework.permissions import BasePermission
from rest_framework.request import Request

from monitoring.api.principal import Principal, Scope

View = TypeVar("View", bound=Callable[..., Any])


class HasScope(BasePermission):
    """Lets in whoever has one of the view's `scopes`, or of its action's in `action_scopes`."""

    def has_permission(self, request: Request, view: Any) -> bool:
        scopes = accepted_scopes(view, getattr(view, "action", None))
        principal = request.user
        if not isinstance(principal, Principal):
            return False
        self.message = f"This needs a key of the scope {' or '.join(sorted(scopes)) or '(none)'}."
        return not principal.scopes.isdisjoint(scopes)


def accepted_scopes(view: Any, action: str | None) -> frozenset[Scope]:
    """The scopes that open an action of a view, or the view where it has no actions."""
    by_action = getattr(view, "action_scopes", {})
    return frozenset(by_action.get(action, getattr(view, "scopes", ())))


def needs(*scopes: Scope) -> Callable[[View], View]:
    """Name the scopes of a view that is a function; any of them will do."""

    def mark(view: View) -> View:
        view.cls.scopes = scopes  # type: ignore[attr-defined] # what `api_view` makes
        return view

    return mark
