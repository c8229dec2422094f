"""Tasks over HTTP: submit, list, read, cancel, delete, report, batch."""

import base64
import json
import re
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from pytest_django import Settings
from rest_framework.test import APIClient

from conversations.models import Conversation
from inference.lifecycle import claim, finish
from inference.lifecycle import submit as submission
from inference.models import GenerationTask, RegisteredModel, TaskResult, Usage
from monitoring.logs import service_log
from monitoring.redis.client import client
from monitoring.streams import delta_stream
from tests.conftest import wait_until_enqueued

TASKS = "/api/v1/tasks"
BODY_FIELDS = {
    *("task_id", "status", "model", "priority", "created_at", "updated_at", "started_at"),
    *("finished_at", "result", "error", "error_code", "attempt", "queue_position"),
    *("conversation_id", "webhook_url", "idempotency_key", "metadata", "trace_id"),
    *("estimated_start_at", "estimated_finish_at", "eta_seconds"),
    *("requeued_from", "requeued_as", "gpu_seconds", "energy_joules", "cost_usd"),
}
NO_TASK = f"{TASKS}/task_{32 * '0'}"
MANY_DIGITS = int("1" + 400 * "0")

NewTask = Callable[..., GenerationTask]

pytestmark = pytest.mark.usefixtures("echo")


def submit(api: APIClient, **fields: Any) -> Any:
    return api.post(TASKS, {"model": "echo", "prompt": "hello"} | fields, format="json")


def post_json(api: APIClient, body: str) -> Any:
    return api.post(TASKS, body, content_type="application/json")


def assert_error(response: Any, status: int, code: str, field: str | None = None) -> None:
    """The one shape of all errors; `field` is where `details` puts the blame."""
    body = response.json()
    assert (response.status_code, body["error"]) == (status, code), body
    assert set(body) == {"error", "message", "details", "trace_id"}
    assert isinstance(body["message"], str)
    assert len(body["message"]) > 10
    if field is not None:
        details = body["details"]
        for name in field.split("."):
            details = details[int(name) if isinstance(details, list) else name]
        assert details
        assert field.rpartition(".")[2] in body["message"]


def end(task: GenerationTask, text: str = "done") -> GenerationTask:
    """Answer the task as a worker does."""
    lease = claim.claim(task.pk)
    assert lease is not None
    usage = Usage(prompt_tokens=3, completion_tokens=1, total_tokens=4, cached_tokens=0)
    result = TaskResult(
        text=text, finish_reason="stop", usage=usage, model="echo", parsed=None, extra={}
    )
    timings = finish.Timings(None, 1.0, 2.0)
    assert finish.complete(lease, result, timings)
    task.refresh_from_db()
    return task


# Submission


def test_submission_answers_with_the_whole_task(api: APIClient) -> None:
    response = submit(api)
    body = response.json()
    assert response.status_code == 201
    assert set(body) == BODY_FIELDS
    assert re.fullmatch(r"task_[0-9a-f]{32}", body["task_id"])
    assert (body["status"], body["model"], body["priority"]) == ("pending", "echo", 1.0)
    assert (body["attempt"], body["queue_position"], body["metadata"]) == (0, 0, {})
    nulls = BODY_FIELDS - {"task_id", "status", "model", "priority", "created_at", "updated_at"}
    for field in nulls - {"attempt", "queue_position", "metadata"}:
        assert body[field] is None, field
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT[0-9:.]+Z", body["created_at"])
    assert api.get(f"{TASKS}/{body['task_id']}").json() == body


def test_parameters_as_used_show_the_defaults(api: APIClient) -> None:
    task = GenerationTask.objects.get(pk=submit(api).json()["task_id"])
    assert task.request == {
        "prompt": "hello",
        "messages": None,
        "save_to_conversation": True,
        "stream": False,
        "params": {"max_tokens": 512, "stop_sequences": []},
        "response_format": None,
        "extra_params": {},
        "models": [],
        "timeout_seconds": 600.0,
        "deadline_seconds": None,
        "context_overflow": "truncate",
        "webhook_url": None,
    }
    assert task.owner == "local"
    assert task.queue == "api"


def test_every_route_answers_with_and_without_a_trailing_slash(api: APIClient) -> None:
    task_id = submit(api).json()["task_id"]
    for path in (TASKS, f"{TASKS}/{task_id}", f"{TASKS}/{task_id}/report"):
        assert api.get(path).json() == api.get(f"{path}/").json()
    assert api.post(f"{TASKS}/", {"model": "echo", "prompt": "a"}, format="json").status_code == 201
    assert api.post(f"{TASKS}/{task_id}/cancel/").status_code == 200
    assert api.delete(f"{TASKS}/{task_id}/").status_code == 204


def test_metadata_comes_back_untouched(api: APIClient) -> None:
    metadata = {"Unknown field": [1, {"nested": None}], "umlaut": "ü", "": False}
    body = submit(api, metadata=metadata).json()
    assert api.get(f"{TASKS}/{body['task_id']}").json()["metadata"] == metadata


