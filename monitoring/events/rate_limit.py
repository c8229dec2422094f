"""The rate limit of one client."""

import time


class TokenBucket:
    """Lets `rate` things a second pass, and as many at once after a quiet second."""

    __slots__ = ("_filled_at", "_num_tokens", "_rate")

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._num_tokens = rate
        self._filled_at = time.monotonic()

    def take(self) -> bool:
        """Whether one may pass now."""
        now = time.monotonic()
        self._num_tokens += (now - self._filled_at) * self._rate
        self._num_tokens = min(self._num_tokens, self._rate)
        self._filled_at = now
        if self._num_tokens < 1:
            return False
        self._num_tokens -= 1
        return True
