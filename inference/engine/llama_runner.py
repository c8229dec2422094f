"""A model in llama.cpp: the only module that imports llama_cpp, which is slow to import.

Source: llama.h of the llama.cpp that llama-cpp-python 0.3.36 carries. What would make llama.cpp
abort the process (tokens out of range, batches too large) is checked here first and raised.
"""

import ctypes
import os
import weakref
from typing import Any

import numpy as np
from joblib import cpu_count
from llama_cpp import llama_cpp as _bindings

from inference.engine import prompt_text
from inference.engine.chat_template import ChatTemplate
from inference.engine.constraint import ConstraintTokenizer
from inference.engine.errors import DecodeError, EngineError, ModelLoadError, PromptTooLongError
from inference.engine.llama_memory import LlamaMemory
from inference.engine.llama_sampler import Candidates, SamplerChain
from inference.engine.matcher import Vocabulary
from inference.engine.native_log import NativeLog
from inference.engine.runner import Chunk, DetachedSampler, LoadParams, Sampled
from inference.engine.sequence import SamplingParams
from inference.engine.thread_tuner import counts_up_to

# The bindings' annotations describe pointers in a way that ctypes' own types do not match.
llama: Any = _bindings

# In tokens: of a prompt that is only counted.
_ANY_LENGTH = 2**31 - 1

_native_log = NativeLog()


def _write_log(level: int, text: bytes, _user_data: object) -> None:
    _native_log.write(level, text.decode(errors="replace"))


# llama.cpp keeps the pointer for as long as the process lives, so the object must not go away.
_log_callback = llama.llama_log_callback(_write_log)
llama.llama_log_set(_log_callback, None)
llama.llama_backend_init()


