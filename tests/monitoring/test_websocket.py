"""The protocol of /ws/monitor, spoken with a real server."""

import json
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from django.test import override_settings
from websockets.exceptions import ConnectionClosed, InvalidStatus

from monitoring import consumers
from monitoring.api.principal import Scope
from monitoring.events import commands, events
from monitoring.events.commands import CommandType
from monitoring.events.events import SERVICE, EventType
from monitoring.redis import outbox
from monitoring.redis.client import client as redis_client
from sopllm import http_protocol
from tests.conftest import Valkey, wait_until
from tests.live_server import (
    OTHER_TASK_ID,
    TASK_ID,
    Client,
    LiveServer,
    progress,
    tell,
    tell_all,
    told,
)
from tests.sopllm.access.clients import bearer, key_of

# These come at times of their own.
UNASKED = frozenset({"gpu_stats", "queue_stats", "log"})


@pytest.fixture
def server(valkey: Valkey) -> Iterator[LiveServer]:
    live_server = LiveServer()
    live_server.start()
    yield live_server
    live_server.stop()


@pytest.fixture
def socket_client(server: LiveServer) -> Iterator[Client]:
    with server.client() as client:
        yield client


# --- Opening ---


@pytest.mark.parametrize("path", ["/ws/monitor", "/ws/monitor/", "/ws/monitor?"])
def test_client_is_greeted(server: LiveServer, path: str) -> None:
    tell_all(range(1))
    with server.client(path) as client:
        greeting = client.connected
    assert set(greeting) == {"type", "connection_id", "available_events", "seq", "timestamp"}
    assert greeting["type"] == "connected"
    assert greeting["available_events"] == list(EventType)
    assert greeting["seq"] == int(redis_client().get("events:seq"))


def test_each_connection_has_an_id(server: LiveServer) -> None:
    with server.client() as one, server.client() as two:
        assert one.connected["connection_id"] != two.connected["connection_id"]


@pytest.mark.parametrize("path", ["/ws", "/ws/monitor/x", "/"])
def test_other_paths_are_refused_in_json(server: LiveServer, path: str) -> None:
    assert_refused(server, 404, "not_found", path=path)


@pytest.mark.parametrize("query", ["since=5", "x", "%ff=%00&"])
def test_parameters_are_refused(server: LiveServer, query: str) -> None:
    assert_refused(server, 400, "validation_error", path=f"/ws/monitor?{query}")


@pytest.mark.parametrize(
    "origin",
    [
        "http://evil.example",
        "http://localhost.evil.example",
        "http://127.0.0.1",
        "http://127.0.0.1:9999",
        "https://127.0.0.1:{port}",
        "http://localhost:{port}",
        "null",
        "http://[bad",
    ],
)
def test_page_from_elsewhere_is_refused(server: LiveServer, origin: str) -> None:
    assert_refused(server, 403, "permission_denied", origin=origin.format(port=server.port))


def test_page_of_a_foreign_name_for_this_address_is_refused(server: LiveServer) -> None:
    headers = {"Host": "evil.example"}
    origin = "http://evil.example"
    assert_refused(server, 403, "permission_denied", origin=origin, additional_headers=headers)


def test_own_page_may_connect(server: LiveServer) -> None:
    with server.client(origin=f"http://127.0.0.1:{server.port}") as client:
        client.pong()


@override_settings(CSRF_TRUSTED_ORIGINS=["https://llm.example"])
def test_page_of_a_trusted_origin_may_connect(server: LiveServer) -> None:
    with server.client(origin="https://llm.example") as client:
        client.pong()


@override_settings(APP_ENV="production")
def test_without_keys_nobody_connects_in_production(server: LiveServer) -> None:
    assert_refused(server, 401, "authentication_required")


def assert_refused(server: LiveServer, status: int, code: str, **options: Any) -> None:
    with pytest.raises(InvalidStatus) as refusal, server.client(**options):
        pass
    response = refusal.value.response
    assert response.status_code == status
    assert response.body
    body = json.loads(response.body)
    assert set(body) == {"error", "message", "details", "trace_id"}
    assert body["error"] == code


# --- Subscriptions ---


def test_unsubscribed_client_hears_nothing(socket_client: Client) -> None:
    tell_all(range(3))
    socket_client.pong()


