"""The embeddings worker: woken by a message, it answers requests until there are no more."""

import contextlib
import logging
import threading
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np
import redis
from django.conf import settings
from django.db import Error as DatabaseError

from inference.embeddings import answers, cloud, request_queue, token_counts
from inference.embeddings.batcher import Batcher, Item, RunningRequest
from inference.embeddings.encoders import base
from inference.embeddings.encoders.base import Vectors
from inference.embeddings.loaded_encoders import loaded_encoders
from inference.embeddings.messages import Answer, Shape
from inference.embeddings.request_queue import QueuedRequest
from inference.errors import ErrorCode, InferenceError
from inference.models import RegisteredModel
from monitoring.metrics import counters, task_counts

logger = logging.getLogger(__name__)

# The worker waits this long for another request before it needs a message again.
_LINGER_SECONDS = 0.5
_GATHER_SECONDS = 0.02
_TIDY_SECONDS = 1.0
_STOP_SECONDS = 2.0
# What is beyond this stays in Redis for other workers.
_MAX_TEXTS = 8192
_MAX_REQUESTS = 64
_NUM_CLOUD_THREADS = 16


class _ForgottenError(Exception):
    """Nobody waits for the answer any more."""


def serve(*, warm_up: bool = False) -> None:
    """Answer requests until none has come for a moment. Raises redis.RedisError.

    `warm_up`: load the default model as soon as there are none, if it is to stay for ever.
    """
    _worker().serve(warm_up=warm_up)


@cache
def _worker() -> "_Worker":
    return _Worker()


