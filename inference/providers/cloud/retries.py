"""Whether to ask a provider again after a failure, and when."""

from inference.errors import InferenceError
from inference.models import RegisteredModel
from inference.retries import backoff_seconds

_DEFAULT_MAX_RETRIES = 2
_FIRST_PAUSE_SECONDS = 0.5
_MAX_PAUSE_SECONDS = 20.0


def pause(model: RegisteredModel, failure: InferenceError, num_retries: int) -> float | None:
    """Seconds, counted from when the provider wants to be asked again; None to give up."""
    max_retries = model.config.get("max_retries", _DEFAULT_MAX_RETRIES)
    if not failure.retryable or num_retries >= max_retries:
        return None
    backoff = backoff_seconds(num_retries + 1, _FIRST_PAUSE_SECONDS, _MAX_PAUSE_SECONDS)
    return backoff + (failure.retry_after or 0.0)
