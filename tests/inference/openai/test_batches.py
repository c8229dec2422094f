"""/v1/batches: from the file to the answers, whatever happens to the worker in between."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.urls import reverse
from django.utils import timezone
from pytest_django import Settings
from rest_framework.test import APIClient

from inference.api import submission
from inference.embeddings import request_queue
from inference.embeddings.messages import Answer
from inference.errors import ErrorCode, InferenceError
from inference.lifecycle import finish, submit, sweep
from inference.models import Batch, GenerationTask, RegisteredModel, StoredFile, WebhookDelivery
from inference.openai.batches import embeddings, worker
from inference.openai.batches import views as batch_views
from inference.tasks import purge
from monitoring.api.principal import Limits, Principal, Scope
from monitoring.hardware import worker_identity
from tests.conftest import client_of
from tests.inference.lifecycle.test_lifecycle import TIMINGS, answer, claimed
from tests.inference.openai.worker import End, completing, failing

pytestmark = pytest.mark.django_db(transaction=True)

Status = Batch.Status
CHAT = "/v1/chat/completions"
NUM_LINES = 7
LONG_AGO = timezone.now() - timedelta(days=1)


@pytest.fixture(autouse=True)
def _parts(api: APIClient, echo: RegisteredModel) -> None:
    """Every test has a broker, and the model."""


def line(custom_id: str = "a", content: str = "Hi", **body: Any) -> dict[str, Any]:
    chat = {"model": "echo", "messages": [{"role": "user", "content": content}]} | body
    return {"custom_id": custom_id, "method": "POST", "url": CHAT, "body": chat}


def lines(number: int = NUM_LINES) -> list[Any]:
    return [line(f"line-{index}", f"Question {index}") for index in range(number)]


def stored(content: list[Any] | bytes, owner: str = "local") -> StoredFile:
    """An uploaded file of these lines."""
    if isinstance(content, list):
        content = b"".join(json.dumps(each).encode() + b"\n" for each in content)
    file = StoredFile(owner=owner, purpose="batch", filename="input", created_at=timezone.now())
    file.size_bytes = len(content)
    file.write(0, content or b"\n")
    file.save()
    return file


def create(client: APIClient, content: list[Any] | bytes, owner: str = "local", **body: Any) -> Any:
    headers = {name: body.pop(name) for name in ("X-Priority",) if name in body}
    body = {
        "input_file_id": stored(content, owner).pk,
        "endpoint": CHAT,
        "completion_window": "24h",
    } | body
    return client.post("/v1/batches", body, format="json", headers=headers)


def created(
    client: APIClient, content: list[Any] | bytes, owner: str = "local", **body: Any
) -> str:
    response = create(client, content, owner, **body)
    assert response.status_code == 200, response.content
    return str(response.json()["id"])


def turn(pk: str) -> Batch:
    """A worker takes the batch on for a moment."""
    Batch.objects.filter(pk=pk, due_at__isnull=False).update(due_at=LONG_AGO)
    batch = Batch.objects.claim_next(worker_identity.current())
    assert batch is not None
    assert batch.pk == pk
    worker.advance(batch)
    return Batch.objects.get(pk=pk)


def pending() -> list[GenerationTask]:
    return list(GenerationTask.objects.pending().order_by("created_at"))


def work(end: End | None = None, tasks: list[GenerationTask] | None = None) -> None:
    for task in pending() if tasks is None else tasks:
        (end or completing(f"Answer to {task.messages()[-1]['content']}"))(task)


def finished(pk: str, end: End | None = None) -> Batch:
    """The batch at its end, whose tasks all end so."""
    for _ in range(100):
        batch = turn(pk)
        if batch.has_ended:
            return batch
        work(end)
    raise AssertionError(batch.status)


def read(client: APIClient, pk: str | None) -> list[Any]:
    """The lines of a file."""
    assert pk is not None
    content = b"".join(client.get(f"/v1/files/{pk}/content").streaming_content)  # type: ignore[attr-defined]
    return [json.loads(each) for each in content.splitlines()]


def body(client: APIClient, pk: str) -> Any:
    return client.get(f"/v1/batches/{pk}").json()


def test_batch_goes_from_its_file_to_its_answers(api: APIClient) -> None:
    pk = created(api, lines(), metadata={"of": "night"})
    assert body(api, pk) == {
        "id": pk,
        "object": "batch",
        "endpoint": CHAT,
        "errors": None,
        "input_file_id": Batch.objects.get().input_file_id,
        "completion_window": "24h",
        "status": "validating",
        "output_file_id": None,
        "error_file_id": None,
        "created_at": body(api, pk)["created_at"],
        "in_progress_at": None,
        "expires_at": body(api, pk)["created_at"] + 86400,
        "finalizing_at": None,
        "completed_at": None,
        "failed_at": None,
        "expired_at": None,
        "cancelling_at": None,
        "cancelled_at": None,
        "request_counts": {"total": 0, "completed": 0, "failed": 0},
        "metadata": {"of": "night"},
    }
    assert turn(pk).status == Status.IN_PROGRESS
    assert turn(pk).num_requests == NUM_LINES
    assert {task.priority for task in pending()} == {0.0}
    finished(pk)
    end = body(api, pk)
    assert end["status"] == "completed"
    assert end["request_counts"] == {"total": NUM_LINES, "completed": NUM_LINES, "failed": 0}
    assert end["created_at"] <= end["in_progress_at"] <= end["finalizing_at"] <= end["completed_at"]
    assert end["error_file_id"] is None
    answers = read(api, end["output_file_id"])
    assert [each["custom_id"] for each in answers] == [f"line-{n}" for n in range(NUM_LINES)]
    for number, each in enumerate(answers):
        response = each["response"]
        assert each["error"] is None
        assert response["status_code"] == 200
        assert response["body"]["object"] == "chat.completion"
        message = response["body"]["choices"][0]["message"]
        assert message["content"] == f"Answer to Question {number}"
    assert len({each["id"] for each in answers}) == NUM_LINES
    assert [file["purpose"] for file in api.get("/v1/files").json()["data"]] == [
        "batch_output",
        "batch",
    ]


def test_answers_stand_in_the_order_of_the_lines_whichever_ends_first(api: APIClient) -> None:
    pk = created(api, lines())
    turn(pk)
    turn(pk)
    first, *others = pending()
    work(tasks=others[::-1])
    assert turn(pk).num_completed == 0
    work(tasks=[first])
    answers = read(api, finished(pk).output_file_id)
    assert [each["custom_id"] for each in answers] == [f"line-{n}" for n in range(NUM_LINES)]


def test_a_window_of_tasks_is_pending_at_a_time(api: APIClient, settings: Settings) -> None:
    settings.BATCH_MAX_TASKS = 3
    pk, second = created(api, lines()), created(api, lines())
    turn(pk)
    turn(pk)
    assert len(pending()) == 3
    Batch.objects.filter(pk=pk).update(due_at=None)
    turn(second)
    turn(second)
    assert len(pending()) == 3  # of an owner, whose other batches wait
    Batch.objects.filter(pk=second).update(due_at=None)
    Batch.objects.filter(pk=pk).update(due_at=LONG_AGO)
    assert finished(pk).num_completed == NUM_LINES


def test_what_waits_for_the_first_answer_is_bounded(api: APIClient, settings: Settings) -> None:
    settings.BATCH_MAX_TASKS = 2
    pk = created(api, lines(20))
    turn(pk)
    turn(pk)
    [first, *others] = pending()
    while others:
        work(tasks=others)
        turn(pk)
        others = [task for task in pending() if task.pk != first.pk]
    assert GenerationTask.objects.count() == 8
    assert finished(pk).num_completed == 20


def test_window_leaves_half_of_a_keys_pending_tasks_to_it(api: APIClient) -> None:
    limits = Limits(max_pending_tasks=4)
    alice = client_of(Principal("a key", "alice", frozenset({Scope.TASKS}), limits))
    pk = created(alice, lines(), "alice")
    turn(pk)
    turn(pk)
    assert len(pending()) == 2
    chat = {"model": "echo", "prompt": "Hi"}
    for _ in range(2):
        assert alice.post("/api/v1/tasks", chat, format="json").status_code == 201
    assert alice.post("/api/v1/tasks", chat, format="json").status_code == 429
    work(tasks=pending()[:1])
    turn(pk)  # nothing can be submitted now, which fails nothing
    assert finished(pk).num_completed == NUM_LINES


@pytest.mark.parametrize("settled", [False, True])
@pytest.mark.parametrize("moment", ["output", "submit", "files", "end"])
def test_kill_at_any_moment_neither_loses_nor_repeats_a_line(
    api: APIClient,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    dead_worker: str,
    moment: str,
    settled: bool,
) -> None:
    """`settled`: whether what the worker was about to do took place before it was killed."""

    class Killed(BaseException):
        """Nothing of the worker runs any more."""

    places: dict[str, tuple[Any, str]] = {
        "output": (StoredFile, "write"),
        "submit": (submit, "submit"),
        "files": (StoredFile, "complete"),
        "end": (Batch, "end"),
    }
    settings.BATCH_MAX_TASKS = 2
    created(api, lines())
    owner, name = places[moment]
    original: Callable[..., Any] = getattr(owner, name)
    num_kills = 0

    def killed(*arguments: Any, **options: Any) -> Any:
        nonlocal num_kills
        if num_kills % 3:
            num_kills += 1
            return original(*arguments, **options)
        if settled:
            original(*arguments, **options)
        num_kills += 1
        raise Killed

    monkeypatch.setattr(owner, name, killed)
    monkeypatch.setattr(Batch, "put_back", lambda *_: None)  # nor does it put anything back
    for _ in range(100):
        Batch.objects.filter(lease_until__isnull=False).update(worker=dead_worker)
        sweep.sweep()
        batch = Batch.objects.claim_next(worker_identity.current())
        if batch is None:
            break
        with suppress(Killed):
            worker.advance(batch)
        work()
    batch = Batch.objects.get()
    assert num_kills > 0
    assert batch.status == Status.COMPLETED
    assert batch.num_completed == NUM_LINES
    assert GenerationTask.objects.count() == NUM_LINES
    answers = read(api, batch.output_file_id)
    assert [each["custom_id"] for each in answers] == [f"line-{n}" for n in range(NUM_LINES)]


def test_worker_that_lost_the_batch_changes_nothing(api: APIClient) -> None:
    pk = created(api, lines())
    turn(pk)
    Batch.objects.filter(pk=pk).update(due_at=LONG_AGO)  # a moment later it would be
    late = Batch.objects.claim_next(worker_identity.current())
    assert late is not None
    Batch.objects.filter(pk=pk).update(lease_until=None, due_at=LONG_AGO, worker="")
    turn(pk)
    before = Batch.objects.filter(pk=pk).values().get()
    worker.advance(late)
    assert Batch.objects.filter(pk=pk).values().get() == before
    assert GenerationTask.objects.count() == NUM_LINES


def test_failed_lines_are_in_the_error_file(api: APIClient) -> None:
    pk = created(api, lines(3))
    turn(pk)
    turn(pk)
    tasks = pending()
    work(failing(ErrorCode.CONTEXT_LENGTH_EXCEEDED, "Too long."), tasks[1:2])
    finish.cancel(tasks[2])
    batch = finished(pk)
    assert body(api, pk)["request_counts"] == {"total": 3, "completed": 1, "failed": 2}
    assert [each["custom_id"] for each in read(api, batch.output_file_id)] == ["line-0"]
    failed, cancelled = read(api, batch.error_file_id)
    assert failed["custom_id"] == "line-1"
    assert failed["response"]["status_code"] == 400
    assert failed["response"]["request_id"] == tasks[1].pk
    assert failed["response"]["body"]["error"]["message"] == "Too long."
    assert cancelled["response"]["body"]["error"]["code"] == "cancelled"


def test_structured_output_that_is_cut_is_an_answer_as_the_route_has_it(api: APIClient) -> None:
    def cut(task: GenerationTask) -> None:
        failure = InferenceError("No JSON.", ErrorCode.STRUCTURED_OUTPUT_INVALID)
        finish.fail(claimed(task), failure, answer('{"a', "length"), TIMINGS)

    batch = finished(created(api, lines(1)), cut)
    assert (batch.num_completed, batch.num_failed) == (1, 0)
    [answered] = read(api, batch.output_file_id)
    [choice] = answered["response"]["body"]["choices"]
    assert (choice["finish_reason"], choice["message"]["content"]) == ("length", '{"a')


def test_batch_without_an_answer_has_no_output_file(api: APIClient) -> None:
    pk = created(api, lines(2))
    batch = finished(pk, failing(ErrorCode.PROVIDER_ERROR))
    assert batch.status == Status.COMPLETED
    assert body(api, pk)["output_file_id"] is None
    assert len(read(api, batch.error_file_id)) == 2


def test_choices_of_a_line_are_one_answer(api: APIClient) -> None:
    pk = created(api, [line("a", n=3), line("b", n=2)])
    answers = read(api, finished(pk).output_file_id)
    assert [len(each["response"]["body"]["choices"]) for each in answers] == [3, 2]


def test_line_may_have_more_tasks_than_the_window(api: APIClient, settings: Settings) -> None:
    settings.BATCH_MAX_TASKS = 3
    completions = "/v1/completions"
    prompts = [f"Prompt {number}" for number in range(60)]
    asked = {"model": "echo", "prompt": prompts, "n": 2}
    many = {"custom_id": "many", "method": "POST", "url": completions, "body": asked}
    few = many | {"custom_id": "few", "body": {"model": "echo", "prompt": "Hi"}}
    pk = created(api, [few, many, few | {"custom_id": "last"}], endpoint=completions)
    turn(pk)
    turn(pk)
    assert len(pending()) == 121  # the last line waits
    answers = read(api, finished(pk, completing()).output_file_id)
    assert [each["custom_id"] for each in answers] == ["few", "many", "last"]
    answer = answers[1]["response"]["body"]
    assert answer["object"] == "text_completion"
    assert len(answer["choices"]) == 120
    assert answer["usage"]["prompt_tokens"] == 3 * 60


def test_line_with_more_tasks_than_the_key_allows_is_refused(api: APIClient) -> None:
    limits = Limits(max_pending_tasks=2)
    alice = client_of(Principal("a key", "alice", frozenset({Scope.TASKS}), limits))
    [error] = turn(created(alice, [line(n=3)], "alice")).errors
    assert error["param"] == "body.n"


def test_lines_of_embeddings_are_answered_by_their_worker(
    api: APIClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embeddings, "_AT_ONCE", 2)
    RegisteredModel.objects.create(name="vectors", provider="embedding", status="available")
    url = "/v1/embeddings"
    asked = [
        line(f"line-{n}") | {"url": url, "body": {"model": "vectors", "input": f"Text {n}"}}
        for n in range(5)
    ]
    pk = created(api, asked, endpoint=url)
    turn(pk)
    ended = threading.Event()
    thread = threading.Thread(target=answer_embeddings, args=(ended,))
    thread.start()
    try:
        batch = finished(pk)
    finally:
        ended.set()
        thread.join()
    answers = read(api, batch.output_file_id)
    assert [each["custom_id"] for each in answers] == ["line-0", "line-1", "line-3", "line-4"]
    assert answers[0]["response"]["body"] == {"of": ["Text 0"]}
    [refused] = read(api, batch.error_file_id)
    assert refused["response"]["status_code"] == 400
    assert refused["response"]["body"]["error"]["param"] == "input"


def answer_embeddings(ended: threading.Event) -> None:
    """A stand-in for the embeddings worker: answers with the texts; the third one it refuses."""
    while not ended.is_set():
        for queued in request_queue.read(10):
            found = Answer(json.dumps({"of": queued.request.texts}))
            if queued.request.texts == ["Text 2"]:
                found = Answer(error="Too long.", field="texts")
            request_queue.deliver([(queued, found)])
        ended.wait(0.01)


def test_embeddings_wait_for_a_worker_that_is_gone(api: APIClient, settings: Settings) -> None:
    settings.EMBEDDING_TIMEOUT_SECONDS = 0.05
    RegisteredModel.objects.create(name="vectors", provider="embedding", status="available")
    url = "/v1/embeddings"
    pk = created(
        api, [line() | {"url": url, "body": {"model": "vectors", "input": "A"}}], endpoint=url
    )
    turn(pk)
    batch = turn(pk)
    assert batch.status == Status.IN_PROGRESS
    assert batch.num_completed == batch.num_failed == 0


def test_line_whose_model_is_gone_by_its_turn_is_an_error(
    api: APIClient, settings: Settings
) -> None:
    settings.BATCH_MAX_TASKS = 1
    pk = created(api, lines(2))
    turn(pk)
    turn(pk)
    work()
    RegisteredModel.objects.all().delete()
    batch = finished(pk)
    assert batch.num_completed == batch.num_failed == 1
    [error] = read(api, batch.error_file_id)
    assert error["response"]["status_code"] == 400
    assert error["response"]["body"]["error"]["param"] == "model"


def test_task_that_is_deleted_before_its_answer_is_written_is_an_error(api: APIClient) -> None:
    pk = created(api, lines(2))
    turn(pk)
    turn(pk)
    work()
    GenerationTask.objects.filter(pk=GenerationTask.objects.all()[0].pk).delete()
    batch = finished(pk)
    assert batch.num_completed == batch.num_failed == 1
    assert read(api, batch.error_file_id)[0]["response"]["status_code"] == 410


def bad_lines() -> Iterator[tuple[Any, str, str | None]]:
    """Lines with the code and the field of their error."""
    yield b"{", "invalid_json_line", None
    yield b"[]", "invalid_json_line", None
    yield b"\xff", "invalid_json_line", None
    yield b'{"custom_id": NaN}', "invalid_json_line", None
    yield b'{"custom_id": "a", "custom_id": "a"}', "invalid_json_line", None
    yield 20_000 * b"[", "invalid_json_line", None
    yield line() | {"custom_id": 1}, "missing_required_parameter", "custom_id"
    yield line("a\0"), "invalid_custom_id", "custom_id"
    yield line("\ud800"), "invalid_custom_id", "custom_id"
    yield line() | {"method": "GET"}, "invalid_method", "method"
    yield line() | {"url": "/v1/embeddings"}, "mismatched_endpoint", "url"
    yield line() | {"bodi": {}}, "invalid_request", "bodi"
    yield line("first"), "duplicate_custom_id", "custom_id"
    yield line() | {"\0\ud800": 1}, "invalid_request", "??"
    odd: dict[str, Any] = {"\0\ud800": 1}
    yield line(**odd), "invalid_request", "body.??"
    yield line() | {"body": [1]}, "invalid_request", None
    yield line(temperature=9), "invalid_request", "body.temperature"
    yield line(stream=True), "invalid_request", "body.stream"
    yield line(model="gone"), "invalid_request", "body.model"
    yield line() | {"body": None}, "invalid_request", None


@pytest.mark.parametrize(("bad", "code", "param"), list(bad_lines()))
def test_bad_line_fails_the_batch_with_its_number(
    api: APIClient, bad: Any, code: str, param: str | None
) -> None:
    text = bad if isinstance(bad, bytes) else json.dumps(bad).encode()
    content = b"\xef\xbb\xbf" + json.dumps(line("first")).encode() + b"\r\n\n" + text
    pk = created(api, content)
    turn(pk)
    end = body(api, pk)
    assert end["status"] == "failed"
    assert end["failed_at"] is not None
    [error] = end["errors"]["data"]
    assert (error["code"], error["line"], error["param"]) == (code, 3, param)
    assert error["message"]
    assert not GenerationTask.objects.exists()


def test_errors_are_bounded_and_an_empty_file_is_one(api: APIClient) -> None:
    pk = created(api, 500 * b"x\n")
    assert len(turn(pk).errors) == 100
    empty = created(api, b" \n\n")
    assert turn(empty).errors[0]["code"] == "empty_file"


def test_too_many_lines_are_refused(api: APIClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "MAX_REQUESTS", 2)
    assert turn(created(api, lines(3))).errors[0]["code"] == "too_many_requests"


def test_cancel_keeps_what_is_done(api: APIClient, settings: Settings) -> None:
    settings.BATCH_MAX_TASKS = 3
    pk = created(api, lines())
    turn(pk)
    turn(pk)
    work(tasks=pending()[:1])
    response = api.post(f"/v1/batches/{pk}/cancel")
    assert response.json()["status"] == "cancelling"
    assert response.json()["cancelling_at"] is not None
    finished(pk)
    end = body(api, pk)
    assert end["status"] == "cancelled"
    assert end["cancelled_at"] is not None
    assert end["request_counts"] == {"total": NUM_LINES, "completed": 1, "failed": NUM_LINES - 1}
    assert [each["custom_id"] for each in read(api, end["output_file_id"])] == ["line-0"]
    errors = read(api, end["error_file_id"])
    assert [each["custom_id"] for each in errors] == [f"line-{n}" for n in range(1, NUM_LINES)]
    assert {each["error"]["code"] for each in errors} == {"batch_cancelled"}
    assert GenerationTask.objects.count() == 3
    assert api.post(f"/v1/batches/{pk}/cancel").status_code == 409


def test_batch_can_be_cancelled_before_it_is_checked(api: APIClient) -> None:
    pk = created(api, lines())
    api.post(f"/v1/batches/{pk}/cancel")
    assert turn(pk).status == Status.CANCELLED
    assert not GenerationTask.objects.exists()


def test_after_the_window_what_runs_ends_and_what_waits_is_cancelled(
    api: APIClient, settings: Settings
) -> None:
    settings.BATCH_MAX_TASKS = 2
    pk = created(api, lines(4), completion_window="1h")
    turn(pk)
    turn(pk)
    running, waiting = pending()
    lease = claimed(running)
    Batch.objects.update(deadline_at=LONG_AGO)
    turn(pk)
    waiting.refresh_from_db()
    assert waiting.status == GenerationTask.Status.CANCELLED
    assert not Batch.objects.get().has_ended
    finish.complete(lease, answer(), TIMINGS)
    finished(pk)
    end = body(api, pk)
    assert end["status"] == "expired"
    assert end["expired_at"] is not None
    assert [each["custom_id"] for each in read(api, end["output_file_id"])] == ["line-0"]
    errors = read(api, end["error_file_id"])
    assert [each["error"]["code"] for each in errors] == 3 * ["batch_expired"]


def test_batch_that_was_never_checked_expires(api: APIClient) -> None:
    pk = created(api, lines())
    Batch.objects.update(deadline_at=LONG_AGO)
    assert turn(pk).status == Status.EXPIRED


@pytest.mark.parametrize(("header", "own", "expected"), [("7", None, 7), ("7", 3, 3), (None, 3, 3)])
def test_priority_is_that_of_the_header_or_of_the_line(
    api: APIClient, header: str | None, own: int | None, expected: float
) -> None:
    options = {"X-Priority": header} if header else {}
    pk = created(api, [line(priority=own)], **options)
    turn(pk)
    turn(pk)
    assert [task.priority for task in pending()] == [expected]


def test_input_stays_while_a_batch_reads_it(api: APIClient) -> None:
    pk = created(api, lines(1))
    path = f"/v1/files/{body(api, pk)['input_file_id']}"
    StoredFile.objects.update(expires_at=LONG_AGO)
    purge()
    assert api.delete(path).status_code == 409
    finished(pk)
    assert api.delete(path).status_code == 200
    assert body(api, pk)["input_file_id"] in path


def test_input_that_is_gone_from_the_disk_fails_the_batch(api: APIClient) -> None:
    pk = created(api, lines(1))
    file = Batch.objects.get().input_file
    assert file is not None
    file.path.unlink()
    assert turn(pk).status == Status.FAILED
    assert body(api, pk)["errors"]["data"][0]["message"]


def test_old_batch_is_purged(api: APIClient) -> None:
    finished(created(api, lines(1)))
    files = list(StoredFile.objects.all())
    Batch.objects.update(expires_at=LONG_AGO)
    StoredFile.objects.update(expires_at=LONG_AGO)
    purge()
    assert not Batch.objects.exists()
    assert not any(file.path.exists() for file in files)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("endpoint", "/v1/images"),
        ("completion_window", "soon"),
        ("completion_window", "in 24h"),
        ("completion_window", "9999d"),
        ("input_file_id", "file-gone"),
        ("webhook_url", "http://10.0.0.1/"),
        ("metadata", 1),
        ("fields", 1),
        ("X-Priority", "101"),
    ],
)
def test_bad_field_is_named(api: APIClient, field: str, value: Any) -> None:
    response = create(api, lines(1), **{field: value})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == field


def test_batch_of_another_owner_is_not_there(api: APIClient) -> None:
    pk = created(api, lines(1))
    other = client_of(Principal("a key", "other", frozenset(Scope)))
    assert other.get("/v1/batches").json()["data"] == []
    assert other.get(f"/v1/batches/{pk}").status_code == 404
    assert other.post(f"/v1/batches/{pk}/cancel").status_code == 404
    assert other.get(f"/v1/batches?after={pk}").status_code == 400
    assert Batch.objects.get().status == Status.VALIDATING


def test_owner_has_a_bounded_number_of_unfinished_batches(
    api: APIClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_views, "_MAX_UNFINISHED", 1)
    pk = created(api, lines(1))
    assert create(api, lines(1)).status_code == 429
    finished(pk)
    assert create(api, lines(1)).status_code == 200


def test_list_has_pages(api: APIClient) -> None:
    ids = [created(api, lines(1)) for _ in range(3)]
    first = api.get("/v1/batches?limit=2").json()
    assert [each["id"] for each in first["data"]] == [ids[2], ids[1]]
    assert first["has_more"] is True
    rest = api.get(f"/v1/batches?limit=2&after={first['last_id']}").json()
    assert [each["id"] for each in rest["data"]] == [ids[0]]
    assert rest["has_more"] is False


def test_session_ends_with_the_last_batch(api: APIClient) -> None:
    pk = created(api, b"no request")
    worker.run()
    assert Batch.objects.get(pk=pk).status == Status.FAILED


@pytest.mark.parametrize(
    ("content", "event"), [(lines(1), "batch.completed"), (b"x", "batch.failed")]
)
def test_end_is_told_by_webhook(
    api: APIClient, settings: Settings, content: Any, event: str
) -> None:
    settings.WEBHOOK_ALLOWED_HOSTS = ["127.0.0.1"]
    url = "http://127.0.0.1:9/hook"
    pk = created(api, content, webhook_url=url)
    finished(pk)
    delivery = WebhookDelivery.objects.get()
    payload = json.loads(delivery.payload)
    assert (delivery.url, delivery.event, delivery.subject_id) == (url, event, pk)
    assert payload["id"] == delivery.pk
    assert payload["type"] == event
    assert payload["data"] == {"id": pk}


def test_admin_shows_progress_and_cancels(api: APIClient, client: Client) -> None:
    pk = created(api, lines(3))
    turn(pk)
    turn(pk)
    client.force_login(User.objects.create_superuser("root", password="long enough"))
    url = reverse("admin:inference_batch_changelist")
    assert b"0 of 3" in client.get(url).content
    client.post(url, {"action": "cancel_batches", "_selected_action": [pk]})
    assert Batch.objects.get().status == Status.CANCELLING
    assert client.get(reverse("admin:inference_storedfile_changelist")).status_code == 200


def test_responses_of_a_batch(api: APIClient) -> None:
    def asked(custom_id: str, **fields: Any) -> Any:
        return {
            "custom_id": custom_id,
            "method": "POST",
            "url": "/v1/responses",
            "body": {"model": "echo", "input": "Hi"} | fields,
        }

    refused = created(api, [asked("a", previous_response_id="resp_0")], endpoint="/v1/responses")
    assert body(api, finished(refused).pk)["errors"]["data"][0]["param"] == (
        "body.previous_response_id"
    )
    batch = finished(created(api, [asked("a")], endpoint="/v1/responses"))
    [answered] = read(api, batch.output_file_id)
    response = answered["response"]["body"]
    assert (response["object"], response["status"]) == ("response", "completed")
    assert response["output"][0]["content"][0]["text"] == "Answer to Hi"


class Killed(BaseException):
    """Nothing of the worker runs any more."""


@pytest.fixture
def kill_turn(monkeypatch: pytest.MonkeyPatch, dead_worker: str) -> Callable[[], None]:
    """A turn of the batch that is due, in which the check of a line with `kill` ends the worker."""
    build = submission.build_task

    def check(owner: str, data: dict[str, Any], *arguments: Any) -> GenerationTask:
        if "kill" in str(data["messages"]):
            raise Killed
        return build(owner, data, *arguments)

    monkeypatch.setattr(submission, "build_task", check)
    put_back = Batch.put_back

    def run() -> None:
        batch = Batch.objects.claim_next(worker_identity.current())
        assert batch is not None
        monkeypatch.setattr(Batch, "put_back", lambda *_: None)
        with suppress(Killed):
            worker.advance(batch)
        monkeypatch.setattr(Batch, "put_back", put_back)
        Batch.objects.filter(lease_until__isnull=False).update(worker=dead_worker)
        sweep.sweep()

    return run


@pytest.mark.parametrize("number", [1, 150, 300])
def test_line_that_kills_the_worker_again_and_again_fails_the_batch_by_its_number(
    api: APIClient, settings: Settings, kill_turn: Callable[[], None], number: int
) -> None:
    content = lines(300)
    content[number - 1] = line("culprit", "kill")
    pk = created(api, content)
    for _ in range(settings.MAX_ATTEMPTS):
        kill_turn()
    assert turn(pk).status == Status.FAILED
    [error] = body(api, pk)["errors"]["data"]
    assert (error["line"], error["code"]) == (number, "worker_lost")


def test_loss_at_another_line_does_not_count(
    api: APIClient, settings: Settings, kill_turn: Callable[[], None]
) -> None:
    pk = created(api, [line("a", "kill"), *lines(2)])
    for _ in range(settings.MAX_ATTEMPTS - 1):
        kill_turn()
    file = Batch.objects.get().input_file
    assert file is not None
    file.write(0, json.dumps(line("a", "milk")).encode())
    assert turn(pk).status == Status.IN_PROGRESS
    assert finished(pk).num_completed == 3


def test_batches_that_may_have_killed_a_worker_are_checked_one_at_a_time(
    api: APIClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = created(api, lines(1)), created(api, lines(1))
    Batch.objects.update(num_lost=1)
    build = submission.build_task
    seen: list[str] = []

    def check(*arguments: Any) -> GenerationTask:
        if not seen:
            seen.append(turn(second).status)
        return build(*arguments)

    monkeypatch.setattr(submission, "build_task", check)
    Batch.objects.filter(pk=second).update(due_at=timezone.now() + timedelta(hours=1))
    assert turn(first).status == Status.IN_PROGRESS
    assert seen == [Status.VALIDATING]
    assert turn(second).status == Status.IN_PROGRESS
