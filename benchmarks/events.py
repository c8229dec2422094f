"""How events reach a thousand sockets: `python benchmarks/events.py [--flood] [--json FILE]`.

Starts the whole service with one web process, once with each of the two Channels layers. A process
of its own publishes events, as a worker does, and this one holds the sockets. Three minutes.

`--flood`: a thousand events a second instead, in rounds, and the highest rate at which 99 of 100
arrive within 100 ms; beside it the same with uvicorn's own WebSocket protocol, by which each event
is sent to each socket on its own. Four minutes.
"""

import asyncio
import json
import resource
import subprocess
import sys
import time
from bisect import bisect_left
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from pathlib import Path
from statistics import median, quantiles
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.bare_socket import BareSocket, FloodedSockets, open_sockets
from benchmarks.figures import Figures, keep, options_parser, show
from benchmarks.running_service import ROOT, WEB, RunningService, resident_bytes
from sopllm.processes import WEBSOCKET_PROTOCOL

LAYERS = ("pubsub", "core")
NUM_SOCKETS = 1000
NUM_IDLE = 2000
NUM_EVENTS = 200
EVENTS_PER_SECOND = 10
NUM_BURST = 200
NUM_COSTED = 5000
COSTED_PER_SECOND = 500
FLOOD_PER_SECOND = 1000
FLOOD_SECONDS = 5
FLOOD_GIVE_UP_SECONDS = 20
NUM_ROUNDS = 5
# Tried one after the other until one is too fast, by the median of its tries.
RATES = (10, 100, 1000, 2000, 3000, 4000)
NUM_TRIES = 3
MAX_P99_MS = 100
SPREAD = (min, median, max)
PROTOCOLS = (WEBSOCKET_PROTOCOL, "websockets-sansio")
NUM_FILES = 4096
GIVE_UP_SECONDS = 60

# What a worker does, at a steady rate: its arguments are the number of events and the rate.
_PUBLISH = """
import json, os, sys, time
import django
django.setup()
from monitoring.events import events
from monitoring.redis import outbox

count, rate = int(sys.argv[1]), float(sys.argv[2])

def publish():
    model = str(time.monotonic_ns())
    data = events.TaskQueued(task_id="task_0", model=model, queue="gpu", priority=1, attempt=0)
    started = time.perf_counter()
    events.publish(events.EventType.TASK_QUEUED, data, "local")
    return time.perf_counter() - started

publish()
outbox.flush()
print("ready", flush=True)
sys.stdin.readline()
cpu, started, in_publish = time.process_time(), time.perf_counter(), 0.0
for number in range(count):
    time.sleep(max(0.0, started + number / rate - time.perf_counter()))
    in_publish += publish()
outbox.flush(60)
print(json.dumps({
    "publish_us": round(in_publish / count * 1e6, 1),
    "cpu_us": round((time.process_time() - cpu) / count * 1e6, 1),
}))
"""


