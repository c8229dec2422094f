"""KV caches of conversations on disk: their next turns compute only what is new.

Also after a restart, and after another model had the memory. A file is of one conversation of one
owner, and of one model as it is loaded here; whoever can list the folder learns no names.
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

_lock = threading.Lock()
_writer: ThreadPoolExecutor | None = None
# By name: the latest state of a conversation replaces the one before.
_waiting: dict[str, tuple[str, str, SavedState]] = {}


def find(
    loaded: LoadedEngine, owner: str, conversation_id: str, prompt_tokens: list[int]
) -> SavedState | None:
    """What the last turn of the conversation has left, where memory has less of the prompt."""
    if not settings.KV_MAX_BYTES:
        return None
    held_by = "" if loaded.model.shares_prefixes else owner
    least = max(MIN_TOKENS, loaded.engine.num_held(prompt_tokens, held_by) + MIN_COPY_TOKENS)
    name = _name(loaded, owner, conversation_id)
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
    """Copy what a turn that has just ended has left, and write it in a thread.

    Of several that wait for that, the oldest gives way.
    """
    global _writer
    conversation_id = None if task.request.get("messages") else task.conversation_id
    is_turn = (
        task.status == GenerationTask.Status.COMPLETED and task.request["save_to_conversation"]
    )
    if conversation_id is None or not is_turn or not settings.KV_MAX_BYTES:
        return
    num_tokens, num_bytes = loaded.engine.size_of_ended(request_id)
    if num_tokens < MIN_TOKENS or num_bytes > settings.KV_MAX_BYTES:
        return
    if num_bytes > device_memory.read(gpu_layers=0).usable_bytes:
        return
    state = loaded.engine.save_ended(request_id)
    if state is None:
        return
    name = _name(loaded, task.owner, conversation_id)
    with _lock:
        _writer = _writer or ThreadPoolExecutor(1, thread_name_prefix="kept-caches")
        _waiting.pop(name, None)
        while len(_waiting) >= _MAX_WAITING:
            _waiting.pop(next(iter(_waiting)))
        _waiting[name] = loaded.model.name, conversation_id, state
    _writer.submit(_write_next)


def forget_deleted() -> None:
    """Remove the caches of conversations that are gone or cleared. Raises DatabaseError."""
    files = _files()
    labels = files.labels()
    if not labels:
        return
    there = Conversation.objects.filter(pk__in=set(labels.values()), messages__isnull=False)
    kept = set(there.values_list("pk", flat=True))
    for name, conversation_id in labels.items():
        if conversation_id not in kept:
            files.remove(name)


def _write_next() -> None:
    with _lock:
        if not _waiting:
            return
        name = next(iter(_waiting))
        model_name, conversation_id, state = _waiting.pop(name)
    if num_bytes := _files().write(name, conversation_id, state):
        counters.count({(model_name, task_counts.KEPT_CACHE_BYTES): num_bytes})


def _files() -> StateFiles:
    return StateFiles(settings.KV_DIR, settings.KV_MAX_BYTES)


def _name(loaded: LoadedEngine, owner: str, conversation_id: str) -> str:
    """What was computed by another file, build or processor, or in other sizes, is of no use."""
    model = json.dumps(loaded.provenance, sort_keys=True)
    return sha256(f"{model} {owner} {conversation_id}".encode()).hexdigest()