class LlamaRunner:
    """One GGUF and its memory for `max_num_seqs` sequences. Implements `Runner`."""

    def __init__(self, params: LoadParams) -> None:
        """Load the model.

        Raises ModelLoadError with llama.cpp's own reason, and ChatTemplateError for a template
        that does not compile.
        """
        self._model: Any = None
        self._context: Any = None
        self.memory = LlamaMemory(llama)
        self._piece_buffer = ctypes.create_string_buffer(256)
        self._samplers: dict[int, SamplerChain] = {}
        self._num_samplers = 0
        self._num_threads = 0
        _native_log.clear_errors()
        try:
            self._load_model(params)
            if params.is_vocabulary_only:
                self.n_ctx_per_seq = _ANY_LENGTH
                self._read_vocabulary()
            else:
                self._new_context(params)
                self._tokenizer = ConstraintTokenizer(self._read_vocabulary())
                self._candidates = Candidates(llama, self.vocab_size)
                max_outputs = self.max_num_seqs + self.max_draft_tokens
                self._batch = _Batch(self.max_batch_tokens, max_outputs)
            self.chat_template = self._read_chat_template()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Free the samplers, the memory and the weights. Can be called twice."""
        for chain in self._samplers.values():
            chain.free()
        self._samplers.clear()
        self.memory.close()
        if self._context:
            llama.llama_free(self._context)
            self._context = None
        if self._model:
            llama.llama_model_free(self._model)
            self._model = None

    def as_text(self, content: str) -> str:
        """A content as it may be put into a prompt: `tokenize` takes all of it for text."""
        return self._marker.mark(content)

    def tokenize(self, prompt: str) -> list[int]:
        """Tokens of a whole prompt; names of control tokens count as such, but in contents.

        Raises PromptTooLongError for a text that cannot fit, before any work is done.
        """
        self._check_open()
        data = prompt.encode(errors="replace")
        if len(data) > self.n_ctx_per_seq * 16:
            # Does it fit at least if all of its tokens are the longest of the vocabulary?
            num_tokens = len(data) // self._max_token_bytes
            if num_tokens >= self.n_ctx_per_seq:
                raise PromptTooLongError(num_tokens, self.n_ctx_per_seq - 1)
        tokens: list[int] = []
        for index, part in enumerate(prompt_text.split(prompt)):
            is_template = index % 2 == 0
            for piece in prompt_text.without_long_runs(part):
                data = piece.encode(errors="replace")
                if not tokens:
                    tokens = self._tokens(data, is_first=True, is_special=is_template)
                elif data:
                    tokens += self._inner_tokens(data, is_special=is_template)
        return self._without_doubled_ends(tokens)

    def token_to_bytes(self, token: int) -> bytes:
        """The bytes a token stands for; empty for control tokens."""
        if not 0 <= token < self.vocab_size:
            raise EngineError(f"Token {token} is outside of the vocabulary.")
        return self._token_bytes[token]

    def control_token(self, name: str) -> int | None:
        """The token that writes no text and has this name; None without one."""
        return self._control_tokens.get(name)

    def check_drafts_for(self, target: "LlamaRunner") -> None:
        """Raise ModelLoadError unless this model's tokens are those of `target`."""
        if self._token_bytes != target._token_bytes:
            raise ModelLoadError(
                "the draft model has another vocabulary: register one of the same family, "
                "or leave out draft_model"
            )
        if not self.memory.can_cut:
            raise ModelLoadError(
                "the draft model is recurrent and cannot take back tokens: register another one, "
                "or leave out draft_model"
            )

    def new_sampler(self, params: SamplingParams, prompt_tokens: list[int]) -> int:
        """A handle to the sampling state of one sequence. Raises ConstraintError."""
        self._check_open()
        return self.attach_sampler(
            SamplerChain(
                llama,
                params,
                prompt_tokens,
                self._tokenizer,
                self._candidates,
                context_window=self.n_ctx_per_seq,
            )
        )

    def free_sampler(self, sampler: int) -> None:
        if (chain := self._samplers.pop(sampler, None)) is not None:
            chain.free()

    def detach_sampler(self, sampler: int) -> SamplerChain:
        """Hand over the sampling state of a sequence, to `attach_sampler` of any such runner."""
        return self._samplers.pop(sampler)

    def attach_sampler(self, detached: DetachedSampler) -> int:
        """A handle to a sampling state that goes on where it was."""
        self._check_open()
        assert isinstance(detached, SamplerChain)
        # The runner that it was made by may have been closed.
        detached.tokenizer.vocabulary.tokenize = self._tokenizer.vocabulary.tokenize
        self._num_samplers += 1
        self._samplers[self._num_samplers] = detached
        return self._num_samplers

    def decode(self, chunks: list[Chunk]) -> list[int]:
        """Compute one batch; return the row of each chunk's last token. Raises DecodeError."""
        self._check_open()
        rows = self._batch.fill(chunks)
        _native_log.clear_errors()
        status = llama.llama_decode(self._context, self._batch.native)
        if status == 0:
            # A GPU still computes when llama_decode returns: wait, so that a step has its own time.
            llama.llama_synchronize(self._context)
            return rows
        reason = _native_log.last_errors() or "the memory has no room for the batch"
        raise DecodeError(f"llama.cpp could not compute a batch (status {status}): {reason}.")

    def use_threads(self, num_threads: int) -> None:
        if num_threads != self._num_threads:
            self._num_threads = num_threads
            llama.llama_set_n_threads(self._context, num_threads, num_threads)

    def sample(self, sampler: int, row: int) -> Sampled:
        """Choose and accept what follows a row of the last batch.

        Raises ConstraintError.
        """
        return self._samplers[sampler].sample(self._context, row)

    def _load_model(self, params: LoadParams) -> None:
        if not params.path.is_file():
            raise ModelLoadError(f"There is no model file at {params.path}.")
        options = llama.llama_model_default_params()
        options.n_gpu_layers = params.gpu_layers
        options.load_mode = llama.LLAMA_LOAD_MODE_MMAP
        options.vocab_only = params.is_vocabulary_only
        if (split := params.gpu_split) is not None:
            options.split_mode = getattr(llama, f"LLAMA_SPLIT_MODE_{split.split_mode.name}")
            options.main_gpu = split.main_gpu
            if split.tensor_split:
                # llama.cpp reads as many as it may have devices.
                parts = (ctypes.c_float * llama.llama_max_devices())(*split.tensor_split)
                options.tensor_split = parts
        self._model = llama.llama_model_load_from_file(os.fsencode(params.path), options)
        if not self._model:
            raise ModelLoadError(_load_failure(params, "the file could not be loaded"))
        self._vocab = llama.llama_model_get_vocab(self._model)
        if llama.llama_vocab_type(self._vocab) == llama.LLAMA_VOCAB_TYPE_NONE:
            raise ModelLoadError(f"{params.path} has no vocabulary: it cannot read or write text.")
        if llama.llama_model_has_encoder(self._model):
            raise ModelLoadError(f"{params.path} needs an encoder: only decoder models can run.")
        self.vocab_size = int(llama.llama_vocab_n_tokens(self._vocab))

    def _read_vocabulary(self) -> Vocabulary:
        """Read what each token writes: most of a second for 262,144 of them."""
        numbers = range(self.vocab_size)
        self._token_bytes = [self._piece(token, special=False) for token in numbers]
        self._max_token_bytes = max(1, *map(len, self._token_bytes))
        end_tokens = [t for t in numbers if llama.llama_vocab_is_eog(self._vocab, t)]
        special = sorted({*end_tokens, *(t for t in numbers if not self._token_bytes[t])})
        tokens = list(self._token_bytes)
        for token in special:
            tokens[token] = self._piece(token, special=True)
        self._control_tokens = {tokens[t].decode(errors="replace"): t for t in special}
        self._marker = prompt_text.ContentMarker(self._control_tokens)
        # A circle of references through the library would be one that Python cannot collect.
        runner = weakref.proxy(self)
        return Vocabulary(
            tokens,
            special,
            end_tokens,
            tokenize=lambda text: runner._inner_tokens(text, is_special=False),
        )

    def _new_context(self, params: LoadParams) -> None:
        """Allocate the memory of all sequences, as one KV buffer each or as one for all.

        A buffer each where every sequence gets a whole window: attention then reads the cells of
        its own sequence only (16 % faster at 8 x 400 tokens on 2 cores), and the logits do not
        depend on how many sequences share a batch. One for all (`kv_unified`) where the cells
        are fewer: a sequence may then be as long as the others leave room for, while separate
        buffers would cut each to n_ctx / n_seq_max.
        """
        if not 1 <= params.max_num_seqs <= llama.llama_max_parallel_sequences():
            raise ModelLoadError(
                f"max_num_seqs is {params.max_num_seqs}: llama.cpp takes 1 to 256."
            )
        if params.num_batch_tokens < params.max_num_seqs:
            raise ModelLoadError(
                f"num_batch_tokens is {params.num_batch_tokens}: a batch must have room for a token"
                f" of each of {params.max_num_seqs} sequences."
            )
        window = params.context_window or int(llama.llama_model_n_ctx_train(self._model))
        most_cells = window * params.max_num_seqs
        num_cells = min(params.num_cache_cells or most_cells, most_cells)
        # In a container this process may use fewer cores than the machine has.
        num_cores = cpu_count()
        options = llama.llama_context_default_params()
        options.n_ctx = num_cells
        options.n_batch = params.num_batch_tokens
        options.n_ubatch = min(params.num_batch_tokens, 512)
        options.n_seq_max = params.max_num_seqs
        # Room for the logits of every token would be most of a small model's compute buffer.
        options.n_outputs_max = params.max_num_seqs + params.max_draft_tokens
        self.thread_counts = [params.num_threads or num_cores]
        is_on_gpu = params.gpu_layers and llama.llama_supports_gpu_offload()
        if params.num_threads is None and not is_on_gpu:
            self.thread_counts = counts_up_to(num_cores)
        self._num_threads = self.thread_counts[-1]
        options.n_threads = options.n_threads_batch = self._num_threads
        options.kv_unified = num_cells < most_cells
        # A sliding window's cells are kept for the window only: much less memory, and a history
        # can be continued, but not cut by much.
        options.swa_full = False
        options.no_perf = True
        self._context = llama.llama_init_from_model(self._model, options)
        if not self._context:
            raise ModelLoadError(_load_failure(params, "its memory could not be allocated"))
        try:
            self.memory.open(
                self._model,
                self._context,
                is_shared=options.kv_unified,
                is_on_host=not is_on_gpu,
            )
        except EngineError as error:
            raise ModelLoadError(f"{params.path}: {error}.") from error
        self.num_cells = int(llama.llama_n_ctx(self._context))
        self.n_ctx_per_seq = min(window, int(llama.llama_n_ctx_seq(self._context)))
        self.max_num_seqs = params.max_num_seqs
        self.max_draft_tokens = params.max_draft_tokens
        self.max_batch_tokens = int(llama.llama_n_batch(self._context))

    def _read_chat_template(self) -> ChatTemplate:
        source = llama.llama_model_chat_template(self._model, None)
        return ChatTemplate(
            source and source.decode(errors="replace"),
            bos_token=self._token_text(llama.llama_vocab_bos(self._vocab)),
            eos_token=self._token_text(llama.llama_vocab_eos(self._vocab)),
        )

    def _check_open(self) -> None:
        if not self._model:
            raise EngineError("The model has been closed.")

    def _tokens(
        self, data: bytes, *, is_first: bool, is_special: bool, room: int | None = None
    ) -> list[int]:
        """The tokens of a text; `is_first`: with those that begin and end a prompt.

        `is_special`: names of control tokens in it count as such. `room` is a first guess,
        llama.cpp says what is needed.
        """
        self._check_open()
        room = room or len(data) + 2
        tokens = (ctypes.c_int32 * room)()
        size = len(data)
        count = llama.llama_tokenize(self._vocab, data, size, tokens, room, is_first, is_special)
        if count < 0:
            return self._tokens(data, is_first=is_first, is_special=is_special, room=-count)
        return tokens[:count]

    def _inner_tokens(self, data: bytes, *, is_special: bool) -> list[int]:
        """The tokens of a text that comes after another one."""
        tokens = self._tokens(data, is_first=False, is_special=is_special)
        if not tokens or data.startswith(self._token_bytes[tokens[0]]):
            return tokens
        # SentencePiece may put a space before a text: so that it goes before another character.
        guard = b"\x02"
        guarded = self._tokens(guard + data, is_first=False, is_special=is_special)
        return guarded[len(self._tokens(guard, is_first=False, is_special=False)) :]

    def _without_doubled_ends(self, tokens: list[int]) -> list[int]:
        """Drop the BOS a chat template wrote beside the tokenizer's, and an EOS: more follows."""
        bos = llama.llama_vocab_bos(self._vocab)
        if bos >= 0 and tokens[:2] == [bos, bos]:
            tokens = tokens[1:]
        adds_eos = llama.llama_vocab_get_add_eos(self._vocab)
        if adds_eos and tokens[-1:] == [llama.llama_vocab_eos(self._vocab)]:
            tokens = tokens[:-1]
        return tokens

    def _token_text(self, token: int) -> str:
        return "" if token < 0 else self._piece(token, special=True).decode(errors="replace")

    def _piece(self, token: int, *, special: bool) -> bytes:
        buffer = self._piece_buffer
        size = llama.llama_token_to_piece(self._vocab, token, buffer, len(buffer), 0, special)
        if size < 0:
            self._piece_buffer = ctypes.create_string_buffer(-size)
            return self._piece(token, special=special)
        return buffer.raw[:size]


