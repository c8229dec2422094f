"""Which hosts cloud models may be asked at, and which keys of the environment go there."""

from ipaddress import IPv6Address, ip_address
from typing import Any
from urllib.parse import urlsplit

from django.conf import settings

from inference.models import RegisteredModel
from inference.webhooks import addresses, urls

# By the variables that LiteLLM's providers are known by: what it calls them, and their domain.
_OWNERS = {
    "ANTHROPIC_API_KEY": ("anthropic", "anthropic.com"),
    "CEREBRAS_API_KEY": ("cerebras", "cerebras.ai"),
    "COHERE_API_KEY": ("cohere", "cohere.com"),
    "DEEPSEEK_API_KEY": ("deepseek", "deepseek.com"),
    "FIREWORKS_API_KEY": ("fireworks_ai", "fireworks.ai"),
    "GEMINI_API_KEY": ("gemini", "generativelanguage.googleapis.com"),
    "GROQ_API_KEY": ("groq", "groq.com"),
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
    host = (parts.hostname or "").removesuffix(".")
    entries = map(urls.exemption, filter(urls.is_exemption, settings.PROVIDER_ALLOWED_HOSTS))
    if any(host == name and port in (None, parts.port) for name, port in entries):
        return None
    why, is_here = _about_address(host)
    is_own = parts.scheme == "https" and (host == domain or host.endswith(f".{domain}"))
    if why is None and variable and not is_own and not is_here:
        why = f"{variable} does not go to {host}: give an api_key for it"
    return why and f"{why}, or have PROVIDER_ALLOWED_HOSTS name the host."


def _about_address(host: str) -> tuple[str | None, bool]:
    """Why no model is asked at a host, or None; and whether it is this machine."""
    address = addresses.literal(host)
    if isinstance(address, IPv6Address):
        address = address.ipv4_mapped or address
    if address is None:
        is_metadata = host in _METADATA_NAMES
        is_here = host == "localhost" or host.endswith(".localhost")
    else:
        is_metadata = address in _METADATA_ADDRESSES or address.is_link_local
        is_here = address.is_loopback or address.is_unspecified
    why = (
        f"{host} is where machines tell their credentials: use another one" if is_metadata else None
    )
    if is_here and settings.APP_ENV != "local":
        why = f"{host} is this machine, where APP_ENV=local alone lets models be: use another one"
    return why, is_here
