"""The routes of embeddings: validate, have a worker do it, wait without a thread."""

from dataclasses import replace

from drf_spectacular.utils import extend_schema
from rest_framework.decorators import action
from rest_framework.exceptions import ValidationError
from rest_framework.request import Request

from inference.api.embedding_response import EmbeddingResponse
from inference.api.embedding_serializers import (
    EmbeddingRequestSerializer,
    EmbeddingsSerializer,
    SimilarityRequestSerializer,
    SimilaritySerializer,
    request_validator,
)
from inference.api.submission import UnknownModelError
from inference.api.submitting import check_budget
from inference.embeddings.messages import EmbeddingRequest, Shape
from inference.loading import weights
from inference.models import RegisteredModel
from inference.registry import downloads
from monitoring.api.principal import Principal, Scope, principal_of
from monitoring.api.query_parameters import StrictViewSet


class EmbeddingViewSet(StrictViewSet):
    """Vectors of texts, and how near texts are to each other."""

    scopes = (Scope.TASKS,)

    @extend_schema(request=EmbeddingRequestSerializer, responses={200: EmbeddingsSerializer})
    def create(self, request: Request) -> EmbeddingResponse:
        """A vector of each text. Long texts are cut to the model's window, see `truncated`."""
        fields = request_validator().run_validation(request.data)
        return EmbeddingResponse(checked(EmbeddingRequest(**fields), principal_of(request)))

    @extend_schema(request=SimilarityRequestSerializer, responses=SimilaritySerializer)
    @action(detail=False, methods=["post"])
    def similarity(self, request: Request) -> EmbeddingResponse:
        """The cosine of two texts, or of a query and each of the texts."""
        fields = SimilarityRequestSerializer().run_validation(request.data)
        if "text1" in fields:
            shape, texts = Shape.PAIR, [fields["text1"], fields["text2"]]
        else:
            shape, texts = Shape.SIMILARITIES, [fields["query"], *fields["texts"]]
        asked = EmbeddingRequest(fields["model_name"], texts, shape)
        return EmbeddingResponse(checked(asked, principal_of(request)))


def checked(request: EmbeddingRequest, principal: Principal) -> EmbeddingRequest:
    """The request as the workers take it.

    Raises ValidationError for a model that is not there or gives no such vectors, LimitReached.
    """
    name = request.model_name
    model = RegisteredModel.objects.read(name)
    if model is None:
        message = f"There is no model {name}: GET /api/v1/models?provider=embedding lists them."
        raise UnknownModelError(message, "model_name")
    if not_here := downloads.why_missing(model):
        raise ValidationError({"model_name": [not_here]})
    if model.provider != RegisteredModel.Provider.EMBEDDING:
        message = (
            f"{name} is of the provider {model.provider}, and gives text, not vectors: "
            "GET /api/v1/models?provider=embedding lists those that do."
        )
        raise ValidationError({"model_name": [message]})
    is_ranking = model.extra.get("format") == weights.CROSS_ENCODER
    if ranking := request.ranking:
        if not is_ranking:
            texts = [ranking.query, *request.texts]
            request = replace(request, texts=texts, ranking=replace(ranking, is_by_cosine=True))
    elif is_ranking:
        message = f"{name} ranks texts, and gives no vectors: POST /v1/rerank asks it."
        raise ValidationError({"model_name": [message]})
    if request.dimensions is not None:
        # Only a model that was made for it gives vectors that may be cut; its config says so.
        longest = model.config.get("dimensions")
        length = longest or model.extra.get("dimensions")
        if request.dimensions != length and not (longest and request.dimensions < longest):
            message = f"{name} gives vectors of length {length}: leave it out, or give " + (
                "a smaller number." if longest else "that."
            )
            raise ValidationError({"dimensions": [message]})
    if model.is_remote:
        check_budget(principal)
    return replace(request, owner=principal.owner)
