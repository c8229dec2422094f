"""LiteLLM, set up so that it stays quiet, offline, and out of the way of our own retries."""

import logging
import os
import sys
import warnings
from functools import cache
from typing import Any

import httpx

# Without these it reads a .env file, and fetches price and header lists, while it is imported.
_ENVIRONMENT = {
    "LITELLM_MODE": "PRODUCTION",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "LITELLM_LOCAL_ANTHROPIC_BETA_HEADERS": "True",
}
# They would print whole requests and answers of other people, or a line for each call.
_LOGGERS = ("LiteLLM", "LiteLLM Router", "LiteLLM Proxy", "httpx", "httpcore", "openai")


class RedirectError(httpx.RequestError):
    """A provider sends a request on to another host."""


def _refuse_redirects_elsewhere() -> None:
    """Have POST requests stay with their host: httpx would take no key but Authorization off.

    LiteLLM makes a client of httpx for each kind of provider, so this is done for all of them. An
    address may still be sent on to its own https.
    """
    build = httpx.Client._build_redirect_request

    def checked(self: Any, request: httpx.Request, response: httpx.Response) -> httpx.Request:
        redirect = build(self, request, response)
        before, after = request.url, redirect.url
        is_upgrade = (before.scheme, after.scheme) == ("http", "https") and after.port is None
        is_elsewhere = before.host != after.host or (
            not is_upgrade and (before.scheme, before.port) != (after.scheme, after.port)
        )
        if request.method == "POST" and is_elsewhere:
            raise RedirectError("It sends requests on to another host.", request=request)
        return redirect

    for client in (httpx.Client, httpx.AsyncClient):
        client._build_redirect_request = checked  # type: ignore[method-assign]


@cache
def library() -> Any:
    """The module. The first call takes seconds and 180 MB; only workers make it."""
    os.environ.update(_ENVIRONMENT)
    # Pydantic has something to say of LiteLLM's types, and quotes what a provider has sent.
    for message in ("Item '.*' on TypedDict class", "Pydantic serializer warnings"):
        warnings.filterwarnings("ignore", message=message, category=UserWarning)
    import litellm

    litellm.suppress_debug_info = True
    litellm.telemetry = False
    litellm.turn_off_message_logging = True
    litellm.disable_hf_tokenizer_download = True
    # What it takes for `max_retries=0` where it asks for embeddings.
    litellm.DEFAULT_MAX_RETRIES = 0  # type: ignore[attr-defined]
    # An answer may repeat itself: LiteLLM would fail it after a hundred equal pieces.
    litellm.REPEATED_STREAMING_CHUNK_LIMIT = sys.maxsize  # type: ignore[attr-defined]
    _refuse_redirects_elsewhere()
    for name in _LOGGERS:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    return litellm
