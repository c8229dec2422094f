"""The models that a worker process holds in memory, and what their rows say of that.

No other code writes that a model is being loaded, is loaded, or was unloaded, but `requests`, which
releases the models of lost workers.
"""

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Generic, TypeVar

from django.db import Error as DatabaseError
from django.db.models.functions import Now

from inference import events
from inference.engine.errors import EngineError
from inference.errors import ErrorCode, InferenceError
from inference.loading import requests
from inference.models import GenerationTask, Queue, RegisteredModel
from monitoring import database_clock
from monitoring.hardware import worker_identity

logger = logging.getLogger(__name__)

Status = RegisteredModel.Status

# `last_used_at` is written at most this often, since there may be hundreds of requests a second.
_RECORD_SECONDS = 5.0


@dataclass(eq=False, slots=True)
class LoadedModel:
    """`loaded_at` and `recorded_at`, of the last use that the row tells, are of time.monotonic."""

    model: RegisteredModel
    loaded_at: float = field(default_factory=time.monotonic, kw_only=True)
    recorded_at: float = field(default=float("-inf"), kw_only=True)

    @property
    def loaded_with(self) -> dict[str, Any] | None:
        """The settings by which it runs now, the measured ones too; None where it has none."""
        return None

    def close(self) -> None:
        """Free what does not go with the object."""


T = TypeVar("T", bound=LoadedModel)


