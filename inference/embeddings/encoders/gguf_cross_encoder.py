"""GGUF models that rank, in the embedding mode of llama.cpp."""

import math
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from inference.embeddings.encoders.base import Encoder, Vectors
from inference.embeddings.encoders.gguf import load
from inference.errors import ErrorCode, InferenceError

# The blanks before a content belong to its first word.
_PLACES = re.compile("( *)({query}|{document})")


class GGUFCrossEncoder(Encoder):
    """A model in memory; the query takes the place of the prompt, and a vector is one score.

    Source of what it reads: format_prompt_rerank in tools/server of llama.cpp.
    """

    dimensions = 1

    def __init__(self, path: Path, config: dict[str, Any], max_tokens: int) -> None:
        """Raises ValueError or RuntimeError with llama.cpp's reason."""
        # llama_cpp takes a second to import.
        import llama_cpp

        self._library = llama_cpp
        self._model = load(llama_cpp, path, max_tokens, llama_cpp.LLAMA_POOLING_TYPE_RANK)
        # llama.cpp computes one batch at a time, with all cores.
        self._computing = threading.Lock()
        self.max_tokens: int = max_tokens
        self.prompts = {}
        # One label has a logit, two or more have the first one's probability.
        self._is_logit = llama_cpp.llama_model_n_cls_out(self._model.model) == 1
        template = llama_cpp.llama_model_chat_template(self._model.model, b"rerank")
        self._template: str | None = template.decode() if template else None

    def count_tokens(self, texts: list[str], prompt: str) -> list[int]:
        return [sum(map(len, self._pair(prompt, text))) for text in texts]

    def encode(self, texts: list[str], prompt: str) -> Vectors:
        pairs = [self._cut(*self._pair(prompt, text)) for text in texts]
        try:
            with self._computing:
                scores = [score for batch in self._batches(pairs) for score in self._scores(batch)]
        except RuntimeError as error:
            message = f"llama.cpp could not compute a batch: {error}"
            raise InferenceError(message, ErrorCode.PROVIDER_ERROR, retryable=True) from error
        return np.array(scores, dtype=np.float32).reshape(-1, 1)

    def _pair(self, query: str, text: str) -> tuple[list[int], list[int], list[int]]:
        """What the model reads: the tokens before the text, its own, and those after it."""
        if self._template is None:
            library, vocab = self._library, self._model._model.vocab
            end = [library.llama_vocab_eos(vocab)] if library.llama_vocab_get_add_eos(vocab) else []
            if end == [library.LLAMA_TOKEN_NULL]:
                end = [library.llama_vocab_sep(vocab)]
            is_with_start = library.llama_vocab_get_add_bos(vocab)
            is_with_gap = library.llama_vocab_get_add_sep(vocab)
            start = [library.llama_vocab_bos(vocab)] if is_with_start else []
            gap = [library.llama_vocab_sep(vocab)] if is_with_gap else []
            return [*start, *self._tokens(query), *end, *gap], self._tokens(text), end
        # The template's own text alone has control tokens.
        before: list[int] = []
        own: list[int] = []
        after: list[int] = []
        current, contents = before, {"{query}": query, "{document}": text}
        parts = _PLACES.split(self._template)
        for template, blanks, place in zip(parts[::3], parts[1::3], parts[2::3], strict=False):
            current += self._tokens(template, is_template=True)
            content = self._tokens(blanks + contents[place])
            if place == "{document}":
                own, current = content, after
            else:
                current += content
        current += self._tokens(parts[-1], is_template=True)
        return before, own, after

    def _cut(self, before: list[int], own: list[int], after: list[int]) -> list[int]:
        """A pair that fits into the window, where a text that is too long loses its end."""
        room = max(0, self.max_tokens - len(before) - len(after))
        return [*before, *own[:room], *after][: self.max_tokens]

    def _batches(self, pairs: list[list[int]]) -> Iterator[list[list[int]]]:
        batch: list[list[int]] = []
        for pair in pairs:
            is_full = sum(map(len, batch)) + len(pair) > self.max_tokens
            if batch and (is_full or len(batch) == self._model.context_params.n_seq_max):
                yield batch
                batch = []
            batch.append(pair)
        yield batch

    def _scores(self, pairs: list[list[int]]) -> list[float]:
        """From 0 to 1. Raises RuntimeError."""
        model, batch = self._model, self._model._batch
        batch.reset()
        for number, tokens in enumerate(pairs):
            batch.add_sequence(tokens, number, logits_all=True)
        model._ctx.kv_cache_clear()
        model._ctx.decode(batch)
        embeddings_of = self._library.llama_get_embeddings_seq
        found = [float(embeddings_of(model.ctx, number)[0]) for number in range(len(pairs))]
        return [1 / (1 + math.exp(-each)) for each in found] if self._is_logit else found

    def _tokens(self, text: str, *, is_template: bool = False) -> list[int]:
        found: list[int] = self._model.tokenize(text.encode(), add_bos=False, special=is_template)
        return found