IN_VAIN: list[tuple[dict[str, Any], str]] = [
    ({"webhook_url": "https://10.0.0.1/hook"}, "webhook_url"),
    ({"fallback_models": ["echo"]}, "fallback_models"),
    ({"extra_params": {"mirostat": 1}}, "extra_params"),
]
OUT_OF_BOUNDS: list[tuple[str, Any]] = [
    *(("temperature", value) for value in (-0.1, 2.1, "hot", [1], MANY_DIGITS, "nan", "inf")),
    *(("top_p", value) for value in (-0.1, 1.1, "nan")),
    *(("top_k", value) for value in (-1, 1.5, 1_000_001, "x", MANY_DIGITS)),
    *(("min_p", value) for value in (-0.1, 1.1, "nan")),
    *(("frequency_penalty", value) for value in (-2.1, 2.1, "nan")),
    *(("presence_penalty", value) for value in (-2.1, 2.1, "nan")),
    *(("repeat_penalty", value) for value in (0, -1, 101, "nan")),
    *(("seed", value) for value in (-1, 0.5, 2**32, "x")),
    *(("max_tokens", value) for value in (0, -1, 128_001, 1.5)),
    *(("stop_sequences", value) for value in ("text", [""], [1, {}], 17 * ["x"], [1001 * "x"])),
]
BAD_FIELDS: list[tuple[str, Any]] = [
    *OUT_OF_BOUNDS,
    ("stop", 17 * ["x"]),
    ("stop", "text"),
    ("priority", -0.1),
    ("priority", 100.1),
    ("priority", None),
    ("priority", "nan"),
    ("priority", MANY_DIGITS),
    ("timeout_seconds", 0.5),
    ("timeout_seconds", 86_401),
    ("timeout_seconds", "nan"),
    ("deadline_seconds", 0),
    ("deadline_seconds", -1),
    ("deadline_seconds", "nan"),
    ("context_overflow", "ignore"),
    ("idempotency_key", 300 * "k"),
    ("metadata", []),
    ("metadata", {"blob": 16_400 * "x"}),
    ("save_to_conversation", "perhaps"),
    ("stream", 7),
    ("stream", "true"),
    ("temperature", "0.5"),
    ("temperature", True),
    ("max_tokens", "5"),
    ("prompt", 5),
    ("stop", ["x", 5]),
    ("fallback_models", [5]),
    ("generation_params", {"seed": "1"}),
    ("model", 300 * "m"),
    ("model", "no-such-model"),
    ("model", {}),
    ("model", ""),
    ("prompt", ""),
    ("prompt", None),
    ("prompt", ["hello"]),
    ("prompt", "a\x00b"),
    ("conversation_id", "conv_" + 32 * "0"),
    ("conversation_id", 100 * "c"),
    ("grammar", 'root ::= "a"'),
    ("messages", "hello"),
    ("messages", []),
    ("messages", None),
    ("generation_params", []),
    ("provider_config", {}),
    ("provider_config", "echo"),
    ("temprature", 1),
]


@pytest.mark.parametrize(("field", "value"), BAD_FIELDS, ids=lambda v: str(v)[:20])
def test_bad_field_is_refused_by_its_name(api: APIClient, field: str, value: object) -> None:
    assert_error(submit(api, **{field: value}), 400, "validation_error", field)
    assert not GenerationTask.objects.exists()


@pytest.mark.parametrize(
    ("text", "field"),
    [
        (r'"metadata": {"infinite": 1e400}', "metadata"),
        (r'"metadata": {"half a pair": "\ud800"}', "metadata"),
        (r'"metadata": {"nul": "\u0000"}', "metadata"),
        (r'"idempotency_key": "a\ud800b"', "idempotency_key"),
        (r'"stop": ["\ud800"]', "stop"),
    ],
)
def test_what_json_can_say_and_utf8_cannot_is_refused(
    api: APIClient, text: str, field: str
) -> None:
    response = post_json(api, f'{{"model": "echo", "prompt": "a", {text}}}')
    assert_error(response, 400, "validation_error", field)


def test_unknown_field_with_an_impossible_name_is_refused(api: APIClient) -> None:
    response = post_json(api, r'{"model": "echo", "prompt": "a", "\ud800": 1}')
    assert_error(response, 400, "validation_error")


@pytest.mark.parametrize(("fields", "blamed"), IN_VAIN)
def test_field_that_could_do_nothing_is_refused(
    api: APIClient, fields: dict[str, object], blamed: str
) -> None:
    assert_error(submit(api, **fields), 400, "validation_error", blamed)


def test_empty_values_ask_for_nothing(api: APIClient) -> None:
    fields: dict[str, Any] = {"webhook_url": None, "fallback_models": [], "extra_params": {}}
    assert submit(api, **fields).status_code == 201


@pytest.fixture
def local(db: None) -> RegisteredModel:
    config = {"model_path": "model.gguf"}
    return RegisteredModel.objects.create(name="local", provider="local", config=config)


