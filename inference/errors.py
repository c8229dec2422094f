"""What can go wrong with a task, in words and codes."""

from enum import StrEnum


class ErrorCode(StrEnum):
    """`error_code` of a failed task."""

    CONTEXT_LENGTH_EXCEEDED = "context_length_exceeded"
    DEADLINE_EXCEEDED = "deadline_exceeded"
    INTERNAL_ERROR = "internal_error"
    MODEL_LOAD_FAILED = "model_load_failed"
    MODEL_NOT_FOUND = "model_not_found"
    PROVIDER_ERROR = "provider_error"
    STRUCTURED_OUTPUT_INVALID = "structured_output_invalid"
    TIMEOUT = "timeout"
    WORKER_LOST = "worker_lost"


class InferenceError(Exception):
    """A generation that failed; `message` says what to do next, `code` goes to the task."""

    def __init__(self, message: str, code: ErrorCode, *, retryable: bool = False) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.retryable = retryable
