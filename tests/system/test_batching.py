"""Many sequences at a time on real weights, through the API."""

from typing import Any

from benchmarks import faults
from benchmarks.running_service import COUNTING, SMOLLM2, RunningService, wait_for
from tests.system.test_faults import assert_completed_once

GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 24}
QUESTIONS = [
    "What is the capital of France?",
    "Name three colours.",
    "Why is the sky blue?",
    "Write a haiku about rain.",
    "How many legs has a spider?",
    "Count from one to twenty in words.",
    "What do bees make?",
    "Tell me a short story about a robot.",
]


def text(task: dict[str, Any]) -> str:
    assert task["status"] == "completed", task["error"]
    return str(task["result"]["text"])


def submit_together(service: RunningService, *tasks: dict[str, Any]) -> list[str]:
    """In one transaction, so that they can only run together."""
    response = service.http.post(
        "/tasks/batch", json=[{"model": SMOLLM2, **task} for task in tasks]
    )
    assert response.status_code == 201, response.text
    return [task["task_id"] for task in response.json()]


def num_running(service: RunningService) -> int:
    return len(service.http.get("/tasks", params={"status": "processing"}).json()["results"])


def test_eight_tasks_together_give_the_texts_that_each_gives_alone(service: RunningService) -> None:
    together = submit_together(service, *({**GREEDY, "prompt": each} for each in QUESTIONS))
    texts = [text(service.ended(task_id)) for task_id in together]
    alone = [text(service.ended(service.submit(each, **GREEDY))) for each in QUESTIONS]
    assert texts == alone
    assert len(set(texts)) == len(texts)


def test_second_turn_reuses_the_first(service: RunningService) -> None:
    system = {"role": "system", "content": "You are a guide. " + "Be polite and brief. " * 20}
    first = [system, {"role": "user", "content": "What is the capital of Italy?"}]
    submitted = service.http.post("/tasks", json={"model": SMOLLM2, "messages": first, **GREEDY})
    answer = service.ended(submitted.json()["task_id"])
    second = [
        *first,
        {"role": "assistant", "content": text(answer)},
        {"role": "user", "content": "And of Spain?"},
    ]
    submitted = service.http.post("/tasks", json={"model": SMOLLM2, "messages": second, **GREEDY})
    usage = service.ended(submitted.json()["task_id"])["result"]["usage"]
    assert usage["cached_tokens"] >= answer["result"]["usage"]["prompt_tokens"]
    assert usage["cached_tokens"] < usage["prompt_tokens"]


def test_system_prompt_of_many_tasks_is_computed_once(service: RunningService) -> None:
    system = {"role": "system", "content": "You know all about numbers. " * 25}
    tasks = [
        {"messages": [system, {"role": "user", "content": f"Is {n} odd?"}], "max_tokens": 2}
        for n in range(8)
    ]
    usages = [
        service.ended(task_id)["result"]["usage"] for task_id in submit_together(service, *tasks)
    ]
    computed_anew = [usage["prompt_tokens"] - usage["cached_tokens"] for usage in usages]
    assert sum(num_tokens > 60 for num_tokens in computed_anew) <= 1


def test_child_killed_with_eight_sequences(service: RunningService) -> None:
    task = COUNTING | {"max_tokens": 60}
    task_ids = submit_together(service, *[task] * 8)
    wait_for(lambda: num_running(service) == 8)
    for task_id in task_ids:
        service.generating(task_id)
    faults.kill_gpu_child(service)
    assert_completed_once(service, task_ids)


def test_two_models_take_turns(service: RunningService) -> None:
    models = [SMOLLM2, "gemma-3-270m"] * 3
    fields = {"prompt": "The sun is", "max_tokens": 3, "temperature": 0}
    task_ids = submit_together(service, *({**fields, "model": model} for model in models))
    tasks = [service.ended(task_id, 60) for task_id in task_ids]
    assert [task["result"]["model"] for task in tasks] == models
    by_start = [task["model"] for task in sorted(tasks, key=lambda each: str(each["started_at"]))]
    # Within the swap window, tasks of the model that runs go first: one change and not five.
    assert by_start == sorted(by_start, key=by_start.index)