@pytest.mark.parametrize("name", ["task.queued", "task.*", "*"])
def test_subscriber_hears_what_it_named(socket_client: Client, name: str) -> None:
    socket_client.ignored = UNASKED
    socket_client.subscribe(name)
    socket_client.pong()
    tell_all(range(3))
    messages = [socket_client.hear() for _ in range(3)]
    assert told(messages) == [0, 1, 2]
    first = messages[0]
    assert set(first) == {"type", "seq", "timestamp", "data"}
    assert first["data"]["task_id"] == TASK_ID
    seq = socket_client.connected["seq"]
    assert [message["seq"] for message in messages] == [seq + 1, seq + 2, seq + 3]


def test_subscriber_does_not_hear_what_it_did_not_name(socket_client: Client) -> None:
    socket_client.subscribe("model.*", "task.started")
    socket_client.pong()
    tell_all(range(3))
    socket_client.pong()


def test_unsubscribed_event_is_heard_no_more(socket_client: Client) -> None:
    socket_client.subscribe("task.*")
    socket_client.say("unsubscribe", events=["task.queued"])
    socket_client.pong()
    tell(1)
    progress(7)
    assert socket_client.hear()["data"]["tokens_generated"] == 7


def test_transient_event_has_the_number_of_the_last_logged_one(socket_client: Client) -> None:
    socket_client.subscribe("task.*")
    socket_client.pong()
    tell(1)
    progress(5)
    event, transient = socket_client.hear(), socket_client.hear()
    assert transient["type"] == "task.progress"
    assert transient["seq"] == event["seq"] == socket_client.connected["seq"] + 1


def test_filter_leaves_the_events_of_one_task_and_those_of_none(socket_client: Client) -> None:
    socket_client.ignored = UNASKED
    socket_client.subscribe("*")
    socket_client.say("filter_task", task_id=OTHER_TASK_ID)
    socket_client.pong()
    tell(1)
    tell(2, task_id=OTHER_TASK_ID)
    progress(1)
    progress(2, task_id=OTHER_TASK_ID)
    tell_model_loaded()
    heard = [socket_client.hear() for _ in range(3)]
    assert told(heard[:1]) == [2]
    assert heard[1]["data"]["tokens_generated"] == 2
    assert heard[2]["type"] == "model.loaded"
    socket_client.say("filter_task", task_id=None)
    socket_client.pong()
    tell(3)
    assert told([socket_client.hear()]) == [3]


def tell_model_loaded() -> None:
    data = events.ModelLoaded(model="m", worker="w", load_ms=1)
    events.publish(EventType.MODEL_LOADED, data, None)


@pytest.mark.django_db(transaction=True)
def test_events_of_others_are_never_sent(server: LiveServer) -> None:
    with server.client(additional_headers=bearer(key_of("alice"))) as client:
        client.subscribe("task.*", "log", since=0)
        client.pong()
        for owner in ("bob", SERVICE):
            tell(1, owner=owner)
            progress(1, owner=owner)
            events.publish(EventType.LOG, {"message": "of somebody else"}, owner)
        tell(2, owner="alice")
        outbox.flush()
        assert told([client.hear()]) == [2]
        # From the log neither.
        client.subscribe("task.*", since=0)
        assert told([client.hear()]) == [2]
        client.pong()


@pytest.mark.django_db(transaction=True)
def test_scope_monitor_hears_the_events_of_all(server: LiveServer) -> None:
    with server.client(additional_headers=bearer(key_of("alice", "monitor"))) as client:
        client.subscribe("task.*", "log", since=0)
        for number, owner in enumerate(("bob", SERVICE, "alice", None)):
            tell(number, owner=owner)
        assert told([client.hear() for _ in range(4)]) == [0, 1, 2, 3]
        events.publish(EventType.LOG, {"message": "m"}, SERVICE)
        assert client.hear()["type"] == "log"


