"""GET /v1/models, for clients of OpenAI and of Anthropic."""

from typing import TypedDict

from drf_spectacular.utils import (
    extend_schema,
    extend_schema_serializer,
)
from rest_framework.request import Request
from rest_framework.response import Response

from inference.models import RegisteredModel
from inference.openai.either_shape import either_shape
from inference.openai.errors import ModelNotFound
from inference.openai.messages import errors as anthropic_errors
from inference.openai.messages import models as anthropic
from inference.openai.viewset import OpenAIViewSet
from inference.providers.registry import provider_class
from monitoring.api.query_parameters import refuse_unknown


class ModelCapabilities(TypedDict):
    """What a model gives, and how."""

    completion: bool
    embeddings: bool
    streaming: bool
    structured_output: bool
    tools: bool
    vision: bool


class ModelObject(TypedDict):
    """`owned_by` is its provider; `max_model_len` is vLLM's name of `context_window`, in tokens."""

    id: str
    object: str
    created: int
    owned_by: str
    context_window: int | None
    max_model_len: int | None
    max_output_tokens: int | None
    capabilities: ModelCapabilities


@extend_schema_serializer(many=False)
class ModelList(TypedDict):
    object: str
    data: list[ModelObject]


_EITHER_LIST = either_shape("OpenAIOrAnthropicModels", ModelList, anthropic.AnthropicModelPage)
_EITHER_MODEL = either_shape("OpenAIOrAnthropicModel", ModelObject, anthropic.AnthropicModel)


class OpenAIModelViewSet(OpenAIViewSet):
    """The registered models."""

    known_parameters = {"list": anthropic.PARAMETERS}
    lookup_field = "name"
    # Whatever it is: a name that no model can have is that of no model.
    lookup_value_regex = ".+?"

    @extend_schema(responses={200: _EITHER_LIST})
    def list(self, request: Request) -> Response:
        """All registered models by name, with what they can do.

        With the header `anthropic-version`, a page of them in Anthropic's shape.
        """
        if anthropic.is_wanted(request):
            return Response(anthropic.model_page(request))
        refuse_unknown(request, ())
        models = RegisteredModel.objects.order_by("name")
        return Response(ModelList(object="list", data=[model_object(model) for model in models]))

    @extend_schema(responses={200: _EITHER_MODEL})
    def retrieve(self, request: Request, name: str) -> Response:
        """One model by its name, with the header `anthropic-version` in Anthropic's shape."""
        model = None if "\0" in name else RegisteredModel.objects.read(name)
        if model is None:
            raise ModelNotFound(f"There is no model {name}: GET /v1/models lists them.")
        shape = anthropic.model_info if anthropic.is_wanted(request) else model_object
        return Response(shape(model))

    def handle_exception(self, exc: Exception) -> Response:
        response = super().handle_exception(exc)
        if anthropic.is_wanted(self.request):
            message = response.data["error"]["message"]
            response.data = anthropic_errors.body(response.status_code, "", message)
        return response


def model_object(model: RegisteredModel) -> ModelObject:
    """A model as OpenAI's API shows it, with the fields that other servers add."""
    provider = provider_class(model.provider)
    is_embedding = model.provider == RegisteredModel.Provider.EMBEDDING
    return ModelObject(
        id=model.name,
        object="model",
        created=int(model.created_at.timestamp()),
        owned_by=model.provider,
        context_window=model.context_window,
        max_model_len=model.context_window,
        max_output_tokens=model.max_output_tokens,
        capabilities=ModelCapabilities(
            completion=not is_embedding,
            embeddings=is_embedding,
            streaming=provider.supports_streaming and not is_embedding,
            structured_output=provider.supports_structured_output,
            tools=provider.supports_tools,
            vision=provider.why_no_images is None and not is_embedding,
        ),
    )