def publish(service: RunningService, count: int, rate: float) -> Figures:
    """Publish so many events at a rate; what one costs the process that does."""
    publisher = subprocess.Popen(
        [sys.executable, "-c", _PUBLISH, str(count), str(rate)],
        cwd=ROOT,
        env=service.env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert publisher.stdout is not None
    assert publisher.stdout.readline() == "ready\n"
    figures: Figures = json.loads(publisher.communicate("go\n")[0])
    return figures


async def deliver_to(
    sockets: list[BareSocket], service: RunningService, count: int, rate: float
) -> Figures:
    """Publish events to the sockets; how many arrived, and when."""
    for socket in sockets:
        socket.num_messages = 0
        socket.delays_ms.clear()
    # One more: the publisher warms up with an event.
    expected = len(sockets) * (count + 1)
    await asyncio.to_thread(publish, service, count, rate)
    give_up_at = time.monotonic() + GIVE_UP_SECONDS
    while num_delivered(sockets) < expected and time.monotonic() < give_up_at:
        await asyncio.sleep(0.1)
    delays = sorted(delay for socket in sockets for delay in socket.delays_ms[1:])
    percentiles = quantiles(delays, n=100)
    return {
        "delivered": num_delivered(sockets),
        "dropped": expected - num_delivered(sockets),
        "p50_ms": round(percentiles[49], 1),
        "p99_ms": round(percentiles[98], 1),
        "max_ms": round(delays[-1], 1),
    }


def num_delivered(sockets: list[BareSocket]) -> int:
    return sum(socket.num_messages for socket in sockets)


async def deliveries(service: RunningService) -> dict[str, Figures]:
    """At a steady rate, and all at once."""
    sockets = await open_sockets(service.port, NUM_SOCKETS, ["task.*"])
    await deliver_to(sockets, service, 20, EVENTS_PER_SECOND)
    steady = await deliver_to(sockets, service, NUM_EVENTS, EVENTS_PER_SECOND)
    burst = await deliver_to(sockets, service, NUM_BURST, 1e9)
    for socket in sockets:
        socket.close()
    return {
        f"{NUM_EVENTS} events, {EVENTS_PER_SECOND} a second": steady,
        f"{NUM_BURST} events at once": burst,
    }


async def idle_memory(service: RunningService) -> Figures:
    """Of the web process, a socket that has subscribed and hears nothing."""
    first = await open_sockets(service.port, 100, ["model.*"])
    before = resident_bytes(service.pid(WEB))
    sockets = await open_sockets(service.port, NUM_IDLE, ["model.*"])
    grown = resident_bytes(service.pid(WEB)) - before
    for socket in first + sockets:
        socket.close()
    return {"KiB a socket": round(grown / 1024 / NUM_IDLE, 1)}


def measure_layer(layer: str) -> dict[str, Any]:
    service = RunningService(
        DJANGO_SETTINGS_MODULE="benchmarks.layer_settings", CHANNEL_LAYER=layer, WEB_PROCESSES="1"
    )
    try:
        service.start("--no-demo")
        memory = asyncio.run(idle_memory(service))
        figures: dict[str, Any] = asyncio.run(deliveries(service))
        cost = publish(service, NUM_COSTED, COSTED_PER_SECOND)
    finally:
        service.close()
    return {
        f"{NUM_SOCKETS} sockets": figures,
        f"one event of {COSTED_PER_SECOND} a second, its publisher": cost,
        f"{NUM_IDLE} idle sockets": memory,
    }


def flood(sockets: FloodedSockets, service: RunningService, rate: int) -> Figures:
    """Events at a rate to all the sockets, or as many as come in time."""
    sockets.delays.clear()
    count = rate * FLOOD_SECONDS
    expected = NUM_SOCKETS * (count + 1)  # the publisher warms up with one
    with ThreadPoolExecutor(1) as thread:
        publishing = thread.submit(publish, service, count, rate)
        sockets.read(expected, time.monotonic() + FLOOD_SECONDS + FLOOD_GIVE_UP_SECONDS)
        publishing.result()
    delays = sorted(sockets.delays)
    until = list(accumulate(sockets.delays[each] for each in delays))
    return {
        "missing": expected - until[-1],
        "p50_ms": delays[bisect_left(until, until[-1] * 0.5)] / 10,
        "p99_ms": delays[bisect_left(until, until[-1] * 0.99)] / 10,
        "max_ms": delays[-1] / 10,
    }


def fresh_flood(service: RunningService, rate: int) -> Figures:
    sockets = FloodedSockets(service.port, NUM_SOCKETS, ["task.*"])
    try:
        return flood(sockets, service, rate)
    finally:
        sockets.close()


def measure_flood(protocol: str) -> dict[str, Any]:
    service = RunningService(
        DJANGO_SETTINGS_MODULE="benchmarks.layer_settings",
        WEBSOCKET_PROTOCOL=protocol,
        WEB_PROCESSES="1",
    )
    try:
        service.start("--no-demo")
        highest = 0
        for rate in RATES:
            tries = [fresh_flood(service, rate) for _ in range(NUM_TRIES)]
            is_complete = not any(figures["missing"] for figures in tries)
            if not is_complete or median(each["p99_ms"] for each in tries) >= MAX_P99_MS:
                break
            highest = rate
        num_rounds = NUM_ROUNDS if highest >= FLOOD_PER_SECOND else 1
        rounds = [fresh_flood(service, FLOOD_PER_SECOND) for _ in range(num_rounds)]
    finally:
        service.close()
    return {
        f"{FLOOD_PER_SECOND} events a second, min / median / max of {num_rounds}": {
            name: " / ".join(f"{pick(each[name] for each in rounds):g}" for pick in SPREAD)
            for name in rounds[0]
        },
        f"events a second with a p99 below {MAX_P99_MS} ms": highest,
    }


def main() -> None:
    parser = options_parser(__doc__)
    parser.add_argument("--flood", action="store_true", help="a thousand events a second")
    options = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (NUM_FILES, hard))
    if options.flood:
        figures = {protocol: measure_flood(protocol) for protocol in PROTOCOLS}
    else:
        figures = {layer: measure_layer(layer) for layer in LAYERS}
    show(figures)
    keep(figures, options.json)


if __name__ == "__main__":
    main()
