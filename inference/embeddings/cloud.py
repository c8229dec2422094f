"""Embedding models and rerankers of cloud providers, called through LiteLLM."""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Any

import numpy as np
from django.conf import settings
from django.db import Error as DatabaseError
from django.db import close_old_connections

from inference.embeddings.encoders.base import Vectors
from inference.embeddings.messages import prompt_of
from inference.errors import ErrorCode, InferenceError
from inference.lifecycle import sql
from inference.models import NO_USAGE, RegisteredModel
from inference.providers import hosts
from inference.providers.api_keys import api_key_of
from inference.providers.circuit_breaker import CircuitBreaker
from inference.providers.cloud import call, errors, prices, retries, wire
from inference.providers.cloud.library import library

logger = logging.getLogger(__name__)

# Every provider takes at least this many at a time.
_MAX_TEXTS = 96
_MAX_RANKED_TEXTS = 1000
_OPENAI = "openai/"


@dataclass(frozen=True, slots=True)
class CloudVectors:
    """A row a text, of a reranker its score, and the tokens that the provider has counted."""

    rows: Vectors
    num_tokens: int


def embed(
    model: RegisteredModel,
    texts: list[str],
    prompt_name: str | None,
    check: Callable[[], None] = lambda: None,
    owner: str = "",
) -> CloudVectors:
    """Ask the provider, again after a failure that may pass. Raises InferenceError.

    `check` is called before each call, which costs money, and may raise. What it costs is counted
    for the `owner`.
    """
    prompt = prompt_of(model.config.get("prompts", {}), prompt_name)
    prompted = [prompt + text for text in texts]
    return _joined(
        _ask_again(model, partial(_embed, model, part, owner), check)
        for part in _parts(prompted, _MAX_TEXTS)
    )


def rank(
    model: RegisteredModel,
    query: str,
    texts: list[str],
    check: Callable[[], None] = lambda: None,
    owner: str = "",
) -> CloudVectors:
    """How well each text answers the query, as the provider says; otherwise as `embed`."""
    return _joined(
        _ask_again(model, partial(_rank, model, query, part, owner), check)
        for part in _parts(texts, _MAX_RANKED_TEXTS)
    )


def _parts(texts: list[str], most: int) -> Iterator[list[str]]:
    for start in range(0, len(texts), most):
        yield texts[start : start + most]


def _joined(answers: Iterable[CloudVectors]) -> CloudVectors:
    parts = list(answers)
    rows = np.concatenate([part.rows for part in parts])
    return CloudVectors(rows, sum(part.num_tokens for part in parts))


def _ask_again(
    model: RegisteredModel, ask: Callable[[], CloudVectors], check: Callable[[], None]
) -> CloudVectors:
    breaker = CircuitBreaker(model)
    give_up_at = time.monotonic() + settings.EMBEDDING_TIMEOUT_SECONDS
    for num_retries in count():
        check()
        try:
            asyncio.run(hosts.check(model))
            breaker.before_call()
            vectors = ask()
            breaker.on_success()
        except InferenceError as error:
            breaker.on_failure(error)
            pause = retries.pause(model, error, num_retries)
            if pause is None or time.monotonic() + pause > give_up_at:
                raise
            time.sleep(pause)
        else:
            return vectors
    raise AssertionError("The loop ends by itself")


def _embed(model: RegisteredModel, texts: list[str], owner: str) -> CloudVectors:
    """One call."""
    config = model.config
    arguments = {"model": config["model_name"], "input": texts}
    if dimensions := config.get("dimensions"):
        arguments["dimensions"] = dimensions
    if config["model_name"].startswith(_OPENAI):
        arguments["encoding_format"] = "float"
    response = _call(library().embedding, model, arguments)
    num_tokens = wire.count(getattr(response.usage, "prompt_tokens", None)) or 0
    usage = NO_USAGE | {"prompt_tokens": num_tokens, "total_tokens": num_tokens}
    _add_cost(model, owner, lambda: prices.cost(model, config["model_name"], usage))
    if (rows := wire.vectors(response.data, len(texts), dimensions)) is None:
        message = (
            f"The provider of {model.name} gave other vectors than asked for: check the "
            "model_name and the dimensions that it is registered with."
        )
        raise InferenceError(message, ErrorCode.PROVIDER_ERROR)
    return CloudVectors(rows, num_tokens)


def _rank(model: RegisteredModel, query: str, texts: list[str], owner: str) -> CloudVectors:
    """One call."""
    arguments = {
        "model": model.config["model_name"],
        "query": query,
        "documents": texts,
        "top_n": len(texts),
        "return_documents": False,
    }
    response = _call(library().rerank, model, arguments)
    num_tokens = wire.num_ranked_tokens(response.meta)
    _add_cost(model, owner, lambda: prices.cost_of_ranking(model, response.meta, num_tokens))
    if (rows := wire.scores(response.results, len(texts))) is None:
        message = (
            f"The provider of {model.name} gave other scores than asked for: check the model_name "
            "that it is registered with."
        )
        raise InferenceError(message, ErrorCode.PROVIDER_ERROR)
    return CloudVectors(rows, num_tokens)


def _call(function: Any, model: RegisteredModel, arguments: dict[str, Any]) -> Any:
    key = api_key_of(model)
    timeout = min(call.timeout_of(model), settings.EMBEDDING_TIMEOUT_SECONDS)
    try:
        return function(**arguments, **call.connection(model, key, timeout))
    except Exception as error:  # noqa: BLE001 (of which library's, nobody knows)
        failure = errors.failure_of(error, model, key)
    # Not chained: what LiteLLM says may quote the key.
    raise failure


def _add_cost(model: RegisteredModel, owner: str, cost: Callable[[], int | None]) -> None:
    try:
        if owner and (nano_usd := cost()):
            sql.add_use(owner, cost_nano_usd=nano_usd)
    except DatabaseError as exc:  # the vectors are paid for: hand them over
        logger.warning("What %s has cost was not counted: %s", model.name, exc)
    finally:
        close_old_connections()
