"""What can go wrong with a task, in words and codes."""

from enum import StrEnum


class ErrorCode(StrEnum):
    """`error_code` of a failed task."""

    AUTHENTICATION_FAILED = "authentication_failed"
    BUDGET_EXCEEDED = "budget_exceeded"
    CONTENT_FILTERED = "content_filtered"
    CONTEXT_LENGTH_EXCEEDED = "context_length_exceeded"
    DEADLINE_EXCEEDED = "deadline_exceeded"
    INTERNAL_ERROR = "internal_error"
    INVALID_REQUEST = "invalid_request"
    MODEL_LOAD_FAILED = "model_load_failed"
    MODEL_NOT_FOUND = "model_not_found"
    PROVIDER_ERROR = "provider_error"
    PROVIDER_TIMEOUT = "provider_timeout"
    PROVIDER_UNAVAILABLE = "provider_unavailable"
    RATE_LIMITED = "rate_limited"
    STRUCTURED_OUTPUT_INVALID = "structured_output_invalid"
    TIMEOUT = "timeout"
    WORKER_LOST = "worker_lost"


# No other model would do better: the request itself, or its own limit, is at fault.
_REQUESTS_OWN_FAULTS = {
    ErrorCode.CONTENT_FILTERED,
    ErrorCode.DEADLINE_EXCEEDED,
    ErrorCode.INVALID_REQUEST,
    ErrorCode.TIMEOUT,
}
# The same request may succeed once the provider or the service is well again.
FAULTS_OF_THE_SERVICE = {
    ErrorCode.AUTHENTICATION_FAILED,
    ErrorCode.INTERNAL_ERROR,
    ErrorCode.MODEL_LOAD_FAILED,
    ErrorCode.MODEL_NOT_FOUND,
    ErrorCode.PROVIDER_ERROR,
    ErrorCode.PROVIDER_TIMEOUT,
    ErrorCode.PROVIDER_UNAVAILABLE,
    ErrorCode.RATE_LIMITED,
    ErrorCode.WORKER_LOST,
}


class InferenceError(Exception):
    """A generation that failed; `message` says what to do next, `code` goes to the task.

    `retryable`: the same model may answer if it is asked again, `retry_after` seconds from now
    where the provider said so.
    """

    def __init__(
        self,
        message: str,
        code: ErrorCode,
        *,
        retryable: bool = False,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.retryable = retryable
        self.retry_after = retry_after

    @property
    def is_requests_own_fault(self) -> bool:
        """Whether another model would fail as well."""
        return self.code in _REQUESTS_OWN_FAULTS


class RetryLater(Exception):  # noqa: N818 (it is no error)
    """The provider may be asked again, but only after some seconds: the task gives its place back.

    `num_retries`: how often it was asked again, with the next time.
    """

    def __init__(self, failure: InferenceError, seconds: float, num_retries: int) -> None:
        super().__init__(failure.message)
        self.failure = failure
        self.seconds = seconds
        self.num_retries = num_retries
