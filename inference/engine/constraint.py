"""What constrained answers may go on with: an llguidance matcher a sequence.

Source: llguidance 1.9.1. A grammar is the text that its `LLMatcher.grammar_from_json_schema`,
`grammar_from_lark` or `grammar_from_regex` returns.
"""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import numpy as np
import numpy.typing as npt
from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper

from inference.engine.errors import ConstraintError, GrammarError

# They bound the time of a token and the memory of a sequence: by the library's own limit its lexer
# may have 250,000 states, of 1 to 2 kB each.
LIMITS = LLParserLimits(max_lexer_states=20_000, verbose_errors=False)

# The limits do not bound ambiguity, over which a parser takes longer with every token: so much of
# the thread's time a token may cost in the long run, and so much more once.
SECONDS_PER_TOKEN = 0.01
MAX_SECONDS_BEHIND = 0.1

# The library recurses into rules that refer to one another: 2,000 of them overflow a usual stack.
_STACK_BYTES = 256 * 2**20
_stack_size_lock = threading.Lock()
_MAX_REASON = 300

_Answer = TypeVar("_Answer")


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The tokens of a model, with the names that llguidance's TokenizerWrapper reads.

    `tokens`: the bytes of each. `special_token_ids`: those that write no text, and whose bytes are
    a name. `end_tokens`: those of them that end the generation, possibly none. `tokenize` gives the
    tokens of UTF-8 text, of which none is special.
    """

    tokens: list[bytes]
    special_token_ids: list[int]
    end_tokens: list[int]
    tokenize: Callable[[bytes], list[int]]
    bos_token_id: ClassVar[int | None] = None

    @property
    def eos_token_id(self) -> int | None:
        return self.end_tokens[0] if self.end_tokens else None

    def __call__(self, text: bytes) -> list[int]:
        return self.tokenize(text)


class ConstraintTokenizer:
    """A vocabulary prepared for constraints; all sequences of a model share it.

    Takes 0.2 s and 20 MiB for 49,152 tokens, 1.5 s and 105 MiB for 262,144. Holds the GIL.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.end_tokens = vocabulary.end_tokens
        self.is_text = np.ones(len(vocabulary.tokens), dtype=bool)
        self.is_text[vocabulary.special_token_ids] = False
        self.native = LLTokenizer(
            TokenizerWrapper(vocabulary), eos_token=vocabulary.end_tokens or None
        )


def find_problem(grammar: str, limits: LLParserLimits = LIMITS) -> str:
    """What is wrong with a grammar, in the library's words; "" if nothing is. Needs no model."""
    try:
        return _call_deep(LLMatcher.validate_grammar, grammar, limits=limits)
    except ConstraintError as error:
        return str(error)


def check_grammar(grammar: str) -> None:
    """Raises GrammarError for a grammar that no sequence could follow."""
    if reason := find_problem(grammar):
        raise GrammarError(f"The grammar cannot be used: {reason[:_MAX_REASON]}")


def new_matcher(
    tokenizer: ConstraintTokenizer, grammar: str, limits: LLParserLimits = LIMITS
) -> LLMatcher:
    """At the start of a text; one that is in an error where the grammar cannot be used."""
    return _call_deep(LLMatcher, tokenizer.native, grammar, log_level=0, limits=limits)


class Constraint:
    """A grammar, and how far one sequence has come in it."""

    def __init__(self, tokenizer: ConstraintTokenizer, grammar: str) -> None:
        """Raises ConstraintError."""
        self._tokenizer = tokenizer
        self._seconds_behind = 0.0
        self._matcher = new_matcher(tokenizer, grammar)
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
        return self._ask(self._matcher.try_consume_tokens, [token]) == 1

    def accept_forced(self) -> list[int]:
        """Go on by the tokens that the grammar leaves no choice about; return them.

        To be called after each token. They are those that the model's tokenizer has for the text.
        Raises ConstraintError.
        """
        self._seconds_behind = max(0.0, self._seconds_behind - SECONDS_PER_TOKEN)
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

    def _ask(self, method: Callable[..., _Answer], *args: object) -> _Answer:
        started = time.thread_time()
        answer = _call(method, *args)
        self._check()
        self._seconds_behind += time.thread_time() - started
        if self._seconds_behind > MAX_SECONDS_BEHIND:
            raise ConstraintError("it takes too long to follow: make it less ambiguous")
        return answer

    def _check(self) -> None:
        """Raise ConstraintError when the matcher has failed, which it never recovers from."""
        if self._matcher.is_error():
            # A stack follows the reason on lines of their own.
            reason = self._matcher.get_error().split("\n<")[0].strip()
            raise ConstraintError(reason[:_MAX_REASON])


def _call(function: Callable[..., _Answer], *args: Any, **kwargs: Any) -> _Answer:
    """Call into the library; raises ConstraintError where its Rust code panics."""
    try:
        return function(*args, **kwargs)
    except BaseException as error:
        # No Exception, and a class that cannot be imported.
        if type(error).__name__ != "PanicException":
            raise
        raise ConstraintError(f"llguidance panicked: {error}") from error


def _call_deep(function: Callable[..., _Answer], *args: Any, **kwargs: Any) -> _Answer:
    """Call into the library on a stack that is deep enough for any grammar."""
    executor = ThreadPoolExecutor(max_workers=1)
    with _stack_size_lock:
        usual = threading.stack_size(_STACK_BYTES)
        try:
            future: Future[_Answer] = executor.submit(_call, function, *args, **kwargs)
        finally:
            threading.stack_size(usual)
    executor.shutdown()
    return future.result()
