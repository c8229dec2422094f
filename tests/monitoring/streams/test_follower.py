"""One follower for all the token streams that a web process follows."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from monitoring.redis.client import client
from monitoring.streams import delta_stream, ends
from monitoring.streams import follower as follower_module
from monitoring.streams.follower import DeltaReader, Follower
from tests.conftest import Valkey

LIMIT_SECONDS = 20.0


def run(conversation: Callable[[Follower], Awaitable[Any]]) -> Any:
    async def with_reader() -> Any:
        follower = Follower()
        try:
            return await asyncio.wait_for(conversation(follower), LIMIT_SECONDS)
        finally:
            await follower.close()

    return asyncio.run(with_reader())


def write(task_id: str, *texts: str, attempt: int = 1) -> None:
    """The whole text so far, as a writer whose deltas may have arrived already."""
    writer = delta_stream.DeltaWriter(task_id, attempt)
    for text in texts:
        writer.write(text)
        writer.flush()


async def read(reader: DeltaReader, num_chars: int, text: str = "") -> str:
    """The text so far with what follows, until it has a length; each delta once."""
    while len(text) < num_chars:
        for entry in await reader.read(LIMIT_SECONDS):
            if entry.num_chars > len(text):
                assert entry.num_chars - len(entry.text) == len(text)
                text += entry.text
    return text


def test_followers_get_what_is_there_and_what_comes(valkey: Valkey) -> None:
    write("t", "one ")

    async def conversation(follower: Follower) -> None:
        with follower.following("t", "0-0") as reader:
            assert await read(reader, 4) == "one "
            write("t", "one ", "two ")
            [entry] = await reader.read(LIMIT_SECONDS)
            assert (entry.id, entry.text) == ("1-8", "two ")
            delta_stream.end("t")
            assert await reader.read(10 * LIMIT_SECONDS) == []

    run(conversation)


def test_deltas_come_before_the_end_that_was_announced_after_them(valkey: Valkey) -> None:
    async def conversation(follower: Follower) -> None:
        with follower.following("t", "0-0") as reader:
            write("t", "one ", "two ")
            delta_stream.end("t")
            assert await read(reader, 8) == "one two "
            assert await reader.read(10 * LIMIT_SECONDS) == []

    run(conversation)


def test_ends_wake_who_waits_for_them_alone(valkey: Valkey) -> None:
    async def conversation(follower: Follower) -> None:
        mine, others = asyncio.Event(), asyncio.Event()
        with follower.waiting_for("mine", mine.set), follower.waiting_for("other", others.set):
            ends.announce("mine")
            await mine.wait()
            assert not others.is_set()
        with follower.waiting_for("other", others.set):
            ends.announce("other")
            await others.wait()
        assert not follower._wakes

    run(conversation)


def test_ends_are_kept_for_a_moment_alone(valkey: Valkey) -> None:
    for number in range(1500):
        ends.announce(str(number))
    assert client().xlen(ends.STREAM) < 1200


def test_follower_begins_after_an_id(valkey: Valkey) -> None:
    write("t", "one ", "two ", "three")

    async def conversation(follower: Follower) -> None:
        with follower.following("t", "1-4") as reader:
            entries = await reader.read(LIMIT_SECONDS)
            assert [entry.text for entry in entries] == ["two ", "three"]

    run(conversation)


def test_silence_has_a_limit(valkey: Valkey) -> None:
    async def conversation(follower: Follower) -> None:
        with follower.following("t", "0-0") as reader:
            assert await reader.read(0.01) == []

    run(conversation)


def test_stream_that_is_joined_late_is_heard_at_once(
    valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follower_module, "_BLOCK_SECONDS", 10 * LIMIT_SECONDS)

    async def conversation(follower: Follower) -> None:
        with follower.following("quiet", "0-0") as quiet:
            assert await quiet.read(0.05) == []  # the follower waits for the quiet one alone
            for number in range(5):
                write(f"t{number}", "text")
                with follower.following(f"t{number}", "0-0") as reader:
                    assert await read(reader, 4) == "text"

    run(conversation)


def test_one_connection_reads_for_all(valkey: Valkey) -> None:
    before = len(client().client_list())

    async def conversation(follower: Follower) -> None:
        follower_of: dict[int, DeltaReader] = {}
        contexts = [follower.following(f"t{number}", "0-0") for number in range(50)]
        for number, context in enumerate(contexts):
            follower_of[number] = context.__enter__()
        assert follower.num_readers == 50
        for number in range(50):
            write(f"t{number}", f"text {number:2}")
        texts = await asyncio.gather(*(read(each, 7) for each in follower_of.values()))
        assert texts == [f"text {number:2}" for number in range(50)]
        assert len(client().client_list()) - before <= 2  # it waits on one, and asks on another
        for context in contexts:
            context.__exit__(None, None, None)
        assert follower.num_readers == 0

    run(conversation)


def test_followers_of_one_stream_each_get_it_all(valkey: Valkey) -> None:
    write("t", "one ")

    async def conversation(follower: Follower) -> None:
        with follower.following("t", "0-0") as early:
            assert await read(early, 4) == "one "
            with follower.following("t", "0-0") as late, follower.following("t", "1-4") as later:
                write("t", "one ", "two ", "three")
                assert await read(late, 13) == "one two three"
                texts: list[str] = []
                while "three" not in texts:
                    texts += [entry.text for entry in await later.read(LIMIT_SECONDS)]
                assert texts[-2:] == ["two ", "three"]
            entries = await early.read(LIMIT_SECONDS)
            assert [entry.text for entry in entries] == ["two ", "three"]

    run(conversation)


def test_follower_that_reads_slowly_piles_up_nothing_and_loses_nothing(
    valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follower_module, "PAGE", 10)
    monkeypatch.setattr(follower_module, "MAX_WAITING", 20)
    words = [f"word{number:3} " for number in range(100)]

    async def conversation(follower: Follower) -> None:
        with follower.following("t", "0-0") as slow, follower.following("t", "0-0") as quick:
            text = ""
            for end in range(10, 101, 10):
                write("t", *words[:end])
                text = await read(quick, 8 * end, text)
                assert len(slow._waiting) <= 20
            assert text == "".join(words)
            assert await read(slow, 800) == "".join(words)

    run(conversation)


def test_id_that_was_never_given_keeps_nothing_from_others(valkey: Valkey) -> None:
    write("t", "one ")

    async def conversation(follower: Follower) -> None:
        with follower.following("t", "99-0"), follower.following("t", "0-0") as reader:
            assert await read(reader, 4) == "one "
            write("t", "one ", "two ")
            entries = await reader.read(LIMIT_SECONDS)
            assert [entry.text for entry in entries] == ["two "]

    run(conversation)


def test_who_begins_earlier_than_one_that_left_gets_it_all(valkey: Valkey) -> None:
    write("t", "one ", "two ")

    async def conversation(follower: Follower) -> None:
        with follower.following("t", "1-8") as reader:
            assert await reader.read(0.05) == []
        with follower.following("t", "0-0") as reader:
            write("t", "one ", "two ", "three")  # the command of the one that left brings this
            assert await read(reader, 13) == "one two three"

    run(conversation)


def test_reader_rests_when_nobody_follows(valkey: Valkey, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follower_module, "_BLOCK_SECONDS", 0.05)

    async def conversation(follower: Follower) -> None:
        for _ in range(2):
            with follower.following("t", "0-0") as reader:
                write("t", "text")
                assert await read(reader, 4) == "text"
            assert follower._reading is not None
            await follower._reading

    run(conversation)


@pytest.mark.parametrize("is_empty", [True, False])
def test_reader_goes_on_when_redis_is_back(
    valkey: Valkey,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    is_empty: bool,
) -> None:
    monkeypatch.setattr(follower_module, "_RECONNECT_SECONDS", 0.05)
    write("t", "one ")

    async def conversation(follower: Follower) -> None:
        with follower.following("t", "0-0") as reader, follower.following("new", "0-0") as other:
            assert await read(reader, 4) == "one "
            valkey.stop()
            while not follower._is_down:
                assert await reader.read(0.01) == []
            assert await follower.stored("t", "0-0") == []
            await asyncio.to_thread(valkey.start)
            if is_empty:
                client().flushall()
            write("t", "one ", "two ")
            write("new", "text")
            assert await read(other, 4) == "text"
            ids = [entry.id for entry in await reader.read(LIMIT_SECONDS)]
            assert ids == ["1-8"]  # the new one is after the cursor, whatever Redis has lost

    run(conversation)
    assert caplog.text.count("no Redis") == 1


def test_stalled_redis_is_given_up_on(valkey: Valkey, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follower_module, "_ANSWER_SECONDS", 0.1)

    write("t", "text")

    async def conversation(follower: Follower) -> None:
        assert len(await follower.stored("t", "0-0")) == 1
        client().execute_command("CLIENT", "PAUSE", "300")
        assert await follower.stored("t", "0-0") == []

    run(conversation)


def test_stored_entries_come_by_pages(valkey: Valkey, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follower_module, "PAGE", 2)
    write("t", "a", "b", "c")

    async def conversation(follower: Follower) -> list[list[str]]:
        pages = [await follower.stored("t", after) for after in ("0-0", "1-2", "1-3")]
        return [[entry.text for entry in page] for page in pages]

    assert run(conversation) == [["a", "b"], ["c"], []]


def test_silence_is_no_outage(
    valkey: Valkey, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follower_module, "_BLOCK_SECONDS", 0.05)

    async def conversation(follower: Follower) -> None:
        with follower.following("t", "0-0") as reader:
            assert await reader.read(0.3) == []
            assert follower._client().get_connection_kwargs()["socket_timeout"] is None

    run(conversation)
    assert caplog.text == ""
