"""Models that make vectors, not text: they answer POST /embeddings, and no task."""

from inference.errors import ErrorCode, InferenceError
from inference.models import Queue
from inference.providers.base import GenerationRequest, Progress, Provider, Texts


class EmbeddingProvider(Provider):
    """Submission refuses tasks for it; one whose model was registered anew since then fails."""

    queue = Queue.EMBEDDINGS
    supports_streaming = False

    def generate(self, request: GenerationRequest, progress: Progress) -> Texts:
        yield ""  # what makes it a generator
        raise InferenceError(refusal(self.model.name), ErrorCode.INVALID_REQUEST)


def refusal(name: str) -> str:
    """Why a task cannot have such a model."""
    return f"{name} is an embedding model, which gives no text: use POST /api/v1/embeddings."