@pytest.mark.django_db(transaction=True)
def test_event_that_needs_the_scope_monitor_is_refused_and_no_part_of_a_pattern(
    server: LiveServer,
) -> None:
    with server.client(additional_headers=bearer(key_of("alice"))) as client:
        assert "gpu_stats" not in client.connected["available_events"]
        client.subscribe("task.*", "gpu_stats")
        assert client.error()["error"] == "permission_denied"
        client.subscribe("*")
        tell(1, owner="alice")
        outbox.flush()
        heard = {client.hear()["type"] for _ in range(3)}
        assert heard == {"task.queued", "queue_stats"}


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("scopes", [(each,) for each in Scope])
def test_each_command_is_for_its_scopes(server: LiveServer, scopes: tuple[Scope, ...]) -> None:
    headers = bearer(key_of("alice", *scopes))
    if all(accepted.isdisjoint(scopes) for accepted in commands.SCOPES.values()):
        assert_refused(server, 403, "permission_denied", additional_headers=headers)
        return
    fields: dict[CommandType, dict[str, Any]] = {
        CommandType.SUBSCRIBE: {"events": ["log"]},
        CommandType.UNSUBSCRIBE: {"events": ["log"]},
        CommandType.FILTER_TASK: {"task_id": None},
    }
    with server.client(additional_headers=headers) as client:
        for command in CommandType:
            client.say(command, **fields.get(command, {}))
            if commands.SCOPES[command].isdisjoint(scopes):
                assert client.error()["error"] == "permission_denied"
            elif command == CommandType.GET_QUEUE_STATS:
                assert client.hear()["type"] == "queue_stats"
            elif command == CommandType.PING:
                assert client.hear()["type"] == "pong"
            client.pong()


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("command", CommandType)
def test_command_that_names_no_scope_is_closed(
    server: LiveServer, monkeypatch: pytest.MonkeyPatch, command: CommandType
) -> None:
    monkeypatch.delitem(commands.SCOPES, command)
    with server.client(additional_headers=bearer(key_of("alice", *Scope))) as client:
        client.say(command)
        assert client.error()["error"] == "permission_denied"


@pytest.mark.parametrize("event", EventType)
def test_event_that_names_no_scope_is_for_the_scope_monitor(
    monkeypatch: pytest.MonkeyPatch, event: EventType
) -> None:
    others = events.OF_OWNERS - {event}
    monkeypatch.setattr("monitoring.events.commands.OF_OWNERS", others)
    for scope in Scope:
        available = commands.available_events(frozenset({scope}))
        assert (event in available) == (scope == Scope.MONITOR)


# --- Replay ---


def test_since_replays_what_was_missed_and_goes_on(server: LiveServer) -> None:
    with server.client() as client:
        seq = client.connected["seq"]
    tell_all(range(50))
    with server.client() as client:
        client.subscribe("task.*", since=seq + 10)
        assert told([client.hear() for _ in range(40)]) == list(range(10, 50))
        tell(50)
        assert told([client.hear()]) == [50]


def test_since_zero_replays_all_that_is_kept(server: LiveServer) -> None:
    tell_all(range(1500))  # more than the feed keeps in memory from the start
    with server.client() as client:
        client.subscribe("task.*", since=0)
        assert told([client.hear() for _ in range(1500)]) == list(range(1500))
        client.pong()


def test_since_does_not_repeat_what_was_subscribed_before(socket_client: Client) -> None:
    socket_client.subscribe("task.*")
    socket_client.pong()
    tell_model_loaded()
    tell_all(range(3))
    assert told([socket_client.hear() for _ in range(3)]) == [0, 1, 2]
    socket_client.subscribe("model.*", since=socket_client.connected["seq"])
    assert socket_client.hear()["type"] == "model.loaded"
    socket_client.pong()


def test_since_that_is_too_old_is_told_where_it_goes_on(server: LiveServer) -> None:
    tell_all(range(5))
    with server.client() as client:
        seq = client.connected["seq"]
    redis_client().delete("events")
    tell_all(range(5, 8))
    with server.client() as client:
        client.subscribe("task.*", since=seq - 2)
        error = client.error()
        assert error["error"] == "resync"
        assert error["details"] == {"since": seq}
        assert told([client.hear() for _ in range(3)]) == [5, 6, 7]


def test_since_from_the_future_is_told_where_it_goes_on(socket_client: Client) -> None:
    seq = socket_client.connected["seq"]
    socket_client.subscribe("task.*", since=seq + 1000)
    error = socket_client.error()
    assert error["error"] == "resync"
    assert error["details"] == {"since": seq}
    tell(1)
    assert told([socket_client.hear()]) == [1]


