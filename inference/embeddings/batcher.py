"""Which texts are computed together: those of about one length, whoever has asked for them."""

import threading
from bisect import insort
from collections import deque
from dataclasses import dataclass

from inference.embeddings.encoders.base import Encoder
from inference.embeddings.jobs import Job

# What little is left is shared out between the lanes, but not in smaller parts than this.
_MIN_TOKENS = 128
# A batch costs as much as some dozens of tokens before the first is computed, since all weights are
# read: about as many that pad it are cheaper than another batch.
_TOKENS_PER_PADDING = 32


@dataclass(frozen=True, slots=True)
class Piece:
    """One text of a job, and its tokens."""

    length: int
    index: int
    job: Job

    @property
    def text(self) -> str:
        return self.job.letter.request.texts[self.index]


@dataclass(frozen=True, slots=True)
class Batch:
    """Texts for one model, with one prompt before each."""

    encoder: Encoder
    prompt: str
    pieces: list[Piece]

    @property
    def texts(self) -> list[str]:
        return [piece.text for piece in self.pieces]


_Kind = tuple[Encoder, str]


class Batcher:
    """The texts that wait, for several lanes that take batches of them.

    Each batch is built around the longest text of one job, and each job has its turn: so many texts
    of one request do not keep those of another one waiting. A batch holds at most
    `max_batch_tokens`, with what pads the shorter texts, or one text that is longer.
    """

    def __init__(self, max_batch_tokens: int, num_lanes: int) -> None:
        self._max_batch_tokens = max_batch_tokens
        self._num_lanes = num_lanes
        # Of one model and one prompt, shortest first.
        self._waiting: dict[_Kind, list[Piece]] = {}
        self._turns: deque[Job] = deque()
        self._jobs: set[Job] = set()
        self._busy: set[Encoder] = set()
        self._change = threading.Condition()

    @property
    def jobs(self) -> list[Job]:
        """Those that are not complete."""
        with self._change:
            return list(self._jobs)

    @property
    def num_texts(self) -> int:
        """Texts that wait."""
        with self._change:
            return sum(map(len, self._waiting.values()))

    def add(self, job: Job) -> None:
        """Have the job computed."""
        with self._change:
            waiting = self._waiting.setdefault((job.encoder, job.prompt), [])
            for index, length in enumerate(job.lengths):
                insort(waiting, Piece(length, index, job), key=_length)
            self._turns.append(job)
            self._jobs.add(job)
            self._change.notify_all()

    def next_batch(self) -> Batch:
        """What to compute next; waits until there is something. Call `done` when it is computed."""
        with self._change:
            while (batch := self._next()) is None:
                self._change.wait()
            if not batch.encoder.is_parallel:
                self._busy.add(batch.encoder)
            return batch

    def done(self, batch: Batch) -> None:
        """The batch has been computed, or has failed."""
        with self._change:
            self._busy.discard(batch.encoder)
            self._change.notify_all()

    def complete(self, job: Job) -> bool:
        """Take out a job that has ended, or is not wanted any more; False when it is out already.

        A batch of it that is being computed goes on.
        """
        with self._change:
            if job not in self._jobs:
                return False
            self._forget(job)
            return True

    def _forget(self, job: Job) -> None:
        self._jobs.discard(job)
        if job in self._turns:
            self._turns.remove(job)
            kind = (job.encoder, job.prompt)
            self._keep(kind, [each for each in self._waiting[kind] if each.job is not job])

    def _next(self) -> Batch | None:
        for _ in range(len(self._turns)):
            job = self._turns[0]
            self._turns.rotate(-1)
            if job.encoder not in self._busy:
                return self._batch_for(job)
        return None

    def _batch_for(self, job: Job) -> Batch:
        kind = (job.encoder, job.prompt)
        waiting = self._waiting[kind]
        last = max(i for i, piece in enumerate(waiting) if piece.job is job)
        max_tokens = self._budget(waiting, job.encoder)
        max_padding = self._max_batch_tokens // _TOKENS_PER_PADDING
        first, end = _around(waiting, last, max_tokens, max_padding)
        pieces = waiting[first:end]
        self._keep(kind, waiting[:first] + waiting[end:])
        left = {piece.job for piece in self._waiting.get(kind, [])}
        for each in {piece.job for piece in pieces} - left:
            self._turns.remove(each)
        return Batch(*kind, pieces)

    def _budget(self, waiting: list[Piece], encoder: Encoder) -> int:
        """Less than the most when the lanes would not all get something."""
        num_lanes = self._num_lanes if encoder.is_parallel else 1
        share = sum(piece.length for piece in waiting) // num_lanes
        return min(self._max_batch_tokens, max(_MIN_TOKENS, share))

    def _keep(self, kind: _Kind, pieces: list[Piece]) -> None:
        if pieces:
            self._waiting[kind] = pieces
        else:
            self._waiting.pop(kind, None)


def _length(piece: Piece) -> int:
    return piece.length


def _around(waiting: list[Piece], last: int, max_tokens: int, max_padding: int) -> tuple[int, int]:
    """The texts next to the one at `last` that need the least padding: from which, and up to which.

    A shorter one is padded itself; for a longer one, all others are. Together they need at most
    `max_padding` tokens of it, and are at most `max_tokens` with it.
    """
    first, end, padding = last, last + 1, 0
    while True:
        longest = waiting[end - 1].length
        steps = []
        if first > 0:
            steps.append((longest - waiting[first - 1].length, longest, first - 1, end))
        if end < len(waiting):
            longer = waiting[end].length
            steps.append(((longer - longest) * (end - first), longer, first, end + 1))
        more, length, next_first, next_end = min(steps, default=(max_padding + 1, 0, first, end))
        padding += more
        if padding > max_padding or (next_end - next_first) * length > max_tokens:
            return first, end
        first, end = next_first, next_end
