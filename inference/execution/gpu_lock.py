"""One session at a time on a GPU, across processes: a lease per GPU of a node in Redis."""

import logging
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress

import redis
from django.conf import settings
from redis.exceptions import LockError
from redis.lock import Lock

from monitoring.hardware import gpu, worker_identity
from monitoring.redis.client import client

logger = logging.getLogger(__name__)

_LEASE_SECONDS = 15
_RENEW_SECONDS = 4
_RETRY_SECONDS = 0.5
_TASK_SHOWN_SECONDS = 86_400


@contextmanager
def hold(gpu_indexes: Sequence[int]) -> Iterator[None]:
    """Hold GPUs of this node while the block runs; waits for their holders, and says so.

    A holder whose process is dead on this host is pushed aside; one on another host runs out
    after 15 s. When Redis goes away in the meantime the block goes on: nothing new can be enqueued.
    """
    with ExitStack() as held:
        for gpu_index in sorted(gpu_indexes):  # two workers must not wait for each other
            held.enter_context(_hold_one(gpu_index))
        yield


def show_task(gpu_indexes: Sequence[int], task_id: str) -> None:
    """Say which task the holder works on."""
    try:
        for gpu_index in gpu_indexes:
            client().set(_task_key(gpu_index), task_id, ex=_TASK_SHOWN_SECONDS)
    except redis.RedisError as exc:
        logger.warning("GPU %s: holder's task not shown: %s", gpu_indexes, exc)


@contextmanager
def _hold_one(gpu_index: int) -> Iterator[None]:
    lock = _acquire(gpu_index)
    done = threading.Event()
    renewer = threading.Thread(target=_renew, args=(lock, done), name="gpu-lock", daemon=True)
    renewer.start()
    try:
        yield
    finally:
        done.set()
        renewer.join()
        try:
            client().delete(_task_key(gpu_index))
            lock.release()
        except (LockError, redis.RedisError) as exc:
            logger.warning("GPU %d: lease not given back, it runs out: %s", gpu_index, exc)


def _acquire(gpu_index: int) -> Lock:
    """Wait until the GPU is free, or its holder is gone."""
    key, me = gpu.lease_key(settings.NODE_NAME, gpu_index), worker_identity.current()
    lock = Lock(client(), key, timeout=_LEASE_SECONDS, thread_local=False)
    logged_holder = None
    while not lock.acquire(blocking=False, token=me):
        holder = client().get(key)
        if holder is None:
            continue
        if worker_identity.is_gone(holder):
            # Compare-and-delete: another worker may have been first.
            lock.local.token = holder.encode()
            with suppress(LockError):
                lock.release()
                logger.warning("GPU %d: took the lease of the dead worker %s", gpu_index, holder)
            continue
        if holder != logged_holder:
            logger.info("GPU %d is held by %s: waiting for it", gpu_index, holder)
            logged_holder = holder
        time.sleep(_RETRY_SECONDS)
    return lock


def _renew(lock: Lock, done: threading.Event) -> None:
    while not done.wait(_RENEW_SECONDS):
        try:
            try:
                lock.extend(_LEASE_SECONDS, replace_ttl=True)
            except (
                LockError
            ):  # Redis was empty, or its clock set forward, and nobody may have it yet
                if not lock.acquire(blocking=False, token=worker_identity.current()):
                    raise
        except (LockError, redis.RedisError) as exc:
            logger.warning("%s: lease not renewed: %s", lock.name, exc)


def _task_key(gpu_index: int) -> str:
    return gpu.task_key(settings.NODE_NAME, gpu_index)
