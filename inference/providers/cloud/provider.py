"""Models of others, asked over the network: most of them through LiteLLM."""

import asyncio
import json
import logging
import threading
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from itertools import count
from typing import Any, ClassVar

from django.db import Error as DatabaseError
from django.db import connection

from inference.errors import ErrorCode, InferenceError, RetryLater
from inference.models import Queue, RegisteredModel, Usage
from inference.providers import hosts
from inference.providers.api_keys import api_key_of
from inference.providers.base import (
    AnswerDeltas,
    Deltas,
    GenerationRequest,
    Progress,
    Provider,
    StartOver,
)
from inference.providers.circuit_breaker import CircuitBreaker
from inference.providers.cloud import call, direct, errors, prices, retries, stream, tokens
from inference.providers.cloud.answer import CloudAnswer
from inference.providers.cloud.endpoints.endpoint import Endpoint
from inference.providers.cloud.endpoints.pools import pool_of
from inference.providers.cloud.library import library

logger = logging.getLogger(__name__)

# A longer pause before a retry gives the place of the task to another one.
_MAX_WAIT_SECONDS = 1.0
# How long the usage may take to come after the end of the answer.
_LAST_WORDS_SECONDS = 2.0
# Whom a provider sends away for longer may ask another one, or is told so.
_MAX_RETRY_AFTER_SECONDS = 60.0

_JSON_TOOL = "answer"


