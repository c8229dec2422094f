"""What calls cost, by LiteLLM's own price list or the registration's."""

from typing import Any

import pytest

from inference.models import RegisteredModel, Usage
from inference.providers.base import Progress
from inference.providers.cloud import prices, wire

Kind = RegisteredModel.Provider
MINI = "openai/gpt-4o-mini"  # 0.15, cached 0.075, answer 0.60 dollars a million


def model_of(kind: str = Kind.OPENAI, **config: Any) -> RegisteredModel:
    return RegisteredModel(name="cloud", provider=kind, config=config)


def usage(prompt: int = 1000, completion: int = 100, cached: int = 0) -> Usage:
    return Progress(prompt, completion, cached).usage()


@pytest.mark.parametrize(
    ("told", "nano_usd"),
    [
        ({}, 210_000),
        ({"prompt_tokens_details": {"cached_tokens": 400}}, 180_000),
        ({"completion_tokens_details": {"reasoning_tokens": 60}}, 210_000),
        ({"prompt_tokens_details": None, "completion_tokens_details": [1]}, 210_000),
        ({"prompt_tokens_details": {"cached_tokens": -400, "a": {"b": "c"}}}, 210_000),
        ({"cost": 7, "surprise": {"total": 1}}, 210_000),
    ],
)
def test_litellm_prices_cached_and_reasoning_tokens(told: dict[str, Any], nano_usd: int) -> None:
    details = wire.counts({"prompt_tokens": 1000, "completion_tokens": 100} | told)
    assert prices.cost(model_of(), MINI, usage(), details) == nano_usd


def test_service_tier_has_a_price_of_its_own() -> None:
    normal, priority = (
        prices.cost(model_of(), "openai/gpt-4o", usage(), {}, tier) for tier in (None, "priority")
    )
    assert normal
    assert priority
    assert priority > normal


def test_writing_into_anthropics_cache_costs_more() -> None:
    name = "anthropic/claude-sonnet-4-5"
    details = {"prompt_tokens_details": {"cache_creation_tokens": 1000}}
    details["cache_creation_input_tokens"] = 1000  # type: ignore[assignment]
    plain = prices.cost(model_of(Kind.ANTHROPIC), name, usage())
    written = prices.cost(model_of(Kind.ANTHROPIC), name, usage(), details)
    assert plain
    assert written
    assert written > plain


def test_price_of_the_registration_wins() -> None:
    model = model_of(input_cost_per_token=1e-6, output_cost_per_token=2e-6)
    assert prices.cost(model, MINI, usage()) == 1_200_000
    free = model_of(Kind.OPENAI_COMPATIBLE, input_cost_per_token=0, output_cost_per_token=0)
    assert prices.cost(free, "custom_openai/llama", usage()) == 0


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (Kind.OPENAI, "openai/no-such-model"),
        (Kind.OPENAI_COMPATIBLE, "custom_openai/gpt-4o-mini"),
        (Kind.OPENAI_COMPATIBLE, "custom_openai/openai/gpt-4o-mini"),
        (Kind.LITELLM, "ollama/llama3"),  # zero in LiteLLM's list
        (Kind.LITELLM, "ollama/no-such-model"),
        (Kind.LITELLM, "groq/gpt-4o-mini"),  # another provider's
    ],
)
def test_unknown_price_is_no_zero(kind: str, name: str) -> None:
    assert prices.cost(model_of(kind), name, usage()) is None


def test_embeddings_have_prices_too() -> None:
    model = model_of(Kind.EMBEDDING)
    assert prices.cost(model, "openai/text-embedding-3-small", usage(1000, 0)) == 20_000
