"""How many threads compute a step: simulated steps, whose time depends on who else is busy."""

from collections.abc import Callable

import pytest

from inference.engine.thread_tuner import ThreadTuner, counts_up_to

Cost = Callable[[int], float]


def quiet(num_threads: int) -> float:
    return 0.01 / num_threads


def beside_a_busy_process(num_threads: int) -> float:
    return 0.1 if num_threads == 8 else 0.01 / num_threads


def run(tuner: ThreadTuner, cost: Cost, seconds: float, num_tokens: int = 1) -> list[int]:
    """How many threads computed each step of so many seconds in all."""
    used: list[int] = []
    while seconds > 0:
        used.append(tuner.num_threads)
        step = cost(tuner.num_threads) * num_tokens
        tuner.measure(num_tokens, step)
        seconds -= step
    return used


def test_all_threads_are_used_while_they_are_fastest_and_trials_cost_little() -> None:
    used = run(ThreadTuner([1, 2]), quiet, 120)
    assert used[-1] == 2
    assert used.count(1) / len(used) < 0.005


def test_thread_less_computes_while_another_process_is_busy() -> None:
    tuner = ThreadTuner(counts_up_to(8))
    run(tuner, quiet, 5)
    assert tuner.num_threads == 8
    used = run(tuner, beside_a_busy_process, 1)
    assert tuner.num_threads == 7
    assert used.count(8) < 10
    run(tuner, quiet, 20)
    assert tuner.num_threads == 8


def test_what_others_do_for_a_moment_each_second_is_waited_out() -> None:
    tuner = ThreadTuner([1, 2])
    used = run(tuner, quiet, 10)
    for _ in range(60):
        used += run(tuner, lambda num_threads: 0.05 if num_threads == 2 else 0.012, 0.1)
        used += run(tuner, quiet, 0.9)
    assert used.count(1) / len(used) < 0.005


def test_fastest_count_is_found_from_far_away() -> None:
    tuner = ThreadTuner(counts_up_to(16))
    run(tuner, lambda num_threads: 0.01 + abs(num_threads - 4) * 0.01, 20)
    assert tuner.num_threads == 4


@pytest.mark.parametrize("num_tokens", [1, 8, 300])
def test_steps_of_any_size_tell(num_tokens: int) -> None:
    tuner = ThreadTuner([1, 2])
    run(tuner, lambda num_threads: 0.001 * num_threads, 10, num_tokens)
    assert tuner.num_threads == 1


def test_steps_of_different_sizes_are_not_compared() -> None:
    tuner = ThreadTuner([1, 2])
    for number in range(2000):  # what few threads have to compute happens to be less
        num_tokens = 1 + number % 2
        tuner.measure(num_tokens, 0.01 * num_tokens * tuner.num_threads)
    assert tuner.num_threads == 2


def test_one_count_is_no_choice() -> None:
    assert run(ThreadTuner([4]), lambda _: 1.0, 100) == [4] * 100


def test_counts_of_many_cores_differ_enough() -> None:
    assert counts_up_to(1) == [1]
    assert counts_up_to(2) == [1, 2]
    assert counts_up_to(4) == [1, 2, 3, 4]
    assert counts_up_to(64) == [8, 16, 32, 48, 56, 64]
