"""What a page may load and run: Content-Security-Policy, by django-csp."""

from csp.constants import SELF, UNSAFE_INLINE
from csp.middleware import CSPMiddleware, PolicyParts
from django.http import HttpRequest
from django.http.response import HttpResponseBase
from rest_framework.response import Response


class PagePolicyMiddleware(CSPMiddleware):
    """The policy of the settings, or of the view, on HTML: JSON needs none."""

    def process_response(
        self, request: HttpRequest, response: HttpResponseBase
    ) -> HttpResponseBase:
        if not response.get("Content-Type", "").startswith("text/html"):
            return response
        return super().process_response(request, response)

    def get_policy_parts(
        self, request: HttpRequest, response: HttpResponseBase, report_only: bool = False
    ) -> PolicyParts:
        """Pages of DRF have styles in their markup; ReDoc makes a worker in the browser."""
        parts = super().get_policy_parts(request, response, report_only)
        if isinstance(response, Response):
            parts.update = {
                "style-src": [SELF, UNSAFE_INLINE],
                "img-src": [SELF, "data:"],
                "worker-src": ["blob:"],
            }
        return parts
