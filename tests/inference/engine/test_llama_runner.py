"""The engine with real weights: SmolLM2-135M-Instruct on the CPU."""

import gc
import logging
import weakref
from pathlib import Path
from typing import Any

import pytest

from inference.engine.chat_template import Turn
from inference.engine.errors import (
    DecodeError,
    EngineError,
    ModelLoadError,
    PromptTooLongError,
)
from inference.engine.llama_runner import LlamaRunner
from inference.engine.runner import Chunk, LoadParams
from inference.engine.sequence import FinishReason, SamplingParams, Sequence
from tests.inference.engine.replay import assert_same_but_for_ties, new_engine

GREEDY = SamplingParams(temperature=0, max_tokens=24)
QUESTIONS = [
    "Name three colours.",
    "What is the capital of France?",
    "Write one sentence about the sea.",
    "Count from one to ten.",
]


def prompt(runner: LlamaRunner, question: str) -> list[int]:
    messages: list[Turn] = [{"role": "user", "content": question}]
    return runner.tokenize(runner.chat_template.render(messages))


def run(runner: LlamaRunner, requests: list[tuple[str, SamplingParams]]) -> list[Sequence]:
    engine = new_engine(runner)
    sequences = [
        engine.add_request(str(index), prompt(runner, question), params)
        for index, (question, params) in enumerate(requests)
    ]
    while engine.num_unfinished:
        engine.step()
    assert not runner._samplers
    return sequences


def test_greedy_text_is_the_same_alone_and_among_four(runner: LlamaRunner) -> None:
    together = run(runner, [(question, GREEDY) for question in QUESTIONS])
    for question, sequence in zip(QUESTIONS, together, strict=True):
        (alone,) = run(runner, [(question, GREEDY)])
        assert_same_but_for_ties(runner, alone, sequence)


@pytest.mark.parametrize("temperature", [1e-38, 1e-9])
def test_tiny_temperature_is_greedy(runner: LlamaRunner, temperature: float) -> None:
    (expected,) = run(runner, [(QUESTIONS[0], GREEDY)])
    (tiny,) = run(runner, [(QUESTIONS[0], SamplingParams(temperature=temperature, max_tokens=24))])
    assert tiny.output_tokens == expected.output_tokens


def test_sequences_join_and_leave_at_different_steps(runner: LlamaRunner) -> None:
    engine = new_engine(runner)
    lengths = [20, 4, 12, 8]
    sequences = []
    for question, max_tokens in zip(QUESTIONS, lengths, strict=True):
        params = SamplingParams(temperature=0, max_tokens=max_tokens)
        sequences.append(engine.add_request(question, prompt(runner, question), params))
        engine.step()
        engine.step()
    while engine.num_unfinished:
        engine.step()
    for question, max_tokens, sequence in zip(QUESTIONS, lengths, sequences, strict=True):
        params = SamplingParams(temperature=0, max_tokens=max_tokens)
        (alone,) = run(runner, [(question, params)])
        assert_same_but_for_ties(runner, alone, sequence)


def test_same_seed_gives_the_same_text_and_another_seed_another(runner: LlamaRunner) -> None:
    def sample(seed: int) -> str:
        params = SamplingParams(temperature=1, top_k=50, top_p=0.95, seed=seed, max_tokens=16)
        return run(runner, [(QUESTIONS[2], params)])[0].text

    assert sample(7) == sample(7)
    assert sample(7) != sample(8)
    assert sample(2**40 + 7) == sample(2**40 + 7)


def test_stop_sequence_across_tokens_is_never_in_the_text(runner: LlamaRunner) -> None:
    (whole,) = run(runner, [(QUESTIONS[2], GREEDY)])
    assert "sea is" in whole.text
    stop = "a is"
    params = SamplingParams(temperature=0, max_tokens=24, stop=(stop,))
    (stopped,) = run(runner, [(QUESTIONS[2], params)])
    assert stopped.finish_reason == FinishReason.STOP
    assert stopped.text == whole.text[: whole.text.index(stop)]


def test_max_tokens_is_kept(runner: LlamaRunner) -> None:
    (sequence,) = run(runner, [(QUESTIONS[3], SamplingParams(temperature=0, max_tokens=5))])
    assert len(sequence.output_tokens) == 5
    assert sequence.finish_reason == FinishReason.LENGTH


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(temperature=0, max_tokens=30, repeat_penalty=1.5),
        SamplingParams(temperature=0, max_tokens=30, frequency_penalty=2),
        SamplingParams(temperature=0, max_tokens=30, presence_penalty=2),
    ],
)
def test_penalties_make_repetition_rarer(runner: LlamaRunner, params: SamplingParams) -> None:
    engine = new_engine(runner)
    tokens = runner.tokenize("echo echo echo echo echo echo echo echo")
    plain = SamplingParams(temperature=0, max_tokens=30)
    without = engine.add_request("without", tokens, plain)
    penalized = engine.add_request("penalized", tokens, params)
    while engine.num_unfinished:
        engine.step()
    assert len(set(penalized.output_tokens)) > len(set(without.output_tokens))


def test_narrow_filters_make_sampling_greedy(runner: LlamaRunner) -> None:
    (greedy,) = run(runner, [(QUESTIONS[1], SamplingParams(temperature=0, max_tokens=8))])
    for narrow in (
        SamplingParams(temperature=1.5, top_k=1, max_tokens=8),
        SamplingParams(temperature=1.5, min_p=1, max_tokens=8),
        SamplingParams(temperature=1.5, top_p=0, max_tokens=8),
    ):
        (sampled,) = run(runner, [(QUESTIONS[1], narrow)])
        assert_same_but_for_ties(runner, greedy, sampled)