@pytest.mark.usefixtures("local")
def test_structured_output_is_kept_for_the_worker(api: APIClient) -> None:
    schema = {"type": "object", "properties": {"b": {"type": "null"}, "a": {"type": "null"}}}
    kept = {"type": "json_schema", "name": "answer", "schema": json.dumps(schema)}
    described = {"type": "json_schema", "json_schema": {"schema": schema}}
    choice = {"type": "choice", "choices": ["yes", "no"]}
    submissions: list[tuple[dict[str, Any], object]] = [
        ({"response_format": described}, kept),
        ({"output_schema": schema}, kept),
        ({"response_format": {"type": "json_object"}}, {"type": "json_object"}),
        ({"response_format": choice}, choice),
        ({"response_format": {"type": "text"}, "output_schema": schema}, None),
        ({"response_format": None, "output_schema": None}, None),
    ]
    for fields, expected in submissions:
        task_id = submit(api, model="local", **fields).json()["task_id"]
        assert GenerationTask.objects.get(pk=task_id).request["response_format"] == expected


@pytest.mark.usefixtures("local")
@pytest.mark.parametrize(
    ("fields", "blamed"),
    [
        ({"response_format": {"type": "xml"}}, "response_format"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        ({"output_schema": {"requird": ["a"]}}, "output_schema"),
        ({"output_schema": {"minimum": 10**400}}, "output_schema"),
        ({"response_format": {"type": "regex", "regex": "("}}, "response_format"),
        ({"output_schema": {"$ref": "https://example.com"}}, "output_schema"),
        ({"grammar": 'root ::= "a'}, "grammar"),
        ({"grammar": 'root ::= "a" root'}, "grammar"),
        ({"grammar": 'root ::= "\\U00110000"'}, "grammar"),
        ({"output_schema": {}, "grammar": 'root ::= "a"'}, "output_schema"),
        (
            {"response_format": {"type": "json_object"}, "grammar": 'root ::= "a"'},
            "response_format",
        ),
    ],
)
def test_bad_structured_output_is_refused_by_its_field(
    api: APIClient, fields: dict[str, Any], blamed: str
) -> None:
    assert_error(submit(api, model="local", **fields), 400, "validation_error", blamed)
    assert not GenerationTask.objects.exists()


@pytest.mark.parametrize("field", ["response_format", "output_schema"])
def test_provider_without_structured_output_refuses_it(api: APIClient, field: str) -> None:
    value = {"response_format": {"type": "json_object"}, "output_schema": {"type": "object"}}
    assert_error(submit(api, **{field: value[field]}), 400, "validation_error", field)


def test_cloud_model_takes_no_text_format(api: APIClient) -> None:
    RegisteredModel.objects.create(name="cloud", provider="openai", config={"model_name": "m"})
    for kind, field in (("regex", "regex"), ("lark", "lark")):
        asked = {"type": kind, field: 'start: "a"' if kind == "lark" else "a"}
        response = submit(api, model="cloud", response_format=asked)
        assert_error(response, 400, "validation_error", "response_format")


@pytest.mark.parametrize("depth", [200, 900])
def test_schema_nested_too_deep_is_refused(api: APIClient, depth: int) -> None:
    schema = depth * '{"items": ' + "{}" + depth * "}"
    for more in ("", ', "idempotency_key": "k"'):
        body = f'{{"model": "echo", "prompt": "a", "output_schema": {schema}{more}}}'
        assert_error(post_json(api, body), 400, "validation_error")


@pytest.mark.parametrize(
    ("messages", "field"),
    [
        ([{"role": "wizard", "content": "a"}], "messages.0.role"),
        ([{"role": "user"}], "messages.0.content"),
        ([{"content": "a"}], "messages.0.role"),
        ([{"role": "user", "content": "a", "name": "x"}], "messages.0.name"),
        ([{"role": "user", "content": "a"}, {"role": "user", "content": 7 * [1]}], "messages.1"),
    ],
)
def test_bad_message_is_refused_by_its_place(
    api: APIClient, messages: list[object], field: str
) -> None:
    response = api.post(TASKS, {"model": "echo", "messages": messages}, format="json")
    assert_error(response, 400, "validation_error")
    assert field in response.json()["message"]


@pytest.mark.parametrize(
    ("fields", "blamed"),
    [
        ({"generation_params": {"temprature": 1}}, "generation_params.temprature"),
        ({"generation_params": {"temperature": 3}}, "generation_params.temperature"),
        ({"provider_config": {"model": "echo"}}, "provider_config.model"),
        ({"stop": ["a"], "stop_sequences": ["b"]}, "stop"),
    ],
)
def test_bad_nested_field_is_refused_by_its_path(
    api: APIClient, fields: dict[str, object], blamed: str
) -> None:
    assert_error(submit(api, **fields), 400, "validation_error", blamed)


@pytest.mark.parametrize(
    "body",
    [
        {"model": "echo"},
        {"model": "echo", "prompt": "a", "messages": [{"role": "user", "content": "b"}]},
    ],
)
def test_exactly_one_of_prompt_and_messages(api: APIClient, body: dict[str, object]) -> None:
    assert_error(api.post(TASKS, body, format="json"), 400, "validation_error", "prompt")


def test_a_task_without_any_model_is_refused(api: APIClient) -> None:
    response = api.post(TASKS, {"prompt": "a"}, format="json")
    assert_error(response, 400, "validation_error", "model")


@pytest.mark.parametrize(
    "body",
    [
        *("", "{", "nonsense", '{"model": "echo", "prompt": NaN}', '{"prompt": "a"} trailing'),
        *("[]", "7", "null", '"text"', 100_000 * "[", '{"a":' * 5_000),
    ],
    ids=lambda body: body[:20],
)
def test_body_that_is_no_json_object_is_refused(api: APIClient, body: str) -> None:
    assert_error(post_json(api, body), 400, "validation_error")


def test_bytes_that_are_no_utf8_are_refused(api: APIClient) -> None:
    body: Any = b'{"prompt": "\xff\xfe"}'
    response: Any = api.generic("POST", TASKS, body, "application/json")
    assert_error(response, 400, "validation_error")


@pytest.mark.parametrize(
    "content_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""]
)
def test_other_content_types_are_refused(api: APIClient, content_type: str) -> None:
    response = api.generic("POST", TASKS, '{"model": "echo"}', content_type=content_type)
    assert_error(response, 415, "unsupported_media_type")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("PUT", TASKS),
        ("DELETE", TASKS),
        ("POST", NO_TASK),
        ("PUT", NO_TASK),
        ("PATCH", NO_TASK),
        ("GET", f"{NO_TASK}/cancel"),
        ("POST", f"{NO_TASK}/report"),
        ("PUT", f"{TASKS}/batch"),
    ],
)
def test_wrong_method_is_refused(api: APIClient, method: str, path: str) -> None:
    assert_error(api.generic(method, path), 405, "method_not_allowed")


