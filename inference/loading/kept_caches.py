"""KV caches on disk: the next turn of a conversation computes only what is new.

So does the next task of a `prompt_cache_key`, whose prompts begin alike. Also after a restart, and
after another model had the memory. A file is of one conversation or key of one owner, and of one
model as it is loaded here; whoever can list the folder learns no names.
"""

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256

from django.conf import settings

from conversations.models import Conversation
from inference.engine.kv_cache import MIN_COPY_TOKENS
from inference.engine.saved_state import SavedState
from inference.engine.state_files import StateFiles
from inference.loading import device_memory
from inference.loading.loaded_engines import LoadedEngine
from inference.models import GenerationTask
from monitoring.metrics import counters, task_counts

# Fewer are computed as quickly as they are read.
MIN_TOKENS = 128
_MAX_WAITING = 4
# Of a key whose prompts begin less alike than by half, no more often.
_REWRITE_SECONDS = 60.0
# The label of a file that is of no conversation.
_OF_KEY = ""

_lock = threading.Lock()
_writer: ThreadPoolExecutor | None = None
# By name, with the model's name and the label: the latest state replaces the one before.
_waiting: dict[str, tuple[str, str, SavedState]] = {}


def find(loaded: LoadedEngine, owner: str, key: str, prompt_tokens: list[int]) -> SavedState | None:
    """What was kept of a conversation or a key, where memory has less of the prompt."""
    if not settings.KV_MAX_BYTES:
        return None
    held_by = "" if loaded.model.shares_prefixes else owner
    least = max(MIN_TOKENS, loaded.engine.num_held(prompt_tokens, held_by) + MIN_COPY_TOKENS)
    name = _name(loaded, owner, key)
    state = _files().read(name, prompt_tokens, least)
    if state is not None:
        model = loaded.model.name
        counters.count(
            {
                (model, task_counts.KEPT_CACHE_HITS): 1,
                (model, task_counts.KEPT_CACHE_TOKENS): len(state.tokens),
            }
        )
    return state


def keep(loaded: LoadedEngine, task: GenerationTask, request_id: str) -> None:
    """Copy what a task that has just ended has left, and write it in a thread.

    Of several that wait for that, the oldest gives way. What a conversation has is replaced by each
    turn; what a key has, once other prompts come with it.
    """
    global _writer
    if task.status != GenerationTask.Status.COMPLETED or not settings.KV_MAX_BYTES:
        return
    is_turn = task.request["save_to_conversation"] and not task.request.get("messages")
    label = (is_turn and task.conversation_id) or _OF_KEY
    key = label or task.request.get("prompt_cache_key")
    if not key:
        return
    tokens, num_bytes = loaded.engine.ended(request_id)
    if len(tokens) < MIN_TOKENS or num_bytes > settings.KV_MAX_BYTES:
        return
    name = _name(loaded, task.owner, key)
    if label == _OF_KEY and (
        _files().unused_seconds(name) < _REWRITE_SECONDS
        or 2 * _files().num_known(name, tokens) >= len(tokens)
    ):
        return
    if num_bytes > device_memory.read(gpu_layers=0).usable_bytes:
        return
    state = loaded.engine.save_ended(request_id)
    if state is None:
        return
    with _lock:
        _writer = _writer or ThreadPoolExecutor(1, thread_name_prefix="kept-caches")
        _waiting.pop(name, None)
        while len(_waiting) >= _MAX_WAITING:
            _waiting.pop(next(iter(_waiting)))
        _waiting[name] = loaded.model.name, label, state
    _writer.submit(_write_next)


def forget_deleted() -> None:
    """Remove the caches of conversations that are gone or cleared, and of keys that nobody uses.

    Raises DatabaseError.
    """
    files = _files()
    labels = files.labels()
    if not labels:
        return
    there = Conversation.objects.filter(pk__in=set(labels.values()), messages__isnull=False)
    kept = set(there.values_list("pk", flat=True))
    for name, label in labels.items():
        is_unused = files.unused_seconds(name) > settings.TASK_TTL_SECONDS
        if label not in kept if label != _OF_KEY else is_unused:
            files.remove(name)


def _write_next() -> None:
    with _lock:
        if not _waiting:
            return
        name = next(iter(_waiting))
        model_name, label, state = _waiting.pop(name)
    if num_bytes := _files().write(name, label, state):
        counters.count({(model_name, task_counts.KEPT_CACHE_BYTES): num_bytes})


def _files() -> StateFiles:
    return StateFiles(settings.KV_DIR, settings.KV_MAX_BYTES)


def _name(loaded: LoadedEngine, owner: str, key: str) -> str:
    """What was computed by another file, build or processor, or in other sizes, is of no use."""
    model = json.dumps(loaded.provenance, sort_keys=True)
    return sha256(f"{model} {owner} {key}".encode()).hexdigest()
