"""Request bodies, and what DRF itself would make of them."""

from collections.abc import Callable
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from rest_framework import serializers

from inference.api.task_serializers import TaskSubmissionSerializer, submission_validator

# Each has a value of its own kind, and one that is not valid.
BODIES = st.fixed_dictionaries(
    {},
    optional={
        "model": st.sampled_from(["echo", "", "x" * 101]),
        "prompt": st.sampled_from(["Hello", " "]),
        "messages": st.sampled_from([[{"role": "user", "content": "Hello"}], [], [{}]]),
        "stream": st.booleans(),
        "priority": st.sampled_from([0, 50, -1]),
        "temperature": st.sampled_from([0, 1.5, -1]),
        "max_tokens": st.sampled_from([8, 0]),
        "stop": st.sampled_from([["end"], [""]]),
        "context_overflow": st.sampled_from(["error", "other"]),
        "generation_params": st.sampled_from([{}, {"max_tokens": 1}, {"max_tokens": 0}]),
        "provider_config": st.sampled_from([{"model_name": "echo"}, {}]),
        "metadata": st.sampled_from([{"a": "b"}]),
    },
)


def outcome(validate: Callable[[Any], Any], body: dict[str, Any]) -> tuple[str, Any]:
    try:
        return "valid", list(validate(body).items())
    except serializers.ValidationError as error:
        return "refused", error.detail


@given(BODIES)
def test_fields_that_a_body_leaves_out_are_as_if_each_was_validated(body: dict[str, Any]) -> None:
    def by_drf(data: dict[str, Any]) -> Any:
        return serializers.Serializer.to_internal_value(TaskSubmissionSerializer(), data)

    assert outcome(submission_validator().to_internal_value, body) == outcome(by_drf, body)


def test_required_field_that_is_left_out_is_refused() -> None:
    kind, details = outcome(submission_validator().to_internal_value, {"provider_config": {}})
    assert kind == "refused"
    assert details["provider_config"]["model_name"][0].code == "required"
