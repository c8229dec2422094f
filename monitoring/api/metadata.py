"""Metadata that clients attach to their rows."""

from typing import Any

from rest_framework import serializers
from rest_framework.exceptions import ValidationError

from monitoring.api import storable_json

MAX_METADATA_BYTES = 16 * 1024
MAX_METADATA_DEPTH = 64


class MetadataField(serializers.DictField):
    """A JSON object of any shape, up to 16 KiB."""

    def run_validation(self, data: Any = serializers.empty) -> Any:
        metadata = super().run_validation(data)
        if metadata in (None, serializers.empty):
            return metadata
        if _is_deeper_than(MAX_METADATA_DEPTH, metadata):
            raise ValidationError([f"It is nested more than {MAX_METADATA_DEPTH} levels deep."])
        try:
            encoded = storable_json.encode(metadata)
        except ValueError as error:
            raise ValidationError([f"It cannot be written as JSON in UTF-8: {error}."]) from error
        if storable_json.has_nul(encoded):
            raise ValidationError(["It must not contain NUL characters."])
        if len(encoded) > MAX_METADATA_BYTES:
            message = f"It is larger than {MAX_METADATA_BYTES} bytes: store a reference instead."
            raise ValidationError([message])
        return metadata


def _is_deeper_than(num_levels: int, value: Any) -> bool:
    if not isinstance(value, dict | list):
        return False
    children = value.values() if isinstance(value, dict) else value
    return num_levels == 0 or any(_is_deeper_than(num_levels - 1, child) for child in children)
