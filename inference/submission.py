"""From a validated request body to a task that can run, or a validation error that says why not."""

import hashlib
import json
from datetime import timedelta
from typing import Any

from django.conf import settings
from django.utils import timezone
from rest_framework.exceptions import ValidationError

from conversations.models import Conversation
from inference import storable_json, structured_output
from inference.engine.errors import GrammarError
from inference.engine.gbnf import check_grammar
from inference.models import GenerationTask, RegisteredModel
from inference.providers.base import Provider
from inference.providers.registry import provider_class
from inference.serializers import MAX_METADATA_BYTES, MAX_METADATA_DEPTH, SAMPLING_FIELDS

# Part of the contract, but not of this version: refused, so that nobody waits for them.
_NOT_YET = {
    "webhook_url": "Webhooks are not available in this version: leave it out, and poll or ?wait.",
    "fallback_models": "Fallbacks are not available in this version: leave the list empty.",
}

_MODEL_LIST = "GET /api/v1/models lists them."


def build_task(owner: str, data: dict[str, Any], idempotency_key: str | None) -> GenerationTask:
    """A task, unsaved, from the validated fields; raises ValidationError naming the field."""
    for name, message in _NOT_YET.items():
        if data.get(name):
            raise ValidationError({name: [message]})
    _check_input(data)
    conversation = _conversation(owner, data.get("conversation_id"))
    model = _model(data, conversation)
    provider = provider_class(model.provider)
    now = timezone.now()
    deadline = data.get("deadline_seconds")
    return GenerationTask(
        owner=owner,
        model_name=model.name,
        queue=provider.queue,
        priority=data["priority"],
        request=_request(data, model, provider),
        conversation=conversation,
        metadata=_metadata(data),
        idempotency_key=idempotency_key,
        request_hash=fingerprint(data),
        created_at=now,
        updated_at=now,
        rung_at=now,
        deadline_at=now + timedelta(seconds=deadline) if deadline else None,
    )


def in_order(tasks: list[GenerationTask]) -> list[GenerationTask]:
    """Tasks of one batch, made a microsecond apart: equal priorities run in the list's order."""
    start = timezone.now()
    for index, task in enumerate(tasks):
        task.created_at = start + timedelta(microseconds=index)
    return tasks


def _check_input(data: dict[str, Any]) -> None:
    """Exactly one of prompt and messages."""
    has_prompt, has_messages = bool(data.get("prompt")), bool(data.get("messages"))
    if has_prompt and has_messages:
        raise ValidationError({"prompt": ["Give either prompt or messages, not both."]})
    if not has_prompt and not has_messages:
        raise ValidationError({"prompt": ["Give a prompt, or messages."]})
    if has_messages and data.get("input_text"):
        raise ValidationError({"input_text": ["It is appended to prompt: give a prompt."]})


def _conversation(owner: str, conversation_id: str | None) -> Conversation | None:
    if not conversation_id:
        return None
    conversation = Conversation.objects.owned_by(owner).filter(pk=conversation_id).first()
    if conversation is None:
        raise ValidationError({"conversation_id": [f"There is no conversation {conversation_id}."]})
    return conversation


def _model(data: dict[str, Any], conversation: Conversation | None) -> RegisteredModel:
    name = data.get("model") or data.get("provider_config", {}).get("model_name")
    name = name or (conversation.model_name if conversation else None)
    if not name:
        raise ValidationError({"model": [f"Name a registered model: {_MODEL_LIST}"]})
    model = RegisteredModel.objects.read(name)
    if model is None:
        message = f"There is no model {name}: {_MODEL_LIST}"
        raise ValidationError({"model": [message]})
    if model.crashed_too_often:
        raise ValidationError({"model": [model.crash_message]})
    return model


def _request(
    data: dict[str, Any], model: RegisteredModel, provider: type[Provider]
) -> dict[str, Any]:
    """What the worker needs, and the report shows."""
    prompt = data.get("prompt")
    if prompt and data.get("input_text"):
        prompt = f"{prompt}\n\n{data['input_text']}"
    if data.get("extra_params"):
        message = f"The {model.provider} provider takes no extra_params: leave them out."
        raise ValidationError({"extra_params": [message]})
    return {
        "prompt": prompt,
        "messages": data.get("messages"),
        "save_to_conversation": data["save_to_conversation"],
        "stream": data["stream"],
        "params": _params(data, model, provider),
        "response_format": _response_format(data, model, provider),
        "timeout_seconds": data["timeout_seconds"],
        "deadline_seconds": data.get("deadline_seconds"),
        "context_overflow": data["context_overflow"],
        "webhook_url": None,
    }


