"""What attempts cost, and tasks as the sum of their attempts."""

from dataclasses import dataclass
from typing import TypeVar

from django.db import models

Number = TypeVar("Number", int, float)


@dataclass(frozen=True, slots=True)
class Cost:
    """What an attempt has cost; None: nothing, or nobody knows.

    `gpu_seconds`: its share of the steps of its model's engine, by the tokens computed for it in
    each. `energy_joules` of the device, in the same shares. `cost_nano_usd`: of its calls of a
    cloud model, in billionths of a dollar.
    """

    gpu_seconds: float | None = None
    energy_joules: float | None = None
    cost_nano_usd: int | None = None

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(
            _sum(self.gpu_seconds, other.gpu_seconds),
            _sum(self.energy_joules, other.energy_joules),
            _sum(self.cost_nano_usd, other.cost_nano_usd),
        )


NO_COST = Cost()


def _sum(one: Number | None, other: Number | None) -> Number | None:
    if one is None or other is None:
        return other if one is None else one
    return one + other


class Costly(models.Model):
    """A row with what it has cost; null as None is in `Cost`."""

    gpu_seconds = models.FloatField(null=True, blank=True)
    energy_joules = models.FloatField(null=True, blank=True)
    cost_nano_usd = models.BigIntegerField(null=True, blank=True)

    class Meta:
        abstract = True

    @property
    def cost(self) -> Cost:
        return Cost(self.gpu_seconds, self.energy_joules, self.cost_nano_usd)

    @property
    def cost_usd(self) -> float | None:
        return None if self.cost_nano_usd is None else self.cost_nano_usd / 1e9
