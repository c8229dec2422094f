"""With real weights, a greedy answer does not depend on company, cache or the order of arrival."""

from pathlib import Path

import pytest

from inference.engine.chat_template import Turn
from inference.engine.engine import Engine
from inference.engine.llama_runner import LlamaRunner
from inference.engine.runner import LoadParams
from inference.engine.sequence import SamplingParams, Sequence
from tests.inference.engine.replay import MAX_TIE_OF_KERNELS, assert_same_but_for_ties, new_engine

GREEDY = SamplingParams(temperature=0, max_tokens=12)
SYSTEM = (
    "You are a patient teacher who answers in one or two short sentences, in plain words, without"
    " lists, and who never asks a question back. Say so when you do not know."
)
QUESTIONS = [
    "Name three colours.",
    "What is the capital of France?",
    "Write one sentence about the sea.",
    "Count from one to ten.",
    "Why is the sky blue?",
    "Who wrote Hamlet?",
    "How do I cook rice?",
    "What is seven times eight?",
]


def prompt(runner: LlamaRunner, *turns: str) -> list[int]:
    """System message, then user and assistant in turn."""
    roles = ["user", "assistant"] * len(turns)
    messages: list[Turn] = [{"role": "system", "content": SYSTEM}]
    for role, content in zip(roles, turns, strict=False):
        messages.append({"role": role, "content": content})
    return runner.tokenize(runner.chat_template.render(messages))


def answer_alone(runner: LlamaRunner, tokens: list[int]) -> Sequence:
    engine = new_engine(runner)
    sequence = engine.add_request("alone", tokens, GREEDY)
    while engine.num_unfinished:
        engine.step()
    assert sequence.num_cached_tokens == 0
    return sequence


@pytest.fixture(scope="module")
def alone(runner: LlamaRunner) -> list[Sequence]:
    return [answer_alone(runner, prompt(runner, question)) for question in QUESTIONS]


def answer_together(engine: Engine, prompts: list[list[int]]) -> list[Sequence]:
    """Each joins three steps after the one before it."""
    sequences: list[Sequence] = []
    for tokens in prompts:
        sequences.append(engine.add_request(str(len(sequences)), tokens, GREEDY))
        for _ in range(3):
            engine.step()
    while engine.num_unfinished:
        engine.step()
    return sequences


def test_eight_texts_are_those_that_each_gets_alone(
    runner: LlamaRunner, alone: list[Sequence]
) -> None:
    together = answer_together(new_engine(runner), [prompt(runner, text) for text in QUESTIONS])
    for one, other in zip(alone, together, strict=True):
        assert_same_but_for_ties(runner, one, other)
    assert all(sequence.num_cached_tokens > 32 for sequence in together[1:])


def test_second_turn_is_the_same_with_the_first_in_the_cache(
    runner: LlamaRunner, alone: list[Sequence]
) -> None:
    turns = [(QUESTIONS[i], alone[i].text, QUESTIONS[i + 1]) for i in range(3)]
    prompts = [prompt(runner, *turn) for turn in turns]
    engine = new_engine(runner)
    answer_together(engine, [sequence.prompt_tokens for sequence in alone[:3]])
    followed = answer_together(engine, prompts)
    for tokens, first, second in zip(prompts, alone, followed, strict=False):
        assert second.num_cached_tokens >= len(first.prompt_tokens)
        assert_same_but_for_ties(runner, answer_alone(runner, tokens), second)


def test_texts_are_the_same_where_sequences_share_one_buffer(
    model_path: Path, alone: list[Sequence]
) -> None:
    # Fewer cells than a window each: one buffer, where copies are tags on the same cells, and
    # histories give way to sequences that need their cells.
    params = LoadParams(
        path=model_path,
        context_window=256,
        num_cache_cells=320,
        num_batch_tokens=63,
        max_num_seqs=4,
        num_threads=1,
    )
    shared = LlamaRunner(params)
    assert shared.num_cells == 512  # rounded up by llama.cpp
    together = answer_together(new_engine(shared), [prompt(shared, text) for text in QUESTIONS])
    for one, other in zip(alone, together, strict=True):
        assert_same_but_for_ties(shared, one, other, MAX_TIE_OF_KERNELS)
    assert all(sequence.num_cached_tokens > 32 for sequence in together[1:])
    shared.close()
