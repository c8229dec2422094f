"""Tools, reasoning and probabilities with a real model: SmolLM2, whose template knows no tools."""

import json
import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from conversations.models import Conversation
from inference.api.submission import build_task
from inference.api.task_serializers import submission_validator
from inference.engine.chat_template import ChatTemplate
from inference.execution import gpu_session
from inference.lifecycle import submit
from inference.loading.loaded_engines import loaded_engines
from inference.models import GenerationTask, RegisteredModel
from monitoring.redis.client import client
from monitoring.streams.delta_stream import parse, stream_key
from tests.inference.lifecycle.test_lifecycle import fresh
from tests.inference.providers.test_local import _unload, smol

__all__ = ["_unload", "smol"]

NewTask = Callable[..., GenerationTask]
CITY: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"enum": ["Bonn", "Rome"]}},
    "required": ["city"],
    "additionalProperties": False,
}
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": CITY}}
MAP = {"type": "function", "function": {"name": "map", "parameters": CITY}}
ASKED: dict[str, Any] = {
    "model": "smol",
    "prompt": "How is the weather in Bonn?",
    "temperature": 0,
    "max_tokens": 96,
    "tools": [WEATHER, MAP],
}

pytestmark = pytest.mark.django_db(transaction=True)


def run(task: GenerationTask) -> dict[str, Any]:
    gpu_session.run(task.pk)
    done = fresh(task)
    assert done.status == "completed", done.error
    assert done.result is not None
    result: dict[str, Any] = done.result
    return result


def called(result: dict[str, Any]) -> list[tuple[str, Any]]:
    assert result["finish_reason"] == "tool_calls"
    calls = [each["function"] for each in result["tool_calls"]]
    return [(each["name"], json.loads(each["arguments"])) for each in calls]


@pytest.fixture
def template(smol: RegisteredModel) -> Iterator[Callable[[str], None]]:
    """Gives the loaded model another chat template."""

    def use(source: str) -> None:
        loaded_engines.unload("smol")  # that of another test's row would be unloaded by the session
        runner = loaded_engines.load(smol).runner
        monkey.setattr(runner, "chat_template", ChatTemplate(source))

    with pytest.MonkeyPatch.context() as monkey:
        yield use


def test_required_call_fits_the_schema_of_a_tool(new_task: NewTask, smol: RegisteredModel) -> None:
    result = run(new_task(**ASKED, tool_choice="required", parallel_tool_calls=False))
    [(name, arguments)] = called(result)
    assert name in ("weather", "map")
    assert arguments["city"] in ("Bonn", "Rome")
    assert result["text"] == ""
    assert result["tool_calls"][0]["id"].startswith("call_")


def test_named_tool_is_the_one_that_is_called(new_task: NewTask, smol: RegisteredModel) -> None:
    named = {"type": "function", "function": {"name": "map"}}
    result = run(new_task(**ASKED, tool_choice=named, parallel_tool_calls=False))
    assert [name for name, _ in called(result)] == ["map"]


@pytest.mark.parametrize(
    "source",
    [
        "{% for m in messages %}{{ m.content }}{% endfor %}{{ tools }}<tool_call>",
        "{% for m in messages %}{{ m.content }}{% endfor %}{{ tools }}[TOOL_CALLS]",
        "{% for m in messages %}{{ m.content }}{% endfor %}{{ tools }}<|python_tag|>",
        "{% for m in messages %}{{ m.content }}{% endfor %}<think>{# </think> #}",
    ],
)
def test_forced_calls_of_each_family(
    new_task: NewTask, template: Callable[[str], None], source: str
) -> None:
    template(source)
    result = run(new_task(**ASKED, tool_choice="required", parallel_tool_calls=False))
    assert {name for name, _ in called(result)} <= {"weather", "map"}
    assert result["text"] == ""
    assert "reasoning_content" not in result
    assert "reasoning_tokens" not in result["usage"]


def test_no_tool_is_called_unless_it_may_be(new_task: NewTask, smol: RegisteredModel) -> None:
    result = run(new_task(**ASKED | {"max_tokens": 8}, tool_choice="none"))
    plain = run(new_task(**{**ASKED, "max_tokens": 8, "tools": None}))
    assert (result["text"], "tool_calls" in result) == (plain["text"], False)


def test_calls_are_streamed_as_they_are_stored(new_task: NewTask, smol: RegisteredModel) -> None:
    task = new_task(**ASKED, tool_choice="required", parallel_tool_calls=False)
    [call] = run(task)["tool_calls"]
    deltas = [parse(*each) for each in client().xrange(stream_key(task.pk))]
    parts = [delta.tool_call for delta in deltas if delta.tool_call is not None]
    assert len(parts) == len(deltas)
    assert {name: parts[0][name] for name in ("index", "id", "type")} == {
        "index": 0,
        "id": call["id"],
        "type": "function",
    }
    assert "".join(part["function"]["arguments"] for part in parts) == call["function"]["arguments"]
    assert deltas[-1].num_chars == 1 + len(call["function"]["arguments"])