class LoadedModels(ABC, Generic[T]):
    """Loaded models by name, the least recently used first.

    Not for use by several threads, and never called from within a step of an engine. `is_spent`
    says that idle time has emptied it: the process still has the libraries in memory.
    """

    def __init__(self) -> None:
        self._loaded: dict[str, T] = {}
        self._names_in_use: set[str] = set()
        self.is_spent = False

    @abstractmethod
    def _load(self, model: RegisteredModel) -> T:
        """Load the model, unloading others until it fits.

        Raises EngineError, ValueError or OSError with the reason.
        """

    @property
    def names(self) -> list[str]:
        return list(self._loaded)

    def load(self, model: RegisteredModel) -> T:
        """The model, loaded now unless it is already. Raises InferenceError MODEL_LOAD_FAILED."""
        name = model.name
        found = self._loaded.get(name)
        if found is not None and is_same(found.model, model):
            if model.status != Status.LOADED:  # the worker was taken for lost, or the write failed
                self._set_status(model, Status.LOADED)
            self._loaded[name] = self._loaded.pop(name)
            if name not in self._names_in_use:
                self._record_use(found, at_most_every=_RECORD_SECONDS)
            return found
        if model.crashed_too_often:
            raise InferenceError(model.crash_message, ErrorCode.MODEL_LOAD_FAILED)
        if name in self._names_in_use:
            raise registered_anew(name)
        self.unload(name)
        model.set_status(Status.LOADING, worker_identity.current())
        started = time.monotonic()
        try:
            loaded = self._load(model)
        except (EngineError, ValueError, OSError) as error:
            self._set_status(model, Status.ERROR, why=str(error))
            requests.end(model, RegisteredModel.Request.LOAD)
            logger.warning("Model %s could not be loaded: %s", name, error)
            message = f"The model {name} could not be loaded: {error}"
            raise InferenceError(message, ErrorCode.MODEL_LOAD_FAILED) from error
        self._loaded[name] = loaded
        self.is_spent = False
        self._set_status(model, Status.LOADED)
        self._record_use(loaded)
        load_seconds = loaded.loaded_at - started
        logger.info("Model %s loaded in %.2f s", name, load_seconds)
        events.loaded(model, worker_identity.current(), load_seconds * 1000)
        requests.end(model, RegisteredModel.Request.LOAD)
        return loaded

    def get(self, name: str) -> T:
        """The model of that name, which must be loaded."""
        return self._loaded[name]

    @contextmanager
    def in_use(self, used: T) -> Iterator[None]:
        """Keep the model in memory for the block; then its time to live begins."""
        name = used.model.name
        self._loaded[name] = self._loaded.pop(name)
        self._names_in_use.add(name)
        self._record(used.model, unload_at=None, last_used_at=Now())
        try:
            yield
        finally:
            self._names_in_use.discard(name)
            self._record_use(used)

    def unload(self, name: str) -> None:
        """Free the model of that name, if this worker holds it. Not for one in use."""
        assert name not in self._names_in_use, f"{name} is in use"
        freed = self._loaded.pop(name, None)
        if freed is None:
            return
        freed.close()
        fields = {"status": Status.AVAILABLE, "loaded_by": "", "unload_at": None}
        self._record(freed.model, **fields, updated_at=Now())
        logger.info("Model %s unloaded", name)
        events.unloaded(freed.model, worker_identity.current())

    def unload_unused(self) -> None:
        """Unload what was deleted, registered anew, or idle for longer than it is kept."""
        rows = RegisteredModel.objects.in_bulk([each.model.pk for each in self._loaded.values()])
        for loaded in list(self._loaded.values()):
            model = rows.get(loaded.model.pk)
            if model is None or not is_same(loaded.model, model) or _is_idle(loaded, model):
                self.unload(loaded.model.name)
                self.is_spent = not self._loaded

    def evictable(self) -> list[T]:
        """Models that may go, neither in use nor pinned; the least recently used first."""
        return [
            loaded
            for name, loaded in self._loaded.items()
            if name not in self._names_in_use and not loaded.model.pinned
        ]

    def _record_use(self, used: T, at_most_every: float = 0) -> None:
        if time.monotonic() - used.recorded_at < at_most_every:
            return
        used.recorded_at = time.monotonic()
        keep_alive = used.model.keep_alive
        unload_at = None if keep_alive is None else Now() + keep_alive
        self._record(
            used.model, unload_at=unload_at, last_used_at=Now(), loaded_with=used.loaded_with
        )

    def _record(self, model: RegisteredModel, **fields: Any) -> None:
        """Write to the model's row, unless another worker has taken it over or it was deleted."""
        mine = RegisteredModel.objects.filter(pk=model.pk, loaded_by=worker_identity.current())
        try:
            mine.update(**fields)
        except DatabaseError as exc:
            # The next use or unloading corrects the row.
            logger.warning("Model %s: its row was not updated: %s", model.name, exc)

    def _set_status(self, model: RegisteredModel, status: "Status", why: str = "") -> None:
        """As `set_status` does, unless another worker has taken the row over."""
        worker = worker_identity.current()
        rows = RegisteredModel.objects.filter(pk=model.pk, loaded_by__in=("", worker))
        rows.update(
            status=status,
            loaded_by=worker if status == Status.LOADED else "",
            status_message=why,
            updated_at=Now(),
        )


def is_same(loaded: RegisteredModel, wanted: RegisteredModel) -> bool:
    """A model that was deleted and registered anew is another one."""
    return loaded.pk == wanted.pk and loaded.config == wanted.config


def registered_anew(name: str) -> InferenceError:
    message = f"The model {name} was registered anew while it ran: submit again."
    return InferenceError(message, ErrorCode.MODEL_LOAD_FAILED)


def _is_idle(loaded: LoadedModel, model: RegisteredModel) -> bool:
    """Past its time, and no task is waiting for it.

    The row tells when one worker has used it last; another that holds it too goes by its own clock.
    """
    if model.loaded_by in ("", worker_identity.current()):
        is_past = model.unload_at is not None and model.unload_at <= database_clock.now()
    else:
        unused = timedelta(seconds=time.monotonic() - loaded.recorded_at)
        is_past = model.keep_alive is not None and unused >= model.keep_alive
    waiting = GenerationTask.objects.pending().filter(queue=Queue.GPU, model_name=model.name)
    return is_past and not waiting.exists()