def test_full_queue_asks_to_come_again(
    api: APIClient, new_task: NewTask, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    new_task()
    monkeypatch.setattr(submission, "_pending_seen", (float("-inf"), 0))
    settings.MAX_PENDING_TASKS = 1
    response = submit(api)
    assert_error(response, 503, "queue_full")
    assert int(response["Retry-After"]) >= 1
    assert GenerationTask.objects.count() == 1


def local_model(name: str, **config: Any) -> str:
    RegisteredModel.objects.create(
        name=name, provider="local", config={"model_path": "x.gguf", **config}
    )
    return name


def params_of(response: Any) -> dict[str, Any]:
    assert response.status_code == 201, response.json()
    params: dict[str, Any] = GenerationTask.objects.get(pk=response.json()["task_id"]).request[
        "params"
    ]
    return params


def test_deterministic_is_reported_with_the_seed_that_it_needs(api: APIClient) -> None:
    model = local_model("local")
    task_id = submit(api, model=model, deterministic=True).json()["task_id"]
    params = api.get(f"{TASKS}/{task_id}/report").json()["params"]
    assert (params["deterministic"], params["seed"]) == (True, 0)
    params = params_of(submit(api, model=model, generation_params={"deterministic": True}, seed=5))
    assert (params["deterministic"], params["seed"]) == (True, 5)
    for params in (params_of(submit(api, model=model)), params_of(submit(api, deterministic=None))):
        assert not {"deterministic", "seed"} & params.keys()


def test_deterministic_of_a_model_holds_for_its_tasks_unless_they_say_otherwise(
    api: APIClient,
) -> None:
    model = local_model("local", generation_params={"deterministic": True})
    assert params_of(submit(api, model=model))["deterministic"] is True
    assert "deterministic" not in params_of(submit(api, model=model, deterministic=False))


def test_deterministic_is_refused_where_it_cannot_be_kept(api: APIClient) -> None:
    RegisteredModel.objects.create(name="cloud", provider="openai", config={"model_name": "x"})
    shared = local_model("shared", num_cache_cells=4096)
    for model in ("cloud", shared):
        response = submit(api, model=model, deterministic=True)
        assert_error(response, 400, "validation_error", "deterministic")
        assert submit(api, model=model, deterministic=False).status_code == 201
    response = submit(
        api, model=local_model("local"), deterministic=True, fallback_models=["cloud"]
    )
    assert_error(response, 400, "validation_error", "fallback_models")
    assert_error(submit(api, deterministic="sometimes"), 400, "validation_error", "deterministic")


# Intake style


def test_intake_style_fields_mean_the_same(api: APIClient) -> None:
    body = {
        "prompt": "Summarize:",
        "input_text": "A long text.",
        "provider_config": {"model_name": "echo"},
        "generation_params": {"temperature": 0.3, "top_k": 7, "stop_sequences": ["END"]},
    }
    response = api.post(TASKS, body, format="json")
    assert response.status_code == 201
    task = GenerationTask.objects.get(pk=response.json()["task_id"])
    assert task.request["prompt"] == "Summarize:\n\nA long text."
    params = {"max_tokens": 512, "temperature": 0.3, "top_k": 7, "stop_sequences": ["END"]}
    assert task.request["params"] == params


def test_explicit_top_level_field_wins(api: APIClient) -> None:
    RegisteredModel.objects.create(name="other", provider="echo")
    intake = {
        "provider_config": {"model_name": "other"},
        "generation_params": {"temperature": 0.3, "top_k": 7, "stop_sequences": ["END"]},
    }
    fields: dict[str, object] = {"temperature": 0, "stop_sequences": []}
    body = submit(api, **intake, **fields).json()
    task = GenerationTask.objects.get(pk=body["task_id"])
    assert body["model"] == "echo"
    assert task.request["params"]["temperature"] == 0
    assert task.request["params"]["top_k"] == 7
    assert task.request["params"]["stop_sequences"] == []


def test_stop_is_an_alias_of_stop_sequences(api: APIClient) -> None:
    task_id = submit(api, stop=["END"]).json()["task_id"]
    task = GenerationTask.objects.get(pk=task_id)
    assert task.request["params"]["stop_sequences"] == ["END"]


def test_input_text_needs_a_prompt(api: APIClient) -> None:
    messages = [{"role": "user", "content": "a"}]
    body = {"model": "echo", "messages": messages, "input_text": "b"}
    assert_error(api.post(TASKS, body, format="json"), 400, "validation_error", "input_text")


def test_values_of_the_model_fill_in_what_the_task_leaves_out(api: APIClient) -> None:
    config = {"generation_params": {"temperature": 0.1, "top_p": 0.5}}
    RegisteredModel.objects.create(
        name="tuned", provider="echo", config=config, max_output_tokens=10
    )
    task_id = submit(api, model="tuned", temperature=0.9).json()["task_id"]
    params = GenerationTask.objects.get(pk=task_id).request["params"]
    expected = {"temperature": 0.9, "top_p": 0.5, "max_tokens": 10, "stop_sequences": []}
    assert params == expected
    assert_error(submit(api, model="tuned", max_tokens=11), 400, "validation_error", "max_tokens")


def test_model_may_come_from_the_conversation(api: APIClient) -> None:
    conversation = Conversation.objects.create(owner="local", model_name="echo")
    body = {"prompt": "a", "conversation_id": conversation.pk}
    response = api.post(TASKS, body, format="json")
    assert response.status_code == 201
    assert response.json()["model"] == "echo"
    assert response.json()["conversation_id"] == conversation.pk


def test_conversation_of_someone_else_does_not_exist(api: APIClient) -> None:
    conversation = Conversation.objects.create(owner="other", model_name="echo")
    response = submit(api, conversation_id=conversation.pk)
    assert_error(response, 400, "validation_error", "conversation_id")


def test_unknown_fields_beyond_ten_are_counted(api: APIClient) -> None:
    body = {f"field {index}": 1 for index in range(20_000)}
    details = submit(api, **body).json()["details"]
    assert list(details) == [*(f"field {index}" for index in range(10)), "non_field_errors"]
    assert details["non_field_errors"] == ["19990 more fields are unknown."]
    response = submit(api, **{10_000 * "x": 1})
    assert response.status_code == 400
    assert len(response.content) < 1000


@pytest.mark.parametrize("field", ["messages", "stop_sequences", "fallback_models", "metadata"])
def test_too_many_members_are_refused_before_they_are_looked_at(api: APIClient, field: str) -> None:
    members: Any = {str(index): 1 for index in range(10_001)}
    response = submit(api, **{field: members if field == "metadata" else 10_001 * [None]})
    assert_error(response, 400, "validation_error", field)
    assert response.json()["details"][field] == ["10001 members are too many: send up to 10000."]


# Idempotency


@pytest.mark.parametrize("in_header", [True, False])
def test_repeated_key_gives_the_first_task(api: APIClient, in_header: bool) -> None:
    def send(**fields: Any) -> Any:
        if in_header:
            body = {"model": "echo", "prompt": "hello"} | fields
            return api.post(TASKS, body, format="json", headers={"Idempotency-Key": "k1"})
        return submit(api, idempotency_key="k1", **fields)

    first, again, other = send(), send(), send(prompt="another")
    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json() == again.json()
    assert first.json()["idempotency_key"] == "k1"
    assert_error(other, 409, "conflict")
    assert GenerationTask.objects.count() == 1


def test_order_of_fields_makes_no_other_request(api: APIClient) -> None:
    first = post_json(api, '{"model": "echo", "prompt": "a", "idempotency_key": "k"}')
    again = post_json(api, '{"idempotency_key": "k", "prompt": "a", "model": "echo"}')
    assert (first.status_code, again.status_code) == (201, 200)


def test_keys_of_owners_do_not_meet(api: APIClient, new_task: NewTask) -> None:
    theirs = new_task(owner="other", idempotency_key="k1")
    mine = submit(api, idempotency_key="k1")
    assert mine.status_code == 201
    assert mine.json()["task_id"] != theirs.pk


def test_too_long_key_in_the_header_is_refused(api: APIClient) -> None:
    headers = {"Idempotency-Key": 300 * "k"}
    body = {"model": "echo", "prompt": "a"}
    response = api.post(TASKS, body, format="json", headers=headers)
    assert_error(response, 400, "validation_error", "idempotency_key")


# Listing


def test_list_shows_own_tasks_newest_first(api: APIClient, new_task: NewTask) -> None:
    mine = [new_task(prompt=str(index)).pk for index in range(3)]
    new_task(owner="other")
    body = api.get(TASKS).json()
    assert set(body) == {"results", "next", "previous"}
    assert [task["task_id"] for task in body["results"]] == mine[::-1]
    assert set(body["results"][0]) == BODY_FIELDS


def test_refusal_quotes_only_the_beginning_of_what_was_sent(api: APIClient) -> None:
    body = {"model": "echo", "prompt": "x", "context_overflow": 100_000 * "x"}
    response = api.post(TASKS, body, format="json")
    assert_error(response, 400, "validation_error", "context_overflow")
    assert len(response.content) < 5000


def test_refusal_names_only_the_first_of_many_messages(api: APIClient) -> None:
    good, bad = {"role": "user", "content": "x"}, {f"field{number}": 1 for number in range(9)}
    body = {"model": "echo", "messages": [good] * 120 + [bad] * 9000}
    response = api.post(TASKS, body, format="json")
    assert_error(response, 400, "validation_error", "messages.120.field0")
    assert len(response.json()["details"]["messages"]) <= 50
    assert len(response.content) < 100_000


@pytest.mark.parametrize(
    "body",
    [
        '{"model": "echo", "prompt": "a", "prompt": "b"}',
        '{"model": "echo", "prompt": "a", "metadata": {"x": [{"prompt": 1, "prompt": 1}]}}',
    ],
)
def test_name_that_is_there_twice_is_refused(
    api: APIClient, echo: RegisteredModel, body: str
) -> None:
    response = api.generic("POST", TASKS, body, content_type="application/json")
    assert_error(response, 400, "validation_error")
    assert '"prompt" is there twice' in response.json()["message"]
    assert not GenerationTask.objects.exists()


def test_following_the_cursor_gives_each_task_once(api: APIClient, new_task: NewTask) -> None:
    made = [new_task().pk for _ in range(5)]
    # Two of the same moment, on two pages: neither lost nor repeated.
    same = GenerationTask.objects.get(pk=made[3]).created_at
    GenerationTask.objects.filter(pk=made[2]).update(created_at=same)
    seen: list[str] = []
    url = f"{TASKS}?limit=2"
    while url:
        page = api.get(url).json()
        seen += [task["task_id"] for task in page["results"]]
        url = page["next"]
        if len(seen) == 2:  # neither a new one nor a deletion in between shifts anything
            new_task()
            GenerationTask.objects.filter(pk=seen[0]).delete()
    assert len(seen) == 5
    assert set(seen) == set(made)


def test_filters_narrow_the_list(api: APIClient, new_task: NewTask) -> None:
    RegisteredModel.objects.create(name="second", provider="echo")
    conversation = Conversation.objects.create(owner="local")
    ended = end(new_task())
    with_model = new_task(model="second")
    spoken = new_task(conversation_id=conversation.pk)
    moment = with_model.created_at.isoformat().replace("+00:00", "Z")

    def found(**params: str) -> list[str]:
        return [task["task_id"] for task in api.get(TASKS, params).json()["results"]]

    assert found(status="completed") == [ended.pk]
    assert found(model="second") == [with_model.pk]
    assert found(conversation_id=conversation.pk) == [spoken.pk]
    assert found(created_after=moment) == [spoken.pk]
    assert found(created_before=moment) == [ended.pk]
    assert found(status="pending", model="second") == [with_model.pk]


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("status=done", "status"),
        ("created_after=yesterday", "created_after"),
        ("created_after=2026-01-31T12:00:00", "created_after"),
        ("created_before=2026-13-31T12:00:00Z", "created_before"),
        ("created_before=0001-01-01T00:00:00%2B14:00", "created_before"),
        ("limit=0", "limit"),
        ("limit=1001", "limit"),
        ("limit=x", "limit"),
        ("limit=-1", "limit"),
        ("limit=%C2%B2", "limit"),
        ("model=%00", "model"),
        ("conversation_id=%00", "conversation_id"),
    ],
)
def test_bad_filter_is_refused_by_its_name(api: APIClient, query: str, field: str) -> None:
    assert_error(api.get(f"{TASKS}?{query}"), 400, "validation_error", field)