class CloudProvider(Provider):
    """Streams from the provider, and asks again after a failure that may pass.

    `config` of the model: `timeout`, the seconds allowed before and within an answer in which
    nothing of it comes, and `max_retries`.
    """

    queue = Queue.API
    supports_structured_output = True
    supports_tools = True
    why_no_images = None
    takes_image_urls = True
    known_extra_params: ClassVar[frozenset[str] | None] = call.KNOWN_EXTRA_PARAMS
    unsupported_params = frozenset({"deterministic"})
    prefix: ClassVar[str]
    # Whether an answer may begin with reasoning that nobody has told apart.
    may_think_in_text: ClassVar[bool] = False

    async def generate(self, request: GenerationRequest, progress: Progress) -> Deltas:
        """Retries count from the first call; a refusal by the breaker is a failure too.

        Where they pause for longer than a second, by RetryLater.
        """
        arguments = await asyncio.to_thread(self._arguments, request, progress)
        breaker = CircuitBreaker(self.model)
        for num_retries in count(request.num_retries):
            has_begun = False
            try:
                await asyncio.to_thread(breaker.before_call)
                async with aclosing(self._answer(request, progress, arguments)) as deltas:
                    async for delta in deltas:
                        has_begun = True
                        yield delta
                await asyncio.to_thread(breaker.on_success)
            except InferenceError as error:
                is_down = not pool_of(self.model).has_healthy
                await asyncio.to_thread(breaker.on_failure, error, is_of_model=is_down)
                failure = error
            else:
                return
            pause = retries.pause(self.model, failure, num_retries)
            after = failure.retry_after
            # Somebody else may answer while this one is down.
            if after is not None and (
                after > _MAX_RETRY_AFTER_SECONDS
                or (failure.code == ErrorCode.PROVIDER_UNAVAILABLE and request.has_fallback)
            ):
                pause = None
            if pause is None:
                raise failure
            if pause > _MAX_WAIT_SECONDS:
                raise RetryLater(failure, pause, num_retries + 1)
            if has_begun:
                yield StartOver(failure)
            await asyncio.sleep(pause)

    async def _answer(
        self, request: GenerationRequest, progress: Progress, arguments: dict[str, Any]
    ) -> AnswerDeltas:
        """Ask one endpoint after the other, until one has begun to answer.

        Raises InferenceError: what the last one has failed with, or a fault of the request itself.
        """
        pool = pool_of(self.model)
        failed: set[Endpoint] = set()
        while True:
            async with pool.call(request, failed) as place:
                model, progress.endpoint = place.endpoint.model, place.endpoint.name
                answer = CloudAnswer(
                    progress,
                    is_in_tool=self._answers_in_tool(request),
                    may_think_in_text=self.may_think_in_text,
                )
                try:
                    key = api_key_of(model)
                    await hosts.check(model)
                    async with aclosing(self._ask(model, arguments, answer, key)) as deltas:
                        async for delta in deltas:
                            place.heard()
                            yield delta
                except InferenceError as failure:
                    pool.on_failure(place, failure)
                    failed.add(place.endpoint)
                    is_last = len(failed) == len(pool.endpoints)
                    if place.num_deltas or is_last or failure.is_requests_own_fault:
                        raise
                    message = "Request %s goes to another endpoint than %s: %s"
                    logger.info(message, request.request_id, place.endpoint.name, failure.code)
                else:
                    pool.on_success(place)
                    return

    def cost_at_most(self, request: GenerationRequest) -> int | None:
        beside = json.dumps([request.extra_params, request.response_format, request.tools])
        prompt_tokens = tokens.count_messages(request.messages) + tokens.count(beside)
        most = Progress(prompt_tokens, request.params["max_tokens"]).usage()
        return self._cost(most, {}, request.extra_params)

    def _cost(self, usage: Usage, details: dict[str, Any], params: dict[str, Any]) -> int | None:
        name, tier = self.prefix + self.model.config["model_name"], params.get("service_tier")
        tier = tier if isinstance(tier, str) else None
        return prices.cost(self.model, name, usage, details, tier)

    async def _ask(
        self,
        model: RegisteredModel,
        arguments: dict[str, Any],
        answer: CloudAnswer,
        key: str | None,
    ) -> AnswerDeltas:
        """One call of the model, as it is asked at an endpoint: the answer as it comes.

        Once the provider has said why the answer ends, nothing can go wrong with it any more.
        """
        timeout = call.timeout_of(model)
        failure: InferenceError | None = None
        answer.heard_at = time.monotonic()
        try:
            async with aclosing(self._events(model, arguments, key)) as events:
                while failure is None:
                    patience = min(_LAST_WORDS_SECONDS, timeout) if answer.reason else timeout
                    silent_for = time.monotonic() - answer.heard_at
                    try:
                        async with asyncio.timeout(patience - silent_for) as limit:
                            deltas = answer.add(await anext(events))
                    except StopAsyncIteration:
                        break
                    except Exception as error:  # noqa: BLE001 (of which library's, nobody knows)
                        if not limit.expired():
                            failure = errors.failure_of(error, model, key)
                        elif not answer.reason:
                            failure = errors.silence(model, timeout)
                        break
                    if answer.fault is not None:
                        failure = errors.failure_of(answer.fault, model, key)
                    for delta in deltas:
                        yield delta
                        # What the caller does meanwhile is no silence of the provider.
                        answer.heard_at = time.monotonic()
            for delta in answer.rest():
                yield delta
        finally:
            answer.note()
            await asyncio.to_thread(self._bill, arguments, answer)
        if answer.is_filtered:
            raise errors.filtered(model)
        if answer.is_failed or not answer.reason:
            # Not chained: what LiteLLM says may quote the key.
            raise failure or errors.incomplete(model, answer.reason)

    def _events(
        self, model: RegisteredModel, arguments: dict[str, Any], key: str | None
    ) -> AsyncGenerator[Any, None]:
        """One call, to its last event in OpenAI's shape."""
        return stream.events(arguments)

    def _bill(self, arguments: dict[str, Any], answer: CloudAnswer) -> None:
        """Count the tokens that the provider has not told, and what they cost; also of a part."""
        if not answer.has_usage:
            if answer.is_empty:
                return
            answer.estimate_usage(tokens.count_messages(arguments["messages"]))
        answer.add_cost(self._cost(answer.usage, answer.usage_details, arguments))

    def _arguments(self, request: GenerationRequest, progress: Progress) -> dict[str, Any]:
        messages, num_dropped = tokens.fit(self.model, request)
        if num_dropped:
            progress.extra["truncated_messages"] = num_dropped
        sent = {"messages": call.messages_of(messages)}
        return self._call(request) | sent | self._special_arguments(request)

    def _call(self, request: GenerationRequest) -> dict[str, Any]:
        """What LiteLLM is called with; the first call of a process loads it, for seconds."""
        key = api_key_of(self.model)
        library()
        return call.arguments(self.model, request, prefix=self.prefix, key=key)

    def _special_arguments(self, request: GenerationRequest) -> dict[str, Any]:
        """What differs between providers: extra_params, and sampling that OpenAI does not have.

        LiteLLM puts into the body what it has no name for.
        """
        return call.known(request.extra_params) | call.sampling_beside_openais(request)

    def _answers_in_tool(self, request: GenerationRequest) -> bool:
        return False


