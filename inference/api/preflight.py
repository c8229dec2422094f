"""What would become of a task, were it submitted: nothing is written, and nothing is loaded."""

import json
from collections.abc import Mapping
from typing import Any, NotRequired, TypedDict

from django.http import HttpResponse, HttpResponseBase
from drf_spectacular.utils import OpenApiParameter, PolymorphicProxySerializer
from rest_framework.exceptions import APIException, ValidationError
from rest_framework.response import Response
from rest_framework.views import APIView

from conversations.models import ChatMessage, text_of
from inference import estimates
from inference.api.embedding_response import EmbeddingResponse
from inference.api.submission import build_task
from inference.api.submitting import check_budget_of, check_limits, refusals
from inference.api.task_serializers import submission_validator
from inference.embeddings.messages import EmbeddingRequest, Shape
from inference.engine.errors import InvalidGGUFError
from inference.lifecycle.submit import check_room, first_with_key
from inference.models import GenerationTask, RegisteredModel, queue_positions
from inference.registry import compatibility
from inference.task_body import TaskSerializer
from monitoring.api.errors import in_words
from monitoring.api.principal import principal_of
from monitoring.events.events import EtaSeconds, Timestamp, iso

# Who asks beforehand wants to know soon; then tokens are estimated.
_COUNT_SECONDS = 3.0
_BYTES_PER_TOKEN = 4
_TOKENS_PER_MESSAGE = 4


class Refusal(TypedDict):
    """The answer that the submission would get."""

    status: int
    body: dict[str, Any]


class Preflight(TypedDict):
    """What would become of a task; null for what nobody can tell.

    `repeats`: the task that had the idempotency key before. `would_fail`: why it would once it
    runs. `is_estimated`: the tokens are about so many. `unloads` names the models that would make
    room, the first to go first. `gpu_seconds`: of local models, the median of how long tasks like
    it have run, some of it beside others. `cost_usd` is that of the longest answer.
    """

    is_accepted: bool
    refusal: Refusal | None
    repeats: NotRequired[str]
    model: NotRequired[str]
    queue: NotRequired[str]
    queue_position: NotRequired[int]
    eta_seconds: NotRequired[EtaSeconds | None]
    estimated_start_at: NotRequired[Timestamp | None]
    estimated_finish_at: NotRequired[Timestamp | None]
    context_window: NotRequired[int | None]
    max_tokens: NotRequired[int]
    prompt_tokens: NotRequired[int]
    is_estimated: NotRequired[bool]
    truncated_messages: NotRequired[int | None]
    would_fail: NotRequired[str | None]
    is_loaded: NotRequired[bool | None]
    unloads: NotRequired[list[str]]
    gpu_seconds: NotRequired[float | None]
    cost_usd: NotRequired[float | None]


DRY_RUN = OpenApiParameter(
    "dry_run", bool, description="Say what would become of the task; nothing is submitted."
)
# Its annotations know serializers alone.
_either: Any = PolymorphicProxySerializer
TASK_OR_PREFLIGHT = _either(
    "TaskOrPreflight", [TaskSerializer, Preflight], resource_type_field_name=None, many=False
)


def preflight(view: APIView, data: Any, key: str | None) -> HttpResponseBase:
    """The response to a submission that is not to be made."""
    request = view.request
    principal = principal_of(request)
    refusal: Refusal | None = None
    try:
        with refusals():
            fields = submission_validator().run_validation(data)
            key = key or fields.get("idempotency_key")
            task = build_task(principal.owner, fields, key, principal.limits)
            if key and (first := first_with_key(principal.owner, key, task.request_hash)):
                return Response(Preflight(is_accepted=True, refusal=None, repeats=first.pk))
    except APIException as error:
        return Response(Preflight(is_accepted=False, refusal=_refusal(view, error)))
    try:
        with refusals():
            check_limits(principal, task.priority)
            check_budget_of(principal, task)
            check_room(task, principal.limits.max_pending_tasks)
    except APIException as error:
        refusal = _refusal(view, error)
    return PreflightResponse(view, task, refusal)


