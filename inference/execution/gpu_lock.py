"""One session at a time on a GPU, across processes: a lease per GPU of a node in Redis."""

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

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


@dataclass(frozen=True, slots=True)
class GPUHolder:
    """The process that holds a GPU, as its worker identity, and the task it works on."""

    worker: str
    task_id: str | None


@contextmanager
def hold(gpu_index: int) -> Iterator[None]:
    """Hold a GPU of this node while the block runs; waits for its holder, and says so.

    A holder whose process is dead on this host is pushed aside; one on another host runs out
    after 15 s. When Redis goes away in the meantime the block goes on: nothing new can be enqueued.
    """
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


def show_task(gpu_index: int, task_id: str) -> None:
    """Say which task the holder works on."""
    try:
        client().set(_task_key(gpu_index), task_id, ex=_TASK_SHOWN_SECONDS)
    except redis.RedisError as exc:
        logger.warning("GPU %d: holder's task not shown: %s", gpu_index, exc)


def holder(gpu_index: int) -> GPUHolder | None:
    """Who holds the GPU; None when it is free. Raises redis.RedisError."""
    worker, task_id = client().mget(_key(gpu_index), _task_key(gpu_index))
    return GPUHolder(worker=worker, task_id=task_id) if worker else None


def _acquire(gpu_index: int) -> Lock:
    me = worker_identity.current()
    lock = Lock(client(), _key(gpu_index), timeout=_LEASE_SECONDS, thread_local=False)
    told_about = None
    while not lock.acquire(blocking=False, token=me):
        current = holder(gpu_index)
        if current is None:
            continue
        if worker_identity.is_gone(current.worker):
            _release(gpu_index, current.worker)
            continue
        if current.worker != told_about:
            logger.info("GPU %d is held by %s: waiting for it", gpu_index, current.worker)
            told_about = current.worker
        time.sleep(_RETRY_SECONDS)
    return lock


def _release(gpu_index: int, dead_worker: str) -> None:
    """Compare-and-delete the lease of a dead holder: somebody else may have done it already."""
    abandoned = Lock(client(), _key(gpu_index), thread_local=False)
    abandoned.local.token = dead_worker.encode()
    try:
        abandoned.release()
    except LockError:
        return
    logger.warning("GPU %d: took the lease of the dead worker %s", gpu_index, dead_worker)


def _renew(lock: Lock, done: threading.Event) -> None:
    while not done.wait(_RENEW_SECONDS):
        try:
            lock.extend(_LEASE_SECONDS, replace_ttl=True)
        except (LockError, redis.RedisError) as exc:
            logger.warning("%s: lease not renewed: %s", lock.name, exc)


def _key(gpu_index: int) -> str:
    return gpu.lease_key(settings.NODE_NAME, gpu_index)


def _task_key(gpu_index: int) -> str:
    return gpu.task_key(settings.NODE_NAME, gpu_index)