# --- What a client may get wrong ---


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "no valid JSON"),
        ('{"type": "ping", "type": "ping"}', "there twice"),
        ("", "no valid JSON"),
        ("[1, 2]", "JSON object"),
        ('"ping"', "JSON object"),
        ("{}", "Unknown type null"),
        ('{"type": "pong"}', 'Unknown type "pong"'),
        ('{"type": ["ping"]}', "Unknown type"),
        ('{"type": "\\ud800"}', "Unknown type"),
        ('{"type": "ping", "evnts": []}', 'no field "evnts"'),
        ('{"type": "subscribe"}', "must be a list"),
        ('{"type": "subscribe", "events": "task.*"}', "must be a list"),
        ('{"type": "subscribe", "events": []}', "must be a list"),
        ('{"type": "subscribe", "events": [1]}', "no name of an event"),
        ('{"type": "subscribe", "events": ["task.*", "tasks.*"]}', 'Unknown event "tasks.*"'),
        ('{"type": "subscribe", "events": ["task."]}', "Unknown event"),
        ('{"type": "unsubscribe", "events": ["connected"]}', "Unknown event"),
        ('{"type": "subscribe", "events": ["*"], "since": "1"}', "whole number"),
        ('{"type": "subscribe", "events": ["*"], "since": -1}', "whole number"),
        ('{"type": "subscribe", "events": ["*"], "since": 1.5}', "whole number"),
        ('{"type": "subscribe", "events": ["*"], "since": true}', "whole number"),
        ('{"type": "subscribe", "events": ["*"], "since": NaN}', "whole number"),
        (f'{{"type": "subscribe", "events": ["*"], "since": {10**30}}}', "whole number"),
        (f'{{"type": "ping", "x": {"9" * 5000}}}', "no valid JSON"),
        ('{"type": "filter_task"}', "task_id must be"),
        ('{"type": "filter_task", "task_id": 7}', "task_id must be"),
        ('{"type": "filter_task", "task_id": "task_1"}', "task_id must be"),
        ("[" * 60_000, "nested too deeply"),
        (json.dumps({"type": "ping", "x": "x" * 70_000}), "too large"),
        (json.dumps({"type": "x" * 60_000}), "Unknown type"),
    ],
)
def test_bad_message_is_answered_and_the_socket_lives(
    socket_client: Client, text: str, says: str
) -> None:
    socket_client.connection.send(text)
    error = socket_client.error()
    assert error["error"] == "validation_error"
    assert says in error["message"]
    assert len(error["message"]) < 500
    socket_client.pong()
    tell_all(range(1))  # nothing was subscribed to
    socket_client.pong()


def test_binary_message_is_answered_and_the_socket_lives(socket_client: Client) -> None:
    socket_client.connection.send(b'{"type": "ping"}')
    assert "text frame" in socket_client.error()["message"]
    socket_client.pong()


def test_message_beyond_the_hard_limit_ends_that_connection_alone(
    server: LiveServer, socket_client: Client
) -> None:
    def send_too_much() -> None:
        socket_client.connection.send("x" * 2_000_000)
        socket_client.hear()

    with pytest.raises(ConnectionClosed) as closed:
        send_too_much()
    # The reason is lost where the rest of the message is still on its way when the server closes.
    assert closed.value.rcvd is None or closed.value.rcvd.code == 1009
    with server.client() as other:
        other.pong()


def test_flood_is_told_to_slow_down_and_then_served_again(socket_client: Client) -> None:
    num_pings = consumers.MAX_MESSAGES_PER_SECOND + 20
    for _ in range(num_pings):
        socket_client.say("ping")
    answers = [socket_client.hear() for _ in range(num_pings)]
    refused = [each for each in answers if each["type"] == "error"]
    assert refused
    assert {each["data"]["error"] for each in refused} == {"rate_limited"}

    def is_served() -> bool:
        socket_client.say("ping")
        return bool(socket_client.hear()["type"] == "pong")

    wait_until(is_served)


