"""The token stream of a task in Redis."""

import threading

import pytest
from django.conf import settings

from monitoring.redis.client import client
from monitoring.streams import delta_stream, ends
from tests.conftest import Valkey


def entries(task_id: str) -> list[dict[str, str]]:
    return [entry for _, entry in client().xrange(delta_stream.stream_key(task_id))]


def ids(task_id: str) -> list[str]:
    return [entry_id for entry_id, _ in client().xrange(delta_stream.stream_key(task_id))]


def ended_keys() -> list[str]:
    """What the ends were announced by."""
    return [fields["key"] for _, fields in client().xrange(ends.STREAM)]


def write(text: str, task_id: str = "t", attempt: int = 1) -> None:
    writer = delta_stream.DeltaWriter(task_id, attempt)
    writer.write(text)
    writer.flush()


def test_first_delta_is_due_at_once_and_others_may_wait(valkey: Valkey) -> None:
    writer = delta_stream.DeltaWriter("t", 2)
    writer.write("Hello")
    assert writer.is_first_due
    writer.flush()
    assert entries("t") == [{"text": "Hello", "index": "0"}]
    writer.write(" world")
    assert (writer.is_first_due, writer.has_unsent) == (False, True)
    writer.flush()
    assert len(entries("t")) == 2
    assert not writer.has_unsent


def test_deltas_of_several_tasks_and_a_key_take_one_round_trip(valkey: Valkey) -> None:
    one, two = delta_stream.DeltaWriter("one", 1), delta_stream.DeltaWriter("two", 3)
    one.write("a")
    two.write("b")
    client().set("news", 7)
    assert delta_stream.send([one, two], read=["news", "no news"]) == ["7", None]
    assert [entry["text"] for entry in entries("one")] == ["a"]
    assert ids("one") + ids("two") == ["1-1", "3-1"]


def test_all_deltas_go_out_in_order(valkey: Valkey) -> None:
    writer = delta_stream.DeltaWriter("t", 1)
    words = [f"word{index} " for index in range(50)]
    for word in words:
        writer.write(word)
        writer.flush()
    assert [entry["text"] for entry in entries("t")] == words
    assert [int(entry["index"]) for entry in entries("t")] == list(range(50))


def test_texts_that_wait_together_are_one_delta(
    valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delta_stream, "MAX_MERGED_CHARS", 8)
    writer = delta_stream.DeltaWriter("t", 1)
    for text in ("one", " two", " and", " three"):
        writer.write(text)
    writer.write_reasoning("hm")
    writer.write_reasoning(", so")
    writer.write("four", [{"token": "four"}])
    writer.write(" five")
    writer.flush()
    assert entries("t") == [
        {"text": "one two and", "index": "0"},
        {"text": " three", "index": "1"},
        {"reasoning": "hm, so", "index": "2"},
        {"text": "four", "index": "3", "logprobs": '[{"token": "four"}]'},
        {"text": " five", "index": "4"},
    ]
    assert ids("t") == ["1-11", "1-17", "1-23", "1-27", "1-32"]


def test_delta_that_may_have_arrived_is_not_merged_with_a_later_one(valkey: Valkey) -> None:
    writer = delta_stream.DeltaWriter("t", 1)
    writer.write("one")
    delta_stream.pipeline([writer]).execute()  # the confirmation got lost
    writer.write(" two")
    writer.flush()
    assert ids("t") == ["1-3", "1-7"]


def test_id_of_a_delta_says_how_long_the_text_is_with_it(valkey: Valkey) -> None:
    writer = delta_stream.DeltaWriter("t", 2)
    for text in ("one", " two", " 🙂\u2028"):
        writer.write(text)
        writer.flush()
    delta_stream.end("t")
    assert ids("t") == ["2-3", "2-7", "2-10"]
    read = [delta_stream.parse(*each) for each in client().xrange(delta_stream.stream_key("t"))]
    assert [(each.attempt, each.num_chars, each.index, each.text) for each in read] == [
        (2, 3, 0, "one"),
        (2, 7, 1, " two"),
        (2, 10, 2, " 🙂\u2028"),
    ]


