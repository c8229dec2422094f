"""What a reader of a task's stream is told, whatever the stream has lost."""

import copy
from datetime import UTC, datetime
from itertools import accumulate
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from benchmarks.event_stream import EventParser, ServerEvent, StreamedAnswer
from conversations.models import ToolCall, ToolFunction
from inference.api.sse_cursor import SSEWriter
from inference.api.task_stream import cursor_after
from inference.models import GenerationTask, TaskResult, Usage
from monitoring.streams.delta_stream import Delta

NOW = datetime(2026, 1, 31, tzinfo=UTC)
USAGE = Usage(prompt_tokens=1, completion_tokens=1, total_tokens=2, cached_tokens=0)

texts = st.text(st.sampled_from("ab\n\r é\u2028🙂\x00"), min_size=1, max_size=5)
runs = st.lists(st.lists(texts, max_size=6), min_size=1, max_size=3)


def ended(attempt: int, text: str | None, status: str = "completed") -> GenerationTask:
    result = None
    if text is not None:
        result = TaskResult(
            text=text, finish_reason="stop", usage=USAGE, model="m", parsed=None, extra={}
        )
    return GenerationTask(
        id="task_1",
        status=status,
        attempt=attempt,
        result=result,
        request={"webhook_url": None},
        created_at=NOW,
        updated_at=NOW,
    )


def deltas(attempt: int, spoken: list[str]) -> list[Delta]:
    """What a whole attempt leaves in the stream."""
    ends = accumulate(map(len, spoken))
    return [
        Delta(f"{attempt}-{end}", attempt, end, index, text)
        for index, (text, end) in enumerate(zip(spoken, ends, strict=True))
    ]


def events(*parts: bytes) -> list[ServerEvent]:
    return EventParser().feed(b"".join(parts))


@given(st.data(), runs, st.booleans())
def test_deltas_since_the_last_restart_are_the_result(
    data: st.DataObject, attempts: list[list[str]], has_result: bool
) -> None:
    """With holes in the stream, deltas given twice, lost attempts, and a client that goes away."""
    stream = [each for n, spoken in enumerate(attempts, 1) for each in deltas(n, spoken)]
    kept = [each for each in stream if data.draw(st.booleans() | st.just(value=True))]
    text = "".join(attempts[-1]) if has_result else None
    task = ended(len(attempts), text, "completed" if has_result else "failed")
    reading = StreamedAnswer()
    indexes: list[int] = []
    while reading.end is None:
        writer = SSEWriter(cursor_after(reading.last_id))
        start = data.draw(st.integers(0, len(kept)))
        batches = [kept[start : start + 3], kept[start:], kept]
        told = events(*map(writer.add, batches), writer.conclude(task))
        heard = told[: data.draw(st.integers(1, len(told)))]
        reading.take(heard)
        for event in heard:
            indexes += [event.data["index"]] if event.type == "token" else []
            indexes = [] if event.type == "restart" else indexes
    assert reading.text == (text or "")
    assert indexes == list(range(len(indexes)))
    assert (reading.end.type, reading.end.id) == (task.status, "end")


@st.composite
def mixed_answers(draw: st.DrawFn) -> tuple[list[Delta], TaskResult]:
    """The deltas of an answer that reasons, speaks and calls, and its result."""
    stream: list[Delta] = []
    text, reasoning, logprobs = "", "", []
    calls: list[ToolCall] = []
    num_chars = 0
    for kind in draw(st.lists(st.sampled_from(["text", "reasoning", "call", "part"]), max_size=9)):
        said = draw(texts)
        fields: dict[str, Any] = {kind: said}
        if kind == "text":
            text += said
        elif kind == "reasoning":
            reasoning += said
        elif kind == "call" or not calls:
            function = ToolFunction(name="find", arguments=said)
            calls.append(ToolCall(id=f"call_{len(calls)}", type="function", function=function))
            fields = {"tool_call": {"index": len(calls) - 1, **copy.deepcopy(calls[-1])}}
        else:
            calls[-1]["function"]["arguments"] += said
            part = {"index": len(calls) - 1, "function": {"arguments": said}}
            fields = {"tool_call": part}
        if draw(st.booleans()):
            token = {"token": said, "logprob": -1.0, "bytes": [7], "top_logprobs": []}
            logprobs.append(token)
            fields["logprobs"] = [token]
        num_chars += Delta("", 1, 0, 0, **fields).length
        stream.append(Delta(f"1-{num_chars}", 1, num_chars, len(stream), **fields))
    result = TaskResult(
        text=text, finish_reason="stop", usage=USAGE, model="m", parsed=None, extra={}
    )
    result |= {"reasoning_content": reasoning, "tool_calls": calls}
    result["logprobs"] = {"content": logprobs}
    return stream, result