@pytest.mark.django_db(transaction=True)
def test_each_socket_hears_its_own_of_a_flood_in_order(server: LiveServer) -> None:
    owners, tasks, num_events = ("alice", "bob", None, SERVICE), (TASK_ID, OTHER_TASK_ID), 600
    flood = [(owners[number % 4], tasks[number // 4 % 2]) for number in range(num_events)]

    def wanted(owner: str | None, task_id: str | None = None) -> list[int]:
        return [
            number
            for number, (of_owner, of_task) in enumerate(flood)
            if (owner is None or of_owner in (owner, None)) and task_id in (None, of_task)
        ]

    keys = {owner: bearer(key_of(owner)) for owner in ("alice", "bob", "carol")}
    with ExitStack() as stack:
        expected: list[tuple[Client, list[int]]] = []
        for owner, headers in keys.items():
            plain, filtered, late = (
                stack.enter_context(server.client(additional_headers=headers)) for _ in range(3)
            )
            filtered.say("filter_task", task_id=OTHER_TASK_ID)
            for client in (plain, filtered):
                client.subscribe("task.*")
            expected += [
                (plain, wanted(owner)),
                (filtered, wanted(owner, OTHER_TASK_ID)),
                (late, wanted(owner)),
            ]
        everyone = stack.enter_context(server.client())
        everyone.subscribe("task.queued")
        expected.append((everyone, wanted(None)))
        since = everyone.connected["seq"]
        for client, _ in expected:
            client.pong()
        for number, (owner_or_none, task_id) in enumerate(flood):
            tell(number, owner=owner_or_none, task_id=task_id)
            if number == num_events // 2:
                for client, _ in expected[2:-1:3]:
                    client.subscribe("task.*", since=since)
        for client, numbers in expected:
            heard = [client.hear() for _ in numbers]
            assert told(heard) == numbers
            seqs = [each["seq"] for each in heard]
            assert seqs == sorted(set(seqs))
            client.pong()


def test_server_without_a_door_for_frames_sends_the_same(valkey: Valkey) -> None:
    server = LiveServer()
    server.start(ws="websockets-sansio")
    try:
        with server.client() as client:
            client.subscribe("task.*")
            client.pong()
            tell(1, model="é€😀")
            progress(2)
            event = client.hear()
            assert (told([event]), event["data"]["model"]) == ([1], "é€😀")
            assert client.hear()["data"]["tokens_generated"] == 2
            client.pong()
    finally:
        server.stop()


# --- Statistics ---


@pytest.mark.django_db(transaction=True)
def test_queue_stats_are_told_when_asked_for(socket_client: Client) -> None:
    socket_client.say("get_queue_stats")
    answer = socket_client.hear()
    assert answer["type"] == "queue_stats"
    assert {"queues", "totals", "processing_tasks"} <= set(answer["data"])


@pytest.mark.django_db(transaction=True)
def test_statistics_come_again_and_again_to_who_subscribed(server: LiveServer) -> None:
    with server.client() as client, server.client() as other:
        client.subscribe("queue_stats", "gpu_stats")
        heard = [client.hear()["type"] for _ in range(4)]
        assert sorted(heard) == ["gpu_stats"] * 2 + ["queue_stats"] * 2
        other.pong()


# --- Connections ---


def test_socket_that_reads_nothing_holds_up_nobody_and_misses_nothing(server: LiveServer) -> None:
    num_events, model = 400, "m" * 50_000  # 20 MB, far more than the kernel takes
    with server.client(max_queue=1) as slow, server.client() as quick:
        for client in (slow, quick):
            client.subscribe("task.*")
            client.pong()
        for number in range(num_events):
            tell(number, model=model)
        assert told([quick.hear() for _ in range(num_events)]) == list(range(num_events))
        assert told([slow.hear() for _ in range(num_events)]) == list(range(num_events))


def test_client_that_reads_nothing_for_too_long_is_cut_off(
    valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_protocol, "UNREAD_TIMEOUT_SECONDS", 1)
    server = LiveServer()
    server.start(ws_ping_interval=None)
    try:
        with server.client(max_queue=1, ping_interval=None) as client:
            client.subscribe("task.*")
            client.pong()
            for number in range(400):
                tell(number, model="m" * 50_000)
            wait_until(lambda: server.num_connections == 0, seconds=60)
    finally:
        server.stop()


def test_stopping_server_asks_clients_to_come_back(server: LiveServer) -> None:
    with server.client() as client:
        client.subscribe("task.*")
        client.pong()
        server.stop()
        with pytest.raises(ConnectionClosed) as closed:
            client.hear()
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1012
    server.start()


def test_client_that_answers_no_ping_is_disconnected(valkey: Valkey) -> None:
    server = LiveServer()
    server.start(ws_ping_interval=0.1, ws_ping_timeout=0.1)
    try:
        with socket.create_connection(("127.0.0.1", server.port)) as silent:
            silent.sendall(handshake(server.port))
            wait_until(lambda: server.num_connections == 1)
            wait_until(lambda: server.num_connections == 0)
    finally:
        server.stop()


def handshake(port: int) -> bytes:
    return (
        f"GET /ws/monitor HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: Upgrade\r\n"
        "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
        "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    ).encode()