def _params(
    data: dict[str, Any], model: RegisteredModel, provider: type[Provider]
) -> dict[str, Any]:
    """The sampling fields as used: the task's own, else the model's, else the provider's."""
    stop, stop_sequences = data.get("stop"), data.get("stop_sequences")
    if stop is not None and stop_sequences is not None:
        raise ValidationError({"stop": ["It is an alias of stop_sequences: give one of them."]})
    # An empty list is a value too: it overrides those of generation_params and of the model.
    own = {**data, "stop_sequences": stop if stop_sequences is None else stop_sequences}
    layers = (
        own,
        data.get("generation_params", {}),
        model.config.get("generation_params", {}),
        provider.default_params,
    )
    params: dict[str, Any] = {"max_tokens": settings.DEFAULT_MAX_TOKENS, "stop_sequences": []}
    for layer in reversed(layers):
        params |= {k: layer[k] for k in SAMPLING_FIELDS if layer.get(k) is not None}
    _cap_max_tokens(params, data, model)
    if data.get("grammar"):
        params["grammar"] = _grammar(data["grammar"], model)
    return params


def _cap_max_tokens(params: dict[str, Any], data: dict[str, Any], model: RegisteredModel) -> None:
    most = model.max_output_tokens
    if most is None or params["max_tokens"] <= most:
        return
    asked = data.get("max_tokens") or data.get("generation_params", {}).get("max_tokens")
    if asked:
        message = f"{model.name} gives at most {most} tokens: ask for that or less."
        raise ValidationError({"max_tokens": [message]})
    params["max_tokens"] = most


def _grammar(grammar: str, model: RegisteredModel) -> str:
    if model.provider != RegisteredModel.Provider.LOCAL:
        raise ValidationError({"grammar": ["Only local models take a grammar."]})
    try:
        check_grammar(grammar)
    except GrammarError as error:
        raise ValidationError({"grammar": [str(error)]}) from error
    return grammar


def _response_format(
    data: dict[str, Any], model: RegisteredModel, provider: type[Provider]
) -> structured_output.ResponseFormat | None:
    asked, schema = data.get("response_format"), data.get("output_schema")
    response_format = structured_output.normalize(asked, schema)
    if response_format is None:
        return None
    field = "output_schema" if asked is None else "response_format"
    if not provider.supports_structured_output:
        message = f"The {model.provider} provider has no structured output: take a local model."
        raise ValidationError({field: [message]})
    if data.get("grammar"):
        raise ValidationError({field: ["It makes a grammar itself: leave grammar out."]})
    return response_format


def _metadata(data: dict[str, Any]) -> dict[str, Any]:
    metadata = data.get("metadata") or {}
    if _is_deeper_than(MAX_METADATA_DEPTH, metadata):
        message = f"It is nested more than {MAX_METADATA_DEPTH} levels deep."
        raise ValidationError({"metadata": [message]})
    try:
        encoded = storable_json.encode(metadata)
    except ValueError as error:
        message = f"It cannot be written as JSON in UTF-8: {error}."
        raise ValidationError({"metadata": [message]}) from error
    if storable_json.has_nul(encoded):
        raise ValidationError({"metadata": ["It must not contain NUL characters."]})
    if len(encoded) > MAX_METADATA_BYTES:
        message = f"metadata is larger than {MAX_METADATA_BYTES} bytes: store a reference instead."
        raise ValidationError({"metadata": [message]})
    return metadata


def _is_deeper_than(num_levels: int, value: Any) -> bool:
    if not isinstance(value, dict | list):
        return False
    children = value.values() if isinstance(value, dict) else value
    return num_levels == 0 or any(_is_deeper_than(num_levels - 1, child) for child in children)


def fingerprint(data: dict[str, Any]) -> str:
    """The same for the same request, whatever the order of its fields."""
    relevant = {name: value for name, value in data.items() if name != "idempotency_key"}
    return hashlib.sha256(json.dumps(relevant, sort_keys=True).encode()).hexdigest()