class _Worker:
    """The requests that this process has read, and the threads that compute."""

    def __init__(self) -> None:
        num_threads = base.num_threads()
        self._batcher = Batcher(num_threads)
        self._cloud = ThreadPoolExecutor(_NUM_CLOUD_THREADS, "cloud")
        self._counting = ThreadPoolExecutor(1, "count tokens")
        # By entry, until they are answered.
        self._unanswered: dict[str, QueuedRequest] = {}
        self._tidied_at = 0.0
        for number in range(num_threads):
            threading.Thread(target=self._compute, name=f"encode {number}", daemon=True).start()

    def serve(self, *, warm_up: bool) -> None:
        self._unload_unused()
        self._begin(request_queue.read_unanswered())
        busy_at = time.monotonic()
        wait_seconds = min(_LINGER_SECONDS, settings.REDIS_TIMEOUT_SECONDS) / 2
        while not request_queue.is_draining():
            num_texts = self._batcher.num_texts
            if num_texts:  # the threads are busy: gather requests and read them together
                time.sleep(_GATHER_SECONDS)
            if num_texts < _MAX_TEXTS:
                self._begin(request_queue.read(_MAX_REQUESTS, wait_seconds))
            self._tidy()
            if self._unanswered:
                busy_at = time.monotonic()
            elif warm_up:
                warm_up = False
                self._warm_up()
            elif time.monotonic() - busy_at > _LINGER_SECONDS:
                request_queue.stop_reading()
                # Requests that were posted just before, without a message.
                last = request_queue.read(_MAX_REQUESTS)
                if not last:
                    return
                self._begin(last)
        # Finish what is being computed; another worker takes over the rest.
        give_up_at = time.monotonic() + _STOP_SECONDS
        while self._unanswered and time.monotonic() < give_up_at:
            time.sleep(0.01)

    def _begin(self, requests: Iterable[QueuedRequest]) -> None:
        models: dict[str, RegisteredModel | None] = {}
        for queued in requests:
            if queued.entry_id in self._unanswered:
                continue
            self._unanswered[queued.entry_id] = queued
            name = queued.request.model_name
            try:
                if name not in models:
                    models[name] = RegisteredModel.objects.read(name)
                model = models[name]
                if model is None:
                    raise _failure(f"The model {name} was deleted: take another one.")
                if queued.request.shape in (Shape.COUNT, Shape.PREFLIGHT):
                    self._counting.submit(self._count, queued, model)
                elif model.is_remote:
                    self._cloud.submit(self._ask_cloud, queued, model)
                else:
                    encoder = loaded_encoders.load(model).encoder
                    self._batcher.add(RunningRequest.of(queued, encoder))
            except InferenceError as error:
                self._fail([queued], error)
            except DatabaseError as exc:
                logger.warning("Embedding request %s: %s", queued.key, exc)
                self._fail([queued], _failure("The database cannot be reached: try again."))

    def _compute(self) -> None:
        """The loop of a thread: compute batch after batch."""
        while True:
            batch = self._batcher.next_batch()
            try:
                self._encode(batch)
            except Exception as exc:  # noqa: BLE001 (the requests' failure)
                error = exc if isinstance(exc, InferenceError) else _unknown_failure(exc)
                requests = {item.request for item in batch}
                ended = [each for each in requests if self._batcher.complete(each)]
                self._fail([each.queued for each in ended], error)

    def _encode(self, batch: list[Item]) -> None:
        first = batch[0].request
        texts = [item.request.queued.request.texts[item.index] for item in batch]
        rows = first.encoder.encode(texts, first.prompt)
        for item, row in zip(batch, rows, strict=True):
            item.request.vectors[item.index] = row
        ready = []
        for request in {item.request for item in batch}:
            if request.is_complete and self._batcher.complete(request):
                vectors = np.stack([request.vectors[i] for i in range(len(request.lengths))])
                num_tokens = sum(request.lengths)
                made = _answer(request.queued, vectors, num_tokens, request.truncated)
                ready.append((request.queued, made))
        self._deliver(ready)

    def _ask_cloud(self, queued: QueuedRequest, model: RegisteredModel) -> None:
        request = queued.request

        def check() -> None:
            if queued.entry_id not in self._unanswered:
                raise _ForgottenError

        try:
            if request.ranking and not request.ranking.is_by_cosine:
                query = request.ranking.query
                vectors = cloud.rank(model, query, request.texts, check, request.owner)
            else:
                name = request.prompt_name
                vectors = cloud.embed(model, request.texts, name, check, request.owner)
            made = _answer(queued, vectors.rows, vectors.num_tokens, [])
        except _ForgottenError:
            logger.info("Embedding request %s: its client is gone", queued.key)
        except Exception as exc:  # noqa: BLE001 (the requests' failure)
            error = exc if isinstance(exc, InferenceError) else _unknown_failure(exc)
            self._fail([queued], error)
        else:
            self._deliver([(queued, made)])

    def _count(self, queued: QueuedRequest, model: RegisteredModel) -> None:
        try:
            made = token_counts.count(model, queued.request)
        except Exception as exc:  # noqa: BLE001 (the request's failure)
            error = exc if isinstance(exc, InferenceError) else _unknown_failure(exc)
            self._fail([queued], error)
        else:
            self._deliver([(queued, made)])

    def _fail(self, requests: list[QueuedRequest], error: InferenceError) -> None:
        self._deliver([(queued, _failed(queued, error)) for queued in requests])

    def _deliver(self, ready: list[tuple[QueuedRequest, Answer]]) -> None:
        """An answer that cannot be handed over is computed once more at the next message."""
        try:
            if ready:
                request_queue.deliver(ready)
        except redis.RedisError as exc:
            logger.warning("%d answers were not handed over, no Redis: %s", len(ready), exc)
        for queued, _ in ready:
            self._unanswered.pop(queued.entry_id, None)

    def _tidy(self) -> None:
        """Drop requests of clients that are gone, and take over those of workers that are gone."""
        if time.monotonic() - self._tidied_at < _TIDY_SECONDS:
            return
        self._tidied_at = time.monotonic()
        for queued in request_queue.forgotten(self._unanswered.copy().values()):
            self._unanswered.pop(queued.entry_id, None)
        for request in self._batcher.requests:
            if request.queued.entry_id not in self._unanswered:
                self._batcher.complete(request)
        self._begin(request_queue.take_over())
        self._unload_unused()

    def _unload_unused(self) -> None:
        try:
            loaded_encoders.unload_unused()
        except DatabaseError as exc:
            logger.warning("Whether embedding models were deleted is not known: %s", exc)

    def _warm_up(self) -> None:
        if settings.EMBEDDING_KEEP_ALIVE_SECONDS >= 0:
            return  # 500 MB that maybe nobody needs
        model = RegisteredModel.objects.read(settings.DEFAULT_EMBEDDING_MODEL)
        if model is None or loaded_encoders.names or model.is_remote:
            return
        with contextlib.suppress(InferenceError):  # the row and the log say why
            loaded_encoders.load(model)


def _answer(queued: QueuedRequest, rows: Vectors, num_tokens: int, truncated: list[int]) -> Answer:
    try:
        made = answers.answer(queued.request, rows, num_tokens, truncated)
    except InferenceError as error:
        return _failed(queued, error)
    name = queued.request.model_name
    fields = {f"{task_counts.SUCCESS}stop": 1, task_counts.PROMPT_TOKENS: num_tokens}
    counters.count({(name, field): amount for field, amount in fields.items()})
    return made


def _failed(queued: QueuedRequest, error: InferenceError) -> Answer:
    logger.warning("Embedding request %s failed: %s", queued.key, error.code)
    counters.count({(queued.request.model_name, f"{task_counts.FAILURE}{error.code}"): 1})
    return Answer.failure(error, "messages" if queued.request.prompt else "texts")


def _unknown_failure(exc: Exception) -> InferenceError:
    logger.error("Embeddings failed", exc_info=exc)
    return _failure("The worker failed: its log has the reason.")


def _failure(message: str) -> InferenceError:
    return InferenceError(message, ErrorCode.INTERNAL_ERROR)
