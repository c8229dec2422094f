"""POST /v1/rerank."""

from functools import cache
from typing import Any, NotRequired, TypedDict

from drf_spectacular.utils import extend_schema, extend_schema_field
from rest_framework import serializers
from rest_framework.request import Request

from inference.api.embedding_response import EmbeddingResponse
from inference.api.embedding_serializers import TextField, TextsField
from inference.api.embedding_views import checked
from inference.embeddings.messages import EmbeddingRequest, Ranking, Shape
from inference.openai.embedding_views import OpenAIEmbeddingUsage
from inference.openai.viewset import OpenAIViewSet
from monitoring.api.principal import principal_of
from monitoring.api.strict_serializer import StrictSerializer


@extend_schema_field(
    {
        "type": "array",
        "items": {
            "oneOf": [
                {"type": "string"},
                {"type": "object", "properties": {"text": {"type": "string"}}},
            ]
        },
    }
)
class DocumentsField(TextsField):
    """Texts, or objects with a `text`."""

    def to_internal_value(self, data: Any) -> list[str]:
        if isinstance(data, list):
            data = [each["text"] if _is_document(each) else each for each in data]
        return super().to_internal_value(data)


def _is_document(document: Any) -> bool:
    return isinstance(document, dict) and document.keys() == {"text"}


class RerankRequestSerializer(StrictSerializer):
    """Jina's fields, which are Cohere's too; null means the default."""

    null_means_default = True
    model = serializers.CharField(max_length=100)
    query = TextField()
    documents = DocumentsField()
    top_n = serializers.IntegerField(required=False, min_value=1, help_text="By default all.")
    return_documents = serializers.BooleanField(default=True)


class RankedText(TypedDict):
    text: str


class RerankResult(TypedDict):
    """`index` of the document in the request."""

    index: int
    relevance_score: float
    document: NotRequired[RankedText]


class RerankResults(TypedDict):
    """The best first."""

    object: str
    model: str
    results: list[RerankResult]
    usage: OpenAIEmbeddingUsage


class RerankViewSet(OpenAIViewSet):
    """Which texts answer a query."""

    @extend_schema(
        request=RerankRequestSerializer,
        responses={200: RerankResults},
    )
    def create(self, request: Request) -> EmbeddingResponse:
        """The best first: by a reranker's score, or the cosine of an embedding model."""
        fields = _validator().run_validation(request.data)
        ranking = Ranking(fields["query"], fields.get("top_n"), fields["return_documents"])
        asked = EmbeddingRequest(
            fields["model"], fields["documents"], Shape.RANKING, ranking=ranking
        )
        return EmbeddingResponse(checked(asked, principal_of(request)))


@cache
def _validator() -> RerankRequestSerializer:
    """One instance for all requests, since building one is slow."""
    return RerankRequestSerializer()
