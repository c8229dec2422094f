"""Constraints of plain texts: a regular expression, a list of texts, a Lark grammar."""

import re
import time
from functools import lru_cache

from llguidance import LLMatcher

from inference.engine.byte_matcher import LIMITS, byte_matcher
from inference.engine.errors import ConstraintError, GrammarError
from inference.engine.matcher import call_within, find_problem

MAX_BYTES = 16 * 1024
MAX_CHOICES = 10_000
MAX_CHOICES_BYTES = 128 * 1024
# To find out what a text may begin with, and whether one follows the grammar.
MAX_START_SECONDS = 0.3
MAX_CHECK_SECONDS = 0.2
_CHECKED_AT_A_TIME = 32
_MAX_QUOTED = 300

# What a Lark grammar consists of: only what stands outside of texts, expressions and comments can
# be a directive or a token.
_LARK = re.compile(
    r"""(?P<text>"(?:\\.|[^"\\\n])*"i? | /(?![/*])(?:\\.|[^/\\\n])+/[imslux]* | (?://|\#)[^\n]*)
    | (?P<token><) | (?P<directive>%(?!ignore\b)\w*) | (?P<outside>@)
    | (?P<option>\w\s*\[) | (?P<operator>[&~])""",
    re.VERBOSE,
)
_REASONS = {
    "operator": "The operators & and ~ are not supported, since they can take minutes.",
    "token": "Tokens in <…> are not supported: write texts in quotes.",
    "directive": "Only the directive %ignore is supported: leave others out.",
    "outside": "Other grammars (@…) are not there: write the rules in this one.",
    "option": "Rules cannot have options in […]: write an optional part as (…)?.",
}


def of_regex(expression: str) -> str:
    """Raises GrammarError on what is no regular expression, has look-around, or is too large."""
    return _checked(LLMatcher.grammar_from_regex(expression), expression)


def of_choices(choices: list[str]) -> str:
    """One of the texts. Raises GrammarError."""
    if not 1 <= len(choices) <= MAX_CHOICES or "" in choices or len({*choices}) < len(choices):
        raise GrammarError(
            f"Give 1 to {MAX_CHOICES} texts, none of them empty, none of them twice."
        )
    expression = "|".join(re.escape(choice) for choice in choices)
    return _checked(
        LLMatcher.grammar_from_regex(expression), "".join(choices), max_bytes=MAX_CHOICES_BYTES
    )


def of_lark(grammar: str) -> str:
    """A context-free grammar in llguidance's kind of Lark. Raises GrammarError.

    It must consist of texts alone: tokens of a model's vocabulary, other grammars, options of the
    library are refused.
    """
    for found in _LARK.finditer(grammar):
        if found.lastgroup in _REASONS:
            line = grammar.count("\n", 0, found.start()) + 1
            raise GrammarError(f"Line {line}: {_REASONS[found.lastgroup]}")
    return _checked(LLMatcher.grammar_from_lark(grammar), grammar)


def is_complete(grammar: str, text: str, *, was_cut: bool) -> bool:
    """Whether a text follows the grammar to its end; one that was cut must not be able to go on.

    False also where that cannot be found out in MAX_CHECK_SECONDS.
    """
    matcher, encoded = byte_matcher(grammar), text.encode()
    deadline = time.thread_time() + MAX_CHECK_SECONDS
    for start in range(0, len(encoded), _CHECKED_AT_A_TIME):
        part = list(encoded[start : start + _CHECKED_AT_A_TIME])
        if time.thread_time() > deadline or matcher.try_consume_tokens(part) < len(part):
            return False
    return matcher.is_accepting() and not (was_cut and _can_go_on(matcher))


@lru_cache(maxsize=64)
def _checked(grammar: str, given: str, max_bytes: int = MAX_BYTES) -> str:
    if "\0" in given:
        raise GrammarError("NUL characters cannot be stored: leave them out.")
    if len(given.encode(errors="replace")) > max_bytes:
        raise GrammarError(f"It is larger than {max_bytes} bytes: simplify it.")
    if problem := find_problem(grammar, LIMITS):
        raise GrammarError(f"It is not valid: {problem[:_MAX_QUOTED]}: correct it.")
    try:
        matcher = byte_matcher(grammar, MAX_START_SECONDS)
        is_possible = matcher.is_accepting() or call_within(MAX_START_SECONDS, _can_go_on, matcher)
    except ConstraintError as error:
        message = "It takes too long to find out how a text begins: make it less ambiguous."
        raise GrammarError(message) from error
    if not is_possible:
        raise GrammarError("No text follows it: let the repetitions of its rules end.")
    return grammar


def _can_go_on(matcher: LLMatcher) -> bool:
    """Whether a byte may follow."""
    return any(matcher.compute_bitmask()[: 256 // 8])
