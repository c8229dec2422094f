"""Fair shares over any clock: start-time fair queueing, by weight.

An owner's virtual time is what its tasks have cost divided by its weight, `step` what one of them
usually adds to it. The SQL of `inference/models/owner_shares.py` says the same.
"""

from dataclasses import dataclass, field

# How much the last cost counts in the usual one.
STEP_SHARE = 0.25


@dataclass(frozen=True, slots=True)
class Turns:
    """When the pending tasks of an owner come, one after the other: the lower key goes first.

    `first_key` is that of the next one, `virtual_time` what the owner starts from.
    """

    first_key: float
    virtual_time: float
    step: float
    num_running: int

    def key(self, index: int) -> float:
        """The key of the owner's pending task number `index`, from 0."""
        if index == 0:
            return self.first_key
        return self.virtual_time + (self.num_running + index + 1) * self.step

    def num_before(self, key: float, wins_ties: bool) -> int:
        """How many of its tasks come before one of another owner with that key."""
        if not self._is_before(0, key, wins_ties):
            return 0
        num = max(1, int(min((key - self.virtual_time) / self.step, 1e9)) - self.num_running)
        while self._is_before(num, key, wins_ties):  # rounding may miss by one
            num += 1
        while num > 1 and not self._is_before(num - 1, key, wins_ties):
            num -= 1
        return num

    def _is_before(self, index: int, key: float, wins_ties: bool) -> bool:
        own = self.key(index)
        return own < key or (own == key and wins_ties)


@dataclass(slots=True)
class Share:
    """What an owner has had; `is_busy`: has had tasks ever since one of its own ended."""

    virtual_time: float
    step: float
    num_running: int = 0
    is_busy: bool = False

    def turns(self, present: float) -> Turns:
        if self.is_busy or self.virtual_time > present:
            first_key = self.virtual_time + (self.num_running + 1) * self.step
            return Turns(first_key, self.virtual_time, self.step, self.num_running)
        return Turns(present, present, self.step, self.num_running)


@dataclass(slots=True)
class Shares:
    """The owners of one priority, as tasks of theirs are claimed and end.

    `usual_step`: what a task adds to the virtual time of an owner of whom nothing is known.
    """

    usual_step: float = 1.0
    owners: dict[str, Share] = field(default_factory=dict)

    def present(self) -> float:
        """The virtual time at which a task was started last, of those that run or else wait."""
        running = [each for each in self.owners.values() if each.num_running]
        if running:
            return max(each.virtual_time + (each.num_running - 1) * each.step for each in running)
        busy = [each.virtual_time for each in self.owners.values() if each.is_busy]
        if busy:
            return min(busy)
        return max((each.virtual_time for each in self.owners.values()), default=0.0)

    def next_owner(self, waiting: list[str]) -> str:
        """Whose task goes first, of the owners that have one."""
        present = self.present()
        return min(waiting, key=lambda owner: (self._share(owner).turns(present).first_key, owner))

    def claim(self, owner: str) -> None:
        share = self._share(owner)
        if not share.is_busy:
            share.virtual_time = max(share.virtual_time, self.present())
            share.is_busy = True
        share.num_running += 1

    def end(self, owner: str, cost: float, weight: float, is_waiting: bool) -> None:
        """Add what a task has cost. `is_waiting`: whether the owner has another one that waits."""
        share = self.owners[owner]
        share.num_running -= 1
        share.virtual_time += cost / weight
        share.step += STEP_SHARE * (cost / weight - share.step)
        share.is_busy = is_waiting or share.num_running > 0

    def _share(self, owner: str) -> Share:
        return self.owners.setdefault(owner, Share(0.0, self.usual_step))
