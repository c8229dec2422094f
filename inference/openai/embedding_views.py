"""POST /v1/embeddings."""

from functools import cache
from typing import Any, TypedDict

from drf_spectacular.utils import extend_schema, extend_schema_field
from rest_framework import serializers
from rest_framework.request import Request

from inference.api.embedding_response import EmbeddingResponse
from inference.api.embedding_serializers import TextsField
from inference.api.embedding_views import checked
from inference.embeddings.messages import EmbeddingRequest, Shape
from inference.openai.viewset import OpenAIViewSet
from monitoring.api.principal import Principal, principal_of
from monitoring.api.strict_serializer import StrictSerializer


@extend_schema_field(
    {"oneOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}
)
class InputField(TextsField):
    """One text, or several."""

    def to_internal_value(self, data: Any) -> list[str]:
        return super().to_internal_value([data] if isinstance(data, str) else data)


class OpenAIEmbeddingRequestSerializer(StrictSerializer):
    """OpenAI's fields; beside them `normalize` and `prompt_name` as at /api/v1/embeddings."""

    null_means_default = True
    model = serializers.CharField(max_length=100)
    input = InputField()
    encoding_format = serializers.ChoiceField(choices=["float", "base64"], default="float")
    dimensions = serializers.IntegerField(
        required=False, min_value=1, max_value=65_536, help_text="Of a model that is made for it."
    )
    user = serializers.CharField(required=False, allow_blank=True, help_text="Not used.")
    normalize = serializers.BooleanField(default=True)
    prompt_name = serializers.CharField(required=False, max_length=100)


class OpenAIEmbeddingUsage(TypedDict):
    prompt_tokens: int
    total_tokens: int


class EmbeddingObject(TypedDict):
    """`embedding` as base64 is a string: of float32, little-endian."""

    object: str
    index: int
    embedding: list[float]


class EmbeddingList(TypedDict):
    """`truncated`: the texts that were cut to the model's window."""

    object: str
    data: list[EmbeddingObject]
    model: str
    usage: OpenAIEmbeddingUsage
    truncated: list[int]


class OpenAIEmbeddingViewSet(OpenAIViewSet):
    """Vectors of texts."""

    @extend_schema(
        request=OpenAIEmbeddingRequestSerializer,
        responses={200: EmbeddingList},
    )
    def create(self, request: Request) -> EmbeddingResponse:
        """A vector of each text. Long texts are cut to the model's window, see `truncated`."""
        return EmbeddingResponse(embedding_request(request.data, principal_of(request)))


def embedding_request(body: Any, principal: Principal) -> EmbeddingRequest:
    """What a body asks for. Raises ValidationError naming the field, LimitReached."""
    fields = _validator().run_validation(body)
    is_base64 = fields["encoding_format"] == "base64"
    asked = EmbeddingRequest(
        model_name=fields["model"],
        texts=fields["input"],
        shape=Shape.OPENAI_BASE64 if is_base64 else Shape.OPENAI,
        normalize=fields["normalize"],
        prompt_name=fields.get("prompt_name"),
        dimensions=fields.get("dimensions"),
    )
    return checked(asked, principal)


@cache
def _validator() -> OpenAIEmbeddingRequestSerializer:
    """One instance for all requests, since building one is slow."""
    return OpenAIEmbeddingRequestSerializer()
