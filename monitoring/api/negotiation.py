"""Which form an answer has."""

from typing import Any

from rest_framework.negotiation import DefaultContentNegotiation
from rest_framework.renderers import BaseRenderer
from rest_framework.request import Request

_JSON = "application/json"


class ContentNegotiation(DefaultContentNegotiation):
    """Most clients take anything, or JSON: for them nothing is parsed and compared."""

    def select_renderer(
        self, request: Request, renderers: Any, format_suffix: str | None = None
    ) -> tuple[BaseRenderer, str]:
        is_json = renderers[0].media_type == _JSON
        if is_json and request.META.get("HTTP_ACCEPT", "*/*") in ("*/*", _JSON):
            return renderers[0], _JSON
        found: tuple[BaseRenderer, str] = super().select_renderer(request, renderers, format_suffix)
        return found
