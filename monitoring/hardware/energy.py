"""How much energy this machine's devices have used; for workers, never for the web process.

Sources: NVML's total energy counter, and RAPL as Linux shows it under /sys/class/powercap
(https://docs.kernel.org/power/powercap/powercap.html), which often only root may read.
"""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

logger = logging.getLogger(__name__)

_POWERCAP = Path("/sys/class/powercap")


def joules_of_gpus(indexes: Sequence[int]) -> Callable[[], float | None]:
    """What GPUs have used together, as often as it is asked; None where one does not tell."""

    def read() -> float | None:
        from monitoring.hardware import nvml  # NVML is loaded by few processes

        joules = [nvml.total_joules(index) for index in indexes]
        told = [each for each in joules if each is not None]
        return sum(told) if len(told) == len(joules) else None

    return read


def joules_of_cpu() -> Callable[[], float | None]:
    """What the processor packages have used since this call; None where that is not readable."""
    zones = [_Zone(path) for path in _POWERCAP.glob("*") if _is_package(path)]

    def read() -> float | None:
        try:
            return sum(zone.joules() for zone in zones) if zones else None
        except (OSError, ValueError) as exc:
            logger.debug("The energy of the processor cannot be read: %s", exc)
            return None

    return read


def _is_package(path: Path) -> bool:
    try:
        return (path / "name").read_text().startswith("package")
    except OSError:
        return False


class _Zone:
    """One package, whose counter starts again at zero after its range."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._last: int | None = None
        self._total = 0

    def joules(self) -> float:
        """Since the first reading. Raises OSError or ValueError."""
        now = int((self._path / "energy_uj").read_text())
        if self._last is not None:
            grown = now - self._last
            if grown < 0:
                grown += int((self._path / "max_energy_range_uj").read_text())
            self._total += grown
        self._last = now
        return self._total / 1e6
