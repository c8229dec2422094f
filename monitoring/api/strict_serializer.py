"""The serializer of request bodies."""

from typing import Any

from rest_framework import serializers


class StrictSerializer(serializers.Serializer[Any]):
    """Refuses fields it does not know: a typo must never be ignored."""

    def to_internal_value(self, data: Any) -> Any:
        if isinstance(data, dict):
            unknown = [name for name in data if name not in self.fields]
            if unknown:
                message = "Unknown field: check its spelling, or leave it out."
                raise serializers.ValidationError({str(name): [message] for name in unknown})
        return super().to_internal_value(data)
