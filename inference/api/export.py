"""A task as `POST /tasks` takes it: what it has asked for, with all that was left to defaults."""

import json
from typing import Any

from conversations.models import ChatMessage
from inference.api.provenance import last_attempt, provenance
from inference.models import GenerationTask
from inference.registry.configs import SAMPLING_FIELDS
from inference.structured_output import ResponseFormat
from inference.tools import ToolRequest
from monitoring.api.errors import Conflict


def export(task: GenerationTask) -> dict[str, Any]:
    """The body of GET /tasks/{id}/export. Raises Conflict for what `POST /tasks` cannot ask."""
    if task.request.get("is_raw"):
        message = "It completes a text at /v1/completions, which POST /tasks does not: ask there."
        raise Conflict(message)
    return submission_of(task) | {"provenance": provenance(task)}


def submission_of(task: GenerationTask) -> dict[str, Any]:
    """What asks the model that answered for the same again, in the fields of a submission.

    The history of its conversation is in the messages. Fallbacks, webhook, idempotency key and the
    conversation itself are left out: an experiment does not wake others.
    """
    request, attempt = task.request, last_attempt(task)
    params: dict[str, Any] = dict(request["params"])
    if attempt is not None and attempt.provenance is not None:
        params["seed"] = attempt.provenance["params"]["seed"]
    if (num_top := params.get("logprobs")) is not None:
        params |= {"logprobs": True, "top_logprobs": num_top}
    sampling = (*SAMPLING_FIELDS, "logprobs", "top_logprobs", "logit_bias", "grammar")
    asked: dict[str, Any] = {
        "model": task.model_name,
        "messages": _messages(task, attempt.history_end if attempt else None),
        **{name: params[name] for name in sampling if name in params},
    }
    if response_format := request["response_format"]:
        asked["response_format"] = _response_format(response_format)
    if offered := request.get("tools"):
        asked |= _tools(offered)
    for name in ("context_overflow", "timeout_seconds", "deadline_seconds", "stream"):
        asked[name] = request[name]
    asked |= {"priority": task.priority, "metadata": task.metadata}
    for name in ("extra_params", "prompt_cache_key"):
        if request.get(name):
            asked[name] = request[name]
    return asked


def _messages(task: GenerationTask, history_end: int | None) -> list[ChatMessage]:
    """What the model has read, or would read now where it has not begun."""
    if task.conversation and not task.request.get("messages"):
        return task.conversation.context(task.request["prompt"], history_end)
    return task.messages()


def _response_format(kept: ResponseFormat) -> dict[str, Any]:
    if kept["type"] != "json_schema":
        return dict(kept)
    described: dict[str, Any] = {"name": kept["name"], "schema": json.loads(kept["schema"])}
    if "options" in kept:
        described["options"] = kept["options"]
    return {"type": "json_schema", "json_schema": described}


def _tools(kept: ToolRequest) -> dict[str, Any]:
    choice: Any = kept["choice"]
    if kept["name"] is not None:
        choice = {"type": "function", "function": {"name": kept["name"]}}
    return {
        "tools": json.loads(kept["tools"]),
        "tool_choice": choice,
        "parallel_tool_calls": kept["parallel"],
    }
