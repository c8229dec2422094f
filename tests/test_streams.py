"""The token stream of a task in Redis."""

import threading

import pytest
from django.conf import settings

from monitoring import streams
from monitoring.redis_client import client
from tests.conftest import Valkey, wait_until


def entries(task_id: str) -> list[dict[str, str]]:
    return [entry for _, entry in client().xrange(streams.stream_key(task_id))]


def write(text: str, task_id: str = "t", attempt: int = 1) -> None:
    writer = streams.ChunkWriter(task_id, attempt)
    writer.write(text)
    writer.flush()


def test_first_chunk_goes_out_at_once_and_others_together(valkey: Valkey) -> None:
    writer = streams.ChunkWriter("t", 2)
    writer.write("Hello")
    writer.flush_if_due()
    assert entries("t") == [{"type": "token", "text": "Hello", "index": "0", "attempt": "2"}]
    writer.write(" world")
    writer.flush_if_due()
    assert len(entries("t")) == 1

    def is_there() -> bool:
        writer.flush_if_due()
        return len(entries("t")) == 2

    wait_until(is_there)


def test_chunks_of_several_tasks_and_a_key_take_one_round_trip(valkey: Valkey) -> None:
    one, two = streams.ChunkWriter("one", 1), streams.ChunkWriter("two", 3)
    one.write("a")
    two.write("b")
    client().set("news", 7)
    assert streams.send([one, two], read=["news", "no news"]) == ["7", None]
    assert [entry["text"] for entry in entries("one")] == ["a"]
    assert [entry["attempt"] for entry in entries("two")] == ["3"]


def test_all_chunks_go_out_in_order(valkey: Valkey) -> None:
    writer = streams.ChunkWriter("t", 1)
    words = [f"word{index} " for index in range(50)]
    for word in words:
        writer.write(word)
    writer.flush()
    assert [entry["text"] for entry in entries("t")] == words
    assert [int(entry["index"]) for entry in entries("t")] == list(range(50))


def test_flush_of_nothing_writes_nothing(valkey: Valkey) -> None:
    streams.ChunkWriter("t", 1).flush()
    assert client().exists(streams.stream_key("t")) == 0


def test_end_closes_the_stream_for_its_time_to_live(valkey: Valkey) -> None:
    write("Hello")
    streams.end("t", 1, "completed")
    assert entries("t")[-1] == {"type": "end", "status": "completed", "attempt": "1"}
    assert 0 < client().ttl(streams.stream_key("t")) <= settings.TASK_TTL_SECONDS


def test_reader_gets_each_chunk_once_until_the_end(valkey: Valkey) -> None:
    def write_words() -> None:
        writer = streams.ChunkWriter("t", 1)
        for word in ("a", "b", "c"):
            writer.write(word)
            writer.flush()
        streams.end("t", 1, "completed")

    thread = threading.Thread(target=write_words)
    thread.start()
    assert list(streams.read_chunks("t", 20)) == ["a", "b", "c"]
    thread.join()
    assert list(streams.read_chunks("t", 20)) == ["a", "b", "c"]


def test_reader_does_not_wait_for_ever(valkey: Valkey) -> None:
    write("a")
    with pytest.raises(TimeoutError, match="t did not end"):
        list(streams.read_chunks("t", 0.05))


def test_deleted_streams_are_gone(valkey: Valkey) -> None:
    streams.end("one", 1, "completed")
    streams.end("two", 1, "completed")
    streams.delete([])
    streams.delete(["one"])
    assert client().keys("*") == [streams.stream_key("two")]


def test_dead_redis_costs_the_preview_alone(
    valkey: Valkey, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "_warned_at", float("-inf"))
    valkey.stop()
    writer = streams.ChunkWriter("task_1", 1)
    for _ in range(3):
        writer.write("secret text")
        assert streams.send([writer], read=["news"]) == [None]
    assert caplog.text.count("No live tokens") == 1  # not a line for each chunk
    streams.end("task_1", 1, "completed")
    streams.delete(["task_1"])
    assert "task_1" in caplog.text
    assert "secret text" not in caplog.text
    valkey.start()
    wait_until(valkey.answers)
    client().flushall()
    writer.write("more")
    writer.flush()
    assert [entry["text"] for entry in entries("task_1")] == ["more"]
