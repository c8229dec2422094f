"""Attempts that are paused for urgent ones, and go on afterwards."""

import logging
from dataclasses import dataclass

from inference.engine.engine import Engine, PausedSequence, StepOutput
from inference.engine.sequence import FinishReason
from inference.execution.attempt import Attempt
from inference.execution.cost_meter import CostMeter
from inference.loading import device_memory
from inference.loading.loaded_engines import LoadedEngine
from inference.loading.loaded_models import is_same, registered_anew
from inference.models import RegisteredModel

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Paused:
    """A sequence, and the model that has computed it."""

    sequence: PausedSequence
    model: RegisteredModel


class PausedAttempts:
    """Those of a session, by request id.

    What they have computed is in RAM, as far as that has room: their model may be unloaded.
    """

    def __init__(self, attempts: dict[str, Attempt]) -> None:
        """`attempts` are all of the session, the one that has run longest first."""
        self._attempts = attempts
        self._paused: dict[str, _Paused] = {}
        self._has_warned = False

    def __len__(self) -> int:
        return len(self._paused)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._paused

    def can_pause_all(self, engine: Engine) -> bool:
        """Whether none that runs is urgent, and RAM has room for what all have computed."""
        running = [each for each in self._attempts.values() if each.request_id not in self._paused]
        if any(attempt.is_urgent for attempt in running):
            return False
        return self._has_ram(sum(engine.state_bytes(attempt.request_id) for attempt in running))

    def pause_all(self, loaded: LoadedEngine, meter: CostMeter) -> None:
        for attempt in list(self._attempts.values()):
            if attempt.request_id in loaded.engine:
                self._pause(attempt, loaded, meter)

    def make_room(self, loaded: LoadedEngine, meter: CostMeter) -> None:
        """Pause some, the least urgent first, while urgent ones wait in the engine for room."""
        engine = loaded.engine
        while engine.is_short_of_room:
            running = [
                attempt
                for attempt in reversed(self._attempts.values())
                if attempt.request_id in engine and not attempt.is_urgent
            ]
            victim = min(running, key=lambda attempt: attempt.lease.task.priority, default=None)
            if victim is None or not self._has_ram(engine.state_bytes(victim.request_id)):
                return
            self._pause(victim, loaded, meter)

    def resume(self, loaded: LoadedEngine) -> None:
        """Let those of the model go on that have room, the most urgent and then the oldest first.

        Those that another model of this name has computed fail.
        """
        attempts = sorted(self._attempts.values(), key=lambda each: -each.lease.task.priority)
        for attempt in attempts:
            paused = self._paused.get(attempt.request_id)
            if paused is None or paused.model.name != loaded.model.name:
                continue
            if not is_same(loaded.model, paused.model):
                self.fail(attempt, registered_anew(loaded.model.name))
            elif not loaded.engine.has_room_for(paused.sequence):
                return
            else:
                del self._paused[attempt.request_id]
                loaded.engine.resume(paused.sequence)
                attempt.resume()

    def of_model(self, model_name: str) -> list[Attempt]:
        return [
            attempt
            for attempt in self._attempts.values()
            if attempt.request_id in self._paused and attempt.lease.task.model_name == model_name
        ]

    def fail(self, attempt: Attempt, error: Exception) -> None:
        """End one that cannot go on; it keeps its text."""
        if last := self.abort(attempt.request_id):
            attempt.read(last.text)
        del self._attempts[attempt.request_id]
        attempt.fail(error)

    def abort(self, request_id: str) -> StepOutput | None:
        """End its sequence; None when it is not paused."""
        paused = self._paused.pop(request_id, None)
        return None if paused is None else paused.sequence.abort(FinishReason.CANCELLED)

    def _pause(self, attempt: Attempt, loaded: LoadedEngine, meter: CostMeter) -> None:
        request_id = attempt.request_id
        self._paused[request_id] = _Paused(loaded.engine.pause(request_id), loaded.model)
        attempt.progress.cost += meter.take(request_id)
        attempt.pause()

    def _has_ram(self, num_bytes: int) -> bool:
        usable_bytes = device_memory.read(gpu_layers=0).usable_bytes
        if num_bytes > usable_bytes and not self._has_warned:
            self._has_warned = True
            logger.warning(
                "Urgent tasks wait: to pause others takes %d MB of RAM, and %d MB may be used",
                *(num_bytes >> 20, usable_bytes >> 20),
            )
        return num_bytes <= usable_bytes
