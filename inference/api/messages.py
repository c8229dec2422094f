"""The messages of a task: what a serializer cannot see in one of them alone."""

import base64
import binascii
import re
from typing import Any

from rest_framework.exceptions import ValidationError

from conversations.models import ChatMessage
from inference.webhooks import urls as webhook_urls

MAX_IMAGES = 20
MAX_IMAGE_BYTES = 5 * 2**20
_DATA_URL = re.compile(r"data:image/(?:png|jpeg|gif|webp);base64,")


def check_tool_results(messages: list[ChatMessage]) -> None:
    """Raises ValidationError where a result of a tool answers no call that came before it."""
    called: set[str] = set()
    for index, message in enumerate(messages):
        called |= {call["id"] for call in message.get("tool_calls", [])}
        call_id = message.get("tool_call_id")
        if call_id is not None and call_id not in called:
            reason = "No tool call before it has this id: send the assistant's message with it."
            raise _refusal(f"#/{index}/tool_call_id", reason)


def check_images(messages: list[ChatMessage], refusal: str | None, *, takes_urls: bool) -> None:
    """Raises ValidationError for an image that is not to be sent.

    `refusal`: why none is; `takes_urls`: whether the provider fetches those that have an address.
    """
    for index, (where, url) in enumerate(_image_urls(messages)):
        if refusal is not None:
            raise _refusal(where, refusal)
        if index == MAX_IMAGES:
            raise _refusal(where, f"A task has at most {MAX_IMAGES} images: leave some out.")
        if url.startswith("data:"):
            _check_data_url(where, url)
        elif not takes_urls:
            raise _refusal(where, "Send the image itself to this provider, as a data URL.")
        else:
            _check_address(where, url)


def _image_urls(messages: list[ChatMessage]) -> list[tuple[str, str]]:
    """Where each is, as a JSON pointer, and the URL."""
    return [
        (f"#/{index}/content/{number}/image_url/url", str(part["image_url"]["url"]))
        for index, message in enumerate(messages)
        if not isinstance(message["content"], str)
        for number, part in enumerate(message["content"])
        if part["type"] == "image_url"
    ]


def _check_data_url(where: str, url: str) -> None:
    start = _DATA_URL.match(url)
    if start is None:
        message = "Write data:image/png;base64,… with a PNG, JPEG, GIF or WebP."
        raise _refusal(where, message)
    if len(url) - start.end() > MAX_IMAGE_BYTES * 4 // 3 + 4:
        raise _refusal(where, f"The image is larger than {MAX_IMAGE_BYTES} bytes: scale it down.")
    try:
        base64.b64decode(url[start.end() :], validate=True)
    except (binascii.Error, ValueError) as error:
        raise _refusal(where, "What follows base64, is not Base64: encode it anew.") from error


def _check_address(where: str, url: str) -> None:
    """Whoever fetches it shall not be led into a network that the client cannot reach."""
    if not url.startswith("https://"):
        raise _refusal(where, "Give an https address, or the image itself as a data URL.")
    try:
        webhook_urls.check_address(url)
    except webhook_urls.RefusedUrlError as error:
        raise _refusal(where, str(error)) from error


def _refusal(where: str, message: str) -> ValidationError:
    details: Any = {"messages": [f"{where}: {message}"]}
    return ValidationError(details)
