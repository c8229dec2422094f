"""What constrained answers may go on with: an llguidance matcher a sequence."""

import time
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from llguidance import LLExecutor, LLMatcher

from inference.engine.errors import ConstraintError
from inference.engine.matcher import (
    MAX_REASON,
    TOO_SLOW,
    Answer,
    Vocabulary,
    call,
    call_within,
    new_matcher,
    new_tokenizer,
)

# The limits do not bound ambiguity, over which a parser takes longer with every token: so much of
# processor time a token may cost in the long run, and so much more once.
SECONDS_PER_TOKEN = 0.01
MAX_SECONDS_BEHIND = 0.1
# Where a single call may take any time. All that fail in one step take twice that.
MAX_CALL_SECONDS = 0.12


class ConstraintTokenizer:
    """A vocabulary prepared for constraints; all sequences of a model share it.

    `spellings`: the bytes of each token, of one that writes no text its name.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self.end_tokens = vocabulary.end_tokens
        self.spellings = vocabulary.tokens
        self.is_text = np.ones(len(vocabulary.tokens), dtype=bool)
        self.is_text[vocabulary.special_token_ids] = False
        self.native = new_tokenizer(vocabulary)


class Constraint:
    """A grammar, and how far one sequence has come in it."""

    def __init__(
        self, tokenizer: ConstraintTokenizer, grammar: str, *, may_explode: bool = False
    ) -> None:
        """`may_explode`: a token of the grammar may take any time to follow.

        Calls have a time limit then, and no tokens are forced. Raises ConstraintError.
        """
        self._tokenizer = tokenizer
        # A call that goes on after its time is up keeps the thread of its executor.
        self._executor = LLExecutor(1) if may_explode else None
        self._seconds_behind = 0.0
        max_seconds = 2 * MAX_CALL_SECONDS if may_explode else None
        self._matcher = new_matcher(tokenizer.native, grammar, max_seconds=max_seconds)
        self._check()

    @property
    def is_complete(self) -> bool:
        """Whether the text is complete, and nothing can follow."""
        return self._matcher.is_stopped()

    def accept(self, token: int) -> bool:
        """Go on by a token; False, and nothing changes, where it is not allowed.

        Tokens that end the generation are allowed where the text is complete. Raises
        ConstraintError.
        """
        if token in self._tokenizer.end_tokens:
            return self._ask(self._matcher.is_accepting)
        if not self._tokenizer.is_text[token]:
            return False
        if self._executor is not None:
            return self._try(self._executor, token)
        return self._ask(self._matcher.try_consume_tokens, [token]) == 1

    def accept_forced(self) -> list[int]:
        """Go on by the tokens that the grammar leaves no choice about; return them.

        To be called after each token. They are those that the model's tokenizer has for the text.
        Raises ConstraintError.
        """
        self._seconds_behind = max(0.0, self._seconds_behind - SECONDS_PER_TOKEN)
        if self._executor is not None:
            return []
        tokens = self._ask(self._matcher.compute_ff_tokens)
        if not self._tokenizer.is_text[tokens].all():
            raise ConstraintError("it asks for a token that no answer may contain")
        if self._ask(self._matcher.try_consume_tokens, tokens) < len(tokens):
            raise ConstraintError("it forces a token that it does not allow")
        return tokens

    def allowed_tokens(self) -> npt.NDArray[np.intp]:
        """The tokens that may come next, at least one. Raises ConstraintError."""
        packed = np.frombuffer(self._ask(self._matcher.compute_bitmask), dtype=np.uint8)
        bits = np.unpackbits(packed, count=len(self._tokenizer.is_text), bitorder="little")
        is_allowed = bits.view(bool) & self._tokenizer.is_text
        is_allowed[self._tokenizer.end_tokens] = self._ask(self._matcher.is_accepting)
        tokens = np.flatnonzero(is_allowed)
        if not len(tokens):
            raise ConstraintError("it allows no token of this model's vocabulary here")
        return tokens

    def _try(self, executor: LLExecutor, token: int) -> bool:
        """Go on by a text token, with a time limit."""
        # Only calls for two matchers or more release the GIL: one without a grammar is the other.
        following, none = self._matcher.deep_copy(), LLMatcher(self._tokenizer.native, "")
        consumed = [(following, token), (none, token)]
        is_allowed, _ = self._ask(executor.consume_token_par, consumed)
        if is_allowed:
            self._matcher = following
        elif "satisfy the grammar" not in following.get_error():
            raise ConstraintError(_reason(following))
        return is_allowed

    def _ask(self, function: Callable[..., Answer], *args: object) -> Answer:
        clock = time.thread_time if self._executor is None else time.process_time
        started = clock()
        if self._executor is None:
            answer = call(function, *args)
        else:
            answer = call_within(MAX_CALL_SECONDS, function, *args)
        self._check()
        self._seconds_behind += clock() - started
        if self._seconds_behind > MAX_SECONDS_BEHIND:
            raise ConstraintError(TOO_SLOW)
        return answer

    def _check(self) -> None:
        """Raise ConstraintError when the matcher has failed, which it never recovers from."""
        if self._matcher.is_error():
            raise ConstraintError(_reason(self._matcher))


def _reason(matcher: LLMatcher) -> str:
    # A stack follows the reason on lines of their own.
    return matcher.get_error().split("\n<")[0].strip()[:MAX_REASON]
