"""Tries a running service from outside, with Python's standard library and curl alone.

register URL KEY         models whose files are in MODELS_DIR
examples URL KEY         each `curl` of the README; the tasks that it makes complete
load URL KEY --tasks N   N tasks, while others kill processes: each completes once
"""

import argparse
import json
import re
import shlex
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

README = Path(__file__).resolve().parent.parent / "README.md"
# Examples that need files, keys or a network of one's own.
NEED_MORE = re.compile(r"my-model|gpt-4o|\"gpt\"|qwen3-4b")
MODELS = [
    ("smollm2-135m-instruct", "local", {"model_path": "SmolLM2-135M-Instruct.Q4_1.gguf"}),
    ("all-minilm-l6-v2", "embedding", {"model_path": "all-minilm-l6-v2"}),
]
# A process that was killed is back in this time.
PATIENCE_SECONDS = 300


def curl(key: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """What the server answers; with a code other than 0 when that is an error, or nothing."""
    fixed = ("curl", "--silent", "--show-error", "--fail-with-body", "--max-time", "150")
    command = [*fixed, "--header", f"Authorization: Bearer {key}", *arguments]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)


def call(key: str, url: str, body: Any = None) -> Any:
    """The answer in JSON, of the first call that has one."""
    data = () if body is None else ("--json", json.dumps(body))
    limit = time.monotonic() + PATIENCE_SECONDS
    while (done := curl(key, *data, url)).returncode:
        if time.monotonic() > limit:
            sys.exit(f"{url}: no answer for {PATIENCE_SECONDS} s. The last: {done.stdout}")
        time.sleep(1)
    return json.loads(done.stdout)


def commands(text: str) -> Iterator[list[str]]:
    """The arguments of each `curl` in the console blocks of a text in Markdown."""
    for block in re.findall(r"^```console\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        for shown in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            lines = shown.splitlines()
            for end in range(1, len(lines) + 1):
                try:
                    words = shlex.split("\n".join(lines[:end]).replace("\\\n", " "))
                except ValueError:  # a quotation goes on in the next line
                    continue
                if not lines[end - 1].endswith("\\"):
                    break
            if words[0] == "curl" and not NEED_MORE.search(shown):
                yield words[1:]


def wait_for_end(url: str, key: str, task_id: str) -> Any:
    """The task, once it has ended; one that takes ten minutes as it is."""
    for _ in range(20):
        task = call(key, f"{url}/api/v1/tasks/{task_id}?wait=30")
        if task["status"] in {"completed", "failed", "cancelled"}:
            break
    return task


def run_examples(url: str, key: str) -> None:
    made = {"task": "", "conv": ""}
    for arguments in commands(README.read_text(encoding="utf-8")):
        told = [
            re.sub(r"(task|conv)_\w+…", lambda name: made[name[1]], each).replace(
                "localhost:8000", url
            )
            for each in arguments
        ]
        print("$ curl", shlex.join(told), flush=True)
        done = curl(key, *told)
        text = done.stdout
        print(text[:300], flush=True)
        if done.returncode:
            sys.exit(f"curl ended with {done.returncode}.")
        answer = json.loads(text) if text.startswith("{") else {}
        if "conversation_id" in answer and "task_id" not in answer:
            made["conv"] = answer["conversation_id"]
        if answer.get("status") == "pending":
            made["task"] = answer["task_id"]
            task = wait_for_end(url, key, made["task"])
            if task["status"] != "completed":
                sys.exit(f"Not completed: {task}")


def put_load(url: str, key: str, num_tasks: int) -> None:
    """Submit tasks for some time, and wait for them. Repeated submissions have the same key."""
    run = uuid.uuid4().hex
    ids = []
    for number in range(num_tasks):
        body = {
            "model": MODELS[0][0],
            "prompt": f"Count from {number} to 1000.",
            "max_tokens": 48,
            "idempotency_key": f"{run}-{number}",
        }
        ids.append(call(key, f"{url}/api/v1/tasks", body)["task_id"])
        time.sleep(0.5)
    if len(set(ids)) != num_tasks:
        sys.exit("Two submissions were given one task.")
    attempts = 0
    for task_id in ids:
        task = wait_for_end(url, key, task_id)
        report = call(key, f"{url}/api/v1/tasks/{task_id}/report")
        succeeded = [each for each in report["attempts"] if each["outcome"] == "completed"]
        attempts += len(report["attempts"])
        if task["status"] != "completed" or len(succeeded) != 1:
            sys.exit(f"Not completed once: {report}")
    print(f"{num_tasks} tasks: each completed once, in {attempts} attempts.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["register", "examples", "load"])
    parser.add_argument("url")
    parser.add_argument("key")
    parser.add_argument("--tasks", type=int, default=100)
    arguments = parser.parse_args()
    if arguments.what == "register":
        for name, provider, config in MODELS:
            body = {"name": name, "provider": provider, "config": config}
            call(arguments.key, f"{arguments.url}/api/v1/models/register", body)
    elif arguments.what == "examples":
        run_examples(arguments.url, arguments.key)
    else:
        put_load(arguments.url, arguments.key, arguments.tasks)


if __name__ == "__main__":
    main()
