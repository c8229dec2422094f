"""Kind of provider → class, imported when first asked for."""

from functools import cache
from importlib import import_module

from inference.models import RegisteredModel
from inference.providers.base import Provider

_CLASSES = {
    RegisteredModel.Provider.LOCAL: "inference.providers.local.LocalProvider",
    RegisteredModel.Provider.ECHO: "inference.providers.echo.EchoProvider",
    RegisteredModel.Provider.OPENAI: "inference.providers.cloud.provider.OpenAIProvider",
    RegisteredModel.Provider.ANTHROPIC: "inference.providers.cloud.provider.AnthropicProvider",
    RegisteredModel.Provider.OPENAI_COMPATIBLE: (
        "inference.providers.cloud.provider.OpenAICompatibleProvider"
    ),
    RegisteredModel.Provider.LITELLM: "inference.providers.cloud.provider.LiteLLMProvider",
    RegisteredModel.Provider.EMBEDDING: "inference.providers.embedding.EmbeddingProvider",
}


@cache
def provider_class(kind: str) -> type[Provider]:
    """The class behind a kind, such as `local`."""
    module, _, name = _CLASSES[RegisteredModel.Provider(kind)].rpartition(".")
    found: type[Provider] = getattr(import_module(module), name)
    return found


def provider_for(model: RegisteredModel) -> Provider:
    """The provider that answers for a registered model."""
    return provider_class(model.provider)(model)
