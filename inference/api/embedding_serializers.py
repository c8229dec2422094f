"""What the routes of embeddings take and give: one serializer a shape."""

import unicodedata
from functools import cache
from typing import Any

from django.conf import settings
from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers

from monitoring.api.strict_serializer import StrictSerializer

MAX_TEXTS = 2048
# Longer than any model's context window.
MAX_TEXT_CHARS = 100_000
# Control and format characters, white space, and letters and symbols without ink.
_INVISIBLE_CATEGORIES = {"Cc", "Cf", "Zl", "Zp", "Zs"}
_FILLERS = "\u115f\u1160\u2800\u3164\uffa0"


@extend_schema_field(
    {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": MAX_TEXTS}
)
class TextsField(serializers.Field[list[str], Any, list[str], Any]):
    """Many texts, checked without a field object for each."""

    def to_internal_value(self, data: Any) -> list[str]:
        if not isinstance(data, list) or not data:
            raise serializers.ValidationError(f"Give a list of 1 to {MAX_TEXTS} texts.")
        if len(data) > MAX_TEXTS:
            message = f"{len(data)} texts are too many: send up to {MAX_TEXTS} at a time."
            raise serializers.ValidationError(message)
        for index, text in enumerate(data):
            if problem := _problem(text):
                raise serializers.ValidationError({str(index): [problem]})
        return data


@extend_schema_field({"type": "string"})
class TextField(serializers.Field[str, Any, str, Any]):
    """One text."""

    def to_internal_value(self, data: Any) -> str:
        if problem := _problem(data):
            raise serializers.ValidationError(problem)
        return str(data)


class EmbeddingRequestSerializer(StrictSerializer):
    texts = TextsField()
    model_name = serializers.CharField(
        required=False, max_length=100, help_text="By default the service's own."
    )
    normalize = serializers.BooleanField(default=True, help_text="To vectors of length 1.")
    prompt_name = serializers.CharField(
        required=False,
        allow_null=True,
        max_length=100,
        help_text="One of the model's prompts, put before each text, such as `query`.",
    )

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        return {"model_name": settings.DEFAULT_EMBEDDING_MODEL, "prompt_name": None, **attrs}


class SimilarityRequestSerializer(StrictSerializer):
    """Either two texts, or a query and texts to compare it with."""

    text1 = TextField(required=False)
    text2 = TextField(required=False)
    query = TextField(required=False)
    texts = TextsField(required=False)
    model_name = serializers.CharField(
        required=False, max_length=100, help_text="By default the service's own."
    )

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        given = attrs.keys() - {"model_name"}
        if given not in ({"text1", "text2"}, {"query", "texts"}):
            message = "Give text1 and text2, or query and texts."
            raise serializers.ValidationError(message)
        return {"model_name": settings.DEFAULT_EMBEDDING_MODEL, **attrs}


class EmbeddingUsageSerializer(serializers.Serializer[Any]):
    prompt_tokens = serializers.IntegerField()
    total_tokens = serializers.IntegerField()


class EmbeddingsSerializer(serializers.Serializer[Any]):
    embeddings = serializers.ListField(child=serializers.ListField(child=serializers.FloatField()))
    dimensions = serializers.IntegerField()
    model = serializers.CharField()
    usage = EmbeddingUsageSerializer()
    truncated = serializers.ListField(
        child=serializers.IntegerField(), help_text="Texts that were cut to the model's window."
    )


class SimilaritySerializer(serializers.Serializer[Any]):
    """`similarity` of two texts, `similarities` of a query and each text, from -1 to 1."""

    similarity = serializers.FloatField(required=False)
    similarities = serializers.ListField(child=serializers.FloatField(), required=False)
    model = serializers.CharField()
    usage = EmbeddingUsageSerializer()
    truncated = serializers.ListField(child=serializers.IntegerField())


@cache
def request_validator() -> EmbeddingRequestSerializer:
    """Made once: its fields take longer to make than a request takes to check."""
    return EmbeddingRequestSerializer()


def _problem(text: Any) -> str | None:
    """What is wrong with a text, and how to mend it."""
    if not isinstance(text, str):
        return "Give a text, as a JSON string."
    if all(c in _FILLERS or unicodedata.category(c) in _INVISIBLE_CATEGORIES for c in text):
        return "It is empty, or blank, and so has no meaning to compare: leave it out."
    if len(text) > MAX_TEXT_CHARS:
        return f"It is longer than {MAX_TEXT_CHARS} characters: split it."
    try:
        text.encode()
    except UnicodeEncodeError:
        return "It has half of a surrogate pair, which is no character: leave that out."
    return None
