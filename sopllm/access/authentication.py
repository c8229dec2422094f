"""The principal of a request, as DRF asks for it."""

from rest_framework.authentication import SessionAuthentication
from rest_framework.request import Request

from monitoring.api.principal import Principal


class PrincipalAuthentication(SessionAuthentication):
    """The principal that the ASGI handler found; of a signed-in user with Django's CSRF check."""

    def authenticate(self, request: Request) -> tuple[Principal, None] | None:
        principal: Principal | None = getattr(request._request, "scope", {}).get("principal")
        if principal is None:
            return None
        if principal.session_key:
            self.enforce_csrf(request)
        return principal, None

    def authenticate_header(self, request: Request) -> str:
        return "Bearer"
