"""Speculative decoding: tokens that are likely to follow are computed before they are chosen.

Each sequence's own sampler chooses at every position, in the order of the text, as it would have
without a draft. A draft only decides what has been computed by then: as long as it says what was
chosen, the next choice has its logits already. What is wrong of it is removed from memory.
"""

import logging
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, replace

from inference.engine.draft_model import DraftModel
from inference.engine.errors import EngineError
from inference.engine.runner import Chunk, Runner
from inference.engine.sequence import Sequence

logger = logging.getLogger(__name__)

# Tokens that must occur again before what followed them is taken for what follows now.
_NGRAM = 3
# A match counts as no longer than this.
_MAX_MATCH = 16
# How likely the next token of a match is right, by the bits of the match's length: a first guess,
# that what all sequences of a model get corrects slowly, and what each gets corrects quickly.
_FIRST_RATES = (0.0, 0.0, 0.3, 0.5, 0.7, 0.9)
_MODEL_WEIGHT, _SEQUENCE_WEIGHT = 1 / 64, 1 / 8
# Tokens drafted at a time that are compared with one another.
_LENGTHS = (1, 2, 3, 4, 6, 8, 12, 16)
# A token that is reached less often than this is not worth the while, whatever it costs.
_MIN_REACHED = 0.4
# A draft is worth it where it promises so many times the tokens a second.
_MIN_GAIN = 1.05
# Of drafts that would be right but cost too much, so many are not computed, and then one is:
# what was measured may not be true any more.
_MAX_DECLINED = 50
# That is one of up to so many tokens, where so many times the tokens would come of it.
_LONGEST_TRIAL = 4
_MIN_TRIED = 1.5
_TIME_WEIGHT = 1 / 3
# How often a draft model is right before that is known. While it drafts nothing for a sequence,
# this comes back slowly: other parts of the text may suit it better.
_MODEL_RATE = 0.7
_FORGETTING = 1 / 128
# A longer time than so many times the expected is a disturbance.
_MAX_SURPRISE = 2.0


class PromptLookup:
    """Where the last tokens of a sequence have occurred before, in its prompt or its answer.

    What followed there is the draft. It is compared with each new token whether it was computed or
    not, so that one learns for nothing how often it is right.
    """

    def __init__(self, tokens: list[int], rates: list[float]) -> None:
        """`rates`: how often matches of each length are right, in sequences of this model."""
        self._tokens = list(tokens)
        self._model_rates = rates
        self._rates = list(rates)
        # By the tokens before it, the latest place; the end of the prompt comes with the first one.
        ngrams = zip(*(tokens[start:-1] for start in range(_NGRAM)), strict=False)
        self._places = {ngram: place for place, ngram in enumerate(ngrams, start=_NGRAM)}
        self._place: int | None = None
        self._num_matching = 0
        self._look_up()

    def push(self, token: int) -> None:
        """Go on by the next token of the sequence."""
        if self._place is not None:
            is_right = self._tokens[self._place] == token
            length = self._num_matching.bit_length()
            self._rates[length] += (is_right - self._rates[length]) * _SEQUENCE_WEIGHT
            self._model_rates[length] += (is_right - self._model_rates[length]) * _MODEL_WEIGHT
            self._place = self._place + 1 if is_right else None
            self._num_matching = min(self._num_matching + 1, _MAX_MATCH)
        self._tokens.append(token)
        self._look_up()

    def draft(self, num_tokens: int) -> list[int]:
        """Up to `num_tokens` that are likely to follow; a text that repeats itself goes on so."""
        if self._place is None:
            return []
        period = self._tokens[self._place :][:num_tokens]
        return [period[index % len(period)] for index in range(num_tokens)]

    def reached(self, num_tokens: int) -> list[float]:
        """How likely the draft is right up to its first token, its second, and so on."""
        if self._place is None:
            return []
        probability, reached = 1.0, []
        for length in range(self._num_matching, self._num_matching + num_tokens):
            probability *= self._rates[min(length, _MAX_MATCH).bit_length()]
            if probability < _MIN_REACHED:
                break
            reached.append(probability)
        return reached

    def _look_up(self) -> None:
        """Remember where the last tokens are; where nothing is followed, follow what they had."""
        tokens, end = self._tokens, len(self._tokens)
        if end < _NGRAM:
            return
        ngram = tuple(tokens[-_NGRAM:])
        place = self._places.get(ngram)
        self._places[ngram] = end
        if self._place is not None or place is None:
            return
        length = _NGRAM
        while length < min(place, _MAX_MATCH) and tokens[place - 1 - length] == tokens[-1 - length]:
            length += 1
        self._place, self._num_matching = place, length


