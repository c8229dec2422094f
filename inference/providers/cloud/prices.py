"""What calls of cloud models cost, in billionths of a US dollar: whole numbers, which add up."""

import logging
from collections.abc import Mapping
from typing import Any

from inference.models import RegisteredModel, Usage
from inference.providers.cloud.library import library

logger = logging.getLogger(__name__)

# What a provider may tell beside the tokens of prompt and answer, and LiteLLM has prices for.
_DETAILS = (
    *("prompt_tokens_details", "completion_tokens_details", "server_tool_use"),
    *("cache_creation_input_tokens", "cache_read_input_tokens"),
)


def cost_of_ranking(model: RegisteredModel, meta: Any, num_tokens: int) -> int | None:
    """By the price of the registration, else by LiteLLM's, which may be of searches or tokens."""
    config = model.config
    if "input_cost_per_token" in config:
        price: float = config["input_cost_per_token"]
        return round(num_tokens * price * 1e9)
    name = config["model_name"]
    billed = meta.get("billed_units") if isinstance(meta, dict) else None
    parts: tuple[float, float]
    try:
        parts = library().cost_calculator.rerank_cost(name, None, billed)
    except Exception as exc:  # noqa: BLE001 (LiteLLM raises what it likes)
        logger.info("LiteLLM has no price for %s: %s", name, type(exc).__name__)
        return None
    return round(sum(parts) * 1e9) or None


def cost(
    model: RegisteredModel,
    name: str,
    usage: Usage,
    details: Mapping[str, Any] | None = None,
    service_tier: str | None = None,
) -> int | None:
    """By the prices of the registration, else by LiteLLM's; None where neither is known.

    `name` is what LiteLLM calls the model, `details` the counts in the provider's own words.
    """
    config = model.config
    if "input_cost_per_token" in config:
        dollars: float = usage["prompt_tokens"] * config["input_cost_per_token"]
        dollars += usage["completion_tokens"] * config.get("output_cost_per_token", 0)
        return round(dollars * 1e9)
    # Whatever a server of one's own calls its models; and LiteLLM would ask an Ollama on this
    # machine for the price of a model that it does not know.
    if model.provider == RegisteredModel.Provider.OPENAI_COMPATIBLE:
        return None
    prices = library().model_cost
    if name not in prices and name.partition("/")[2] not in prices:
        return None
    told = {key: details[key] for key in _DETAILS if key in details} if details else {}
    counts = {key: usage[key] for key in ("prompt_tokens", "completion_tokens", "total_tokens")}
    try:
        billed = library().Usage(**told, **counts)
        parts = library().cost_per_token(name, usage_object=billed, service_tier=service_tier)
    except Exception as exc:  # noqa: BLE001 (LiteLLM raises what it likes)
        logger.info("LiteLLM has no price for %s: %s", name, type(exc).__name__)
        return None
    # Its price list has zeros for models whose prices it does not know.
    dollars = sum(parts)
    return round(dollars * 1e9) if dollars > 0 else None
