"""Requests for embeddings and their answers, in a real Valkey."""

import pytest
import redis
from pytest_django import Settings

from inference import dispatch
from inference.embeddings import request_queue
from inference.embeddings.messages import Answer, EmbeddingRequest, Shape
from inference.embeddings.request_queue import QueuedRequest, TooManyRequestsError
from inference.models import Queue
from monitoring.hardware import worker_identity, workers
from monitoring.redis.client import client
from monitoring.streams import ends
from tests.conftest import Valkey

pytestmark = pytest.mark.usefixtures("valkey")

REQUEST = EmbeddingRequest("m", ["a", "ünï 🙂"], Shape.SIMILARITIES, False, "query")


def post(request: EmbeddingRequest = REQUEST) -> tuple[str, str]:
    """The key, and the entry."""
    key = request_queue.new_key()
    return key, request_queue.post(key, request)


def num_messages() -> int | None:
    return dispatch.waiting_messages(Queue.EMBEDDINGS)


def keys() -> set[str]:
    return set(client().keys("embedding*:*"))


def test_request_arrives_as_it_was_posted() -> None:
    key, entry_id = post()
    assert request_queue.read(10) == [QueuedRequest(entry_id, key, REQUEST)]
    assert request_queue.read(10) == []


def test_answer_is_announced_and_collected_once() -> None:
    key, _ = post()
    assert request_queue.take_answer(key) is None
    [queued] = request_queue.read(1)
    request_queue.deliver([(queued, Answer('{"x": 1}'))])
    assert [fields for _, fields in client().xrange(ends.STREAM)] == [{"key": key}]
    assert request_queue.take_answer(key) == Answer('{"x": 1}')
    assert request_queue.take_answer(key) is None
    assert client().xlen("embeddings:requests") == 0


def test_one_message_is_enough_for_many_requests() -> None:
    post()
    post()
    assert num_messages() == 1


def test_requests_send_no_message_while_a_worker_reads() -> None:
    request_queue.read(1, 0.01)
    post()
    assert num_messages() == 0
    request_queue.stop_reading()
    post()
    assert num_messages() == 1


def test_message_that_could_not_be_sent_is_sent_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(dispatch, "enqueue", lambda messages: False)
        post()
    request_queue.notify()
    assert num_messages() == 1


def test_worker_reads_again_what_it_has_not_answered() -> None:
    _, entry_id = post()
    request_queue.read(10)
    assert [queued.entry_id for queued in request_queue.read_unanswered()] == [entry_id]


def take_as(worker: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(worker_identity, "current", lambda: worker)
        request_queue.read(10)


def test_requests_of_a_dead_worker_are_inherited_once(
    monkeypatch: pytest.MonkeyPatch, dead_worker: str
) -> None:
    _, entry_id = post()
    take_as(dead_worker, monkeypatch)
    assert request_queue.read(10) == []
    assert [queued.entry_id for queued in request_queue.take_over()] == [entry_id]
    assert [queued.entry_id for queued in request_queue.read_unanswered()] == [entry_id]
    assert request_queue.take_over() == []
    consumers = client().xinfo_consumers("embeddings:requests", "workers")
    assert [consumer["name"] for consumer in consumers] == [worker_identity.current()]


def test_requests_of_a_silent_host_are_inherited(monkeypatch: pytest.MonkeyPatch) -> None:
    _, entry_id = post()
    take_as("another-host:17", monkeypatch)
    assert request_queue.take_over() == []
    monkeypatch.setattr(workers, "silent_hosts", lambda hosts, queue: hosts & {"another-host"})
    assert [queued.entry_id for queued in request_queue.take_over()] == [entry_id]


def test_forgotten_request_is_gone_wherever_it_is() -> None:
    waiting_key, waiting = post()
    request_queue.forget(waiting_key, waiting)
    assert request_queue.read(10) == []
    taken_key, taken = post()
    [queued] = request_queue.read(10)
    _, wanted = post()
    [other] = request_queue.read(10)
    request_queue.forget(taken_key, taken)
    assert request_queue.forgotten([queued, other]) == [queued]
    assert request_queue.read_unanswered() == [other]
    assert other.entry_id == wanted


def test_everything_expires(settings: Settings) -> None:
    settings.EMBEDDING_TIMEOUT_SECONDS = 3
    key, _ = post()
    [queued] = request_queue.read(1)
    request_queue.deliver([(queued, Answer("{}"))])
    post()
    assert keys() == {key, "embeddings:requests", "embeddings:notified"}
    assert all(0 < client().ttl(each) <= 3600 for each in keys())
    assert client().ttl(key) <= 13


def test_full_queue_takes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_queue, "MAX_REQUESTS", 1)
    post()
    with pytest.raises(TooManyRequestsError):
        post()
    assert len(request_queue.read(10)) == 1


def test_group_is_made_anew_when_redis_has_lost_it() -> None:
    request_queue.read(1)
    client().flushall()
    _, entry_id = post()
    assert [queued.entry_id for queued in request_queue.read(1)] == [entry_id]


def test_without_redis_it_says_so(valkey: Valkey) -> None:
    valkey.stop()
    with pytest.raises(redis.RedisError):
        post()