class StepTimes:
    """How long the model computes so many tokens at once: as measured, or between what was."""

    def __init__(self) -> None:
        self._sizes: list[int] = []
        self._seconds: dict[int, float] = {}

    def measure(self, num_tokens: int, seconds: float) -> None:
        if num_tokens not in self._seconds:
            self._sizes.insert(bisect_left(self._sizes, num_tokens), num_tokens)
            self._seconds[num_tokens] = seconds
            return
        known = self._seconds[num_tokens]
        change = min(seconds, _MAX_SURPRISE * known) - known
        self._seconds[num_tokens] = known + change * _TIME_WEIGHT

    def expected(self, num_tokens: int) -> float | None:
        """None before anything was measured that it can be reckoned from."""
        if num_tokens in self._seconds:
            return self._seconds[num_tokens]
        index = bisect_left(self._sizes, num_tokens)
        if index == 0:
            return None
        smaller = self._sizes[index - 1]
        least = self._seconds[smaller]
        if index == len(self._sizes):
            return least * (1 + 0.5 * (num_tokens / smaller - 1))
        larger = self._sizes[index]
        share = (num_tokens - smaller) / (larger - smaller)
        return least + (self._seconds[larger] - least) * share


@dataclass(slots=True, eq=False)
class _Draftable:
    """A running sequence; `model_rate` is how often the draft model is right about it."""

    lookup: PromptLookup
    model_rate: float = _MODEL_RATE
    is_by_model: bool = False

    def reached(self, num_tokens: int, *, has_model: bool) -> list[float]:
        """As PromptLookup has it; by the draft model where that is more often right."""
        reached = self.lookup.reached(num_tokens)
        self.is_by_model = has_model and self.model_rate > (reached[0] if reached else 0.0)
        if not self.is_by_model:
            return reached
        by_model = (self.model_rate**length for length in range(1, num_tokens + 1))
        return [probability for probability in by_model if probability >= _MIN_REACHED]


