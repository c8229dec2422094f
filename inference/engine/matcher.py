"""Calls into llguidance: matchers of grammars, with their limits, on a stack that is deep enough.

Without NumPy, since web processes check grammars by it. Source: llguidance 1.9.1. A grammar is the
text that its `LLMatcher.grammar_from_json_schema`, `grammar_from_lark` or `grammar_from_regex`
returns.
"""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper

from inference.engine.errors import ConstraintError, GrammarError

# They bound the time of a token and the memory of a sequence: by the library's own limit its lexer
# may have 250,000 states, of 1 to 2 kB each.
LIMITS = LLParserLimits(max_lexer_states=20_000, verbose_errors=False)

# The library recurses into rules that refer to one another: 2,000 of them overflow a usual stack.
_STACK_BYTES = 256 * 2**20
_stack_size_lock = threading.Lock()
# The library cannot be interrupted. So many calls that took too long may go on beside each other.
MAX_ABANDONED = 4
_abandoned: list[threading.Thread] = []
TOO_SLOW = "it takes too long to follow: make it less ambiguous"
MAX_REASON = 300

Answer = TypeVar("Answer")


@dataclass(slots=True, eq=False)
class Vocabulary:
    """The tokens of a model, with the names that llguidance's TokenizerWrapper reads.

    `tokens`: the bytes of each. `special_token_ids`: those that write no text, and whose bytes are
    a name. `end_tokens`: those of them that end the generation, possibly none. `tokenize` gives the
    tokens of UTF-8 text, of which none is special; it may be replaced by another one that does.
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


def new_tokenizer(vocabulary: Vocabulary) -> LLTokenizer:
    """Takes 0.2 s and 20 MiB for 49,152 tokens, 1.5 s and 105 MiB for 262,144. Holds the GIL."""
    return LLTokenizer(TokenizerWrapper(vocabulary), eos_token=vocabulary.end_tokens or None)


def find_problem(grammar: str, limits: LLParserLimits = LIMITS) -> str:
    """What is wrong with a grammar, in the library's words; "" if nothing is. Needs no model."""
    try:
        return call_within(None, LLMatcher.validate_grammar, grammar, limits=limits)
    except ConstraintError as error:
        return str(error)


def check_grammar(grammar: str) -> None:
    """Raises GrammarError for a grammar that no sequence could follow."""
    if reason := find_problem(grammar):
        raise GrammarError(f"The grammar cannot be used: {reason[:MAX_REASON]}")


def new_matcher(
    tokenizer: LLTokenizer,
    grammar: str,
    limits: LLParserLimits = LIMITS,
    max_seconds: float | None = None,
) -> LLMatcher:
    """At the start of a text; one that is in an error where the grammar cannot be used.

    Raises ConstraintError where making it takes longer than `max_seconds`.
    """
    return call_within(max_seconds, LLMatcher, tokenizer, grammar, log_level=0, limits=limits)


def call(function: Callable[..., Answer], *args: Any, **kwargs: Any) -> Answer:
    """Call into the library; raises ConstraintError where its Rust code panics."""
    try:
        return function(*args, **kwargs)
    except BaseException as error:
        # No Exception, and a class that cannot be imported.
        if type(error).__name__ != "PanicException":
            raise
        raise ConstraintError(f"llguidance panicked: {error}") from error


def call_within(
    max_seconds: float | None, function: Callable[..., Answer], *args: Any, **kwargs: Any
) -> Answer:
    """Call into the library in a thread of its own, on a stack that is deep enough for any grammar.

    Raises ConstraintError after so many seconds of the process's time, for functions that release
    the GIL. The call goes on then, and the objects that it was made with are of no more use.
    """
    future: Future[Answer] = Future()

    def run() -> None:
        try:
            future.set_result(call(function, *args, **kwargs))
        except BaseException as error:  # noqa: BLE001
            future.set_exception(error)

    # A daemon: a process that stops does not wait for it.
    thread = threading.Thread(target=run, daemon=True)
    _abandoned[:] = [other for other in _abandoned if other.is_alive()]
    if max_seconds is not None and len(_abandoned) >= MAX_ABANDONED:
        raise ConstraintError("too many ambiguous grammars are being computed: try again later")
    with _stack_size_lock:
        usual = threading.stack_size(_STACK_BYTES)
        try:
            thread.start()
        finally:
            threading.stack_size(usual)
    if max_seconds is None:
        return future.result()
    # Calls that go on take part of the time, so that several which fail take little more than one.
    deadline = time.process_time() + max_seconds
    while time.process_time() < deadline:
        with suppress(TimeoutError):
            return future.result(max_seconds / 4)
    _abandoned.append(thread)
    raise ConstraintError(TOO_SLOW)
