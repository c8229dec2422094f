"""What the embeddings worker does once a message has rung: answer requests until none comes."""

import contextlib
import logging
import threading
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import redis
from django.conf import settings
from django.db import Error as DatabaseError

from inference.embeddings import cloud, hardware, request_queue, stopping
from inference.embeddings.batcher import Batch, Batcher
from inference.embeddings.jobs import Job, answer_of
from inference.embeddings.loaded_encoders import loaded_encoders
from inference.embeddings.messages import Answer
from inference.embeddings.request_queue import Letter
from inference.errors import ErrorCode, InferenceError
from inference.models import RegisteredModel
from monitoring.metrics import counters, task_counts

logger = logging.getLogger(__name__)

# Requests that follow one another need no message each.
_LINGER_SECONDS = 0.5
_GATHER_SECONDS = 0.02
_TIDY_SECONDS = 1.0
_STOP_SECONDS = 2.0
# More is left to other workers, and to Redis.
_MAX_TEXTS = 8192
_MAX_LETTERS = 64
_NUM_CLOUD_THREADS = 16


def serve() -> None:
    """Answer requests until none has come for a moment. Raises redis.RedisError."""
    _desk().serve()


@cache
def _desk() -> "_Desk":
    return _Desk()


class _Desk:
    """The requests that this process is at, and the threads that compute."""

    def __init__(self) -> None:
        num_lanes = hardware.num_lanes()
        self._batcher = Batcher(hardware.max_batch_tokens(), num_lanes)
        self._cloud = ThreadPoolExecutor(_NUM_CLOUD_THREADS, "cloud")
        self._in_hand: dict[str, Letter] = {}
        self._tidied_at = 0.0
        self._is_warm = False
        for number in range(num_lanes):
            threading.Thread(target=self._lane, name=f"lane {number}", daemon=True).start()

    def serve(self) -> None:
        self._unload_unused()
        self._admit(request_queue.take_again())
        busy_at = time.monotonic()
        while not stopping.has_begun():
            self._admit(self._look())
            self._tidy()
            if self._in_hand:
                busy_at = time.monotonic()
            elif not self._is_warm:
                self._warm_up()
            elif time.monotonic() - busy_at > _LINGER_SECONDS:
                request_queue.stop_looking()
                # What came before that has not rung.
                if not self._admit(request_queue.take(_MAX_LETTERS)):
                    return
        self._finish()

    def _look(self) -> list[Letter]:
        wait_seconds = min(_LINGER_SECONDS, settings.REDIS_TIMEOUT_SECONDS) / 2
        num_texts = self._batcher.num_texts
        if num_texts:  # the lanes have enough to do: what comes meanwhile is taken together
            time.sleep(_GATHER_SECONDS)
        if num_texts < _MAX_TEXTS:
            return request_queue.look(_MAX_LETTERS, wait_seconds)
        return []

    def _admit(self, letters: Iterable[Letter]) -> bool:
        """Begin with requests; whether there were any."""
        models: dict[str, RegisteredModel | None] = {}
        new = [letter for letter in letters if letter.entry_id not in self._in_hand]
        for letter in new:
            self._in_hand[letter.entry_id] = letter
            try:
                self._begin(letter, models)
            except InferenceError as error:
                self._fail([letter], error)
            except DatabaseError as exc:
                logger.warning("Embedding request %s: %s", letter.key, exc)
                self._fail([letter], _failure("The database cannot be reached: try again."))
        return bool(new)

    def _begin(self, letter: Letter, models: dict[str, RegisteredModel | None]) -> None:
        name = letter.request.model_name
        if name not in models:
            models[name] = RegisteredModel.objects.read(name)
        model = models[name]
        if model is None:
            raise _failure(f"The model {name} was deleted: take another one.")
        if model.is_remote:
            self._cloud.submit(self._ask_cloud, letter, model)
        else:
            self._batcher.add(Job.of(letter, loaded_encoders.load(model).encoder))

    def _lane(self) -> None:
        while True:
            batch = self._batcher.next_batch()
            try:
                self._compute(batch)
            except InferenceError as error:
                self._fail_jobs(batch, error)
            except Exception:
                # The lane must live on.
                logger.exception("A batch of %d texts failed", len(batch.pieces))
                self._fail_jobs(batch, _failure("The worker failed: its log has the reason."))
            finally:
                self._batcher.done(batch)

    def _compute(self, batch: Batch) -> None:
        rows = batch.encoder.encode(batch.texts, batch.prompt)
        for piece, row in zip(batch.pieces, rows, strict=True):
            piece.job.vectors[piece.index] = row
        jobs = {piece.job for piece in batch.pieces}
        ended = [job for job in jobs if job.is_complete and self._batcher.complete(job)]
        self._deliver([(job.letter, _answer(job)) for job in ended])

    def _ask_cloud(self, letter: Letter, model: RegisteredModel) -> None:
        request = letter.request
        try:
            vectors = cloud.embed(model, request.texts, request.prompt_name)
            answer = answer_of(letter, vectors.rows, vectors.num_tokens, [])
        except InferenceError as error:
            self._fail([letter], error)
        except Exception:
            logger.exception("Embedding request %s failed", letter.key)
            self._fail([letter], _failure("The worker failed: its log has the reason."))
        else:
            self._deliver([(letter, answer)])
            _count(letter, vectors.num_tokens)

    def _fail_jobs(self, batch: Batch, error: InferenceError) -> None:
        jobs = {piece.job for piece in batch.pieces}
        self._fail([job.letter for job in jobs if self._batcher.complete(job)], error)

    def _fail(self, letters: list[Letter], error: InferenceError) -> None:
        self._deliver([(letter, _failed(letter, error)) for letter in letters])

    def _deliver(self, answers: list[tuple[Letter, Answer]]) -> None:
        """An answer that cannot be handed over is made once more when the next message rings."""
        try:
            if answers:
                request_queue.deliver(answers)
        except redis.RedisError as exc:
            logger.warning("%d answers were not handed over, no Redis: %s", len(answers), exc)
        for letter, _ in answers:
            self._in_hand.pop(letter.entry_id, None)

    def _tidy(self) -> None:
        """Drop what nobody waits for any more, and take over what a worker has left behind."""
        if time.monotonic() - self._tidied_at < _TIDY_SECONDS:
            return
        self._tidied_at = time.monotonic()
        jobs = {job.letter.entry_id: job for job in self._batcher.jobs}
        for letter in request_queue.forgotten(job.letter for job in jobs.values()):
            if self._batcher.complete(jobs[letter.entry_id]):
                self._in_hand.pop(letter.entry_id, None)
        self._admit(request_queue.take_over())
        self._unload_unused()

    def _unload_unused(self) -> None:
        try:
            loaded_encoders.unload_unused()
        except DatabaseError as exc:
            logger.warning("Whether embedding models were deleted is not known: %s", exc)

    def _warm_up(self) -> None:
        """Load the default model before somebody waits for it."""
        self._is_warm = True
        model = RegisteredModel.objects.read(settings.DEFAULT_EMBEDDING_MODEL)
        if model is None or loaded_encoders.names or model.is_remote:
            return
        with contextlib.suppress(InferenceError):  # the row and the log say why
            loaded_encoders.load(model)

    def _finish(self) -> None:
        """A moment for what is being computed; another worker takes over the rest."""
        give_up_at = time.monotonic() + _STOP_SECONDS
        while self._in_hand and time.monotonic() < give_up_at:
            time.sleep(0.01)


def _answer(job: Job) -> Answer:
    try:
        answer = job.answer()
    except InferenceError as error:
        return _failed(job.letter, error)
    _count(job.letter, sum(job.lengths))
    return answer


def _failed(letter: Letter, error: InferenceError) -> Answer:
    logger.warning("Embedding request %s failed: %s", letter.key, error.code)
    counters.count({(letter.request.model_name, f"{task_counts.FAILURE}{error.code}"): 1})
    return Answer.failure(error)


def _count(letter: Letter, num_tokens: int) -> None:
    name = letter.request.model_name
    fields = {f"{task_counts.SUCCESS}stop": 1, task_counts.PROMPT_TOKENS: num_tokens}
    counters.count({(name, field): amount for field, amount in fields.items()})


def _failure(message: str) -> InferenceError:
    return InferenceError(message, ErrorCode.INTERNAL_ERROR)