@pytest.mark.parametrize(
    "cursor",
    [
        *("garbage", "ü", "%00", "p=garbage", "p=2026-13-31 12:00:00+00:00", "p=", "o=x", "r=x"),
        *("p=0001-01-01 00:00:00+14:00", "p=2026-01-31", "p=2026-01-31T12:00:00", "o=-1"),
    ],
)
def test_bad_cursor_is_refused(api: APIClient, cursor: str) -> None:
    if "=" in cursor:
        cursor = base64.b64encode(cursor.encode()).decode()
    assert_error(api.get(TASKS, {"cursor": cursor}), 400, "validation_error", "cursor")


# One task


@pytest.mark.parametrize(
    ("method", "suffix"), [("GET", ""), ("DELETE", ""), ("GET", "/report"), ("POST", "/cancel")]
)
def test_task_of_someone_else_does_not_exist(
    api: APIClient, new_task: NewTask, method: str, suffix: str
) -> None:
    theirs = new_task(owner="other")
    for task_id in (theirs.pk, "task_" + 32 * "0", "nonsense"):
        assert_error(api.generic(method, f"{TASKS}/{task_id}{suffix}"), 404, "not_found")
    theirs.refresh_from_db()
    assert theirs.status == "pending"


@pytest.mark.parametrize("wait", ["x", "-1", "61", "nan", ""])
def test_bad_wait_is_refused(api: APIClient, new_task: NewTask, wait: str) -> None:
    response = api.get(f"{TASKS}/{new_task().pk}?wait={wait}")
    assert_error(response, 400, "validation_error", "wait")


