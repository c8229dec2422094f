"""Continuous batching: schedule -> decode -> sample -> collect."""

import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from inference.engine.deltas import TokenLogprob
from inference.engine.drafts import Drafter
from inference.engine.errors import EngineError, InvalidRequestError, PromptTooLongError
from inference.engine.kv_cache import CHUNK_TOKENS, KVCache, common_prefix_length
from inference.engine.runner import Chunk, DetachedSampler, Runner, Sampled
from inference.engine.saved_state import SavedState
from inference.engine.scheduler import TARGET_STEP_SECONDS, Scheduler
from inference.engine.sequence import FinishReason, SamplingParams, Sequence
from inference.engine.thread_tuner import ThreadTuner

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class StepOutput:
    """What one step brought for one request: the new text, possibly empty, and its end.

    `num_cached_tokens` of the prompt did not have to be computed; `num_accepted_drafts` of the
    tokens were drafted, and `num_rejected_drafts` others in vain, both so far; `error` is why it
    failed, and `stop_sequence` which of them has ended it.
    """

    request_id: str
    text: str
    num_new_tokens: int
    finish_reason: FinishReason | None = None
    error: EngineError | None = None
    num_cached_tokens: int = 0
    logprobs: tuple[TokenLogprob, ...] = ()
    stop_sequence: str | None = None
    num_accepted_drafts: int = 0
    num_rejected_drafts: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class PausedSequence:
    """A sequence that has left its engine between two tokens, with all that it goes on by.

    It outlives the engine, and goes on in any other of the same model.
    """

    sequence: Sequence
    sampler: DetachedSampler

    def abort(self, reason: FinishReason) -> StepOutput:
        """End it; return its last output, with the text held back."""
        self.sampler.free()
        text = self.sequence.assembler.finish()
        self.sequence.finish_reason = reason
        return _output(self.sequence, text, 0)


