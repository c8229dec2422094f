"""Whose time and energy the steps of a session are."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.execution.cost_meter import CostMeter
from inference.models import Cost

Steps = list[tuple[float, dict[str, int]]]


class Device:
    """Ten watts while it computes, two while it does not."""

    def __init__(self) -> None:
        self.now = self.joules = 0.0

    def idle(self, seconds: float) -> None:
        self.now += seconds
        self.joules += 2 * seconds

    def compute(self, seconds: float) -> None:
        self.now += seconds
        self.joules += 10 * seconds


def test_step_is_shared_by_tokens() -> None:
    meter = CostMeter(lambda: None)
    meter.add_step(3.0, {"a": 1, "b": 2})
    meter.add_step(1.0, {"b": 1})
    assert meter.take("a") == Cost(gpu_seconds=1.0)
    assert meter.take("b") == Cost(gpu_seconds=3.0)
    assert meter.take("a") == Cost()


def test_energy_follows_time_between_readings() -> None:
    device = Device()
    meter = CostMeter(lambda: device.joules, lambda: device.now)
    device.compute(0.5)
    meter.add_step(0.5, {"a": 1, "b": 1})
    assert meter.take("a") == Cost(0.25, 2.5)
    device.compute(0.5)
    meter.add_step(0.5, {"b": 1})
    assert meter.take("b") == Cost(0.75, 7.5)


steps = st.lists(
    st.tuples(
        st.floats(1e-4, 5),
        st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 600), min_size=1),
    ),
    min_size=1,
    max_size=40,
)


@given(steps, st.data())
def test_nothing_is_lost_and_nothing_is_counted_twice(made: Steps, data: st.DataObject) -> None:
    device = Device()
    meter = CostMeter(lambda: device.joules, lambda: device.now)
    total = Cost()
    for seconds, num_tokens in made:
        device.idle(0.01)
        device.compute(seconds)
        meter.add_step(seconds, num_tokens)
        if data.draw(st.booleans()):
            total += meter.take(data.draw(st.sampled_from("abcdef")))
    for request_id in "abcdef":
        total += meter.take(request_id)
    assert total.gpu_seconds == pytest.approx(sum(seconds for seconds, _ in made), abs=1e-4)
    assert total.energy_joules == pytest.approx(device.joules, abs=0.1)


def test_reading_that_fails_later_leaves_energy_unknown() -> None:
    joules: list[float | None] = [1.0, None, 5.0, 6.0]
    meter = CostMeter(lambda: joules.pop(0))
    meter.add_step(1.0, {"a": 1, "b": 1})
    assert meter.take("a") == Cost(0.5, None)
    meter.add_step(1.0, {"b": 1})
    assert meter.take("b") == Cost(1.5, 0.0)
