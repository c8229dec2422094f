"""Hosts are cut off, die, are slow, and have wrong clocks: nothing is lost, doubled or stuck."""

import signal
import time

import pytest

from tests.cluster.cluster import Cluster
from tests.cluster.host import Host
from tests.cluster.load import Load

MAX_STUCK_SECONDS = 60
LONGER_THAN_A_LEASE = 9
OUTAGE_SECONDS = 3
QUARTER_HOUR = 900


def assert_all_well(load: Load, after: str) -> None:
    """All that was submitted ends soon, each task once, and its events are heard once."""
    print(f"\n{after}: {load.settle(MAX_STUCK_SECONDS)}", flush=True)  # noqa: T201 (progress)
    assert load.what_is_wrong() == []


def test_gpu_host_that_is_cut_off(cluster: Cluster, load: Load) -> None:
    running = load.generating()
    cluster.gpu.cut_off(LONGER_THAN_A_LEASE)
    assert_all_well(load, "gpu host cut off")
    assert load.outcomes(running) == ["lost", "completed"]


@pytest.mark.parametrize("name", ["web", "workers"])
def test_host_that_is_cut_off(cluster: Cluster, load: Load, name: str) -> None:
    host: Host = getattr(cluster, name)
    host.cut_off(LONGER_THAN_A_LEASE)
    assert_all_well(load, f"{name} host cut off")


def test_host_that_loses_power_holds_no_row(cluster: Cluster, load: Load) -> None:
    running = load.generating()
    row = "SELECT id FROM inference_generationtask WHERE id = '{}' FOR UPDATE"
    cluster.gpu.begin_transaction(row.format(running))
    cluster.gpu.cut_power()
    cluster.gpu.start()
    assert_all_well(load, "gpu host without power")
    assert load.outcomes(running) == ["lost", "completed"]


@pytest.mark.parametrize("name", ["web", "workers"])
def test_host_whose_processes_are_killed(cluster: Cluster, load: Load, name: str) -> None:
    host: Host = getattr(cluster, name)
    time.sleep(OUTAGE_SECONDS)  # some are running by then
    host.kill()
    host.start()
    assert_all_well(load, f"{name} host killed")


def test_slow_hosts_that_lose_packets(cluster: Cluster, load: Load) -> None:
    with cluster.gpu.slow(0.2, 0.05), cluster.workers.slow(0.2, 0.05):
        time.sleep(OUTAGE_SECONDS)
        assert_all_well(load, "200 ms and 5 % loss")


def test_clocks_that_jump(cluster: Cluster, load: Load) -> None:
    load.generating()
    for host, seconds in zip(cluster.hosts, (-1, 1, 1), strict=True):
        host.set_clock_ahead(seconds * QUARTER_HOUR)
    time.sleep(OUTAGE_SECONDS)
    assert_all_well(load, "clocks a quarter of an hour off")
    load.resume()
    load.generating()
    for host in cluster.hosts:
        host.set_clock_ahead(0)
    assert_all_well(load, "clocks right again")


@pytest.mark.parametrize(
    ("name", "how"), [("valkey", signal.SIGKILL), ("postgres", signal.SIGQUIT)]
)
def test_server_is_restarted(cluster: Cluster, load: Load, name: str, how: signal.Signals) -> None:
    server = getattr(cluster, name)
    load.generating()
    server.stop(how)
    time.sleep(OUTAGE_SECONDS)
    server.start()
    assert_all_well(load, f"{name} restarted")
