"""GET /api/v1/monitor/events: the feed by polling."""

import json

import pytest
from rest_framework.test import APIClient

from monitoring.api.principal import Principal, Scope
from monitoring.events import log
from monitoring.events.events import SERVICE, EventType
from monitoring.redis import outbox
from monitoring.redis.client import client as redis_client
from tests.conftest import Valkey, client_of
from tests.live_server import TASK_ID, progress, tell, tell_all, told

URL = "/api/v1/monitor/events"


@pytest.mark.parametrize("url", [URL, f"{URL}/"])
def test_events_are_those_of_the_socket(api: APIClient, url: str) -> None:
    tell_all(range(2))
    progress(1)  # a reading is not kept
    answer = api.get(url).json()
    assert set(answer) == {"events", "results", "next", "previous", "seq", "has_gap"}
    assert answer["events"] == answer["results"]
    assert told(answer["events"]) == [0, 1]
    first = answer["events"][0]
    assert set(first) == {"type", "seq", "timestamp", "data"}
    assert first["type"] == "task.queued"
    assert first["data"]["task_id"] == TASK_ID
    assert answer["seq"] == answer["events"][1]["seq"] == log.last_seq()
    assert (answer["next"], answer["previous"], answer["has_gap"]) == (None, None, False)


def test_poller_that_asks_after_seq_gets_each_event_once(api: APIClient) -> None:
    seq = 0
    numbers: list[int] = []
    for size in (3, 0, 250, 1):
        tell_all(range(len(numbers), len(numbers) + size))
        answer = api.get(URL, {"after": seq, "limit": 1000}).json()
        numbers += told(answer["events"])
        seq = answer["seq"]
    assert numbers == list(range(254))


def test_pages_are_linked(api: APIClient) -> None:
    tell_all(range(25))
    url: str | None = f"{URL}?limit=10"
    sizes, numbers = [], []
    while url:
        answer = api.get(url).json()
        numbers += told(answer["events"])
        sizes.append(len(answer["events"]))
        url = answer["next"]
    assert numbers == list(range(25))
    assert sizes == [10, 10, 5]


def test_events_of_others_are_shown_to_the_scope_monitor_alone(api: APIClient) -> None:
    tell(1, owner="somebody else")
    tell(2, owner=None)
    tell(3, owner=SERVICE)
    tell(4, owner="alice")
    assert outbox.flush(20)
    alice = client_of(Principal("a key", "alice", frozenset({Scope.TASKS})))
    answer = alice.get(URL).json()
    assert told(answer["events"]) == [2, 4]
    assert "somebody else" not in json.dumps(answer)
    assert answer["seq"] == log.last_seq()
    assert told(api.get(URL).json()["events"]) == [1, 2, 3, 4]


def test_gap_is_told(api: APIClient) -> None:
    tell_all(range(5))
    last = log.last_seq()
    redis_client().xtrim("events", maxlen=2, approximate=False)
    answer = api.get(URL, {"after": last - 4}).json()
    assert (told(answer["events"]), answer["has_gap"]) == ([3, 4], True)
    assert not api.get(URL, {"after": last - 2}).json()["has_gap"]
    assert not api.get(URL).json()["has_gap"]
    assert api.get(URL, {"after": last + 1}).json()["has_gap"]


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ({"after": "-1"}, "after"),
        ({"after": "x"}, "after"),
        ({"after": "1.5"}, "after"),
        ({"after": "9" * 30}, "after"),
        ({"after": "٣"}, "after"),
        ({"after": ""}, "after"),
        ({"limit": "0"}, "limit"),
        ({"limit": "1001"}, "limit"),
        ({"since": "1"}, "since"),
    ],
)
def test_bad_query_is_refused(api: APIClient, query: dict[str, str], field: str) -> None:
    response = api.get(URL, query)
    assert response.status_code == 400
    assert response.json()["error"] == "validation_error"
    assert field in response.json()["details"]


def test_lost_redis_is_told(api: APIClient, valkey: Valkey) -> None:
    valkey.stop()
    response = api.get(URL)
    assert response.status_code == 503
    assert response.json()["error"] == "unavailable"
    assert int(response.headers["Retry-After"]) > 0


def test_route_is_documented(api: APIClient) -> None:
    schema = api.get("/openapi.json").json()
    operation = schema["paths"]["/api/v1/monitor/events"]["get"]
    assert {each["name"] for each in operation["parameters"]} == {"after", "limit"}
    body = operation["responses"]["200"]["content"]["application/json"]["schema"]
    assert body == {"$ref": "#/components/schemas/EventPage"}
    components = schema["components"]["schemas"]
    events = components["EventPage"]["properties"]["events"]
    assert events == {"type": "array", "items": {"$ref": "#/components/schemas/EventMessage"}}
    message = components["EventMessage"]["properties"]
    types = message["type"]["$ref"].rpartition("/")[2]
    assert components[types]["enum"] == list(EventType)
    assert message["timestamp"] == {"type": "string", "format": "date-time"}
    assert message["seq"] == {"type": "integer"}
