"""POST /v1/completions, up to the queue and back."""

import json
from typing import Any

import pytest
from rest_framework.test import APIClient

from inference.models import GenerationTask, RegisteredModel
from tests.conftest import Valkey
from tests.inference.openai.worker import ask, completing

pytestmark = pytest.mark.django_db(transaction=True)

COMPLETIONS = "/v1/completions"
BODY = {"model": "echo", "prompt": "Once upon"}


@pytest.fixture(autouse=True)
def _model(valkey: Valkey, echo: RegisteredModel) -> None:
    """Every test has a broker and the model."""


def test_answer_has_the_shape_of_openai() -> None:
    response = ask(COMPLETIONS, BODY, completing(" a time", "length"))
    task = GenerationTask.objects.get()
    assert response.headers["X-Task-Id"] == task.pk
    assert response.json() == {
        "id": f"cmpl-{task.pk.removeprefix('task_')}",
        "object": "text_completion",
        "created": int(task.created_at.timestamp()),
        "model": "echo",
        "choices": [{"index": 0, "text": " a time", "logprobs": None, "finish_reason": "length"}],
        "usage": {
            "prompt_tokens": 3,
            "completion_tokens": 2,
            "total_tokens": 5,
            "prompt_tokens_details": {"cached_tokens": 0},
            "completion_tokens_details": {
                "reasoning_tokens": 0,
                "accepted_prediction_tokens": 0,
                "rejected_prediction_tokens": 0,
            },
        },
        "system_fingerprint": None,
    }
    assert task.request["is_raw"] is True


def test_choices_of_each_prompt_follow_one_another() -> None:
    body = BODY | {"prompt": ["a", "b"], "n": 2, "seed": 4}
    response = ask(COMPLETIONS, body, *map(completing, ("a1", "a2", "b1", "b2")))
    choices = response.json()["choices"]
    assert [(each["index"], each["text"]) for each in choices] == [
        *((0, "a1"), (1, "a2"), (2, "b1"), (3, "b2"))
    ]
    assert response.json()["usage"]["prompt_tokens"] == 6
    assert response.json()["usage"]["completion_tokens"] == 8
    tasks = GenerationTask.objects.order_by("created_at")
    assert [task.request["params"]["seed"] for task in tasks] == [4, 5, 4, 5]


def test_stream_has_the_shape_of_openai() -> None:
    response = ask(COMPLETIONS, BODY | {"stream": True}, completing(" a time"))
    *events, done = response.text.strip().split("\n\n")
    chunks = [json.loads(event.removeprefix("data: ")) for event in events]
    assert [chunk["choices"] for chunk in chunks] == [
        [{"index": 0, "text": text, "logprobs": None, "finish_reason": reason}]
        for text, reason in ((" a", None), (" time", None), ("", "stop"))
    ]
    assert {chunk["object"] for chunk in chunks} == {"text_completion"}
    assert done == "data: [DONE]"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": [1, 2]}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"echo": True}, "echo"),
        ({"suffix": "end"}, "suffix"),
        ({"best_of": 2}, "best_of"),
        ({"messages": []}, "messages"),
    ],
)
def test_refusal_names_the_parameter(api: APIClient, fields: dict[str, Any], param: str) -> None:
    response = api.post(COMPLETIONS, BODY | fields, format="json")
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)
    assert not GenerationTask.objects.exists()


def test_what_asks_for_nothing_special_is_taken() -> None:
    body = BODY | {"echo": False, "suffix": "", "best_of": 1, "logit_bias": None}
    assert ask(COMPLETIONS, body, completing()).status_code == 200
