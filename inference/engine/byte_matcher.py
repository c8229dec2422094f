"""Whether a text follows a grammar of llguidance, asked byte by byte and without a model."""

import json
from functools import cache, lru_cache

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from inference.engine.errors import GrammarError
from inference.engine.matcher import Vocabulary, new_matcher, new_tokenizer

# What a grammar may cost where it is checked; more is refused.
LIMITS = LLParserLimits(max_items_in_row=500, max_grammar_size=20_000, verbose_errors=False)
_END = 256
_MAX_QUOTED = 200


@cache
def byte_tokenizer() -> LLTokenizer:
    """Each byte is a token."""
    tokens = [*(bytes([value]) for value in range(_END)), b"<end>"]
    return new_tokenizer(Vocabulary(tokens, [_END], [_END], list))


def byte_matcher(grammar: str, max_seconds: float | None = None) -> LLMatcher:
    """At the start of a text; its tokens are the bytes. Raises ConstraintError after the time."""
    return new_matcher(byte_tokenizer(), grammar, LIMITS, max_seconds)


def matches(pattern: str, text: str) -> bool:
    """Whether a pattern of JSON Schema is found in the text, as a constraint reads it.

    Takes linear time. Raises GrammarError for a pattern that is not supported.
    """
    matcher = _of_pattern(pattern).deep_copy()
    if not matcher.is_error():
        as_json = json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f").encode()
        is_match = matcher.try_consume_tokens(list(as_json)) == len(as_json)
        is_match = is_match and matcher.is_accepting()
    if matcher.is_error():
        reason = matcher.get_error().replace("\n", " ")[:_MAX_QUOTED]
        raise GrammarError(f"The pattern is not supported ({reason}): simplify it.")
    return is_match


@lru_cache(maxsize=256)
def _of_pattern(pattern: str) -> LLMatcher:
    schema = json.dumps({"type": "string", "pattern": pattern})
    return byte_matcher(LLMatcher.grammar_from_json_schema(schema))
