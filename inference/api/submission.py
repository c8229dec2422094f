"""From a validated request body to a task that can run, or a validation error that says why not."""

import hashlib
import json
from datetime import timedelta
from typing import Any

from django.conf import settings
from rest_framework.exceptions import ValidationError

from conversations.models import Conversation
from inference import structured_output, tools
from inference.api import extra_params, messages, provenance
from inference.engine.errors import GrammarError
from inference.engine.gbnf import compile_grammar
from inference.engine.matcher import check_grammar
from inference.models import GenerationTask, ModelChoice, RegisteredModel, new_task_id
from inference.providers import embedding
from inference.providers.base import Provider
from inference.providers.registry import provider_class
from inference.registry import downloads
from inference.registry.configs import NOT_DETERMINISTIC, SAMPLING_FIELDS
from inference.webhooks import urls as webhook_urls
from monitoring import database_clock, tracing
from monitoring.api.errors import sentences
from monitoring.api.principal import NO_LIMITS, Limits

_MODEL_LIST = "GET /api/v1/models lists them."


class UnknownModelError(ValidationError):
    """No model has the name that a request asks for."""

    def __init__(self, message: str, field: str = "model") -> None:
        self.message = message
        super().__init__({field: [message]})


def build_task(
    owner: str,
    data: dict[str, Any],
    idempotency_key: str | None,
    limits: Limits = NO_LIMITS,
) -> GenerationTask:
    """A task, unsaved, from the validated fields; raises ValidationError naming the field.

    Of the limits, those go with the task that hold for its start.
    """
    has_prompt, has_messages = bool(data.get("prompt")), bool(data.get("messages"))
    if has_prompt and has_messages:
        raise ValidationError({"prompt": ["Give either prompt or messages, not both."]})
    if has_messages and data.get("input_text"):
        raise ValidationError({"input_text": ["It is appended to prompt: give a prompt."]})
    extra_params.check(data.get("extra_params") or {})

    conversation = None
    if conversation_id := data.get("conversation_id"):
        conversation = Conversation.objects.owned_by(owner).filter(pk=conversation_id).first()
        if conversation is None:
            message = f"There is no conversation {conversation_id}."
            raise ValidationError({"conversation_id": [message]})
    if not has_prompt and not has_messages and not (conversation and conversation.asks):
        raise ValidationError({"prompt": ["Give a prompt, or messages."]})
    name = data.get("model") or data.get("provider_config", {}).get("model_name")
    name = name or (conversation.model_name if conversation else None)
    if not name:
        raise ValidationError({"model": [f"Name a registered model: {_MODEL_LIST}"]})
    model = _usable_model(name)
    if data.get("check_provenance"):
        provenance.check(data.get("provenance") or {}, model)
    return _new_task(
        _request(data, model),
        owner=owner,
        requested_model=model.name,
        queue=provider_class(model.provider).queue,
        priority=data["priority"],
        weight=limits.weight or 1.0,
        max_running=limits.max_running_tasks,
        max_usd_per_month=limits.max_usd_per_month,
        conversation=conversation,
        metadata=data.get("metadata") or {},
        idempotency_key=idempotency_key,
        request_hash=fingerprint(data),
    )


def again(task: GenerationTask) -> GenerationTask:
    """A new task, unsaved, that asks for the same as an ended one: from its first model on.

    Raises ValidationError where that is gone, or has nothing to read any more.
    """
    _usable_model(task.requested_model)
    if task.request["prompt"] is None and not task.request["messages"] and not task.conversation:
        raise ValidationError({"conversation_id": ["It has been deleted: submit a new task."]})
    first = next(iter(task.request.get("models", [])), None)
    return _new_task(
        task.request | {"num_retries": 0} | ({"params": first["params"]} if first else {}),
        owner=task.owner,
        requested_model=task.requested_model,
        queue=first["queue"] if first else task.queue,
        priority=task.priority,
        weight=task.weight,
        max_running=task.max_running,
        max_usd_per_month=task.max_usd_per_month,
        conversation=task.conversation,
        metadata=task.metadata,
        request_hash=task.request_hash,
        requeued_from=task.pk,
    )