class Engine:
    """Runs many sequences on one model, one batch a step.

    Not for use by several threads, but that one other may make the sequences to add.
    """

    def __init__(
        self,
        runner: Runner,
        max_num_seqs: int | None = None,
        clock: Callable[[], float] = time.perf_counter,
        draft_runner: Runner | None = None,
    ) -> None:
        """`max_num_seqs`: sequences that run at a time, None = as many as the runner has room for.

        With fewer, the runner's other slots keep the histories of sequences that have ended.
        `clock`, in seconds, times the steps. `draft_runner`: a smaller model of the same
        vocabulary, with as many slots of the same length, which drafts what this one may choose.

        Raises ValueError when a batch cannot hold one token of each.
        """
        max_num_seqs = max_num_seqs or runner.max_num_seqs
        if not 1 <= max_num_seqs <= min(runner.max_num_seqs, runner.max_batch_tokens):
            raise ValueError(
                f"max_num_seqs is {max_num_seqs}: the runner was loaded for {runner.max_num_seqs}"
                f" sequences and batches of {runner.max_batch_tokens} tokens."
            )
        self.runner = runner
        self.max_num_seqs = max_num_seqs
        self._clock = clock
        self._kv_cache = KVCache(
            runner.memory,
            runner.max_num_seqs,
            runner.num_cells,
            min(CHUNK_TOKENS, runner.max_batch_tokens),
        )
        self._scheduler = Scheduler(
            self._kv_cache,
            max_num_seqs=max_num_seqs,
            max_batch_tokens=runner.max_batch_tokens,
        )
        self._drafter = Drafter(runner, clock, draft_runner)
        self._threads = ThreadTuner(runner.thread_counts)
        self._sequences: dict[str, Sequence] = {}
        # By request id, what the last step has computed, drafts included.
        self.num_step_tokens: dict[str, int] = {}
        # Where those were that have ended in the last step.
        self._ended_slots: dict[str, int] = {}

    @property
    def num_unfinished(self) -> int:
        """Sequences that wait or run; below `max_num_seqs` another can be admitted."""
        return len(self._sequences)

    @property
    def num_threads(self) -> int:
        """How many compute a step, by what was measured last."""
        return self._threads.num_threads

    @property
    def num_step_prompt_tokens(self) -> int:
        """How many tokens of prompts a step takes, by what was measured last."""
        budget = self._scheduler.prefill_budget
        return budget.num_tokens(TARGET_STEP_SECONDS, is_beside_answers=True)

    def new_sequence(
        self,
        request_id: str,
        prompt_tokens: list[int],
        params: SamplingParams,
        owner: str = "",
        marks: Iterable[str] = (),
    ) -> Sequence:
        """A sequence, which has to be added, if only to be aborted: that frees its sampler.

        It starts from what sequences of the same owner have computed, and of no other. `marks` are
        names that are given out as text, though control tokens may have them.
        Raises InvalidRequestError, PromptTooLongError or ConstraintError.
        """
        if request_id in self._sequences:
            raise InvalidRequestError(f"Request {request_id} is in the engine already.")
        if not prompt_tokens:
            raise InvalidRequestError("The prompt is empty: there is nothing to continue.")
        max_num_tokens = min(self.runner.n_ctx_per_seq, self.runner.num_cells)
        if len(prompt_tokens) >= max_num_tokens:
            raise PromptTooLongError(len(prompt_tokens), max_num_tokens - 1)
        last = self.runner.vocab_size - 1
        if min(prompt_tokens) < 0 or max(prompt_tokens) > last:
            raise InvalidRequestError(
                f"The prompt has tokens outside of the vocabulary 0 to {last}."
            )
        if params.logit_bias and max(params.logit_bias) > last:
            raise InvalidRequestError(
                f"logit_bias names tokens outside of the vocabulary 0 to {last}: leave them out."
            )
        sequence = Sequence(
            request_id=request_id,
            prompt_tokens=list(prompt_tokens),
            params=params,
            max_output_tokens=min(params.max_tokens, max_num_tokens - len(prompt_tokens)),
            sampler=self.runner.new_sampler(params, prompt_tokens),
            owner=owner,
            # A stop sequence may be the name of a token that writes no text.
            stop_tokens={self.runner.control_token(stop) for stop in params.stop} - {None},
            marks={
                token: mark.encode()
                for mark in marks
                if (token := self.runner.control_token(mark)) is not None
            },
        )
        self._drafter.add(sequence)
        return sequence

    def add(self, sequence: Sequence) -> Sequence:
        """Queue a sequence, which is kept up to date until it has finished."""
        self._sequences[sequence.request_id] = sequence
        self._scheduler.add(sequence)
        return sequence

    def add_request(
        self, request_id: str, prompt_tokens: list[int], params: SamplingParams, owner: str = ""
    ) -> Sequence:
        """Make a sequence and add it; nothing is queued where that raises."""
        return self.add(self.new_sequence(request_id, prompt_tokens, params, owner))

    def step(self) -> list[StepOutput]:
        """Compute one batch; one output for each choice of a sequence, and for each that ended."""
        self._ended_slots = {}
        batch = self._drafter.extend(self._scheduler.schedule())
        self.num_step_tokens = {
            sequence.request_id: len(chunk.tokens) + len(chunk.drafts) for sequence, chunk in batch
        }
        if not batch:
            return []
        # The order in which numbers are added up may depend on the number of threads.
        is_deterministic = batch[0][0].params.deterministic
        counts = self.runner.thread_counts
        self.runner.use_threads(counts[-1] if is_deterministic else self._threads.num_threads)
        started = self._clock()
        num_decoding = sum(not sequence.is_prefilling for sequence, _ in batch)
        num_tokens = sum(len(chunk.tokens) for _, chunk in batch)
        try:
            rows = self.runner.decode([chunk for _, chunk in batch])
        except EngineError as error:
            # What the memory holds of the sequences in the batch is undefined now.
            logger.warning("A batch of %d sequences failed: %s", len(batch), error)
            for _, chunk in batch:
                self._kv_cache.forget(chunk.slot)
            return [self._fail(sequence, error) for sequence, _ in batch]
        seconds = self._clock() - started
        self._drafter.measure(batch, seconds)
        if not is_deterministic:
            self._threads.measure(sum(self.num_step_tokens.values()), seconds)
        outputs: list[StepOutput] = []
        for (sequence, chunk), row in zip(batch, rows, strict=True):
            self._kv_cache.append(
                chunk.slot, chunk.tokens, is_deterministic=sequence.params.deterministic
            )
            sequence.num_computed_tokens += len(chunk.tokens)
            if chunk.needs_logits:
                outputs += self._sample(sequence, chunk, row)
        self._scheduler.prefill_budget.measure(num_tokens - num_decoding, self._clock() - started)
        return outputs

    def abort(self, request_id: str, reason: FinishReason) -> StepOutput | None:
        """End a request between two steps; return its last output, with the text held back.

        None when there is no such request, for instance because it has just finished.
        """
        sequence = self._sequences.get(request_id)
        return None if sequence is None else self._finish(sequence, reason)

    @property
    def is_short_of_room(self) -> bool:
        """Whether urgent sequences wait that do not fit in beside those that run."""
        return self._scheduler.is_short_of_room

    def num_held(self, prompt_tokens: list[int], owner: str) -> int:
        """How much of a prompt memory has of the owner, about; another thread may run a step."""
        return self._kv_cache.num_held(prompt_tokens, owner)

    def ended(self, request_id: str) -> tuple[list[int], int]:
        """The tokens of what a request has left that ended in the last step, and its bytes."""
        slot = self._ended_slots.get(request_id)
        if slot is None:
            return [], 0
        return self._kv_cache.tokens(slot), self._kv_cache.state_bytes(slot)

    def save_ended(self, request_id: str) -> SavedState | None:
        """A copy of that; None when it failed."""
        slot = self._ended_slots.get(request_id)
        return None if slot is None else self._kv_cache.save(slot)

    def has_room_for(self, paused: PausedSequence) -> bool:
        """Whether it could go on at once, beside those that run and wait."""
        return self._scheduler.has_room([*self._scheduler.waiting, paused.sequence])

    def __contains__(self, request_id: str) -> bool:
        """Whether the request waits or runs here."""
        return request_id in self._sequences

    def state_bytes(self, request_id: str) -> int:
        """How much memory the sequence would take while it is paused."""
        slot = self._sequences[request_id].slot
        return 0 if slot is None else self._kv_cache.state_bytes(slot)

    def pause(self, request_id: str) -> PausedSequence:
        """Take a sequence out between two steps, with a copy of what it has computed.

        Where that cannot be copied, it is computed again.
        """
        sequence = self._sequences.pop(request_id)
        if sequence.slot is not None and sequence.num_computed_tokens:
            sequence.saved = self._kv_cache.save(sequence.slot)
            if sequence.saved is None:
                logger.warning("Request %s: what it has computed could not be saved", request_id)
                sequence.num_computed_tokens = 0
        self._scheduler.remove(sequence)
        self._drafter.remove(sequence)
        return PausedSequence(sequence, self.runner.detach_sampler(sequence.sampler))

    def resume(self, paused: PausedSequence) -> None:
        """Let a sequence go on where it was: none of its tokens is lost or computed twice."""
        paused.sequence.sampler = self.runner.attach_sampler(paused.sampler)
        self._drafter.add(paused.sequence)
        self.add(paused.sequence)

    def _sample(self, sequence: Sequence, chunk: Chunk, row: int) -> list[StepOutput]:
        """Choose what the sequence goes on with, as far as drafts are right; see if it ends."""
        num_before = len(sequence.output_tokens)
        new_tokens: list[int] = []
        told: list[tuple[str, int, tuple[TokenLogprob, ...]]] = []
        reason: FinishReason | None = None
        error: EngineError | None = None
        while reason is None and new_tokens == chunk.drafts[: len(new_tokens)]:
            try:
                sampled = self.runner.sample(sequence.sampler, row + len(new_tokens))
            except EngineError as raised:
                reason, error = FinishReason.ERROR, raised
                told.append(("", 0, ()))
                break
            text, reason = self._take(sequence, sampled)
            num_told = len(new_tokens)
            new_tokens = sequence.output_tokens[num_before:]
            told.append((text, len(new_tokens) - num_told, sampled.logprobs))
        self._drafter.push(sequence, new_tokens, chunk.drafts)
        if chunk.drafts:
            num_accepted = common_prefix_length(chunk.drafts, new_tokens)
            sequence.num_accepted_drafts += num_accepted
            sequence.num_rejected_drafts += len(chunk.drafts) - num_accepted
            self._kv_cache.append(chunk.slot, chunk.drafts[:num_accepted])
            sequence.num_computed_tokens += num_accepted
            if num_accepted < len(chunk.drafts):
                sequence.num_computed_tokens = self._kv_cache.cut(
                    chunk.slot, sequence.num_computed_tokens
                )
        outputs: list[StepOutput] = []
        for text, num_new_tokens, sequence.logprobs in told[:-1]:
            outputs.append(_output(sequence, text, num_new_tokens))
        text, num_new_tokens, sequence.logprobs = told[-1]
        if reason is not None:
            return [*outputs, self._finish(sequence, reason, text, num_new_tokens, error)]
        return [*outputs, _output(sequence, text, num_new_tokens)]

    def _take(self, sequence: Sequence, sampled: Sampled) -> tuple[str, FinishReason | None]:
        """Go on by what was chosen; return the text that is certain, and why it ends, if so."""
        room = sequence.max_output_tokens - len(sequence.output_tokens)
        text = ""
        for token in sampled.tokens[:room]:
            if token in sequence.stop_tokens:
                return text, FinishReason.STOP
            is_mark = token in sequence.marks
            written = sequence.marks[token] if is_mark else self.runner.token_to_bytes(token)
            text += sequence.assembler.push(written)
            sequence.output_tokens.append(token)
            if sequence.assembler.is_stopped:
                return text, FinishReason.STOP
        if sampled.is_end and len(sampled.tokens) <= room:
            return text, FinishReason.STOP
        return text, FinishReason.LENGTH if len(sampled.tokens) >= room else None

    def _fail(self, sequence: Sequence, error: EngineError) -> StepOutput:
        return self._finish(sequence, FinishReason.ERROR, error=error)

    def _finish(
        self,
        sequence: Sequence,
        reason: FinishReason,
        text: str = "",
        num_new_tokens: int = 0,
        error: EngineError | None = None,
    ) -> StepOutput:
        """End the sequence; what it has computed stays in the cache."""
        text += sequence.assembler.finish()
        sequence.finish_reason, sequence.error = reason, error
        if sequence.slot is not None:
            self._ended_slots[sequence.request_id] = sequence.slot
        self._scheduler.remove(sequence)
        self._drafter.remove(sequence)
        self.runner.free_sampler(sequence.sampler)
        del self._sequences[sequence.request_id]
        return _output(sequence, text, num_new_tokens)


def _output(sequence: Sequence, text: str, num_new_tokens: int) -> StepOutput:
    return StepOutput(
        sequence.request_id,
        text,
        num_new_tokens,
        sequence.finish_reason,
        sequence.error,
        sequence.num_cached_tokens,
        sequence.logprobs and sequence.logprobs[:num_new_tokens],
        sequence.assembler.stopped_by,
        sequence.num_accepted_drafts,
        sequence.num_rejected_drafts,
    )
