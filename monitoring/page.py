"""The monitor page: a template and ES modules that talk to the API as any other client does."""

from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render


def page(request: HttpRequest) -> HttpResponse:
    """The page at `/`. It holds no data: what it may show, the API decides."""
    context = {"app_name": settings.APP_NAME, "flower_port": settings.FLOWER_PORT}
    return render(request, "monitoring/page.html", context)