def test_deltas_that_are_sent_twice_are_kept_once(
    valkey: Valkey, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(2):
        write("same")
    assert ids("t") == ["1-4"]
    assert caplog.text == ""


def test_lost_attempt_can_add_nothing_to_the_next_one(
    valkey: Valkey, caplog: pytest.LogCaptureFixture
) -> None:
    lost = delta_stream.DeltaWriter("t", 1)
    lost.write("lost")
    lost.flush()
    write("right", attempt=2)
    lost.write(" for ever")
    lost.flush()
    assert ids("t") == ["1-4", "2-5"]
    assert caplog.text == ""


def test_task_that_never_started_has_an_end_too(valkey: Valkey) -> None:
    delta_stream.end("t")
    assert ended_keys() == ["t"]


def test_first_delta_is_due_until_somebody_has_tried_to_send_it(valkey: Valkey) -> None:
    writer = delta_stream.DeltaWriter("t", 1)
    delta_stream.send([writer])
    assert not writer.is_first_due
    writer.write("a")
    assert writer.is_first_due
    delta_stream.send([writer])
    writer.write("b")
    assert not writer.is_first_due


def test_flush_of_nothing_writes_nothing(valkey: Valkey) -> None:
    delta_stream.DeltaWriter("t", 1).flush()
    assert client().exists(delta_stream.stream_key("t")) == 0


def test_end_closes_the_stream_for_its_time_to_live(valkey: Valkey) -> None:
    write("Hello")
    delta_stream.end("t")
    assert ended_keys() == ["t"]
    assert 0 < client().ttl(delta_stream.stream_key("t")) <= settings.TASK_TTL_SECONDS


def test_reader_gets_each_delta_once_until_the_end(valkey: Valkey) -> None:
    def write_words() -> None:
        writer = delta_stream.DeltaWriter("t", 1)
        for word in ("a", "b", "c"):
            writer.write(word)
            writer.flush()
        delta_stream.end("t")

    thread = threading.Thread(target=write_words)
    thread.start()
    assert list(delta_stream.read_deltas("t", 20)) == ["a", "b", "c"]
    thread.join()
    assert list(delta_stream.read_deltas("t", 20)) == ["a", "b", "c"]


def test_reader_skips_what_a_lost_attempt_wrote(valkey: Valkey) -> None:
    write("lost")
    write("right", attempt=2)
    delta_stream.end("t")
    assert list(delta_stream.read_deltas("t", 20)) == ["right"]


def test_reader_does_not_wait_for_ever(valkey: Valkey) -> None:
    write("a")
    with pytest.raises(TimeoutError, match="t did not end"):
        list(delta_stream.read_deltas("t", 0.05))


def test_deleted_streams_are_gone(valkey: Valkey) -> None:
    write("a", "one")
    write("b", "two")
    delta_stream.delete([])
    delta_stream.delete(["one"])
    assert client().keys("*") == [delta_stream.stream_key("two")]


def test_deltas_are_kept_back_while_redis_is_away(
    valkey: Valkey, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delta_stream, "_warned_at", float("-inf"))
    writer = delta_stream.DeltaWriter("task_1", 1)
    writer.write("before, ")
    writer.flush()
    valkey.stop()
    for _ in range(3):
        writer.write("secret text, ")
        assert delta_stream.send([writer], read=["news"]) == [None]
        assert not writer.is_first_due  # who waits for Redis must not wait at each step
    assert caplog.text.count("Live tokens are kept back") == 1  # not a line for each delta
    delta_stream.end("task_1")
    delta_stream.delete(["task_1"])
    assert "task_1" in caplog.text
    assert "secret text" not in caplog.text
    valkey.start()
    client().flushall()  # it may have come back with what it had
    writer.write("more")
    writer.flush()
    assert [entry["text"] for entry in entries("task_1")] == ["secret text, "] * 3 + ["more"]


def test_what_was_kept_back_has_a_limit_and_goes_out_in_parts(
    valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delta_stream, "_MAX_PER_ROUND_TRIP", 3)
    monkeypatch.setattr(delta_stream, "MAX_MERGED_CHARS", 1)
    writer = delta_stream.DeltaWriter("t", 1)
    for _ in range(delta_stream.MAX_UNSENT + 5):
        writer.write("x")
    delta_stream.send([writer])
    assert ids("t") == ["1-6", "1-7", "1-8"]
    monkeypatch.undo()
    writer.flush()
    assert len(ids("t")) == delta_stream.MAX_UNSENT


def test_other_errors_than_refused_ids_keep_deltas_back(valkey: Valkey) -> None:
    client().set(delta_stream.stream_key("t"), "no stream")
    writer = delta_stream.DeltaWriter("t", 1)
    writer.write("a")
    writer.flush()
    client().delete(delta_stream.stream_key("t"))
    writer.flush()
    assert ids("t") == ["1-1"]