def _refusal(view: APIView, error: APIException) -> Refusal:
    handler: Any = view.get_exception_handler()
    response = handler(error, view.get_exception_handler_context())
    return Refusal(status=response.status_code, body=response.data)


class PreflightResponse(EmbeddingResponse):
    """Answers when a worker has counted the tokens of the prompt, or with an estimate of them."""

    def __init__(self, view: APIView, task: GenerationTask, refusal: Refusal | None) -> None:
        self._view, self._task, self._refusal = view, task, refusal
        prompt = task.request | {"messages": task.messages()}
        request = EmbeddingRequest(task.model_name, [], Shape.PREFLIGHT, prompt=prompt)
        super().__init__(request, _COUNT_SECONDS)
        self._messages: list[ChatMessage] = prompt["messages"]

    def _find_answer(self, is_last: bool) -> HttpResponse | None:
        would_fail = None
        try:
            answer = super()._find_answer(is_last)
        except ValidationError as error:  # the worker refuses it as it would when it runs
            answer, would_fail = HttpResponse("{}"), in_words(error)
        except APIException:  # nobody counts
            answer = HttpResponse("{}")
        if answer is None:
            return None
        body = self._body(json.loads(answer.content)) | {"would_fail": would_fail}
        tokens, window = body["prompt_tokens"], body["context_window"]
        if would_fail is None and window is not None and tokens >= window:
            about = "about " if body["is_estimated"] else ""
            body["would_fail"] = (
                f"The prompt has {about}{tokens} tokens, and the context window {window}: shorten"
                " it."
            )
        response = self._view.finalize_response(self._view.request, Response(body))
        rendered: HttpResponse = response.render()
        return rendered

    def _body(self, counted: Mapping[str, Any]) -> dict[str, Any]:
        task = self._task
        model = RegisteredModel.objects.read(task.model_name)
        if model is None:
            raise ValidationError({"model": [f"{task.model_name} has just been deleted."]})
        is_local = model.provider == RegisteredModel.Provider.LOCAL
        cost = counted.get("cost_nano_usd")
        position = queue_positions([task]).get(task.pk)
        if position is None:  # the first one of an owner who has none waiting
            ahead = GenerationTask.objects.pending().filter(queue=task.queue)
            position = ahead.filter(priority__gt=task.priority).count()
        estimate = estimates.of(task, position)
        return {
            "is_accepted": self._refusal is None,
            "refusal": self._refusal,
            "model": model.name,
            "queue": task.queue,
            "queue_position": position,
            "eta_seconds": estimate and estimate.eta_seconds,
            "estimated_start_at": estimate and iso(estimate.start_at),
            "estimated_finish_at": estimate and iso(estimate.finish_at),
            "context_window": model.context_window,
            "max_tokens": task.request["params"]["max_tokens"],
            "prompt_tokens": counted.get("prompt_tokens", _estimate(self._messages)),
            "is_estimated": counted.get("is_estimated", True),
            "truncated_messages": counted.get("truncated_messages"),
            "is_loaded": model.loaded if is_local else None,
            "unloads": _unloads(model) if is_local and not model.loaded else [],
            "gpu_seconds": estimates.run_seconds(task) if is_local else None,
            "cost_usd": None if cost is None else cost / 1e9,
        }


def _estimate(messages: list[ChatMessage]) -> int:
    num_bytes = sum(len(text_of(message).encode(errors="replace")) for message in messages)
    return num_bytes // _BYTES_PER_TOKEN + _TOKENS_PER_MESSAGE * len(messages)


def _unloads(model: RegisteredModel) -> list[str]:
    try:
        return compatibility.models_to_unload(model)
    except (OSError, ValueError, InvalidGGUFError):
        return []  # the file cannot be read: loading says why
