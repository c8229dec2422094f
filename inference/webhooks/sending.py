"""Delivering webhooks that are due, and the meaning of the responses."""

import logging
import threading
import time
from dataclasses import dataclass
from datetime import timedelta

from django.conf import settings

from inference import dispatch
from inference.models import WebhookDelivery
from inference.models.webhook_deliveries import DeliveryLogEntry
from inference.retries import backoff_seconds
from inference.task_log import log_line
from inference.webhooks import deliveries, http_client, urls
from inference.webhooks.addresses import RefusedAddressError
from inference.webhooks.http_client import UnansweredError
from inference.webhooks.signing import secrets_of, signed_headers
from inference.webhooks.urls import RefusedUrlError
from monitoring import database_clock
from monitoring.events import events
from monitoring.logs.redaction import redact

logger = logging.getLogger(__name__)

_LIMIT_SECONDS = 10.0
_MAX_WAIT_SECONDS = 3600.0
_MAX_ERROR = 200  # some quote all that the receiver has sent
# Any other 4xx would be the answer to a retry, too.
_LATER = {408, 425, 429}

_slots = threading.BoundedSemaphore(deliveries.max_at_once())


@dataclass(frozen=True, slots=True)
class _Outcome:
    """Of one attempt; `retry_after`: what the receiver asked for, in seconds."""

    status_code: int | None = None
    error: str | None = None
    is_final: bool = False
    retry_after: float | None = None

    @property
    def is_success(self) -> bool:
        return self.status_code is not None and 200 <= self.status_code < 300


def deliver_due() -> None:
    """Deliver the one that goes first, if a slot is free, and enqueue the next one."""
    dispatch.run_due(WebhookDelivery.objects.all(), _attempt, _slots, dispatch.DELIVER_WEBHOOK)


def _attempt(delivery: WebhookDelivery) -> None:
    at, started = database_clock.now(), time.monotonic()
    outcome = _send(delivery)
    entry = DeliveryLogEntry(
        attempt=delivery.attempt,
        at=events.iso(at),
        status_code=outcome.status_code,
        error=outcome.error,
        duration_ms=round((time.monotonic() - started) * 1000, 1),
    )
    answer = outcome.status_code or outcome.error
    log_line(
        delivery.subject_id,
        delivery.owner,
        logging.INFO,
        "webhook %s, attempt %d at %s: %s",
        *(delivery.pk, delivery.attempt, delivery.host, answer),
    )
    backoff = backoff_seconds(delivery.attempt, settings.WEBHOOK_RETRY_SECONDS, _MAX_WAIT_SECONDS)
    wait = min(max(backoff, outcome.retry_after or 0), _MAX_WAIT_SECONDS)
    if outcome.is_success:
        is_stored = delivery.succeed(entry)
    elif outcome.is_final or database_clock.now() + timedelta(seconds=wait) > delivery.give_up_at:
        is_stored = delivery.give_up(entry)
    else:
        is_stored = delivery.retry(entry, wait)
    if not is_stored:
        message = "webhook %s, attempt %d came too late to count"
        log_line(
            delivery.subject_id,
            delivery.owner,
            logging.INFO,
            message,
            delivery.pk,
            delivery.attempt,
        )


def _send(delivery: WebhookDelivery) -> _Outcome:
    if not settings.WEBHOOK_SECRETS:
        return _Outcome(error="It cannot be signed: set WEBHOOK_SECRETS for this worker.")
    try:
        secrets = secrets_of(delivery.owner)
        headers = {
            "content-type": "application/json",
            "user-agent": f"sop-llm-executor/{settings.VERSION}",
            **signed_headers(delivery.pk, delivery.payload, secrets, database_clock.now()),
        }
        url = urls.parse(delivery.url)
        body = delivery.payload.encode()
        answer = http_client.post(url, headers, body, _LIMIT_SECONDS)
    except (RefusedUrlError, RefusedAddressError) as error:
        return _Outcome(error=str(error), is_final=True)
    except UnansweredError as error:
        return _Outcome(error=redact(str(error))[:_MAX_ERROR])
    except Exception:
        # The delivery must come to an end one day, whatever is wrong with it.
        logger.exception("Webhook %s: unexpected error", delivery.pk)
        return _Outcome(error="The worker failed unexpectedly; its log has the reason.")
    is_final = answer.status_code not in _LATER and answer.status_code < 500
    return _Outcome(answer.status_code, None, is_final, answer.retry_after)
