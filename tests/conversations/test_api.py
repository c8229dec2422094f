"""The routes of conversations: what they take and answer, and whose conversations they show."""

import json
import re
import threading
from collections.abc import Callable
from typing import Any

import pytest
from django.db import connection
from rest_framework.test import APIClient

from conversations.models import Conversation, Message
from inference.lifecycle import finish, submit
from inference.lifecycle.finish import Timings
from inference.models import GenerationTask
from monitoring.api.principal import LOCAL
from tests.conftest import client_of
from tests.inference.api.test_tasks import assert_error
from tests.inference.lifecycle.test_lifecycle import answer, claimed

NewTask = Callable[..., GenerationTask]

CONVERSATIONS = "/api/v1/conversations"
FIELDS = {
    *("conversation_id", "model", "system_prompt", "metadata", "message_count"),
    *("created_at", "updated_at"),
}
UNKNOWN = "conv_" + 32 * "0"


def begin(api: APIClient, **fields: Any) -> dict[str, Any]:
    response = api.post(CONVERSATIONS, fields, format="json")
    assert response.status_code == 201, response.json()
    body: dict[str, Any] = response.json()
    return body


def say(api: APIClient, conversation_id: str, *contents: str) -> None:
    for index, content in enumerate(contents):
        message = {"role": ("user", "assistant")[index % 2], "content": content}
        response = api.post(f"{CONVERSATIONS}/{conversation_id}/messages", message, format="json")
        assert response.status_code == 201, response.json()


def contents(body: dict[str, Any]) -> list[str]:
    return [message["content"] for message in body["messages"]]


@pytest.fixture
def stranger(db: None) -> Conversation:
    return Conversation.objects.create(owner="somebody else")


def test_conversation_begins_with_what_was_said_of_it(api: APIClient) -> None:
    body = begin(api, model="echo", system_prompt=" Be brief. ", metadata={"a": [1]})
    assert set(body) == FIELDS
    assert re.fullmatch(r"conv_[0-9a-f]{32}", body["conversation_id"])
    assert (body["model"], body["system_prompt"]) == ("echo", " Be brief. ")
    assert (body["metadata"], body["message_count"]) == ({"a": [1]}, 0)
    assert api.get(f"{CONVERSATIONS}/{body['conversation_id']}").json() == body


def test_all_fields_may_be_left_out(api: APIClient) -> None:
    body = begin(api)
    assert (body["model"], body["system_prompt"], body["metadata"]) == (None, None, {})


@pytest.mark.parametrize(
    ("fields", "blamed"),
    [
        ({"modle": "echo"}, "modle"),
        ({"model": 101 * "x"}, "model"),
        ({"model": ["x"]}, "model"),
        ({"system_prompt": "a\0b"}, "system_prompt"),
        ({"metadata": "text"}, "metadata"),
        ({"metadata": {"a": 17 * 1024 * "x"}}, "metadata"),
        ({"metadata": {"a": "\0"}}, "metadata"),
    ],
)
def test_bad_fields_are_refused_by_name(api: APIClient, fields: Any, blamed: str) -> None:
    existing = begin(api)["conversation_id"]
    post = api.post(CONVERSATIONS, fields, format="json")
    patch = api.patch(f"{CONVERSATIONS}/{existing}", fields, format="json")
    for response in (post, patch):
        assert_error(response, 400, "validation_error", blamed)
    assert Conversation.objects.count() == 1


def test_list_is_newest_first_by_pages(api: APIClient, stranger: Conversation) -> None:
    ids = [begin(api)["conversation_id"] for _ in range(5)]
    say(api, ids[4], "a", "b")
    first = api.get(CONVERSATIONS, {"limit": 2}).json()
    assert (first["total"], first["previous"]) == (5, None)
    assert first["conversations"] == first["results"]
    assert [c["conversation_id"] for c in first["results"]] == [ids[4], ids[3]]
    assert [c["message_count"] for c in first["results"]] == [2, 0]
    second = api.get(first["next"]).json()
    last = api.get(second["next"]).json()
    assert [c["conversation_id"] for c in last["results"]] == [ids[0]]
    assert last["next"] is None


@pytest.mark.parametrize("query", ["limit=2", "limit=2&offset=1", "limit=3&offset=4"])
def test_neither_new_nor_deleted_conversations_shift_a_page(api: APIClient, query: str) -> None:
    ids = [begin(api)["conversation_id"] for _ in range(9)][::-1]
    seen = list[str]()
    url = f"{CONVERSATIONS}?{query}"
    while url:
        page = api.get(url).json()
        found = [each["conversation_id"] for each in page["results"]]
        if page["previous"]:  # back and forth
            back = api.get(page["previous"]).json()
            assert api.get(back["next"]).json()["results"] == page["results"]
        seen += found
        url = page["next"]
        begin(api)
        api.delete(f"{CONVERSATIONS}/{found[0]}")
        api.delete(f"{CONVERSATIONS}/{found[-1]}")
    assert seen == ids[-len(seen) :]
    assert len(seen) == 9 - int(query.partition("offset=")[2] or 0)