class OpenAIProvider(CloudProvider):
    """OpenAI's own models."""

    prefix = "openai/"
    known_extra_params = None
    unsupported_params = CloudProvider.unsupported_params | {"top_k", "min_p", "repeat_penalty"}

    def _special_arguments(self, request: GenerationRequest) -> dict[str, Any]:
        translated, body = call.split(request.extra_params)
        return translated | {"extra_body": body} if body else translated


class AnthropicProvider(CloudProvider):
    """Claude."""

    prefix = "anthropic/"
    unsupported_params = CloudProvider.unsupported_params | {
        *("min_p", "repeat_penalty", "frequency_penalty", "presence_penalty", "seed"),
        *("logprobs", "logit_bias"),
    }

    def _special_arguments(self, request: GenerationRequest) -> dict[str, Any]:
        """A JSON object is what a tool is called with."""
        special = super()._special_arguments(request)
        if not self._answers_in_tool(request):
            return special
        if special.get("tools") or request.tools:
            message = "A json_object cannot come with tools here: ask for a json_schema."
            raise InferenceError(message, ErrorCode.INVALID_REQUEST)
        function = {"name": _JSON_TOOL, "parameters": {"type": "object", "properties": {}}}
        return special | {
            "response_format": None,
            "tools": [{"type": "function", "function": function}],
            "tool_choice": {"type": "function", "function": {"name": _JSON_TOOL}},
        }

    def _answers_in_tool(self, request: GenerationRequest) -> bool:
        """Anthropic knows JSON of a schema, but no mode for any object."""
        asked = request.response_format
        return asked is not None and "schema" not in asked


class OpenAICompatibleProvider(CloudProvider):
    """vLLM, llama.cpp and others that speak OpenAI's language at an address of their own."""

    prefix = ""
    may_think_in_text = True
    known_extra_params = None

    def _events(
        self, model: RegisteredModel, arguments: dict[str, Any], key: str | None
    ) -> AsyncGenerator[Any, None]:
        return direct.events(model, arguments, key)

    def _call(self, request: GenerationRequest) -> dict[str, Any]:
        return call.body_of(self.model, request)

    def _special_arguments(self, request: GenerationRequest) -> dict[str, Any]:
        """All goes into the body: only the server knows what it takes."""
        call.check_not_ours(request.extra_params)
        body = request.extra_params | call.sampling_beside_openais(request)
        if "repeat_penalty" in body:  # vLLM's name for what llama.cpp calls as we do
            body["repetition_penalty"] = body["repeat_penalty"]
        return body


class LiteLLMProvider(CloudProvider):
    """Any `provider/model` that LiteLLM knows; for some of them, it fetches images itself."""

    takes_image_urls = False
    prefix = ""

    def _special_arguments(self, request: GenerationRequest) -> dict[str, Any]:
        """All but Ollama have vLLM's name for the repeat penalty."""
        special = super()._special_arguments(request)
        is_ollama = self.model.config["model_name"].startswith("ollama")
        if "repeat_penalty" in special and not is_ollama:
            special["repetition_penalty"] = special.pop("repeat_penalty")
        return special


def warm_up() -> None:
    """Load LiteLLM in the background, if there are models that need it: it takes seconds."""
    threading.Thread(target=_load_if_needed, name="litellm-import", daemon=True).start()


def _load_if_needed() -> None:
    direct_kind = RegisteredModel.Provider.OPENAI_COMPATIBLE
    kinds = [kind for kind in RegisteredModel.CLOUD_PROVIDERS if kind != direct_kind]
    try:
        if RegisteredModel.objects.filter(provider__in=kinds).exists():
            library()
    except DatabaseError as exc:
        logger.warning("LiteLLM is loaded with the first task, no database now: %s", exc)
    finally:
        connection.close()
