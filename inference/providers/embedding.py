"""Models that make vectors, not text: they answer POST /embeddings, and no task."""

from inference.models import Queue
from inference.providers.base import Provider


class EmbeddingProvider(Provider):
    """Submission refuses tasks for it."""

    queue = Queue.EMBEDDINGS
    supports_streaming = False


def refusal(name: str) -> str:
    """Why a task cannot have such a model."""
    return f"{name} is an embedding model, which gives no text: use POST /api/v1/embeddings."
