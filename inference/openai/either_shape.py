"""The description of answers that have OpenAI's or Anthropic's shape, as their client has."""

from typing import Any

from drf_spectacular.utils import PolymorphicProxySerializer


def either_shape(name: str, openai: type, anthropic: type) -> Any:
    """One of two TypedDicts, as a component of this name."""
    either: Any = PolymorphicProxySerializer  # its annotations know serializers alone
    return either(name, [openai, anthropic], resource_type_field_name=None, many=False)
