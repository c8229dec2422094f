"""The pools of this process, by model, and what it tells of them to all others."""

import threading
from collections.abc import Callable

from inference.models import RegisteredModel
from inference.providers.cloud.endpoints.endpoint import EndpointState
from inference.providers.cloud.endpoints.pool import EndpointPool

# Of models that are gone, too; beyond that many all begin anew.
_MAX_POOLS = 1000

_pools: dict[int, tuple[object, EndpointPool]] = {}
_lock = threading.Lock()
_listeners: list[Callable[[], None]] = []


def pool_of(model: RegisteredModel) -> EndpointPool:
    """The endpoints of the model as it is registered now; of all threads."""
    registered = (model.name, model.config, model.encrypted_api_key, model.encrypted_endpoint_keys)
    known, pool = _pools.get(model.pk, (None, None))
    if pool is None or known != registered:
        with _lock:
            known, pool = _pools.get(model.pk, (None, None))
            if pool is None or known != registered:
                if len(_pools) >= _MAX_POOLS:
                    _pools.clear()
                pool = EndpointPool(model, _tell_of_room)
                _pools[model.pk] = (registered, pool)
    return pool


def on_room(listener: Callable[[], None]) -> None:
    """Call it whenever an endpoint takes more calls than before; on the event loop."""
    _listeners.append(listener)


def states() -> dict[int, dict[str, EndpointState]]:
    """How the endpoints of the models are that have been asked of late, by model and name."""
    return {pk: pool.states() for pk, (_, pool) in list(_pools.items()) if pool.is_wanted}


def _tell_of_room() -> None:
    for listener in _listeners:
        listener()
