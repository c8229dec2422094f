"""Asks llama.cpp itself what a grammar allows."""

import ctypes
import os
import random
import string
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from inference.engine.errors import GrammarError
from inference.engine.llama_runner import llama

LETTERS = string.printable + "éöß日本語😀"
CLOSING = '"}]'


class GrammarAcceptor:
    """Follows a text token by token, as a sampler would that wants to write it.

    A token that the grammar has not allowed must not be accepted: it ends the process.
    """

    def __init__(self, model_path: Path) -> None:
        options = llama.llama_model_default_params()
        options.vocab_only = True
        self._model = llama.llama_model_load_from_file(os.fsencode(model_path), options)
        self._vocab = llama.llama_model_get_vocab(self._model)
        self._end = llama.llama_vocab_eos(self._vocab)
        # Some characters take several tokens.
        self._letters = [token for char in LETTERS for token in self._tokens(char)]
        self._closing = [self._tokens(char)[0] for char in CLOSING]

    def close(self) -> None:
        llama.llama_model_free(self._model)

    def accepts(self, grammar: str, text: str) -> bool:
        """Whether the text is complete: every token is allowed, and then the end.

        Raises GrammarError when llama.cpp refuses the grammar.
        """
        with self._sampler(grammar) as sampler:
            return all(self._advance(sampler, token) for token in self._tokens(text)) and (
                bool(self._allowed(sampler, [self._end]))
            )

    def may_begin(self, grammar: str, text: str) -> bool:
        """Whether every token of the text is allowed. Raises GrammarError as `accepts` does."""
        with self._sampler(grammar) as sampler:
            return all(self._advance(sampler, token) for token in self._tokens(text))

    def write(self, grammar: str, seed: int, max_tokens: int) -> str | None:
        """A text that the grammar allows, of our letters; None when they bring it to no end."""
        chooser = random.Random(seed)  # noqa: S311 - no secret depends on it
        written: list[int] = []
        with self._sampler(grammar) as sampler:
            while len(written) < max_tokens:
                allowed = self._allowed(sampler, [*self._letters, *self._closing, self._end])
                if self._end in allowed and (len(allowed) == 1 or chooser.random() < 0.5):
                    return b"".join(map(self._piece, written)).decode()
                # What closes comes first now and then: else few texts would end.
                closing = [token for token in self._closing if token in allowed]
                is_closing = closing and chooser.random() < 0.3
                letters = closing if is_closing else sorted(allowed - {self._end})
                if not letters:
                    return None
                written.append(chooser.choice(letters))
                llama.llama_sampler_accept(sampler, written[-1])
        return None

    @contextmanager
    def _sampler(self, grammar: str) -> Iterator[object]:
        sampler = llama.llama_sampler_init_grammar(self._vocab, grammar.encode(), b"root")
        if not sampler:
            raise GrammarError("llama.cpp refuses the grammar.")
        try:
            yield sampler
        finally:
            llama.llama_sampler_free(sampler)

    def _tokens(self, text: str) -> list[int]:
        data = text.encode()
        room = len(data) + 1
        tokens = (llama.llama_token * room)()
        count = llama.llama_tokenize(self._vocab, data, len(data), tokens, room, False, False)
        assert count >= 0
        return list(tokens[:count])

    def _piece(self, token: int) -> bytes:
        buffer = ctypes.create_string_buffer(64)
        size = llama.llama_token_to_piece(self._vocab, token, buffer, len(buffer), 0, False)
        return buffer.raw[:size]

    def _advance(self, sampler: object, token: int) -> bool:
        if not self._allowed(sampler, [token]):
            return False
        llama.llama_sampler_accept(sampler, token)
        return True

    def _allowed(self, sampler: object, tokens: list[int]) -> set[int]:
        data = (llama.llama_token_data * len(tokens))()
        for place, token in zip(data, tokens, strict=True):
            place.id = token
        candidates = llama.llama_token_data_array(data, len(tokens), -1, False)
        llama.llama_sampler_apply(sampler, ctypes.byref(candidates))
        return {place.id for place in data if place.logit > float("-inf")}
