"""One cluster for all tests, under a load that goes on while they do harm to it."""

import os
import sys
from collections.abc import Iterator

import pytest

from tests.cluster import network, servers
from tests.cluster.cluster import Cluster
from tests.cluster.load import Load


def what_is_missing() -> str | None:
    """What these tests need that this machine has not; None when it has all."""
    if os.geteuid() != 0:
        return "root, for namespaces and network devices"
    if not os.access(network.TUN, os.W_OK):
        return network.TUN
    missing = [name for name, path in network.PROGRAMS.items() if path is None]
    if missing:
        return " and ".join(missing)
    return None if servers.postgres_programs() else "PostgreSQL: apt install postgresql"


@pytest.fixture(scope="session")
def _running(request: pytest.FixtureRequest) -> Iterator[tuple[Cluster, Load]]:
    if missing := what_is_missing():
        give_up = pytest.fail if os.environ.get("CLUSTER_TESTS_REQUIRED") else pytest.skip
        give_up(f"The cluster needs {missing}")
    cluster, has_started = Cluster(), False
    try:
        cluster.start()
        load = Load(cluster)
        load.start()
        has_started = True
        yield cluster, load
        load.close()
    finally:
        if request.session.testsfailed or not has_started:
            for host in cluster.hosts:
                sys.stderr.write(host.log_tails())
        cluster.close()


@pytest.fixture
def cluster(_running: tuple[Cluster, Load]) -> Cluster:
    return _running[0]


@pytest.fixture
def load(_running: tuple[Cluster, Load]) -> Load:
    """Tasks of all kinds, submitted from now on."""
    load = _running[1]
    load.resume()
    return load
