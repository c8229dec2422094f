"""Which models a GPU worker leaves to another one, which has them in memory already."""

from collections.abc import Collection
from datetime import timedelta

from inference.models import GenerationTask, Queue, RegisteredModel
from monitoring import database_clock
from monitoring.hardware import worker_identity

# How long it takes to load a model, roughly: for it alone, and for each byte of it from a disk.
_LOAD_SECONDS = 2.0
_BYTES_A_SECOND = 1e9


def left_to_others(own: Collection[str]) -> list[str]:
    """The models that another worker holds, and this one not, and whose tasks it soon gets to.

    As soon as this worker could have loaded them: a task that has waited longer goes to whoever is
    free. `own`: the names of the models that this worker holds.
    """
    held = RegisteredModel.objects.filter(
        status=RegisteredModel.Status.LOADED, provider=RegisteredModel.Provider.LOCAL
    )
    by_others = held.exclude(loaded_by=worker_identity.current()).exclude(name__in=own)
    return [model.name for model in by_others if _is_got_to_soon(model)]


def _is_got_to_soon(model: RegisteredModel) -> bool:
    due = GenerationTask.objects.due().filter(queue=Queue.GPU, model_name=model.name)
    first = due.order_by("created_at").values_list("created_at", flat=True).first()
    load = timedelta(seconds=_LOAD_SECONDS + (model.size_bytes or 0) / _BYTES_A_SECOND)
    return first is None or database_clock.now() - first < load
