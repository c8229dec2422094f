"""Asks llama.cpp itself what a grammar allows."""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from inference.engine.errors import GrammarError
from inference.engine.llama_runner import llama


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

    def close(self) -> None:
        llama.llama_model_free(self._model)

    def accepts(self, grammar: str, text: str) -> bool:
        """Whether the text is complete: every token is allowed, and then the end.

        Raises GrammarError when llama.cpp refuses the grammar.
        """
        with self._sampler(grammar) as sampler:
            return all(self._advance(sampler, token) for token in self._tokens(text)) and (
                self._is_allowed(sampler, self._end)
            )

    def may_begin(self, grammar: str, text: str) -> bool:
        """Whether every token of the text is allowed. Raises GrammarError as `accepts` does."""
        with self._sampler(grammar) as sampler:
            return all(self._advance(sampler, token) for token in self._tokens(text))

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

    def _advance(self, sampler: object, token: int) -> bool:
        if not self._is_allowed(sampler, token):
            return False
        llama.llama_sampler_accept(sampler, token)
        return True

    def _is_allowed(self, sampler: object, token: int) -> bool:
        data = (llama.llama_token_data * 1)()
        data[0].id = token
        candidates = llama.llama_token_data_array(data, 1, -1, False)
        llama.llama_sampler_apply(sampler, ctypes.byref(candidates))
        return bool(data[0].logit > float("-inf"))
