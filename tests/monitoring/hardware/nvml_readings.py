"""What NVML says of the GPUs of two machines, in NVML's own units, and a stand-in that says it.

`None` stands for NVML_ERROR_NOT_SUPPORTED, which consumer cards, MIG and passive cards give for
some of the values.
"""

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pynvml
import pytest


@dataclass(frozen=True, slots=True)
class Card:
    """Memory in bytes, power in milliwatts, as NVML has them."""

    name: str | bytes
    compute_capability: tuple[int, int] | None
    memory: tuple[int, int, int] | None  # total, used, free
    utilization: int | None
    temperature: int | None
    power: int | None


@dataclass(frozen=True, slots=True)
class Machine:
    driver: str
    cuda: int
    cards: list[Card | None]  # None: fallen off the bus


# A workstation: the driver keeps some memory for itself, so used and free are not all.
WORKSTATION = Machine(
    driver="550.127.05",
    cuda=12040,
    cards=[
        Card(
            name="NVIDIA GeForce RTX 4090",
            compute_capability=(8, 9),
            memory=(25_757_220_864, 18_253_611_008, 7_057_113_088),
            utilization=97,
            temperature=71,
            power=386_214,
        ),
        Card(
            name=b"Tesla T4",
            compute_capability=(7, 5),
            memory=(16_106_127_360, 471_859_200, 15_634_268_160),
            utilization=0,
            temperature=34,
            power=9_870,
        ),
    ],
)
# A server whose card is divided by MIG: it tells no utilization; power needs another permission.
SERVER = Machine(
    driver="570.86.15",
    cuda=12080,
    cards=[
        Card(
            name="NVIDIA H100 80GB HBM3",
            compute_capability=(9, 0),
            memory=(85_520_809_984, 42_949_672_960, 41_943_040_000),
            utilization=None,
            temperature=45,
            power=None,
        )
    ],
)


class NVML:
    """Stands in for NVML; `machine` may be changed, None is one without a driver."""

    def __init__(self, machine: Machine | None) -> None:
        self.machine = machine
        self.num_inits = 0

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name, says in self._functions().items():
            monkeypatch.setattr(pynvml, name, says)

    def _functions(self) -> dict[str, Callable[..., Any]]:
        def of_card(get: Callable[[Card], Any]) -> Callable[..., Any]:
            def answer(handle: int, *_: Any) -> Any:
                card = self._cards[handle]
                value = None if card is None else get(card)
                if value is None:
                    raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
                return value

            return answer

        return {
            "nvmlInit": self._init,
            "nvmlDeviceGetCount": lambda: len(self._cards),
            "nvmlDeviceGetHandleByIndex": self._handle,
            "nvmlSystemGetDriverVersion": lambda: self._checked.driver,
            "nvmlSystemGetCudaDriverVersion_v2": lambda: self._checked.cuda,
            "nvmlDeviceGetName": of_card(lambda card: card.name),
            "nvmlDeviceGetCudaComputeCapability": of_card(lambda card: card.compute_capability),
            "nvmlDeviceGetMemoryInfo": of_card(lambda card: _memory(card.memory)),
            "nvmlDeviceGetUtilizationRates": of_card(lambda card: _rates(card.utilization)),
            "nvmlDeviceGetTemperature": of_card(lambda card: card.temperature),
            "nvmlDeviceGetPowerUsage": of_card(lambda card: card.power),
        }

    @property
    def _checked(self) -> Machine:
        if self.machine is None:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)
        return self.machine

    @property
    def _cards(self) -> list[Card | None]:
        return self._checked.cards

    def _init(self) -> None:
        assert self._checked
        self.num_inits += 1

    def _handle(self, index: int) -> int:
        if not 0 <= index < len(self._cards):
            raise pynvml.NVMLError(pynvml.NVML_ERROR_INVALID_ARGUMENT)
        if self._cards[index] is None:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)
        return index


def _memory(values: tuple[int, int, int] | None) -> SimpleNamespace | None:
    return values and SimpleNamespace(total=values[0], used=values[1], free=values[2])


def _rates(gpu_percent: int | None) -> SimpleNamespace | None:
    return None if gpu_percent is None else SimpleNamespace(gpu=gpu_percent, memory=0)
