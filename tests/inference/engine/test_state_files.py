"""Saved states on disk: whole or not there, bounded, and of use to the next process."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from inference.engine.engine import Engine
from inference.engine.llama_runner import LlamaRunner
from inference.engine.runner import LoadParams
from inference.engine.saved_state import SavedState
from inference.engine.sequence import SamplingParams, Sequence
from inference.engine.state_files import StateFiles

TOKENS = list(range(100))
PROMPT = [*TOKENS, 7]


def state(size: int = 1000, byte: bytes = b"x") -> SavedState:
    return SavedState(TOKENS, 64, memoryview(byte * size))


@pytest.fixture
def files(tmp_path: Path) -> StateFiles:
    return StateFiles(tmp_path / "kv", 10_000)


def test_what_was_written_is_read(files: StateFiles, tmp_path: Path) -> None:
    assert files.read("name", PROMPT, 1) is None
    assert files.write("name", "conv", state()) == (tmp_path / "kv/name.kv").stat().st_size
    found = files.read("name", PROMPT, 100)
    assert found is not None
    assert (found.tokens, found.num_deterministic_tokens) == (TOKENS, 64)
    assert bytes(found.data) == b"x" * 1000
    assert files.labels() == {"name": "conv"}
    assert files.read("name", PROMPT, 101) is None
    assert files.read("name", [7, *PROMPT], 1) is None
    files.remove("name")
    assert files.read("name", PROMPT, 1) is None


def test_only_its_user_can_read_it(files: StateFiles, tmp_path: Path) -> None:
    files.write("name", "conv", state())
    assert (tmp_path / "kv").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "kv/name.kv").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-1],
        lambda data: data[:20],
        lambda data: b"",
        lambda data: data + b"x",
        lambda data: data[:-1] + b"y",
        lambda data: b"SOPLLMKV0" + data[9:],
        lambda data: data[:9] + b"\xff" * 24 + data[33:],
    ],
)
def test_broken_file_is_ignored_and_removed(
    files: StateFiles, tmp_path: Path, damage: "object"
) -> None:
    files.write("name", "conv", state())
    path = tmp_path / "kv/name.kv"
    path.write_bytes(damage(path.read_bytes()))  # type: ignore[operator]
    assert files.read("name", PROMPT, 1) is None
    assert not path.exists()


def test_least_recently_used_makes_room(files: StateFiles, tmp_path: Path) -> None:
    for number in range(3):
        files.write(str(number), "conv", state(2500))
        os.utime(tmp_path / f"kv/{number}.kv", (number, number))
    files.read("0", PROMPT, 1)
    files.write("3", "conv", state(2500))
    assert files.labels().keys() == {"0", "2", "3"}
    assert files.write("3", "conv", state(2600)) > 0  # in the place of its own
    assert files.labels().keys() == {"0", "2", "3"}
    assert files.write("4", "conv", state(20_000)) == 0
    assert files.labels().keys() == {"0", "2", "3"}


def test_folder_that_cannot_be_written_to_costs_only_the_cache(tmp_path: Path) -> None:
    (tmp_path / "kv").write_text("a file")
    files = StateFiles(tmp_path / "kv", 10_000)
    assert files.write("name", "conv", state()) == 0
    assert files.read("name", PROMPT, 1) is None
    assert files.labels() == {}


def test_kill_while_it_is_written_leaves_the_old_or_the_new(tmp_path: Path) -> None:
    program = f"""
from pathlib import Path
from inference.engine.saved_state import SavedState
from inference.engine.state_files import StateFiles
files = StateFiles(Path({str(tmp_path)!r}), 2**40)
for number in range(10**6):
    data = memoryview(bytes([number % 256]) * 20_000_000)
    files.write("name", "conv", SavedState(list(range(100)), 0, data))
    print(number, flush=True)
"""
    files = StateFiles(tmp_path, 2**40)
    for num_written in (1, 2, 3):
        writing = subprocess.Popen(
            [sys.executable, "-c", program], stdout=subprocess.PIPE, cwd=Path.cwd(), text=True
        )
        assert writing.stdout is not None
        for _ in range(num_written):
            writing.stdout.readline()
        while not list(tmp_path.glob("*.part")):
            pass
        writing.send_signal(signal.SIGKILL)
        writing.wait()
        writing.stdout.close()
        found = files.read("name", PROMPT, 1)
        assert found is not None
        assert len(set(bytes(found.data))) == 1
        for left in tmp_path.glob("*.part"):
            os.utime(left, (time.time() - 1000,) * 2)
        files.write("other", "conv", state())
        assert not list(tmp_path.glob("*.part"))


GREEDY = SamplingParams(temperature=0, max_tokens=8, deterministic=True)


def answer(engine: Engine, prompt: list[int], saved: SavedState | None = None) -> Sequence:
    sequence = engine.new_sequence("turn", prompt, GREEDY)
    sequence.saved = saved
    engine.add(sequence)
    while engine.num_unfinished:
        engine.step()
    return sequence


def test_next_process_computes_only_what_is_new(model_path: Path, tmp_path: Path) -> None:
    load = LoadParams(path=model_path, context_window=512, max_num_seqs=2, num_threads=1)
    runner = LlamaRunner(load)
    text = ", ".join(str(number) for number in range(1000, 1100))
    prompt = runner.tokenize(text)[:150]
    engine = Engine(runner)
    first = answer(engine, prompt)
    tokens, num_bytes = engine.ended("turn")
    assert len(tokens) == 150 + 7
    saved = engine.save_ended("turn")
    assert saved is not None
    assert len(saved.data) == num_bytes
    StateFiles(tmp_path, 2**30).write("name", "conv", saved)
    turn = [*prompt, *first.output_tokens, 100, 101, 102]
    expected = answer(Engine(runner), turn)
    runner.close()

    runner = LlamaRunner(load)
    found = StateFiles(tmp_path, 2**30).read("name", turn, 100)
    assert found is not None
    second = answer(Engine(runner), turn, found)
    assert second.num_cached_tokens == 128  # whole chunks, since it is deterministic
    assert second.output_tokens == expected.output_tokens
    runner.close()

    runner = LlamaRunner(replace(load, max_num_seqs=1))
    third = answer(Engine(runner), turn, found)  # llama.cpp refuses it
    assert (third.num_cached_tokens, third.output_tokens) == (0, expected.output_tokens)
    runner.close()
