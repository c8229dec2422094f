"""Sessions over a simulated clock, and what one knows of durations."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.scheduling.durations import Sample, durations, quantile, remaining
from inference.scheduling.queue_model import Gpu, Policy, Work, run_calls, run_gpus


def gpu(policy: Policy = Policy.SINCE_TURN, window: float = 5.0, **fields: object) -> Gpu:
    values: dict[str, object] = {"num_slots": 1, "load_seconds": {"a": 3.0, "b": 3.0}} | fields
    return Gpu(window=window, policy=policy, **values)  # type: ignore[arg-type]


def test_sequences_run_beside_one_another() -> None:
    runs = run_gpus([Work("a", 2.0)] * 4, [gpu(num_slots=2, model="a", loaded=["a"])])
    assert [(run.start, run.end) for run in runs] == [(0, 2), (0, 2), (2, 4), (2, 4)]


def test_model_is_loaded_first() -> None:
    runs = run_gpus([Work("a", 2.0), Work("b", 2.0)], [gpu()])
    assert [(run.start, run.ready, run.end) for run in runs] == [(0, 3, 5), (5, 8, 10)]


def test_model_in_memory_is_there_at_once() -> None:
    runs = run_gpus([Work("a", 2.0)], [gpu(model="b", loaded=["b", "a"], max_loaded=2)])
    assert runs[0].ready == 0


def test_urgent_task_of_another_model_is_not_kept_waiting() -> None:
    works = [Work("b", 1.0, priority=2.0, arrives=0.5), *[Work("a", 1.0)] * 4]
    runs = run_gpus(works, [gpu(model="a", loaded=["a"], window=100.0)])
    assert runs[0].start == 1


def test_calls_wait_for_their_model_alone() -> None:
    works = [Work("slow", 10.0), Work("slow", 10.0), Work("quick", 1.0)]
    runs = run_calls(works, 2, {"slow": 1}, [])
    assert [run.start for run in runs] == [0, 10, 0]
    runs = run_calls(works[2:], 2, {}, [Work("slow", 4.0), Work("slow", 5.0)])
    assert runs[0].start == 4


WORKS = st.lists(
    st.builds(Work, st.sampled_from("abc"), st.floats(0.1, 5), st.just(0.0), st.floats(0, 30)),
    max_size=40,
).map(lambda works: sorted(works, key=lambda work: work.arrives))


@given(works=WORKS, window=st.floats(0, 10), num_slots=st.integers(1, 4))
def test_session_stays_within_both_bounds(works: list[Work], window: float, num_slots: int) -> None:
    """Nobody is taken before a rival whose turn came longer ago than the window."""
    one = gpu(window=window, num_slots=num_slots, load_seconds={"a": 2.0, "b": 1.0, "c": 0.5})
    runs = run_gpus(works, [one])
    assert len(runs) == len(works)
    for index, (work, run) in enumerate(zip(works, runs, strict=True)):
        assert run.start >= work.arrives
        assert run.ready - run.start <= 2.0 + 1e-9
        # Those behind it that were taken before it, since it could have been next.
        earlier = [other for other in runs[:index] if other.start <= run.start]
        turn = max([work.arrives, *(other.start for other in earlier)])
        overtaking = [other for other in runs[index + 1 :] if turn < other.start < run.start]
        for other in overtaking:
            assert other.start - turn < window


@pytest.mark.parametrize("policy", list(Policy))
def test_loads_are_saved_by_staying(policy: Policy) -> None:
    works = [Work("ab"[number % 2], 1.0) for number in range(20)]
    one = gpu(policy, window=6.0)
    end = max(run.end for run in run_gpus(works, [one]))
    if policy == Policy.STRICT:
        assert (one.num_loads, end) == (20, 80.0)
    else:
        assert one.num_loads <= 8
        assert end <= 20 + 3 * one.num_loads


def test_duration_is_that_of_tasks_alike() -> None:
    short, long = Sample(100, 10, 1.0, 0.1), Sample(10_000, 100, 5.0, 0.1, was_cut=True)
    assert short.seconds(100, 512) == 1.9
    assert short.seconds(100, 5) == 1.4
    assert long.seconds(10_000, 200) == pytest.approx(24.9)
    assert durations([short, long], 100, 512) == sorted([1.9, long.seconds(100, 512)])
    assert durations([], 1, 1) == []


def test_duration_is_that_of_the_nearest_sizes_and_of_the_latest_among_equals() -> None:
    samples = [Sample(size, 1, float(size), 0.0) for size in range(1000, 1100)]
    assert durations(samples, 1050, 1)[0] > 1040
    assert durations(samples, 1050, 1)[-1] < 1060
    equals = [Sample(7, 1, float(number), 0.0) for number in range(100)]
    assert durations(equals, 7, 1) == [float(number) for number in range(84, 100)]


def test_what_is_left_after_some_time() -> None:
    assert remaining([1.0, 2.0, 4.0], 2.0) == [0.0, 2.0]
    assert remaining([1.0], 10.0) == [1.0]
    assert quantile([1.0, 2.0, 4.0], 0.5) == 2.0
    assert quantile([1.0], 0.9) == 1.0


def test_as_many_further_values_are_below_a_quantile_as_it_says() -> None:
    chance = random.Random(1)  # noqa: S311
    num_below = 0
    for _ in range(2000):
        known = sorted(chance.expovariate(1) for _ in range(16))
        num_below += chance.expovariate(1) <= quantile(known, 0.9)
    assert 0.88 < num_below / 2000 < 0.92