def test_queue_position_counts_the_tasks_that_go_first(api: APIClient, new_task: NewTask) -> None:
    tasks = [new_task(priority=priority) for priority in (1, 50, 1, 100)]
    new_task(owner="other", priority=70)
    new_task(priority=0)
    positions = [api.get(f"{TASKS}/{task.pk}").json()["queue_position"] for task in tasks]
    assert positions == [3, 2, 4, 0]
    listed = {t["task_id"]: t["queue_position"] for t in api.get(TASKS).json()["results"]}
    assert [listed[task.pk] for task in tasks] == positions


def test_page_reads_no_more_tasks_than_it_shows(api: APIClient, new_task: NewTask) -> None:
    for priority in 5 * [1, 2, 3]:
        new_task(priority=priority)
    with CaptureQueriesContext(connection) as queries:
        assert api.get(f"{TASKS}?limit=2").json()["results"][0]["queue_position"] == 4
    with connection.cursor() as cursor:
        for query in queries.captured_queries:
            cursor.execute(query["sql"])
            assert len(cursor.fetchall()) <= 3, query["sql"]


def test_pending_task_is_cancelled_at_once(api: APIClient, new_task: NewTask) -> None:
    task = new_task()
    response = api.post(f"{TASKS}/{task.pk}/cancel")
    body = response.json()
    assert (response.status_code, body["status"]) == (200, "cancelled")
    assert body["finished_at"] is not None
    assert (body["queue_position"], body["result"]) == (None, None)
    assert_error(api.post(f"{TASKS}/{task.pk}/cancel"), 409, "conflict")