def _new_task(request: dict[str, Any], *, requested_model: str, **fields: Any) -> GenerationTask:
    now = database_clock.now()
    deadline = request["deadline_seconds"]
    task_id = new_task_id()
    return GenerationTask(
        id=task_id,
        trace_id=tracing.trace_id_of(task_id),
        requested_model=requested_model,
        model_name=requested_model,
        request=request,
        created_at=now,
        updated_at=now,
        enqueued_at=now,
        deadline_at=now + timedelta(seconds=deadline) if deadline else None,
        **fields,
    )


def _usable_model(name: str) -> RegisteredModel:
    model = RegisteredModel.objects.read(name)
    if model is None:
        raise UnknownModelError(f"There is no model {name}: {_MODEL_LIST}")
    if model.provider == RegisteredModel.Provider.EMBEDDING:
        raise ValidationError({"model": [embedding.refusal(name)]})
    if model.crashed_too_often:
        raise ValidationError({"model": [model.crash_message]})
    if not_here := downloads.why_missing(model):
        raise ValidationError({"model": [not_here]})
    return model


def _request(data: dict[str, Any], model: RegisteredModel) -> dict[str, Any]:
    """What the worker needs, and the report shows."""
    response_format = structured_output.normalize(
        data.get("response_format"), data.get("output_schema")
    )
    if response_format and data.get("grammar"):
        message = "It makes a grammar itself: leave grammar out."
        raise ValidationError({_format_field(data): [message]})
    asked = tools.normalize(
        data.get("tools"), data.get("tool_choice"), data.get("parallel_tool_calls")
    )
    if asked and (data.get("extra_params") or {}).get("tools"):
        raise ValidationError({"extra_params": ["tools: the task has its own: leave one out."]})
    messages.check_tool_results(data.get("messages") or [])
    chosen = _choice(data, response_format, asked, model)
    fallbacks = _fallbacks(data, response_format, asked, model)
    webhook_url: str | None = data.get("webhook_url") or None
    if webhook_url:
        try:
            webhook_urls.check(webhook_url)
        except webhook_urls.RefusedUrlError as error:
            raise ValidationError({"webhook_url": [str(error)]}) from error
    prompt = data.get("prompt")
    if prompt and data.get("input_text"):
        prompt = f"{prompt}\n\n{data['input_text']}"
    request: dict[str, Any] = {
        "prompt": prompt,
        "messages": data.get("messages"),
        "save_to_conversation": data["save_to_conversation"],
        "stream": data["stream"],
        "params": chosen["params"],
        "response_format": response_format,
        "extra_params": data.get("extra_params") or {},
        "models": [chosen, *fallbacks] if fallbacks else [],
        "timeout_seconds": data["timeout_seconds"],
        "deadline_seconds": data.get("deadline_seconds"),
        "context_overflow": data["context_overflow"],
        "webhook_url": webhook_url,
    }
    if asked:
        request["tools"] = asked
    if data.get("prompt_cache_key"):
        request["prompt_cache_key"] = data["prompt_cache_key"]
    if data.get("is_raw"):
        request["is_raw"] = True
    if "response" in data:
        request["response"] = data["response"]
    return request


def _fallbacks(
    data: dict[str, Any],
    response_format: structured_output.ResponseFormat | None,
    asked: tools.ToolRequest | None,
    model: RegisteredModel,
) -> list[ModelChoice]:
    """Checked like the task's own model, so that each can run when its turn comes."""
    names = data.get("fallback_models") or []
    if repeated := [name for i, name in enumerate(names) if name in (model.name, *names[:i])]:
        message = f"{repeated[0]} is asked already: name each model once."
        raise ValidationError({"fallback_models": [message]})
    fallbacks = []
    for name in names:
        try:
            fallbacks.append(_choice(data, response_format, asked, _usable_model(name)))
        except ValidationError as error:
            reasons = [f"{name} cannot run this task: {why}" for why in sentences(error.detail)]
            raise ValidationError({"fallback_models": reasons}) from error
    return fallbacks


