"""The monitor page: a template and ES modules that talk to the API as any other client does."""

from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render

# Everything the page loads and talks to is on its own origin; markup alone can run nothing.
POLICY = (
    "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "object-src 'none'"
)


def page(request: HttpRequest) -> HttpResponse:
    """The page at `/`. It holds no data: what it may show, the API decides."""
    context = {"app_name": settings.APP_NAME, "flower_port": settings.FLOWER_PORT}
    response = render(request, "monitoring/page.html", context)
    response["Content-Security-Policy"] = POLICY
    return response