def test_processing_task_is_asked_to_stop(api: APIClient, new_task: NewTask) -> None:
    task = new_task()
    lease = claim.claim(task.pk)
    assert lease is not None
    for _ in range(2):  # asking twice changes nothing
        response = api.post(f"{TASKS}/{task.pk}/cancel")
        assert (response.status_code, response.json()["status"]) == (200, "processing")
    task.refresh_from_db()
    assert task.cancel_requested


def test_ended_task_cannot_be_cancelled(api: APIClient, new_task: NewTask) -> None:
    task = end(new_task())
    assert_error(api.post(f"{TASKS}/{task.pk}/cancel"), 409, "conflict")
    task.refresh_from_db()
    assert task.status == "completed"


def test_unfinished_task_cannot_be_deleted(api: APIClient, new_task: NewTask) -> None:
    task = new_task()
    assert_error(api.delete(f"{TASKS}/{task.pk}"), 409, "conflict")
    claim.claim(task.pk)
    assert_error(api.delete(f"{TASKS}/{task.pk}"), 409, "conflict")
    assert GenerationTask.objects.filter(pk=task.pk).exists()


def test_deleted_task_leaves_nothing_behind(api: APIClient, new_task: NewTask) -> None:
    task = end(new_task())
    wait_until_enqueued()
    writer = delta_stream.DeltaWriter(task.pk, 1)
    writer.write("token")
    writer.flush()
    client().xadd(f"task:{task.pk}:log", {"timestamp": "t", "level": "INFO", "message": "m"})
    assert client().keys(f"*{task.pk}*")
    response = api.delete(f"{TASKS}/{task.pk}")
    assert (response.status_code, response.content) == (204, b"")
    assert client().keys(f"*{task.pk}*") == []
    assert not task.attempts.exists()
    assert_error(api.get(f"{TASKS}/{task.pk}"), 404, "not_found")
    assert_error(api.delete(f"{TASKS}/{task.pk}"), 404, "not_found")


# Report


def test_report_tells_all_about_an_answered_task(api: APIClient, new_task: NewTask) -> None:
    task = end(new_task(temperature=0.5), text="three words here")
    record = {"timestamp": "2026-01-01T00:00:00.000Z", "level": "INFO", "message": "a line"}
    client().xadd(f"task:{task.pk}:log", record)
    body = api.get(f"{TASKS}/{task.pk}/report").json()
    assert set(body) == {
        *("task", "metrics", "tokens", "prompt", "messages", "params", "provenance", "attempts"),
        *("gpu_seconds", "energy_joules", "cost_usd", "webhook_deliveries", "logs", "swap_bounds"),
    }
    assert body["task"] == api.get(f"{TASKS}/{task.pk}").json()
    assert body["tokens"] == body["task"]["result"]["usage"]
    assert (body["prompt"], body["messages"]) == ("one two three", None)
    assert body["params"] == {"max_tokens": 512, "temperature": 0.5, "stop_sequences": []}
    assert body["logs"] == service_log.task_log(task.pk) == [record]
    metrics = body["metrics"]
    assert (metrics["model_load_ms"], metrics["ttft_ms"]) == (None, 1.0)
    assert (metrics["inference_ms"], metrics["tokens_per_second"]) == (2.0, 500.0)
    assert metrics["total_ms"] >= metrics["queue_wait_ms"] >= 0
    [attempt] = body["attempts"]
    assert set(attempt) == {
        *("number", "worker", "model", "started_at", "ended_at", "outcome"),
        *("error_code", "error", "gpu_seconds", "energy_joules", "cost_usd", "endpoint"),
    }
    assert (attempt["number"], attempt["outcome"], attempt["model"]) == (1, "completed", "echo")