def test_prompt_longer_than_the_context_is_refused(runner: LlamaRunner) -> None:
    engine = new_engine(runner)
    with pytest.raises(PromptTooLongError, match="255 fit"):
        engine.add_request("r", [5] * 256, GREEDY)
    with pytest.raises(PromptTooLongError):
        runner.tokenize("word " * 100_000)


def test_threads_are_for_the_cores_that_the_process_may_use(
    model_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOKY_MAX_CPU_COUNT", "1")
    runner = LlamaRunner(LoadParams(path=model_path, context_window=128, max_num_seqs=1))
    assert runner.thread_counts == [1]
    runner.close()


def test_prompt_larger_than_a_batch_is_computed_in_chunks(model_path: Path) -> None:
    small, large = (
        LlamaRunner(
            LoadParams(
                path=model_path,
                context_window=128,
                num_batch_tokens=num_batch_tokens,
                max_num_seqs=2,
                num_threads=1,
            )
        )
        for num_batch_tokens in (16, 63)
    )
    question = "The sea is blue and the sky is too. " * 6 + "What is blue?"
    (chunked,) = run(small, [(question, GREEDY)])
    (whole,) = run(large, [(question, GREEDY)])
    assert_same_but_for_ties(large, whole, chunked)
    small.close()
    large.close()


def test_batch_over_its_budget_is_an_error_and_not_an_abort(runner: LlamaRunner) -> None:
    with pytest.raises(DecodeError, match="more than"):
        runner.decode([Chunk(0, 0, [1] * 2000, needs_logits=True)])
    with pytest.raises(DecodeError, match="empty"):
        runner.decode([])


def test_gap_in_positions_is_an_error_and_the_runner_goes_on(runner: LlamaRunner) -> None:
    runner.memory.remove_sequence(0)
    runner.decode([Chunk(0, 0, [1, 2], needs_logits=True)])
    with pytest.raises(DecodeError, match="status -1"):
        runner.decode([Chunk(0, 9, [3], needs_logits=True)])
    runner.memory.remove_sequence(0)
    (sequence,) = run(runner, [(QUESTIONS[1], SamplingParams(temperature=0, max_tokens=2))])
    assert sequence.finish_reason == FinishReason.LENGTH


def test_special_tokens_are_one_token_and_have_no_text(runner: LlamaRunner) -> None:
    (token,) = runner.tokenize("<|im_end|>")
    assert runner.control_token("<|im_end|>") == token
    assert runner.token_to_bytes(token) == b""
    with pytest.raises(EngineError, match="outside"):
        runner.token_to_bytes(runner.vocab_size)


@pytest.mark.parametrize("text", ["", "a" * 2000, "日本語 é 😀\x00\ud800", " \n\t" * 200])
def test_odd_text_survives_the_tokenizer(runner: LlamaRunner, text: str) -> None:
    tokens = runner.tokenize(text)
    data = b"".join(map(runner.token_to_bytes, tokens))
    assert data.decode() == text.replace("\ud800", "?")


def test_missing_and_broken_files_fail_in_words(tmp_path: Path, model_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="no model file"):
        LlamaRunner(LoadParams(path=tmp_path / "none.gguf"))
    text = tmp_path / "text.gguf"
    text.write_text("This is no model at all, but it is long enough to be read as one.")
    with pytest.raises(ModelLoadError, match="magic"):
        LlamaRunner(LoadParams(path=text))
    short = tmp_path / "short.gguf"
    with model_path.open("rb") as whole:
        short.write_bytes(whole.read(4_000_000))
    with pytest.raises(ModelLoadError, match=r"not within the file bounds|corrupted"):
        LlamaRunner(LoadParams(path=short))


@pytest.mark.parametrize("sizes", [{"context_window": -1}, {"max_num_seqs": 0}])
def test_sizes_out_of_bounds_fail_in_words(model_path: Path, sizes: dict[str, Any]) -> None:
    with pytest.raises(ModelLoadError, match="below 1"):
        LlamaRunner(LoadParams(path=model_path, **sizes))


def test_llama_cpp_logs_through_logging_and_not_to_stderr(
    model_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    with caplog.at_level(logging.DEBUG, logger="inference.engine.llama_cpp"):
        LlamaRunner(LoadParams(path=model_path, context_window=256, max_num_seqs=1)).close()
    assert any("n_layer" in record.getMessage() for record in caplog.records)
    assert all(record.levelno <= logging.WARNING for record in caplog.records)
    assert capfd.readouterr().err == ""


def test_closed_runner_is_collected(model_path: Path) -> None:
    loaded = LlamaRunner(LoadParams(path=model_path, context_window=256, max_num_seqs=1))
    reference = weakref.ref(loaded)
    loaded.close()
    del loaded
    gc.collect()
    assert reference() is None


def resident_bytes() -> int:
    pages = Path("/proc/self/statm").read_text().split()[1]
    return int(pages) * 4096


def test_close_frees_and_can_be_repeated(model_path: Path) -> None:
    loaded = LlamaRunner(LoadParams(path=model_path, context_window=2048, max_num_seqs=4))
    loaded.new_sampler(GREEDY, [1])
    loaded_bytes = resident_bytes()
    loaded.close()
    loaded.close()
    kv_bytes = 4 * 2048 * 23040
    assert loaded_bytes - resident_bytes() > kv_bytes / 2
    with pytest.raises(EngineError, match="closed"):
        loaded.decode([Chunk(0, 0, [1], needs_logits=True)])
    with pytest.raises(EngineError, match="closed"):
        loaded.tokenize("text")
    with pytest.raises(EngineError, match="closed"):
        loaded.memory.can_keep_prefix(0, 1)
