"""Dialogues with a real model: they remember, and keep their order whatever dies meanwhile."""

import os
import signal
from typing import Any

from benchmarks import faults
from benchmarks.running_service import SMOLLM2, RunningService, wait_for

NUM_CONVERSATIONS = 6
NUM_TURNS = 4
NUM_KILLS = 2


def begin(service: RunningService, **fields: Any) -> str:
    response = service.http.post("/conversations", json={"model": SMOLLM2} | fields)
    return str(response.raise_for_status().json()["conversation_id"])


def history(service: RunningService, conversation_id: str) -> list[tuple[str, str]]:
    """Role and content of each message, oldest first."""
    body = service.http.get(f"/conversations/{conversation_id}/messages?limit=1000").json()
    return [(message["role"], message["content"]) for message in body["messages"]]


def ask(service: RunningService, conversation_id: str, prompt: str, **fields: Any) -> str:
    """Submit a turn; its model is the conversation's."""
    body = {"prompt": prompt, "conversation_id": conversation_id, "temperature": 0} | fields
    return str(service.http.post("/tasks", json=body).raise_for_status().json()["task_id"])


def test_second_answer_has_seen_the_first(service: RunningService) -> None:
    prompt = "You repeat what you have said before when you are asked to."
    conversation_id = begin(service, system_prompt=prompt)
    first = service.ended(ask(service, conversation_id, "Say: strawberry", max_tokens=12))
    second = service.ended(ask(service, conversation_id, "Say that once more.", max_tokens=24))
    said = [task["result"]["text"] for task in (first, second)]
    assert "strawberry" in said[1].lower()
    assert second["result"]["usage"]["cached_tokens"] > first["result"]["usage"]["cached_tokens"]
    assert history(service, conversation_id) == [
        *(("user", "Say: strawberry"), ("assistant", said[0])),
        *(("user", "Say that once more."), ("assistant", said[1])),
    ]


def test_unsaved_turn_reads_the_history_and_leaves_it_alone(service: RunningService) -> None:
    conversation_id = begin(service)
    service.ended(ask(service, conversation_id, "Say: strawberry", max_tokens=8))
    before = history(service, conversation_id)
    aside = ask(service, conversation_id, "Say it.", save_to_conversation=False, max_tokens=4)
    assert service.ended(aside)["result"]["usage"]["prompt_tokens"] > 20
    assert history(service, conversation_id) == before


def test_dialogues_stay_whole_and_in_order_while_the_gpu_child_dies(
    service: RunningService,
) -> None:
    conversation_ids = [begin(service) for _ in range(NUM_CONVERSATIONS)]
    tasks = {
        conversation_id: [
            ask(service, conversation_id, f"Question {turn}?", max_tokens=4)
            for turn in range(NUM_TURNS)
        ]
        for conversation_id in conversation_ids
    }
    num_tasks = NUM_CONVERSATIONS * NUM_TURNS
    for kill in range(1, NUM_KILLS + 1):
        wait_until_answered(service, kill * num_tasks // (NUM_KILLS + 2))
        faults.kill_gpu_child(service)
    for conversation_id, task_ids in tasks.items():
        answers = [service.ended(task_id, 120)["result"]["text"] for task_id in task_ids]
        expected: list[tuple[str, str]] = []
        for turn, answer in enumerate(answers):
            expected += [("user", f"Question {turn}?"), ("assistant", answer)]
        assert history(service, conversation_id) == expected


def wait_until_answered(service: RunningService, num_turns: int) -> None:
    """Until the newest conversations have more turns than that in all."""

    def are_answered() -> bool:
        body = service.http.get("/conversations", params={"limit": NUM_CONVERSATIONS}).json()
        num_messages = sum(each["message_count"] for each in body["results"])
        return bool(num_messages > 2 * num_turns)

    wait_for(are_answered, 120)


def test_next_turn_after_a_restart_computes_only_what_is_new(service: RunningService) -> None:
    prompt = " ".join(f"Fact {number} is as true as any other." for number in range(40))
    conversation_id = begin(service, system_prompt=prompt)
    first = service.ended(ask(service, conversation_id, "Say: strawberry", max_tokens=8))
    kept = service.var_dir / "kv"
    wait_for(lambda: bool(list(kept.glob("*.kv"))))
    os.kill(service.gpu_child(), signal.SIGKILL)
    second = service.ended(ask(service, conversation_id, "Say it.", max_tokens=8), 60)
    usage = second["result"]["usage"]
    assert usage["cached_tokens"] >= first["result"]["usage"]["total_tokens"] - 2
    service.http.delete(f"/conversations/{conversation_id}").raise_for_status()
    wait_for(lambda: not list(kept.glob("*.kv")))