def _choice(
    data: dict[str, Any],
    response_format: structured_output.ResponseFormat | None,
    asked: tools.ToolRequest | None,
    model: RegisteredModel,
) -> ModelChoice:
    """A model with its queue and parameters; refuses what its provider would have to ignore."""
    provider = provider_class(model.provider)
    known = provider.known_extra_params
    if known is not None and (unknown := sorted((data.get("extra_params") or {}).keys() - known)):
        message = f"The {model.provider} provider takes no {unknown[0][:100]}: leave it out."
        raise ValidationError({"extra_params": [message]})
    if response_format and not provider.supports_structured_output:
        message = f"The {model.provider} provider has no structured output: take another model."
        raise ValidationError({_format_field(data): [message]})
    is_local = model.provider == RegisteredModel.Provider.LOCAL
    if response_format and structured_output.is_text(response_format) and not is_local:
        message = f"Only local models take a {response_format['type']}."
        raise ValidationError({"response_format": [message]})
    if asked and not provider.supports_tools:
        message = f"The {model.provider} provider calls no tools: take another model."
        raise ValidationError({"tools": [message]})
    if asked and is_local:
        tools.check_constrained(asked)
        if (response_format or data.get("grammar")) and asked["choice"] != "none":
            message = "Local models either call tools or answer in a form: leave one of them out."
            raise ValidationError({"tools": [message]})
    if refusal := provider.why_no_images:
        refusal = f"{model.name} is asked through {model.provider}, {refusal}"
    sent = data.get("messages") or []
    messages.check_images(sent, refusal, takes_urls=provider.takes_image_urls)
    params = _sampling_params(data, model, provider)
    if grammar := data.get("grammar"):
        if not is_local:
            raise ValidationError({"grammar": ["Only local models take a grammar."]})
        try:
            check_grammar(compile_grammar(grammar))
        except GrammarError as error:
            raise ValidationError({"grammar": [str(error)]}) from error
        params["grammar"] = grammar
    return ModelChoice(model=model.name, queue=provider.queue, params=params)


def _sampling_params(
    data: dict[str, Any], model: RegisteredModel, provider: type[Provider]
) -> dict[str, Any]:
    """The sampling fields as used: the task's own, else the model's, else the provider's."""
    stop, stop_sequences = data.get("stop"), data.get("stop_sequences")
    if stop is not None and stop_sequences is not None:
        raise ValidationError({"stop": ["It is an alias of stop_sequences: give one of them."]})
    # An empty list is a value too: it overrides those of generation_params and of the model.
    own = {**data, "stop_sequences": stop if stop_sequences is None else stop_sequences}
    layers = (
        provider.default_params,
        model.config.get("generation_params", {}),
        data.get("generation_params", {}),
        own,
    )
    params: dict[str, Any] = {"max_tokens": settings.DEFAULT_MAX_TOKENS, "stop_sequences": []}
    for layer in layers:
        params |= {k: layer[k] for k in SAMPLING_FIELDS if layer.get(k) is not None}
    if data.get("logprobs"):
        params["logprobs"] = data.get("top_logprobs") or 0
    elif data.get("top_logprobs"):
        raise ValidationError({"top_logprobs": ["Ask for logprobs too, with true."]})
    if data.get("logit_bias"):
        params["logit_bias"] = data["logit_bias"]
    if not params.get("deterministic"):  # a task's false overrides its model's true
        params.pop("deterministic", None)
    for name in provider.unsupported_params & params.keys():
        if not model.config.get("drop_params"):
            message = (
                f"{model.name} is asked through {model.provider}, which has no {name}: leave it "
                "out, or register the model with drop_params."
            )
            raise ValidationError({name: [message]})
        del params[name]
    if "deterministic" in params:
        if "num_cache_cells" in model.config:
            raise ValidationError({"deterministic": [NOT_DETERMINISTIC]})
        params.setdefault("seed", 0)
    max_tokens = model.max_output_tokens
    if max_tokens is not None and params["max_tokens"] > max_tokens:
        if data.get("max_tokens") or data.get("generation_params", {}).get("max_tokens"):
            message = f"{model.name} gives at most {max_tokens} tokens: ask for that or less."
            raise ValidationError({"max_tokens": [message]})
        params["max_tokens"] = max_tokens
    return params


def _format_field(data: dict[str, Any]) -> str:
    """By which of its two names the task asks for structured output."""
    return "output_schema" if data.get("response_format") is None else "response_format"


def fingerprint(data: dict[str, Any]) -> str:
    """The same for the same request, whatever the order of its fields."""
    relevant = {name: value for name, value in data.items() if name != "idempotency_key"}
    return hashlib.sha256(json.dumps(relevant, sort_keys=True).encode()).hexdigest()
