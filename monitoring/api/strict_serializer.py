"""The serializer of request bodies."""

import copy
from functools import cache, cached_property
from typing import Any

from rest_framework import serializers

# Of a list or object in a field, unless the field itself takes fewer.
_MAX_MEMBERS = 10_000
_MAX_NAMED = 10
_MAX_NAME_CHARS = 100
_MAX_FAILURES = 50
# Of what JSON has; from the others a field of DRF would make one of its own.
_JSON_TYPES: dict[type[serializers.Field[Any, Any, Any, Any]], tuple[type, ...]] = {
    serializers.BooleanField: (bool,),
    serializers.CharField: (str,),
    serializers.FloatField: (int, float),
    serializers.IntegerField: (int, float),
}


@cache
def _json_types(field_type: type) -> tuple[type, ...]:
    """What JSON has for such a field; nothing where it refuses by itself what is not its own."""
    return next((types for kind, types in _JSON_TYPES.items() if issubclass(field_type, kind)), ())


def _refusal(field: Any, value: Any) -> Any:
    """What is wrong with JSON of another type than the field's; None where nothing is."""
    if types := _json_types(field.__class__):
        if value is None or (
            isinstance(value, types) and isinstance(value, bool) == (bool in types)
        ):
            return None
        return [field.error_messages["invalid"]]
    children: Any = ()
    if isinstance(value, list) and isinstance(field, serializers.ListField):
        children = enumerate(value)
    elif isinstance(value, dict) and isinstance(field, serializers.DictField):
        children = value.items()
    found = {name: wrong for name, each in children if (wrong := _refusal(field.child, each))}
    return found or None


class _StrictList(serializers.ListSerializer[Any]):
    """Stops soon after the first members that are not valid: each takes longer than a valid one."""

    def to_internal_value(self, data: Any) -> Any:
        if not isinstance(data, list) or not data:
            return super().to_internal_value(data)
        valid: list[Any] = []
        for start in range(0, len(data), _MAX_FAILURES):
            try:
                valid += super().to_internal_value(data[start : start + _MAX_FAILURES])
            except serializers.ValidationError as error:
                details: Any = error.detail
                shifted = {str(start + int(index)): each for index, each in details.items()}
                raise serializers.ValidationError(shifted) from error
        return valid


class StrictSerializer(serializers.Serializer[Any]):
    """Refuses fields it does not know, since a typo must never be ignored, and too many members.

    Also JSON of another type than a field's, such as "5" for 5. All of that before it validates
    members one by one, which takes far longer than to parse them.
    """

    # Whether a null is as if the field was left out.
    null_means_default = False

    class Meta:
        list_serializer_class = _StrictList

    def to_internal_value(self, data: Any) -> Any:
        if isinstance(data, dict):
            if self.null_means_default:
                data = {name: value for name, value in data.items() if value is not None}
            unknown = [str(name)[:_MAX_NAME_CHARS] for name in data if name not in self.fields]
            if unknown:
                message = "Unknown field: check its spelling, or leave it out."
                details = {name: [message] for name in unknown[:_MAX_NAMED]}
                if (num_more := len(unknown) - _MAX_NAMED) > 0:
                    details["non_field_errors"] = [f"{num_more} more fields are unknown."]
                raise serializers.ValidationError(details)
            for name, value in data.items():
                if isinstance(value, dict | list) and len(value) > _MAX_MEMBERS:
                    message = f"{len(value)} members are too many: send up to {_MAX_MEMBERS}."
                    raise serializers.ValidationError({name: [message]})
            fields = self.fields
            wrong = {name: _refusal(fields[name], value) for name, value in data.items()}
            if details := {name: text for name, text in wrong.items() if text}:
                raise serializers.ValidationError(details)
        if type(data) is not dict:  # of a form, what it leaves out may have a value
            return super().to_internal_value(data)
        # What a body leaves out, and has no default, would take DRF as long as what it has.
        among = copy.copy(self)
        vars(among)["fields"] = {
            name: self.fields[name]
            for name in self.fields.keys()  # noqa: SIM118 (the stubs)
            if name in data or name in self._looked_at_always
        }
        return super(StrictSerializer, among).to_internal_value(data)

    @cached_property
    def _looked_at_always(self) -> frozenset[str]:
        """The fields that have a value, or an error, where a body leaves them out."""
        return frozenset(
            name
            for name, field in self.fields.items()
            if field.required or field.default is not serializers.empty
        )
