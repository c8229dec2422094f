"""Who asks. API keys come with a later version: until then, only the local owner."""

from dataclasses import dataclass

from django.conf import settings
from rest_framework.authentication import BaseAuthentication
from rest_framework.request import Request


@dataclass(frozen=True, slots=True)
class Principal:
    """The authenticated caller; `owner` is what its tasks and conversations belong to."""

    owner: str
    is_authenticated: bool = True

    def __str__(self) -> str:
        return self.owner


LOCAL_OWNER = Principal(owner="local")


class LocalAuthentication(BaseAuthentication):
    """On a local installation, which listens on loopback alone, every request is the owner's."""

    def authenticate(self, request: Request) -> tuple[Principal, None] | None:
        return (LOCAL_OWNER, None) if settings.APP_ENV == "local" else None

    def authenticate_header(self, request: Request) -> str:
        return "Bearer"
