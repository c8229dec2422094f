"""Whatever one socket of /ws/monitor is sent: it is answered or closed, and the others go on."""

import json
import socket
from collections.abc import Iterator
from contextlib import suppress
from itertools import count
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from monitoring.events.commands import CommandType
from monitoring.events.events import EventType
from tests.conftest import Valkey
from tests.live_server import TASK_ID, Client, LiveServer, tell, told
from tests.monitoring.test_websocket import handshake

pytestmark = pytest.mark.django_db(transaction=True)
keeps_fixtures = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
numbers = count(1)

_values = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers() | st.sampled_from([2**63, -1, 10**400]),
        st.floats(),
        st.text(st.characters(), max_size=5),  # half surrogate pairs, too
        st.sampled_from([*CommandType, *EventType, "task.*", "*", TASK_ID]),
    ),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["type", "events", "since", "task_id"]) | st.text(max_size=3), inner
        )
    ),
    max_leaves=10,
)
_commands = st.fixed_dictionaries(
    {"type": st.sampled_from(list(CommandType))},
    optional={
        "events": st.lists(st.sampled_from(["task.*", "*", "log", "x"])) | _values,
        "since": st.integers(-1, 2**64) | _values,
        "task_id": st.sampled_from([TASK_ID, None]) | _values,
    },
)
# What no value is written as.
_TEXTS = [
    "[" * 60_000,
    '{"type": "ping", "type": "x"}',
    '{"type":' * 8000,
    "x" * 70_000,
    "\ufeff{}",
]
_no_commands = st.text(max_size=20) | st.sampled_from(_TEXTS) | st.binary(max_size=50)


@st.composite
def _raw_frames(draw: st.DrawFn) -> bytes:
    """Any opcode, masked or not, and a length that may not be the payload's."""
    payload = draw(st.binary(max_size=130))
    first = draw(st.sampled_from([0x81, 0x82, 0x88, 0x89, 0x8A, 0x01, 0x00]) | st.integers(0, 255))
    is_masked = draw(st.sampled_from([0x80, 0x80, 0x80, 0]))
    length = draw(st.sampled_from([min(len(payload), 125), 0, 5, 126, 127]))
    mask = b"\0\0\0\0" if is_masked else b""
    return bytes([first, is_masked | length]) + mask + payload


@pytest.fixture(scope="module")
def server(_valkey_process: Valkey) -> Iterator[LiveServer]:
    live_server = LiveServer()
    live_server.start()
    yield live_server
    live_server.stop()


@pytest.fixture
def bystander(server: LiveServer, valkey: Valkey) -> Iterator[Client]:
    with server.client() as client:
        client.subscribe("task.*")
        client.pong()
        yield client


def assert_undisturbed(bystander: Client) -> None:
    number = next(numbers)
    tell(number)
    assert told([bystander.hear()]) == [number]


@keeps_fixtures
@given(
    frames=st.lists(
        st.tuples(_no_commands, st.just(1))
        | st.tuples((_values | _commands).map(json.dumps), st.just(0)),
        max_size=20,
    )
)
def test_socket_answers_whatever_it_is_sent(
    server: LiveServer, bystander: Client, frames: list[tuple[Any, int]]
) -> None:
    errors: list[dict[str, Any]] = []
    with server.client() as client:
        for frame, _ in frames:
            client.connection.send(frame)
        client.say("the last one")
        while not errors or "the last one" not in errors[-1]["message"]:
            message = client.hear()
            assert message["type"] in {"error", "pong", *EventType}
            if message["type"] == "error":
                errors.append(message["data"])
    assert len(errors) > sum(is_wrong for _, is_wrong in frames)
    assert {each["error"] for each in errors} <= {"validation_error", "resync"}
    assert all(len(each["message"]) < 500 for each in errors)
    assert_undisturbed(bystander)


@keeps_fixtures
@given(frames=st.lists(_raw_frames() | st.binary(max_size=20), max_size=8))
def test_bytes_that_are_no_frames_end_their_own_connection_alone(
    server: LiveServer, bystander: Client, frames: list[bytes]
) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
        connection.sendall(handshake(server.port))
        with suppress(ConnectionError):  # closed before all was read
            connection.sendall(b"".join(frames))
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(4096):
                pass
    assert_undisturbed(bystander)
