"""Models as Anthropic's API shows them."""

from typing import Annotated, TypedDict

from rest_framework.request import Request

from inference.models import RegisteredModel
from monitoring.api.query_parameters import MAX_LIMIT, whole_number

_DEFAULT_LIMIT = 20


class AnthropicModel(TypedDict):
    """`max_input_tokens` is the context window."""

    type: str
    id: str
    display_name: str
    created_at: Annotated[str, "date-time"]
    lifecycle: str
    max_input_tokens: int | None
    max_tokens: int | None


class AnthropicModelPage(TypedDict):
    data: list[AnthropicModel]
    has_more: bool
    first_id: str | None
    last_id: str | None


# Those of a list.
PARAMETERS = ("limit", "after_id", "before_id")


def is_wanted(request: Request) -> bool:
    """Whether an Anthropic client asks: each of its requests says the version of the API."""
    return "anthropic-version" in request.headers


def model_page(request: Request) -> AnthropicModelPage:
    """Up to `limit` models by name, after or before another. Raises ValidationError."""
    limit = whole_number(request, "limit", _DEFAULT_LIMIT, 1, MAX_LIMIT)
    after = request.query_params.get("after_id", "")
    before = request.query_params.get("before_id", "")
    models = RegisteredModel.objects.order_by("name")
    if after:
        models = models.filter(name__gt=after)
    if before:
        models = models.filter(name__lt=before).reverse()
    found = list(models[: limit + 1])
    data = [model_info(model) for model in found[:limit]]
    if before:
        data.reverse()
    return AnthropicModelPage(
        data=data,
        has_more=len(found) > limit,
        first_id=data[0]["id"] if data else None,
        last_id=data[-1]["id"] if data else None,
    )


def model_info(model: RegisteredModel) -> AnthropicModel:
    """One model."""
    return AnthropicModel(
        type="model",
        id=model.name,
        display_name=model.name,
        created_at=model.created_at.isoformat(),
        lifecycle="active",
        max_input_tokens=model.context_window,
        max_tokens=model.max_output_tokens,
    )