def test_report_of_a_pending_task_has_no_times_yet(api: APIClient, new_task: NewTask) -> None:
    body = api.get(f"{TASKS}/{new_task().pk}/report").json()
    assert set(body["metrics"].values()) == {None}
    assert (body["tokens"], body["attempts"]) == (None, [])


def test_report_shows_the_running_attempt(api: APIClient, new_task: NewTask) -> None:
    task = new_task()
    claim.claim(task.pk)
    [attempt] = api.get(f"{TASKS}/{task.pk}/report").json()["attempts"]
    assert (attempt["number"], attempt["outcome"], attempt["ended_at"]) == (1, "running", None)


# Batch


def send_batch(api: APIClient, tasks: object) -> Any:
    return api.post(f"{TASKS}/batch", tasks, format="json")


def test_batch_runs_in_the_order_of_its_list(api: APIClient) -> None:
    response = send_batch(api, [{"model": "echo", "prompt": str(index)} for index in range(20)])
    body = response.json()
    assert response.status_code == 201
    assert [task["queue_position"] for task in body] == list(range(20))
    order = GenerationTask.objects.most_urgent_first().values_list("request", flat=True)
    assert [request["prompt"] for request in order] == [str(index) for index in range(20)]


def test_batch_with_one_bad_task_queues_nothing(api: APIClient) -> None:
    good = {"model": "echo", "prompt": "a"}
    bad = [({"prompt": "a", "model": "gone"}, "model"), ({**good, "top_k": -1}, "top_k")]
    for task, field in [*bad, ("text", "non_field_errors")]:
        response = send_batch(api, [good, good, task, good])
        assert_error(response, 400, "validation_error")
        assert field in response.json()["details"]["2"]
        assert "2" in response.json()["message"]
    assert not GenerationTask.objects.exists()


@pytest.mark.parametrize("tasks", [[], {"model": "echo", "prompt": "a"}, 1001 * [{}]])
def test_batch_is_a_list_of_up_to_1000_tasks(api: APIClient, tasks: object) -> None:
    assert_error(send_batch(api, tasks), 400, "validation_error", "tasks")


def test_batch_repeated_with_its_keys_gives_the_first_tasks(api: APIClient) -> None:
    tasks = [{"model": "echo", "prompt": "a", "idempotency_key": str(i)} for i in range(3)]
    first = send_batch(api, tasks).json()
    again = send_batch(api, [*tasks, {"model": "echo", "prompt": "new"}]).json()
    assert [task["task_id"] for task in again[:3]] == [task["task_id"] for task in first]
    assert GenerationTask.objects.count() == 4
    conflict = send_batch(api, [{"model": "echo", "prompt": "b"}, tasks[0] | {"prompt": "c"}])
    assert_error(conflict, 409, "conflict")
    assert GenerationTask.objects.count() == 4


def test_task_past_its_deadline_shows_when_it_was_due(api: APIClient) -> None:
    task_id = submit(api, deadline_seconds=60).json()["task_id"]
    task = GenerationTask.objects.get(pk=task_id)
    assert task.deadline_at == task.created_at + timedelta(seconds=60)


def test_repeat_of_a_key_is_answered_though_its_model_is_gone(
    api: APIClient, echo: RegisteredModel
) -> None:
    body = {"model": "echo", "prompt": "Hello", "idempotency_key": "k"}
    first = api.post(TASKS, body, format="json").json()
    echo.delete()
    repeat = api.post(TASKS, body, format="json")
    assert repeat.status_code == 200
    assert repeat.json()["task_id"] == first["task_id"]
    assert [task["task_id"] for task in send_batch(api, [body, body]).json()] == 2 * [
        first["task_id"]
    ]


def test_batch_refuses_the_idempotency_header(api: APIClient, echo: RegisteredModel) -> None:
    body = [{"model": "echo", "prompt": "Hello"}]
    answer = api.post(f"{TASKS}/batch", body, format="json", headers={"Idempotency-Key": "k"})
    assert answer.status_code == 400
    assert "idempotency_key" in answer.json()["details"]


def test_metadata_may_say_backslash_u0000_but_not_be_nested_for_ever(
    api: APIClient, echo: RegisteredModel
) -> None:
    body = {"model": "echo", "prompt": "Hello", "metadata": {"a": "\\u0000"}}
    assert api.post(TASKS, body, format="json").json()["metadata"] == {"a": "\\u0000"}
    deep: object = 1
    for _ in range(70):
        deep = [deep]
    answer = api.post(TASKS, body | {"metadata": {"a": deep}}, format="json")
    assert answer.status_code == 400
    assert "nested" in answer.json()["message"]