def test_strict_call_of_an_auto_choice_is_constrained(
    new_task: NewTask, template: Callable[[str], None]
) -> None:
    template("{{ messages[0].content }}<tool_call>\n")  # as if the model had begun a call
    function: dict[str, Any] = WEATHER["function"]  # type: ignore[assignment]
    strict = {"type": "function", "function": function | {"strict": True}}
    prompt = (
        'Write <tool_call>{"name": "weather", "arguments": {"city": "Paris"}}</tool_call> now: '
    )
    task = new_task(**ASKED | {"tools": [strict], "prompt": prompt, "max_tokens": 64})
    gpu_session.run(task.pk)
    result = fresh(task).result
    assert result is not None
    for call in result.get("tool_calls", []):
        assert json.loads(call["function"]["arguments"])["city"] in ("Bonn", "Rome")


def test_reasoning_is_apart_from_the_text(
    new_task: NewTask, template: Callable[[str], None]
) -> None:
    template("{{ messages[0].content }}<think>\n{# </think> #}")
    prompt = "<think>\nOne.\n</think>\nTwo.\n" * 4
    conversation = Conversation.objects.create(owner="local")
    fields = {"model": "smol", "temperature": 0, "max_tokens": 24, "stop": ["<think>"]}
    task = new_task(**fields, prompt=prompt, conversation_id=conversation.pk)
    result = run(task)
    assert (result["reasoning_content"], result["text"].strip()) == ("One.", "Two.")
    usage = result["usage"]
    assert 0 < usage["reasoning_tokens"] < usage["completion_tokens"]
    deltas = [parse(*each) for each in client().xrange(stream_key(task.pk))]
    assert "".join(delta.reasoning for delta in deltas) == "One."
    assert [each.content for each in conversation.messages.all()] == [prompt, result["text"]]


def test_reasoning_ends_before_an_answer_that_is_constrained(
    new_task: NewTask, template: Callable[[str], None]
) -> None:
    template("{{ messages[0].content }}<think>\n{# </think> #}")
    choice = {"type": "choice", "choices": ["yes", "no"]}
    result = run(new_task(model="smol", prompt="Is it?", response_format=choice))
    assert result["parsed"] in ("yes", "no")
    assert "reasoning_content" not in result


def test_results_of_tools_are_read(new_task: NewTask, smol: RegisteredModel) -> None:
    conversation = Conversation.objects.create(owner="local")
    fields = {"conversation_id": conversation.pk, "parallel_tool_calls": False}
    [call] = run(new_task(**ASKED, **fields, tool_choice="required"))["tool_calls"]
    conversation.append({"role": "tool", "content": "Snow, 3 °C.", "tool_call_id": call["id"]})
    body = {"model": "smol", "conversation_id": conversation.pk, "max_tokens": 8}
    data = submission_validator().run_validation(body)
    [task] = submit.submit([build_task("local", data, None)])
    assert [each["role"] for each in task.messages()] == ["user", "assistant", "tool"]
    assert run(task)["text"]
    assert [each.role for each in conversation.messages.order_by("id")][2:] == ["tool", "assistant"]


def test_probabilities_are_the_models_own(new_task: NewTask, smol: RegisteredModel) -> None:
    fields = {"model": "smol", "prompt": "Count: one, two,", "temperature": 0, "max_tokens": 5}
    task = new_task(**fields, logprobs=True, top_logprobs=4)
    result = run(task)
    tokens = result["logprobs"]["content"]
    assert len(tokens) == result["usage"]["completion_tokens"]
    assert b"".join(bytes(each["bytes"]) for each in tokens).decode() == result["text"]
    for each in tokens:
        top = each["top_logprobs"]
        assert (len(top), top[0]["token"], top[0]["logprob"]) == (4, each["token"], each["logprob"])
        assert [other["logprob"] for other in top] == sorted(
            (other["logprob"] for other in top), reverse=True
        )
        assert 0 < sum(math.exp(other["logprob"]) for other in top) <= 1.0001
    deltas = [parse(*each) for each in client().xrange(stream_key(task.pk))]
    assert [each for delta in deltas for each in delta.logprobs] == tokens
    plain = run(new_task(**fields))
    assert (plain["text"], "logprobs" in plain) == (result["text"], False)


def test_bias_decides_between_tokens(new_task: NewTask, smol: RegisteredModel) -> None:
    token = loaded_engines.load(smol).runner.tokenize("x y")[-1]
    fields = {"model": "smol", "prompt": "Hi", "max_tokens": 4, "temperature": 0}
    biased = run(new_task(**fields, logit_bias={str(token): 100}))
    assert biased["text"] == " y y y y"
    free = run(new_task(**fields, logprobs=True))
    first = free["logprobs"]["content"][0]["token"]
    unwanted = loaded_engines.load(smol).runner.tokenize("x" + first)[-1]
    other = run(new_task(**fields, logit_bias={str(unwanted): -100}))
    assert not other["text"].startswith(first)


def test_bias_of_no_token_fails_the_task(new_task: NewTask, smol: RegisteredModel) -> None:
    task = new_task(model="smol", logit_bias={"99999999": 1})
    gpu_session.run(task.pk)
    done = fresh(task)
    assert (done.status, done.error_code) == ("failed", "invalid_request")
    assert "logit_bias" in (done.error or "")