@pytest.mark.parametrize(
    ("query", "blamed"),
    [
        ({"limit": 0}, "limit"),
        ({"offset": "x"}, "offset"),
        ({"sort": "a"}, "sort"),
        ({"offset": 10**18}, "offset"),
        ({"until": "2026-01-31T12:00:00Z"}, "until"),
        ({"cursor": "x"}, "cursor"),
        ({"cursor": "cD0w"}, "cursor"),
        ({"cursor": "bz0x", "offset": 1}, "offset"),
    ],
)
def test_bad_query_is_refused(api: APIClient, query: dict[str, Any], blamed: str) -> None:
    assert_error(api.get(CONVERSATIONS, query), 400, "validation_error", blamed)


def test_messages_come_with_the_conversation_when_asked_for(api: APIClient) -> None:
    conversation_id = begin(api)["conversation_id"]
    say(api, conversation_id, "one", "two", "three")
    url = f"{CONVERSATIONS}/{conversation_id}"
    assert contents(api.get(url, {"include_messages": "true"}).json()) == ["one", "two", "three"]
    assert "messages" not in api.get(url).json()
    conversation = Conversation.objects.get()
    Message.objects.bulk_create(
        Message(conversation=conversation, role="user", content=str(i)) for i in range(1000)
    )
    body = api.get(url, {"include_messages": "true"}).json()
    assert contents(body) == [str(i) for i in range(1000)]
    assert body["message_count"] == 1003
    assert_error(api.get(url, {"include_messages": "1"}), 400, "validation_error")
    assert_error(api.get(url, {"messages": "true"}), 400, "validation_error", "messages")


def test_change_leaves_the_rest_alone(api: APIClient) -> None:
    before = begin(api, model="echo", system_prompt="Be brief.", metadata={"a": 1})
    url = f"{CONVERSATIONS}/{before['conversation_id']}"
    after = api.patch(url, {"system_prompt": None}, format="json").json()
    assert after == before | {"system_prompt": None, "updated_at": after["updated_at"]}
    assert after["updated_at"] > before["updated_at"]
    after = api.patch(url, {"model": None, "metadata": None}, format="json").json()
    assert (after["model"], after["metadata"]) == (None, {})
    assert api.get(url).json() == after


def test_message_is_added_at_the_end(api: APIClient) -> None:
    conversation_id = begin(api)["conversation_id"]
    url = f"{CONVERSATIONS}/{conversation_id}/messages"
    response = api.post(url, {"role": "assistant", "content": " hello "}, format="json")
    body = response.json()
    assert response.status_code == 201
    assert body.keys() == {
        *("message_id", "role", "content", "tool_calls", "tool_call_id", "created_at"),
    }
    assert re.fullmatch(r"msg_[0-9a-f]{32}", body["message_id"])
    assert (body["role"], body["content"]) == ("assistant", " hello ")
    assert api.get(url).json()["messages"] == [body]


@pytest.mark.parametrize(
    ("message", "blamed"),
    [
        ({"role": "wizard", "content": "a"}, "role"),
        ({"role": "user"}, "content"),
        ({"role": "user", "content": ""}, "content"),
        ({"role": "user", "content": "a", "name": "b"}, "name"),
    ],
)
def test_bad_message_is_refused(api: APIClient, message: dict[str, str], blamed: str) -> None:
    url = f"{CONVERSATIONS}/{begin(api)['conversation_id']}/messages"
    assert_error(api.post(url, message, format="json"), 400, "validation_error", blamed)
    assert not Message.objects.exists()


def test_last_messages_are_oldest_first_and_lead_to_those_before(api: APIClient) -> None:
    conversation_id = begin(api)["conversation_id"]
    say(api, conversation_id, *"abcdefg")
    url = f"{CONVERSATIONS}/{conversation_id}/messages"
    page = api.get(url, {"limit": 3}).json()
    assert (contents(page), page["total"], page["next"]) == (["e", "f", "g"], 7, None)
    page = api.get(page["previous"]).json()
    assert contents(page) == ["b", "c", "d"]
    page = api.get(page["previous"]).json()
    assert (contents(page), page["previous"]) == (["a"], None)
    for query in ({"limit": "x"}, {"before": "msg_0"}, {"before": "\0"}, {"after": "a"}):
        assert_error(api.get(url, query), 400, "validation_error", next(iter(query)))


