"""Follows grammars of llguidance byte by byte, without a model."""

from functools import lru_cache

from llguidance import LLMatcher

from inference.engine.byte_matcher import byte_tokenizer
from inference.engine.matcher import new_matcher


def accepts(grammar: str, text: str) -> bool:
    """Whether the grammar allows the text, and that it ends there."""
    matcher = _after(grammar, text)
    return matcher is not None and matcher.is_accepting()


def may_begin(grammar: str, text: str) -> bool:
    """Whether the grammar allows the text, or one that goes on after it."""
    return _after(grammar, text) is not None


def _after(grammar: str, text: str) -> LLMatcher | None:
    matcher = _matcher(grammar).deep_copy()
    tokens = list(text.encode())
    num_allowed = matcher.try_consume_tokens(tokens)
    assert not matcher.is_error(), matcher.get_error()
    return matcher if num_allowed == len(tokens) else None


@lru_cache
def _matcher(grammar: str) -> LLMatcher:
    return new_matcher(byte_tokenizer(), grammar)
