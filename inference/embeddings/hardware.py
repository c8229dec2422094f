"""How the machine's cores are shared out: a few lanes, each of which computes a batch at a time.

Two batches on one core each take less time than one after the other on two, since the threads of
one batch wait for each other after every layer, the more so while the API needs a core.
"""

import os

from django.conf import settings

_MAX_LANES = 4
# About what a core computes fastest: larger batches fall out of its cache.
_CPU_BATCH_TOKENS = 1024
_GPU_BATCH_TOKENS = 16_384


def num_lanes() -> int:
    """Batches at a time; a GPU takes them one by one."""
    return min(_MAX_LANES, _num_cores()) if is_cpu() else 1


def threads_per_lane() -> int:
    return max(1, _num_cores() // num_lanes())


def max_batch_tokens() -> int:
    """Tokens of a batch, those that only pad counted."""
    return settings.EMBEDDING_MAX_BATCH_TOKENS or (
        _CPU_BATCH_TOKENS if is_cpu() else _GPU_BATCH_TOKENS
    )


def is_cpu() -> bool:
    return bool(settings.EMBEDDING_DEVICE == "cpu")


def _num_cores() -> int:
    return settings.N_THREADS or len(os.sched_getaffinity(0))
