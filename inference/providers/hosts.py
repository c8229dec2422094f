"""Which hosts cloud models may be asked at, and which keys of the environment go there."""

import asyncio
import time
from concurrent.futures import Future
from ipaddress import ip_address
from typing import Any
from urllib.parse import SplitResult, urlsplit

from django.conf import settings

from inference.errors import ErrorCode, InferenceError
from inference.models import RegisteredModel
from inference.webhooks import addresses, urls
from inference.webhooks.addresses import Address, UnresolvedHostError

# By the variables that LiteLLM's providers are known by: what it calls them, and their domain.
_OWNERS = {
    "ANTHROPIC_API_KEY": ("anthropic", "anthropic.com"),
    "CEREBRAS_API_KEY": ("cerebras", "cerebras.ai"),
    "COHERE_API_KEY": ("cohere", "cohere.com"),
    "DEEPSEEK_API_KEY": ("deepseek", "deepseek.com"),
    "FIREWORKS_API_KEY": ("fireworks_ai", "fireworks.ai"),
    "GEMINI_API_KEY": ("gemini", "generativelanguage.googleapis.com"),
    "GROQ_API_KEY": ("groq", "groq.com"),
    "JINA_AI_API_KEY": ("jina_ai", "jina.ai"),
    "MISTRAL_API_KEY": ("mistral", "mistral.ai"),
    "OPENAI_API_KEY": ("openai", "openai.com"),
    "OPENROUTER_API_KEY": ("openrouter", "openrouter.ai"),
    "PERPLEXITYAI_API_KEY": ("perplexity", "perplexity.ai"),
    "TOGETHERAI_API_KEY": ("together_ai", "together.xyz"),
    "VOYAGE_API_KEY": ("voyage", "voyageai.com"),
    "XAI_API_KEY": ("xai", "x.ai"),
}
# They tell whoever asks the credentials of this machine.
_METADATA_ADDRESSES = {
    ip_address(each) for each in ("100.100.100.200", "192.0.0.192", "fd00:ec2::254")
}
_METADATA_NAMES = {"metadata", "metadata.goog", "metadata.google.internal", "instance-data"}
_ALLOW = ", or have PROVIDER_ALLOWED_HOSTS name the host."

# How long a call waits for the addresses of a name, and for how long these are kept.
_LOOK_UP_SECONDS = 5.0
_KEPT_SECONDS = 5.0
_MAX_KEPT = 1000
# By name: since when they are asked for.
_look_ups: dict[str, tuple[float, Future[list[Address]]]] = {}


def refusal(provider: str, config: dict[str, Any]) -> str | None:
    """Why a model with this config must not be asked; None when it may.

    `config` without `api_key_env_var` is that of a model with a key of its own, or without one.
    """
    variable = config.get("api_key_env_var")
    owner, domain = _OWNERS.get(variable or "", (None, None))
    if "base_url" not in config:
        asked = provider
        if provider in (RegisteredModel.Provider.LITELLM, RegisteredModel.Provider.EMBEDDING):
            asked = config.get("model_name", "").partition("/")[0]
        is_right = owner in (None, asked)
        return None if is_right else f"{variable} is for {owner}: name another one for {asked}."
    parts = urlsplit(config["base_url"])
    host = _host_of(parts)
    if _is_allowed(parts):
        return None
    address = addresses.literal(host)
    if address is None:
        is_here = host == "localhost" or host.endswith(".localhost")
        why = _why_not_at(host, [], is_metadata=host in _METADATA_NAMES, is_here=is_here)
    else:
        is_here = _is_here(address)
        why = _why_not_at(host, [address])
    is_own = parts.scheme == "https" and (host == domain or host.endswith(f".{domain}"))
    if why is None and variable and not is_own and not is_here:
        why = f"{variable} does not go to {host}: give an api_key for it"
    return why and why + _ALLOW


def refusal_by_name(config: dict[str, Any], seconds: float) -> str | None:
    """Why the addresses that the host's name has now must not be asked, if these are soon known."""
    host = _name_to_look_up(config)
    try:
        why = host and _why_not_at(host, _look_up(host).result(seconds))
    except (TimeoutError, UnresolvedHostError):
        return None  # looked up again before each call
    return why and why + _ALLOW


async def check(model: RegisteredModel) -> None:
    """Raises InferenceError where the host's name leads to an address that must not be asked.

    Call it before each call. A name without an address is left to the call, which may use a proxy.
    """
    host = _name_to_look_up(model.config)
    if host is None:
        return
    found = asyncio.wrap_future(_look_up(host))
    await asyncio.wait({found}, timeout=_LOOK_UP_SECONDS)
    if not found.done():
        raise InferenceError(
            f"The host of model {model.name} was not resolved within {_LOOK_UP_SECONDS:g} s: check "
            f"the name servers of the workers{_ALLOW}",
            ErrorCode.PROVIDER_UNAVAILABLE,
            retryable=True,
        )
    if found.exception() is None and (why := _why_not_at(host, found.result())):
        message = f"The model {model.name} is not asked. {why}{_ALLOW}"
        raise InferenceError(message, ErrorCode.PROVIDER_ERROR)


def _host_of(parts: SplitResult) -> str:
    return (parts.hostname or "").removesuffix(".")


def _is_allowed(parts: SplitResult) -> bool:
    """Whether PROVIDER_ALLOWED_HOSTS names it."""
    entries = map(urls.exemption, filter(urls.is_exemption, settings.PROVIDER_ALLOWED_HOSTS))
    host = _host_of(parts)
    return any(host == name and port in (None, parts.port) for name, port in entries)


def _name_to_look_up(config: dict[str, Any]) -> str | None:
    """The name in `base_url`; None for an address, for a host that is allowed, and without one."""
    parts = urlsplit(config.get("base_url") or "")
    host = _host_of(parts)
    return None if not host or addresses.literal(host) or _is_allowed(parts) else host


def _look_up(host: str) -> Future[list[Address]]:
    """One look-up for all that ask for the name at a time."""
    now = time.monotonic()
    since, answer = _look_ups.get(host, (0.0, None))
    if answer is None or (answer.done() and now - since > _KEPT_SECONDS):
        if len(_look_ups) >= _MAX_KEPT:
            _look_ups.clear()
        answer = addresses.look_up(host)
        _look_ups[host] = (now, answer)
    return answer


def _is_here(address: Address) -> bool:
    address = addresses.carried(address)
    return address.is_loopback or address.is_unspecified


def _why_not_at(
    host: str, found: list[Address], *, is_metadata: bool = False, is_here: bool = False
) -> str | None:
    """Why no model is asked at a host with these addresses."""
    for address in map(addresses.carried, found):
        is_metadata |= address in _METADATA_ADDRESSES or address.is_link_local
        is_here |= _is_here(address)
    if is_here and settings.APP_ENV != "local":
        return f"{host} is this machine, where APP_ENV=local alone lets models be: use another one"
    if is_metadata:
        return f"{host} is where machines tell their credentials: use another one"
    return None
