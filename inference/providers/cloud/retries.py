"""Whether to ask a provider again after a failure, and when."""

import random

from inference.errors import InferenceError
from inference.models import RegisteredModel

_DEFAULT_MAX_RETRIES = 2

# The first pause before a retry is up to this long; each one after it, up to twice as long.
_FIRST_PAUSE_SECONDS = 0.5
_MAX_PAUSE_SECONDS = 20.0


def pause(model: RegisteredModel, failure: InferenceError, num_retries: int) -> float | None:
    """Seconds, by chance, so that not all come back at once; None to give up."""
    max_retries = model.config.get("max_retries", _DEFAULT_MAX_RETRIES)
    if not failure.retryable or num_retries >= max_retries:
        return None
    longest = min(_FIRST_PAUSE_SECONDS * 2**num_retries, _MAX_PAUSE_SECONDS)
    return random.uniform(0, longest) + (failure.retry_after or 0.0)  # noqa: S311