@given(st.data(), mixed_answers())
def test_reasoning_and_calls_come_once_however_often_a_reader_comes_back(
    data: st.DataObject, answer: tuple[list[Delta], TaskResult]
) -> None:
    stream, result = answer
    task = ended(1, "")
    task.result = result
    text, reasoning, last_id = "", "", ""
    called: list[str] = []
    logprobs: list[Any] = []
    while last_id != "end":
        writer = SSEWriter(cursor_after(last_id))
        kept = [each for each in stream if data.draw(st.booleans())]
        told = events(writer.add(kept), writer.add(stream[: len(kept)]), writer.conclude(task))
        for event in told[: data.draw(st.integers(1, len(told)))]:
            last_id = event.id
            if event.type == "token":
                text += event.data["text"]
            elif event.type == "reasoning":
                reasoning += event.data["text"]
            elif event.type == "tool_call":
                called += [""] if "id" in event.data else []
                assert event.data["index"] == len(called) - 1
                called[-1] += event.data["function"]["arguments"]
            logprobs += event.data.get("logprobs", {}).get("content", [])
            assert event.type != "restart"
    assert (text, reasoning) == (result["text"], result["reasoning_content"])
    assert called == [call["function"]["arguments"] for call in result["tool_calls"]]
    assert len(logprobs) <= len(result["logprobs"]["content"])


def test_each_delta_is_a_token_with_an_id_to_resume_at() -> None:
    writer = SSEWriter(None)
    told = events(writer.add(deltas(1, ["Hello", " world"])), writer.conclude(TASK))
    assert [(each.id, each.type) for each in told] == [
        ("1-5-1", "token"),
        ("1-11-2", "token"),
        ("end", "completed"),
    ]
    assert [each.data for each in told[:2]] == [
        {"text": "Hello", "index": 0},
        {"text": " world", "index": 1},
    ]


TASK = ended(1, "Hello world")


def test_rest_comes_from_the_result_after_a_hole() -> None:
    writer = SSEWriter(None)
    told = events(writer.add(deltas(1, ["He", "llo", " wor", "ld"])[::2]), writer.conclude(TASK))
    assert [each.data for each in told[:2]] == [
        {"text": "He", "index": 0},
        {"text": "llo world", "index": 1},
    ]


def test_next_attempt_makes_the_text_so_far_void() -> None:
    writer = SSEWriter(None)
    told = events(
        writer.add(deltas(1, ["lost"])),
        writer.begin(2),
        writer.begin(2),
        writer.add(deltas(2, ["Hello world"])),
        writer.add(deltas(1, ["lost", " for ever"])),
        writer.conclude(ended(2, "Hello world")),
    )
    assert [each.type for each in told] == ["token", "restart", "token", "completed"]
    assert (told[1].id, told[1].data) == ("2-0-0", {"attempt": 2})


def test_nothing_is_void_where_nothing_was_sent() -> None:
    writer = SSEWriter(None)
    told = events(writer.begin(1), writer.begin(2), writer.add(deltas(3, ["text"])))
    assert [each.type for each in told] == ["token"]


def test_text_of_a_task_without_a_result_is_void() -> None:
    writer = SSEWriter(None)
    told = events(writer.add(deltas(1, ["lost"])), writer.conclude(ended(1, None, "failed")))
    assert [each.type for each in told] == ["token", "restart", "failed"]


def test_cursor_beyond_the_text_begins_anew() -> None:
    told = events(SSEWriter(cursor_after("1-99-3")).conclude(TASK))
    assert [each.type for each in told] == ["restart", "token", "completed"]
    assert told[1].data["text"] == "Hello world"


def test_events_are_ascii() -> None:
    raw = SSEWriter(None).add(deltas(1, ["\n\r\u2028 🙂 \x85\x1c"]))
    assert raw.isascii()
    assert raw.count(b"\n") == 4
    assert len(raw.decode().splitlines()) == 4  # as clients split that take more for line ends
    [event] = events(raw)
    assert event.data["text"] == "\n\r\u2028 🙂 \x85\x1c"
