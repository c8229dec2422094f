"""Requests to load or unload a model: a row says what is to be done, a message wakes a worker.

A GPU worker serves them between two sessions, see `loaded_engines.serve_requests`.
"""

import logging

from django.db.models import Q
from django.db.models.functions import Now

from inference import dispatch, events
from inference.models import Queue, RegisteredModel
from monitoring.hardware import worker_identity, workers
from monitoring.streams import ends

logger = logging.getLogger(__name__)

Request = RegisteredModel.Request
Status = RegisteredModel.Status

_HELD = (Status.LOADING, Status.LOADED)
_IS_EMBEDDING = Q(provider=RegisteredModel.Provider.EMBEDDING)


def ask(model: RegisteredModel, request: "Request") -> None:
    """Have a worker load or unload the model, unless it is so already; reads the row anew."""
    rows = RegisteredModel.objects.filter(pk=model.pk)
    is_so = model.loaded if request == Request.LOAD else model.status not in _HELD
    if model.requested or not is_so:
        rows.exclude(requested=request).update(requested=request, requested_at=Now())
        dispatch.enqueue([dispatch.SERVE_MODEL_REQUESTS])
    elif request == Request.LOAD and model.keep_alive is not None:
        rows.exclude(unload_at=None).update(unload_at=Now() + model.keep_alive)
    model.refresh_from_db()


def are_pending() -> bool:
    """Whether this worker has requests to serve; a session asks before each task it takes in."""
    return RegisteredModel.objects.has_requests_for(worker_identity.current())


def end(model: RegisteredModel, request: "Request") -> None:
    """Clear the request, served or not, and announce its end."""
    mine = RegisteredModel.objects.filter(pk=model.pk, requested=request)
    if mine.update(requested=Request.NONE, requested_at=None):
        ends.announce(wait_key(model))


def wait_key(model: RegisteredModel) -> str:
    """What the end of a model's request is announced by."""
    return f"model:{model.name}"


def sweep() -> None:
    """Release the models of lost workers, and wake those that have requests or idle models.

    Whatever message wakes such a worker, it looks at its models first.
    """
    _release_from_lost_workers()
    waiting, idle = (
        RegisteredModel.objects.exclude(requested=Request.NONE),
        RegisteredModel.objects.idle(),
    )
    for message, is_due in (
        (dispatch.SERVE_MODEL_REQUESTS, waiting.exists() or idle.exclude(_IS_EMBEDDING).exists()),
        (dispatch.EMBED, idle.filter(_IS_EMBEDDING).exists()),
    ):
        if is_due and dispatch.waiting_messages(message.queue) == 0:
            dispatch.enqueue([message])


def _release_from_lost_workers() -> None:
    """A process that died holds no model any more; a load that it was at is not repeated."""
    held = RegisteredModel.objects.exclude(loaded_by="")
    for queue, models in (
        (Queue.EMBEDDINGS, held.filter(_IS_EMBEDDING)),
        (Queue.GPU, held.exclude(_IS_EMBEDDING)),
    ):
        gone = workers.gone({model.loaded_by for model in models}, queue)
        for model in models:
            if model.loaded_by not in gone:
                continue
            row = RegisteredModel.objects.filter(pk=model.pk, loaded_by=model.loaded_by)
            if model.status == Status.LOADING and model.requested == Request.LOAD:
                why = "The worker was lost while it loaded this model: look at its log, try again."
                row.update(status=Status.ERROR, loaded_by="", unload_at=None, status_message=why)
                end(model, Request.LOAD)
                continue
            freed = row.update(status=Status.AVAILABLE, loaded_by="", unload_at=None)
            if freed and model.loaded:
                events.unloaded(model, model.loaded_by)
            end(model, Request.UNLOAD)