def test_clearing_keeps_the_rest(api: APIClient) -> None:
    before = begin(api, system_prompt="Be brief.")
    url = f"{CONVERSATIONS}/{before['conversation_id']}"
    say(api, before["conversation_id"], "a", "b")
    assert api.delete(f"{url}/messages").status_code == 204
    after = api.get(url).json()
    assert after == before | {"updated_at": after["updated_at"]}


def test_deleted_conversation_is_gone_with_its_messages(api: APIClient) -> None:
    conversation_id = begin(api)["conversation_id"]
    say(api, conversation_id, "a")
    assert api.delete(f"{CONVERSATIONS}/{conversation_id}").status_code == 204
    assert_error(api.get(f"{CONVERSATIONS}/{conversation_id}"), 404, "not_found")
    assert not Message.objects.exists()


def test_conversation_with_unfinished_tasks_is_not_deleted(
    api: APIClient, new_task: NewTask
) -> None:
    conversation_id = begin(api)["conversation_id"]
    ended = new_task(conversation_id=conversation_id)
    finish.complete(claimed(ended), answer(), Timings())
    waiting = new_task(conversation_id=conversation_id)
    assert_error(api.delete(f"{CONVERSATIONS}/{conversation_id}"), 409, "conflict")
    finish.cancel(waiting)
    assert api.delete(f"{CONVERSATIONS}/{conversation_id}").status_code == 204
    assert GenerationTask.objects.filter(conversation=None).count() == 2


@pytest.mark.django_db(transaction=True)
def test_task_for_a_conversation_that_goes_away_is_a_conflict(
    api: APIClient, new_task: NewTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    new_task()
    conversation_id = begin(api)["conversation_id"]
    submit_tasks = submit.submit

    def delete_first(*arguments: Any) -> list[GenerationTask]:
        Conversation.objects.filter(pk=conversation_id).delete()
        return submit_tasks(*arguments)

    monkeypatch.setattr(submit, "submit", delete_first)
    body = {"model": "echo", "prompt": "a", "conversation_id": conversation_id}
    assert_error(api.post("/api/v1/tasks", body, format="json"), 409, "conflict")


@pytest.mark.parametrize("method", ["get", "patch", "delete"])
@pytest.mark.parametrize("what", ["unknown", "somebody else's"])
def test_someone_elses_conversation_is_not_there(
    api: APIClient, stranger: Conversation, method: str, what: str
) -> None:
    pk = UNKNOWN if what == "unknown" else stranger.pk
    call: Any = getattr(api, method)
    assert_error(call(f"{CONVERSATIONS}/{pk}"), 404, "not_found")
    if method != "patch":
        assert_error(call(f"{CONVERSATIONS}/{pk}/messages"), 404, "not_found")
    message = {"role": "user", "content": "a"}
    post = api.post(f"{CONVERSATIONS}/{pk}/messages", message, format="json")
    assert_error(post, 404, "not_found")
    assert stranger in Conversation.objects.all()


def test_every_route_answers_with_and_without_a_trailing_slash(api: APIClient) -> None:
    url = f"{CONVERSATIONS}/{begin(api)['conversation_id']}"
    for path in (CONVERSATIONS, url, f"{url}/messages"):
        assert api.get(path).json() == api.get(f"{path}/").json()


def test_conversation_without_a_model_needs_one_on_the_task(
    api: APIClient, new_task: NewTask
) -> None:
    new_task()
    body = {"prompt": "a", "conversation_id": begin(api)["conversation_id"]}
    response = api.post("/api/v1/tasks", body, format="json")
    assert_error(response, 400, "validation_error", "model")
    assert "Name a registered model" in json.dumps(response.json())
    body["conversation_id"] = begin(api, model="echo")["conversation_id"]
    assert api.post("/api/v1/tasks", body, format="json").status_code == 201


@pytest.mark.django_db(transaction=True)
def test_messages_added_at_once_are_all_kept(api: APIClient) -> None:
    conversation_id = begin(api)["conversation_id"]

    def add() -> None:
        say(client_of(LOCAL), conversation_id, *"abcde")
        connection.close()

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    body = api.get(f"{CONVERSATIONS}/{conversation_id}", {"include_messages": "true"}).json()
    assert sorted(contents(body)) == sorted(4 * "abcde")
    assert body["message_count"] == 20


@pytest.mark.parametrize("method", ["get", "post", "patch", "delete"])
def test_unknown_parameter_is_refused_whatever_the_method(api: APIClient, method: str) -> None:
    path = CONVERSATIONS if method in ("get", "post") else f"{CONVERSATIONS}/conv_{0:032x}"
    response = getattr(api, method)(f"{path}?lmit=3", format="json")
    assert response.status_code == 400
    assert "lmit" in response.json()["details"]
