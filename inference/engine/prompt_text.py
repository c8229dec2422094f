"""Contents in a prompt are text, though they may spell the names of control tokens.

A name in a content is put between two marks before the template is rendered; the tokenizer takes
what is between them for text, and the template's own names for control tokens.
"""

import re
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

# Noncharacters of Unicode, which no text exchanged has; one in a content is marked itself.
_OPEN, _CLOSE = "\ufdd0", "\ufdd1"
_MARKED = re.compile(f"{_OPEN}(.+?){_CLOSE}", re.DOTALL)

# Pre-tokenizers that llama.cpp runs by std::regex go as deep into the stack as a word is long: of
# 32,000 letters the process would die.
_MAX_RUN = 4096


class ContentMarker:
    """Marks the names of control tokens in contents."""

    def __init__(self, names: Iterable[str]) -> None:
        # Common beginnings are read once: gemma has 6,000 names that begin alike, and trying them
        # one by one would take minutes where a content repeats that beginning.
        self._names = re.compile(f"{_pattern({name for name in names if name})}|[{_OPEN}{_CLOSE}]")

    def mark(self, content: str) -> str:
        """The content as a template may put it into a prompt."""
        return self._names.sub(lambda name: f"{_OPEN}{name[0]}{_CLOSE}", content)


def split(prompt: str) -> list[str]:
    """The parts of a prompt: the template's text, and after each such part a marked name.

    The marks are gone; the last part is the template's.
    """
    return _MARKED.split(prompt)


def without_long_runs(text: str) -> list[str]:
    """The text in pieces, in none of which a word or a blank has more than 4,096 characters."""
    # A longer one covers one of these blocks, after each of which a piece ends. A search for it
    # would take seconds of text whose words are a little shorter, and hold the GIL all the while.
    size = _MAX_RUN // 2
    block_ends = range(size, len(text), size)
    ends = [end for end in block_ends if _is_one_run(text[end - size : end])]
    return [text[start:end] for start, end in pairwise([0, *ends, len(text)])]


def _is_one_run(text: str) -> bool:
    return text.split(None, 1) in ([], [text])


def _pattern(names: set[str]) -> str:
    """A pattern of these names, the longest first."""
    trie: dict[str, Any] = {}
    for name in names:
        node = trie
        for char in name:
            node = node.setdefault(char, {})
        node[""] = {}

    def alternatives(node: dict[str, Any]) -> str:
        found = [re.escape(char) + alternatives(rest) for char, rest in node.items() if char]
        if not found:
            return ""
        return f"(?:{'|'.join(found)}){'?' if '' in node else ''}"

    return alternatives(trie) or "(?!)"
