"""Signatures of webhooks, as the Standard Webhooks specification has them."""

import base64
from collections.abc import Iterable
from datetime import UTC, datetime

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from django.conf import settings
from standardwebhooks import Webhook

from inference.models import WebhookSecret
from monitoring.api.principal import LOCAL

_PREFIX = "whsec_"
_KEY_BYTES = range(24, 65)


def is_secret(text: str) -> bool:
    """Whether it is whsec_ and 24 to 64 bytes in base64, as the specification asks."""
    encoded = text.removeprefix(_PREFIX)
    try:
        return encoded != text and len(base64.b64decode(encoded, validate=True)) in _KEY_BYTES
    except ValueError:
        return False


def secrets_of(owner: str) -> list[str]:
    """The secrets that sign an owner's webhooks now, the current one first.

    Of each version that is in use there is one for each of WEBHOOK_SECRETS, so that these can be
    changed too.
    """
    return [
        secret_of(owner, version, master)
        for version in WebhookSecret.objects.of(owner).versions()
        for master in settings.WEBHOOK_SECRETS
    ]


def secret_of(owner: str, version: int, master: str) -> str:
    """An owner's secret, from one of WEBHOOK_SECRETS; it tells nothing about any other.

    Until it makes one of its own, the local owner has WEBHOOK_SECRETS themselves.
    """
    if owner == LOCAL.owner and version == 0:
        return master
    # No two owners and versions make the same text, since a version is digits.
    info = f"sopllm webhook secret {version} of {owner}".encode()
    kdf = HKDF(algorithm=SHA256(), length=32, salt=None, info=info)
    key = kdf.derive(base64.b64decode(master.removeprefix(_PREFIX)))
    return _PREFIX + base64.b64encode(key).decode()


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