class _Batch:
    """A llama_batch over numpy arrays that are filled in place, one row a token."""

    def __init__(self, max_tokens: int, max_outputs: int) -> None:
        self._max_tokens = max_tokens
        self._max_outputs = max_outputs
        self._tokens = np.zeros(max_tokens, dtype=np.int32)
        self._positions = np.zeros(max_tokens, dtype=np.int32)
        self._slots = np.zeros(max_tokens, dtype=np.int32)
        self._logits = np.zeros(max_tokens, dtype=np.int8)
        # Every row belongs to one sequence: row i's list of sequence ids is element i of _slots.
        self._num_slots = np.ones(max_tokens, dtype=np.int32)
        first = self._slots.ctypes.data
        addresses = first + np.arange(max_tokens, dtype=np.uintp) * self._slots.itemsize
        self._slot_pointers = addresses.astype(np.uintp)
        kinds = dict(llama.llama_batch._fields_)

        def pointer(name: str, array: "np.ndarray[Any, Any]") -> Any:
            return ctypes.cast(array.ctypes.data, kinds[name])

        self.native: Any = llama.llama_batch(
            n_tokens=0,
            token=pointer("token", self._tokens),
            pos=pointer("pos", self._positions),
            n_seq_id=pointer("n_seq_id", self._num_slots),
            seq_id=pointer("seq_id", self._slot_pointers),
            logits=pointer("logits", self._logits),
        )

    def fill(self, chunks: list[Chunk]) -> list[int]:
        """Write the chunks; return the row of each one's last token. Raises DecodeError."""
        rows: list[int] = []
        end = 0
        for chunk in chunks:
            tokens = chunk.tokens + chunk.drafts
            start, end = end, end + len(tokens)
            if end > self._max_tokens:
                raise DecodeError(f"The batch has more than {self._max_tokens} tokens.")
            self._tokens[start:end] = tokens
            first = chunk.start_position
            self._positions[start:end] = range(first, first + end - start)
            self._slots[start:end] = chunk.slot
            self._logits[start:end] = 0
            last = end - 1 - len(chunk.drafts)
            self._logits[last:end] = chunk.needs_logits
            rows.append(last)
        if end == 0:
            raise DecodeError("The batch is empty.")
        if self._logits[:end].sum() > self._max_outputs:
            raise DecodeError(f"The batch asks for more than {self._max_outputs} rows of logits.")
        self.native.n_tokens = end
        return rows


def _load_failure(params: LoadParams, what: str) -> str:
    reason = _native_log.last_errors()
    return f"{params.path}: {what}" + (f": {reason}." if reason else ".")
