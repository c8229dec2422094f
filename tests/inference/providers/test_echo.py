"""The provider that says the last message back."""

import time
from typing import Any

import pytest

from conversations.models import ChatMessage
from inference.models import RegisteredModel
from inference.providers.base import GenerationRequest, Progress
from inference.providers.echo import EchoProvider
from tests.inference.execution.cloud_sessions import deltas


def generate(
    content: str, *, delay_ms: float = 0, max_tokens: int = 512, stop: tuple[str, ...] = ()
) -> tuple[str, Progress]:
    messages: list[ChatMessage] = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": content},
    ]
    params: dict[str, Any] = {"max_tokens": max_tokens, "stop_sequences": list(stop)}
    model = RegisteredModel(name="echo", provider="echo", config={"delay_ms": delay_ms})
    progress = Progress()
    request = GenerationRequest("task", messages, params)
    return "".join(deltas(EchoProvider(model).generate(request, progress))), progress


@pytest.mark.parametrize(
    "content", ["one", "one two  three", " spaces around ", "line\nline\n", "ünï 你好 🙂", ""]
)
def test_the_last_message_comes_back_whole(content: str) -> None:
    text, progress = generate(content)
    assert text == content
    assert progress.completion_tokens == len(content.split())
    assert progress.prompt_tokens == 2 + len(content.split())
    assert progress.finish_reason == "stop"


def test_max_tokens_cuts_the_answer() -> None:
    text, progress = generate("one two three four", max_tokens=2)
    assert (text.split(), progress.finish_reason) == (["one", "two"], "length")
    assert progress.completion_tokens == 2


def test_an_answer_of_exactly_max_tokens_is_whole() -> None:
    text, progress = generate("one two", max_tokens=2)
    assert (text, progress.finish_reason) == ("one two", "stop")


@pytest.mark.parametrize("stop", ["three", "two three", "ee f", " thr"])
def test_stop_sequence_is_not_part_of_the_text(stop: str) -> None:
    content = "one two three four"
    text, progress = generate(content, stop=("never", stop), max_tokens=4)
    assert text == content[: content.index(stop)]
    assert progress.finish_reason == "stop"


def test_delay_is_waited_before_each_word() -> None:
    started = time.monotonic()
    generate("one two three", delay_ms=10)
    assert time.monotonic() - started >= 0.03
