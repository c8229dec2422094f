"""Signatures of webhooks, as the Standard Webhooks specification has them."""

import base64
from collections.abc import Iterable
from datetime import UTC, datetime

from standardwebhooks import Webhook

_PREFIX = "whsec_"
_KEY_BYTES = range(24, 65)


def is_secret(text: str) -> bool:
    """Whether it is whsec_ and 24 to 64 bytes in base64, as the specification asks."""
    encoded = text.removeprefix(_PREFIX)
    try:
        return encoded != text and len(base64.b64decode(encoded, validate=True)) in _KEY_BYTES
    except ValueError:
        return False


def signed_headers(
    webhook_id: str, payload: str, secrets: Iterable[str], moment: datetime
) -> dict[str, str]:
    """The headers that a receiver verifies the payload by, with one signature for each secret."""
    at = moment.astimezone(UTC)
    signatures = [Webhook(secret).sign(webhook_id, at, payload) for secret in secrets]
    return {
        "webhook-id": webhook_id,
        "webhook-timestamp": str(int(at.timestamp())),
        "webhook-signature": " ".join(signatures),
    }