class Drafter:
    """Adds drafts to the chunks of running answers, as many tokens as make all of them faster.

    Sequences whose batches must not depend on anything have none, nor do models whose memory
    cannot remove single tokens.
    """

    def __init__(
        self, runner: Runner, clock: Callable[[], float], draft_runner: Runner | None = None
    ) -> None:
        """`draft_runner` has the same vocabulary, and as many slots of the same length."""
        self._max_draft_tokens = runner.max_draft_tokens if runner.memory.can_cut else 0
        self._max_batch_tokens = runner.max_batch_tokens
        self._clock = clock
        self._model = None if draft_runner is None else DraftModel(draft_runner)
        self._rates = list(_FIRST_RATES)
        self._sequences: dict[str, _Draftable] = {}
        self._times = StepTimes()
        # Of a token of the draft model, by the number of sequences.
        self._model_times = StepTimes()
        self._num_declined = 0

    def add(self, sequence: Sequence) -> None:
        """Follow a sequence that begins or goes on; another thread may run a step meanwhile."""
        if self._max_draft_tokens and not sequence.params.deterministic:
            lookup = PromptLookup(sequence.tokens_from(0), self._rates)
            self._sequences[sequence.request_id] = _Draftable(lookup)

    def remove(self, sequence: Sequence) -> None:
        self._sequences.pop(sequence.request_id, None)

    def push(self, sequence: Sequence, tokens: list[int], drafts: list[int]) -> None:
        """Note what was chosen for a sequence, and what was drafted."""
        if (draftable := self._sequences.get(sequence.request_id)) is None:
            return
        for token in tokens:
            draftable.lookup.push(token)
        if not draftable.is_by_model or not drafts:
            draftable.model_rate += (_MODEL_RATE - draftable.model_rate) * _FORGETTING
            return
        for drafted, token in zip(drafts, tokens, strict=False):
            is_right = drafted == token
            draftable.model_rate += (is_right - draftable.model_rate) * _SEQUENCE_WEIGHT
            if not is_right:
                break

    def extend(self, batch: list[tuple[Sequence, Chunk]]) -> list[tuple[Sequence, Chunk]]:
        """The batch with the drafts that pay; one that computes prompts stays as it is."""
        if not self._sequences or any(sequence.is_prefilling for sequence, _ in batch):
            return batch
        promised: dict[int, list[float]] = {}
        for index, (sequence, chunk) in enumerate(batch):
            draftable = self._sequences.get(sequence.request_id)
            # What is chosen after the last one that may be drafted has to fit in, too.
            room = min(sequence.max_output_tokens - len(sequence.output_tokens) - 1, _LENGTHS[-1])
            if draftable and chunk.needs_logits and room > 0:
                has_model = self._model is not None
                if reached := draftable.reached(room, has_model=has_model):
                    promised[index] = reached
        if not promised:
            return batch
        by_model = {
            index for index in promised if self._sequences[batch[index][0].request_id].is_by_model
        }
        lengths = self._best_lengths([len(each.tokens) for _, each in batch], promised, by_model)
        drafts = self._by_model(
            {index: (batch[index][0], lengths[index]) for index in lengths if index in by_model}
        )
        for index, length in lengths.items():
            if index not in by_model:
                lookup = self._sequences[batch[index][0].request_id].lookup
                drafts[index] = lookup.draft(length)
        return [
            (sequence, replace(chunk, drafts=drafts[index]) if drafts.get(index) else chunk)
            for index, (sequence, chunk) in enumerate(batch)
        ]

    def measure(self, batch: list[tuple[Sequence, Chunk]], seconds: float) -> None:
        """Learn how long the batch took."""
        sizes = {len(chunk.tokens) + len(chunk.drafts) for _, chunk in batch}
        if len(sizes) == 1:  # otherwise it was computed in several parts
            self._times.measure(len(batch) * sizes.pop(), seconds)

    def _by_model(self, wanted: dict[int, tuple[Sequence, int]]) -> dict[int, list[int]]:
        """What the draft model says, by the place in the batch; nothing any more once it failed."""
        if self._model is None or not wanted:
            return {}
        started = self._clock()
        try:
            drafts = self._model.draft(list(wanted.values()))
        except EngineError as error:
            logger.warning("The draft model has failed and is not used any more: %s", error)
            self._model = None
            return {}
        if all(drafts):  # otherwise it was reading prompts
            seconds = (self._clock() - started) / max(map(len, drafts))
            self._model_times.measure(len(wanted), seconds)
        return dict(zip(wanted, drafts, strict=True))

    def _best_lengths(
        self, num_known: list[int], promised: dict[int, list[float]], by_model: set[int]
    ) -> dict[int, int]:
        """How many tokens to draft for each sequence, by its place in the batch; {} for none.

        `num_known` tokens of each are to be computed anyway; `promised`: what `reached` says, of
        some `by_model`.
        """
        plain = self._seconds(num_known)
        if plain is None:
            return {}
        model_seconds = (self._model_times.expected(len(by_model)) or 0.0) if by_model else 0.0
        best, best_rate = dict[int, int](), _MIN_GAIN * len(num_known) / plain
        most, most_tokens = best, 0.0
        for max_length in _LENGTHS:
            lengths = {index: min(max_length, len(each)) for index, each in promised.items()}
            num_drafted = sum(lengths.values())
            if num_drafted > self._max_draft_tokens:
                break
            if sum(num_known) + num_drafted > self._max_batch_tokens:
                break
            sizes = [size + lengths.get(index, 0) for index, size in enumerate(num_known)]
            seconds = self._seconds(sizes)
            expected = sum(sum(promised[index][:length]) for index, length in lengths.items())
            num_tokens = len(num_known) + expected
            if seconds is not None:
                seconds += model_seconds * max((lengths[index] for index in by_model), default=0)
                if num_tokens / seconds > best_rate:
                    best, best_rate = lengths, num_tokens / seconds
            if max_length <= _LONGEST_TRIAL:
                most, most_tokens = lengths, num_tokens
        if best:
            self._num_declined = 0
        elif most_tokens > _MIN_TRIED * len(num_known):
            self._num_declined += 1
            if self._num_declined > _MAX_DECLINED:
                self._num_declined, best = 0, most
        return best

    def _seconds(self, sizes: list[int]) -> float | None:
        """What a batch takes, of which so many tokens are of each sequence.

        llama.cpp computes as many tokens of each at once as all of them have, then the rest.
        """
        total, done = 1e-9, 0
        ordered = sorted(sizes)
        for index, size in enumerate(ordered):
            if size == done:
                continue
            seconds = self._times.expected((len(ordered) - index) * (size - done))
            if seconds is None:
                return None
            total, done = total + seconds, size
        return total
