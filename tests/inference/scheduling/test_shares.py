"""Fair shares over a simulated clock: nobody has less than its share, nobody starves."""

from collections import defaultdict
from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from inference.scheduling.shares import Share, Shares, Turns

# By owner: its weight, and what each of its tasks costs.
OWNERS = st.dictionaries(
    st.sampled_from("abcde"),
    st.tuples(st.sampled_from([0.25, 1.0, 1.0, 2.0, 8.0]), st.floats(0.1, 10.0)),
    min_size=2,
)


@dataclass
class Server:
    """So many places, in which owners who always have tasks waiting have them run."""

    owners: dict[str, tuple[float, float]]
    num_slots: int = 1
    now: float = 0.0
    shares: Shares = field(default_factory=Shares)
    running: list[tuple[float, str, float]] = field(default_factory=list)
    served: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    starts: list[str] = field(default_factory=list)

    def knows_costs(self) -> "Server":
        for owner, (weight, cost) in self.owners.items():
            self.shares.owners[owner] = Share(0.0, cost / weight, is_busy=True)
        return self

    def run(self, num_tasks: int, costs: list[float] | None = None) -> None:
        for number in range(num_tasks):
            if len(self.running) == self.num_slots:
                self._end_one()
            owner = self.shares.next_owner(sorted(self.owners))
            self.shares.claim(owner)
            cost = costs[number % len(costs)] if costs else self.owners[owner][1]
            self.running.append((self.now + cost, owner, cost))
            self.starts.append(owner)
        while self.running:
            self._end_one()

    def _end_one(self) -> None:
        self.running.sort()
        self.now, owner, cost = self.running.pop(0)
        self.shares.end(owner, cost, self.owners[owner][0], is_waiting=True)
        self.served[owner] += cost

    def lag(self, owner: str) -> float:
        """How much less than its share it has had."""
        total = sum(self.served.values())
        weights = sum(weight for weight, _ in self.owners.values())
        return total * self.owners[owner][0] / weights - self.served[owner]


@given(owners=OWNERS, num_tasks=st.integers(0, 60))
def test_nobody_is_below_its_share_by_more_than_one_task(
    owners: dict[str, tuple[float, float]], num_tasks: int
) -> None:
    server = Server(owners).knows_costs()
    server.run(num_tasks)
    for owner, (_, cost) in owners.items():
        assert server.lag(owner) <= cost * (1 + 1e-9)


@given(
    num_owners=st.integers(2, 6),
    costs=st.lists(st.floats(0.1, 10.0), min_size=1, max_size=30),
    num_tasks=st.integers(0, 60),
)
def test_costs_that_nobody_knew_come_right_at_the_end(
    num_owners: int, costs: list[float], num_tasks: int
) -> None:
    """The last attempt of each owner, and what was expected of it, is all that can be amiss."""
    server = Server({str(number): (1.0, 1.0) for number in range(num_owners)}).knows_costs()
    server.run(num_tasks, costs)
    most = max([1.0, *costs])
    for owner in server.owners:
        assert server.lag(owner) <= 2 * most


@given(owners=OWNERS, num_slots=st.integers(1, 8))
def test_nobody_starves(owners: dict[str, tuple[float, float]], num_slots: int) -> None:
    """Between two starts of one owner, another has no more than its weight, and two, gives it."""
    server = Server(owners, num_slots).knows_costs()
    server.run(300)
    for owner, (weight, cost) in owners.items():
        step = cost / weight
        for other, (other_weight, other_cost) in owners.items():
            most = step / (other_cost / other_weight) + 1 + 2 * num_slots
            between = 0
            for start in server.starts:
                between = 0 if start == owner else between + (start == other)
                assert between <= most, (owner, other)


@given(rounds=st.integers(1, 30), num_slots=st.integers(1, 4))
def test_owner_who_comes_back_goes_first_and_has_no_credit(rounds: int, num_slots: int) -> None:
    server = Server({"a": (1.0, 1.0)}, num_slots)
    server.run(rounds)
    server.owners["b"] = (1.0, 1.0)
    server.starts.clear()
    server.run(40)
    assert server.starts[0] == "b"
    assert abs(server.starts.count("a") - server.starts.count("b")) <= 2 + num_slots


@given(
    first_key=st.floats(0, 10),
    step=st.floats(0.01, 5),
    num_running=st.integers(0, 20),
    key=st.floats(0, 60),
    wins_ties=st.booleans(),
)
def test_turns_before_a_key_are_those_with_lower_keys(
    first_key: float, step: float, num_running: int, key: float, wins_ties: bool
) -> None:
    turns = Turns(first_key, first_key, step, num_running)
    num = turns.num_before(key, wins_ties)
    before = [
        turns.key(index) < key or (turns.key(index) == key and wins_ties)
        for index in range(num + 1)
    ]
    assert before == [True] * num + [False]
