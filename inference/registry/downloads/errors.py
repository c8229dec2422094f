"""Why a download does not go on."""


class DownloadError(Exception):
    """It failed; the message says what to do next, and holds neither token nor signed address.

    `retryable`: it may go better later, in `retry_after` seconds where the hub has said so.
    """

    def __init__(
        self, message: str, *, retryable: bool = False, retry_after: float | None = None
    ) -> None:
        super().__init__(message)
        self.retryable = retryable
        self.retry_after = retry_after


class WrongContentError(Exception):
    """What has arrived is not what the hub says the file is."""


class FileBusyError(Exception):
    """Another download, of a model with the same file, writes it."""


class NotWantedError(Exception):
    """The model was deleted, another worker has the download, or this one is to stop."""
