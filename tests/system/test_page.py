"""The monitor page in a real browser, against the whole running service."""

import json
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import OpenAI
from playwright.sync_api import (
    Browser,
    BrowserContext,
    HttpCredentials,
    Page,
    Route,
    WebSocketRoute,
    expect,
    sync_playwright,
)

from benchmarks.running_service import (
    COUNTING,
    FLOWER_PASSWORD,
    FLOWER_USER,
    SMOLLM2,
    WEB,
    RunningService,
    wait_for,
)
from tests.system.conftest import ONE_AT_A_TIME

CHAT: Any = "/v1/chat/completions"
CHROMIUM = Path("/usr/bin/chromium")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
FLAGS += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
LIMIT_MS = 30_000
# The page's list of events holds this many.
MAX_EVENTS = 200
SIZES = {"phone": (360, 740), "wide": (1920, 1080)}
# A sentence that takes slow-echo, which says a word in 100 ms, some seconds.
LONG_PROMPT = " ".join(f"word{number}" for number in range(30))

# As NVML told it of a GPU at work.
GPU = {
    "index": 0,
    "node": "gpu-node-1",
    "name": "NVIDIA H100 80GB HBM3",
    "driver_version": "570.148.08",
    "cuda_version": "12.8",
    "compute_capability": "9.0",
    "total_mb": 81559,
    "used_mb": 20480,
    "free_mb": 61079,
    "used_percent": 25.1,
    "utilization_percent": 87,
    "temperature_c": 54,
    "power_w": 412.5,
    "is_locked": True,
    "current_task_id": None,
    "loaded_models": ["llama-3.1-8b"],
}

pytestmark = pytest.mark.skipif(
    not CHROMIUM.exists(), reason="Chromium is not installed: apt-get install chromium"
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        expect.set_options(timeout=LIMIT_MS)
        yield browser
        browser.close()


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    """A browser that was never here before."""
    with browser.new_context() as context:
        yield context


@pytest.fixture(scope="module")
def _context(browser: Browser) -> Iterator[BrowserContext]:
    """One that has the files of the page in its cache."""
    with browser.new_context() as context:
        yield context


@pytest.fixture
def page(_context: BrowserContext, service: RunningService) -> Iterator[Page]:
    """The page in a tab of its own, connected to the feed."""
    with opened(_context, service) as page:
        yield page


def opened(context: BrowserContext, service: RunningService) -> Page:
    page = context.new_page()
    page.set_default_timeout(LIMIT_MS)
    page.goto(f"{service.base_url}/")
    expect(page.locator("#connection")).to_have_text("Live")
    return page


def submit(page: Page, model: str, prompt: str, **fields: str) -> str:
    """Fill in the playground and submit; the task's id."""
    page.locator(f"#model option[value='{model}']").wait_for(state="attached")
    page.select_option("#model", model)
    page.fill("#prompt", prompt)
    for name, value in fields.items():
        page.locator(f"#{name}").evaluate(
            "field => field.closest('details')?.toggleAttribute('open', true)"
        )
        page.fill(f"#{name}", value)
    page.press("#prompt", "Control+Enter")
    page.wait_for_url(re.compile("#task=task_"))
    return page.url.partition("#task=")[2]


def expect_end(page: Page, state: str) -> None:
    expect(page.locator("#answer-state")).to_have_text(state)


def shown_events(page: Page) -> list[dict[str, Any]]:
    """The events on the page, oldest first."""
    script = "items => items.map(({dataset}) => ({seq: Number(dataset.seq), type: dataset.type}))"
    shown: list[dict[str, Any]] = page.locator("#events > li").evaluate_all(script)
    return shown[::-1]


def logged_events(service: RunningService, after: int) -> list[dict[str, Any]]:
    """The same from the service."""
    answer = service.http.get("/monitor/events", params={"after": after, "limit": 1000}).json()
    return [{"seq": event["seq"], "type": event["type"]} for event in answer["events"]]


def test_submitted_prompt_streams_in_and_completes(page: Page, service: RunningService) -> None:
    task_id = submit(page, SMOLLM2, "Tell me about the sea.", max_tokens="60", temperature="0")
    expect(page.locator("#answer")).to_have_text(re.compile(r"\w+ \w+"))
    assert service.task(task_id)["status"] in ("processing", "completed")
    expect_end(page, "completed")
    text = service.task(task_id)["result"]["text"]
    expect(page.locator("#answer")).to_have_text(text)
    expect(page.locator("#answer-tokens")).to_have_text("60")
    expect(page.locator("#answer-rate")).to_have_text(re.compile(r"^[\d.]+$"))
    expect(page.locator(f"#recent tr[data-task={task_id}] .badge")).to_have_text("completed")


def test_running_task_is_shown_with_its_growing_text(page: Page, service: RunningService) -> None:
    task_id = service.submit(model="slow-echo", prompt=LONG_PROMPT)
    text = page.locator(f"#running > li[data-task={task_id}] pre")
    expect(text).to_contain_text("word2 word3")
    expect(text).to_contain_text("word9 word10")
    service.http.post(f"/tasks/{task_id}/cancel").raise_for_status()
    expect(text).to_have_count(0)


def test_cancel_in_mid_stream_keeps_the_text(page: Page, service: RunningService) -> None:
    task_id = submit(page, "slow-echo", LONG_PROMPT)
    expect(page.locator("#answer")).to_contain_text("word3")
    page.click("#cancel")
    expect_end(page, "cancelled")
    kept = service.task(task_id)["result"]["text"]
    assert kept.startswith("word0 word1 word2 word3")
    assert len(kept) < len(LONG_PROMPT)
    expect(page.locator("#answer")).to_have_text(kept)
    expect(page.locator("#cancel")).to_be_disabled()


def test_reload_in_mid_stream_shows_the_whole_text(page: Page, service: RunningService) -> None:
    task_id = submit(page, "slow-echo", LONG_PROMPT)
    expect(page.locator("#answer")).to_contain_text("word5")
    page.reload()
    expect(page.locator("#answer")).to_contain_text("word0 word1 word2")
    assert service.task(task_id)["status"] == "processing"
    expect_end(page, "completed")
    expect(page.locator("#answer")).to_have_text(service.task(task_id)["result"]["text"])
    assert page.input_value("#prompt") == LONG_PROMPT


def test_text_of_a_lost_worker_is_replaced(page: Page, service: RunningService) -> None:
    task_id = submit(page, SMOLLM2, COUNTING["prompt"], max_tokens="150", temperature="0")
    expect(page.locator("#answer")).to_have_text(re.compile(r"\S+\s+\S+\s+\S+"))
    os.kill(service.gpu_child(), signal.SIGKILL)
    task = service.ended(task_id, 60)
    expect_end(page, "completed")
    assert task["attempt"] == 2
    expect(page.locator("#answer")).to_have_text(task["result"]["text"])


def test_page_outlives_a_restart_of_the_server(page: Page, service: RunningService) -> None:
    service.ended(service.submit(model="echo", prompt="before"))
    task_id = submit(page, "slow-echo", LONG_PROMPT)
    expect(page.locator("#answer")).to_contain_text("word2")
    before = logged_events(service, after=0)[-1]["seq"]

    for pid in service.pids(WEB):
        os.kill(pid, signal.SIGKILL)
    expect(page.locator("#connection")).to_have_text(re.compile("lost|No connection"))
    wait_for(lambda: answers(service))
    # While the page is on its way back, things happen.
    tasks = [service.submit(model="echo", prompt="meanwhile") for _ in range(5)]
    expect(page.locator("#connection")).to_have_text("Live")

    expect_end(page, "completed")
    expect(page.locator("#answer")).to_have_text(service.task(task_id)["result"]["text"])
    for each in tasks:
        expect(page.locator(f"#recent tr[data-task={each}] .badge")).to_have_text("completed")
    # Processes tell their events each for itself: that a task was queued may come after its end.
    wait_for(
        lambda: (
            shown_events(page) == logged_events(service, after=before - MAX_EVENTS)[-MAX_EVENTS:]
        )
    )


def answers(service: RunningService) -> bool:
    try:
        return service.http.get("/models").status_code == 200
    except httpx.TransportError:
        return False


def test_error_stands_at_the_field_it_names(page: Page) -> None:
    page.locator("#model option[value='echo']").wait_for(state="attached")
    page.get_by_text("Sampling", exact=True).click()
    page.fill("#temperature", "7")
    page.click("#submit")
    expect(page.locator("#temperature-error")).to_contain_text("2")
    expect(page.locator("#temperature")).to_have_attribute("aria-invalid", "true")
    expect(page.locator("#temperature")).to_be_focused()


def test_schema_is_checked_here_and_by_the_service(page: Page) -> None:
    page.locator(f"#model option[value='{SMOLLM2}']").wait_for(state="attached")
    page.select_option("#model", SMOLLM2)
    page.get_by_text("JSON Schema", exact=True).click()
    page.fill("#schema", '{"type": ')
    expect(page.locator("#schema-error")).to_contain_text("This is no JSON")
    page.fill("#schema", '{"type": "no such type"}')
    expect(page.locator("#schema-error")).to_be_empty()
    page.click("#submit")
    expect(page.locator("#schema-error")).to_contain_text("The schema cannot be used. #/type")
    expect(page.locator("#schema")).to_be_focused()


def test_sample_schema_gives_an_answer_that_fits(page: Page, service: RunningService) -> None:
    page.get_by_text("JSON Schema", exact=True).click()
    page.click("#schema-sample")
    task_id = submit(page, SMOLLM2, "Describe a film.", max_tokens="200")
    expect_end(page, "completed")
    result = service.task(task_id)["result"]
    assert set(result["parsed"]) == {"title", "year", "tags"}
    assert json.loads(page.locator("#answer").text_content() or "") == result["parsed"]


def test_report_opens_from_the_list_and_by_its_address(
    context: BrowserContext, service: RunningService
) -> None:
    page = opened(context, service)
    task_id = service.submit(model="echo", prompt="said <b>back</b>")
    service.ended(task_id)
    page.click(f"#recent tr[data-task={task_id}] a")
    expect(page.locator("#report-title")).to_contain_text(task_id)
    expect(page.locator("#report-body")).to_contain_text("said <b>back</b>")
    expect(page.locator("#report-body")).to_contain_text("Attempt 1 completed")
    address = page.url
    page.keyboard.press("Escape")
    expect(page.locator("#report")).to_be_hidden()
    other = context.new_page()
    other.goto(address)
    expect(other.locator("#report-title")).to_contain_text(task_id)


def test_ended_task_is_requeued_from_its_report(page: Page, service: RunningService) -> None:
    task_id = service.submit(model=SMOLLM2, prompt="Hello", max_tokens=8)
    service.ended(task_id)
    page.goto(f"{service.base_url}/#report={task_id}")
    body = page.locator("#report-body")
    expect(body).to_contain_text("GPU time")
    expect(body).to_contain_text("model_sha256")
    expect(page.locator("#report-export")).to_have_attribute(
        "href", f"/api/v1/tasks/{task_id}/export"
    )
    button, link = page.locator("#report-requeue"), page.locator("#report-requeued a")
    button.press("Enter")
    expect(link).to_have_text(re.compile("^task_"))
    expect(link).to_be_focused()
    expect(button).to_be_hidden()
    made = link.text_content() or ""
    assert service.ended(made)["requeued_from"] == task_id
    link.press("Enter")
    expect(page.locator("#report-title")).to_contain_text(made)
    expect(page.locator("#report-requeued")).to_be_empty()
    expect(body).to_contain_text("Requeued from")


def test_requeue_that_is_refused_says_why(page: Page, service: RunningService) -> None:
    task_id = service.submit(model="echo", prompt="once")
    service.ended(task_id)
    page.goto(f"{service.base_url}/#report={task_id}")
    expect(page.locator("#report-requeue")).to_be_visible()
    made = service.http.post(f"/tasks/{task_id}/requeue").json()["task_id"]
    page.click("#report-requeue")
    expect(page.locator("#report-error")).to_contain_text("requeued already")
    service.ended(made)
    page.reload()
    expect(page.locator("#report-body")).to_contain_text("Requeued as")
    expect(page.locator("#report-requeue")).to_be_hidden()


def test_report_of_a_running_task_offers_no_requeue(page: Page, service: RunningService) -> None:
    task_id = service.submit(model="slow-echo", prompt=LONG_PROMPT)
    page.goto(f"{service.base_url}/#report={task_id}")
    expect(page.locator("#report-body")).to_contain_text("word29")
    expect(page.locator("#report-requeue")).to_be_hidden()
    service.http.post(f"/tasks/{task_id}/cancel").raise_for_status()


def test_dry_run_says_what_would_become_of_a_task(page: Page, service: RunningService) -> None:
    page.locator(f"#model option[value='{SMOLLM2}']").wait_for(state="attached")
    page.select_option("#model", SMOLLM2)
    page.fill("#prompt", "What is the sea?")
    page.fill("#max_tokens", "20")
    newest = service.http.get("/tasks?limit=1").json()["results"]
    page.press("#dry-run", "Enter")
    verdict, figures = page.locator("#dry-run-verdict"), page.locator("#dry-run-figures")
    expect(verdict).to_have_text("It would be accepted.")
    expect(figures).to_contain_text(re.compile(r"Prompt tokens(about )?\d+ of 2,048"))
    for told in ("Max. tokens20", "Messages dropped0", "Queuegpu, 0 before it", "Expected start"):
        expect(figures).to_contain_text(told)
    expect(figures).to_contain_text(re.compile("Model(in memory|would be loaded)"))
    assert service.http.get("/tasks?limit=1").json()["results"] == newest
    page.fill("#prompt", "Another one")
    expect(verdict).to_be_empty()
    expect(figures).to_be_empty()


def test_dry_run_says_what_would_refuse_it(page: Page) -> None:
    page.locator("#model option[value='echo']").wait_for(state="attached")
    page.select_option("#model", "echo")
    page.get_by_text("Sampling", exact=True).click()
    page.fill("#temperature", "7")
    page.click("#dry-run")
    verdict = page.locator("#dry-run-verdict")
    expect(verdict).to_contain_text("It would be refused (400)")
    expect(page.locator("#temperature-error")).to_contain_text("2")
    expect(page.locator("#temperature")).to_be_focused()
    expect(page.locator("#dry-run-figures")).to_be_empty()

    limit = {"limit": "max_pending_tasks"}
    refusal = {"status": 429, "body": {"message": "Wait for some of them.", "details": limit}}
    told = {"is_accepted": False, "refusal": refusal}

    def refuse(route: Route) -> None:
        body = route.fetch().json()
        route.fulfill(json=body | told)

    page.fill("#temperature", "1")
    page.route("**/api/v1/tasks?dry_run=true", refuse)
    page.click("#dry-run")
    expect(verdict).to_have_text(
        "It would be refused by the limit max_pending_tasks (429): Wait for some of them."
    )
    expect(page.locator("#dry-run-figures")).to_contain_text("api, 0 before it")


def test_models_are_loaded_and_unloaded(page: Page, service: RunningService) -> None:
    line = page.locator(f"#models > li[data-model='{SMOLLM2}']")
    button, state = line.get_by_role("button"), line.locator(".badge")
    if service.model(SMOLLM2)["loaded"]:
        button.click()
        expect(state).to_have_text("available")
    button.click()
    expect(state).to_have_text("loaded")
    button.click()
    expect(state).to_have_text("available")
    assert not service.model(SMOLLM2)["loaded"]


def test_batch_shows_its_progress_and_is_cancelled(page: Page, service: RunningService) -> None:
    chat = {"model": "slow-echo", "messages": [{"role": "user", "content": "one two"}]}
    client = OpenAI(base_url=f"{service.base_url}/v1", api_key="unused")
    lines = [
        json.dumps({"custom_id": str(n), "method": "POST", "url": CHAT, "body": chat})
        for n in range(5000)
    ]
    file = client.files.create(file=("a.jsonl", "\n".join(lines).encode()), purpose="batch")
    batch = client.batches.create(input_file_id=file.id, endpoint=CHAT, completion_window="24h")
    line = page.locator(f"#batches > li[data-batch={batch.id}]")
    expect(line.locator(".badge")).to_have_text("in progress")
    expect(line.locator(".about")).to_have_text(re.compile(f"^[1-9][0-9]* of 5,000, {CHAT}"))
    assert float(line.locator("meter").evaluate("meter => meter.value")) > 0
    line.get_by_role("button").click()
    expect(line.locator(".badge")).to_have_text("cancelled")
    expect(line.locator(".about")).to_contain_text("5,000 of 5,000")
    expect(line.get_by_role("button")).to_be_hidden()


def test_events_can_be_paused_and_filtered(page: Page, service: RunningService) -> None:
    page.click("#events-pause")
    last = [service.submit(model="echo", prompt="hello") for _ in range(2)][-1]
    service.ended(last)
    expect(page.locator("#events-pause")).to_have_text(re.compile(r"\d+ new"))
    assert not page.locator(f"#events a[href='#report={last}']").count()
    page.click("#events-pause")
    expect(page.locator(f"#events a[href='#report={last}']")).to_have_count(3)
    page.get_by_label("started", exact=True).uncheck()
    expect(page.locator(f"#events a[href='#report={last}']")).to_have_count(2)


def test_page_says_what_is_up(page: Page) -> None:
    expect(page.locator("#health")).to_have_text(re.compile("Healthy|Degraded"))
    expect(page.locator("#queues tr")).to_have_count(4)
    expect(page.locator("#components li")).not_to_have_count(0)
    expect(page.locator("#gpu-none")).to_be_visible()
    expect(page.locator("#memory meter")).not_to_have_count(0)
    expect(page.locator("#log > li")).not_to_have_count(0)
    expect(page.locator(".chart canvas")).to_have_count(2)


def test_gpu_is_shown_with_its_readings(context: BrowserContext, service: RunningService) -> None:
    def with_gpu(text: str) -> str:
        message = json.loads(text)
        if message["type"] == "gpu_stats":
            message["data"] = {"available": True, "gpus": [GPU]}
        return json.dumps(message)

    def pass_on(socket: WebSocketRoute) -> None:
        server = socket.connect_to_server()
        server.on_message(lambda text: socket.send(with_gpu(str(text))))

    context.route_web_socket(re.compile("/ws/monitor"), pass_on)
    page = opened(context, service)
    gpu = page.locator("#gpus > .gpu")
    expect(gpu).to_contain_text("NVIDIA H100 80GB HBM3")
    expect(gpu).to_contain_text("20 GB of 79.6 GB in use, 87 % busy, 54 °C, 413 W, working")
    expect(gpu).to_contain_text("llama-3.1-8b")
    expect(gpu.locator("canvas")).to_be_visible()
    expect(page.locator("#gpu-none")).to_be_hidden()
    expect(page.locator("#tile-memory")).to_have_text("20 GB of 79.6 GB")


def test_download_is_shown_as_it_comes(context: BrowserContext, service: RunningService) -> None:
    def progress(status: str, downloaded_mb: int) -> dict[str, Any]:
        num_bytes = downloaded_mb * 1024**2
        share = {"downloaded_bytes": num_bytes, "total_bytes": 100 * 1024**2}
        return {"status": status, **share, "bytes_per_second": 5 * 1024**2}

    model = service.model(SMOLLM2) | {"name": "on-its-way", "loaded": False}
    model |= {"status": "downloading", "download": progress("downloading", 10)}
    sockets: list[WebSocketRoute] = []

    def pass_on(socket: WebSocketRoute) -> None:
        socket.connect_to_server()
        sockets.append(socket)

    def tell(data: dict[str, Any]) -> None:
        message = {"type": "model.download_progress", "data": {"model": model["name"], **data}}
        sockets[-1].send(json.dumps(message))

    context.route_web_socket(re.compile("/ws/monitor"), pass_on)
    context.route("**/api/v1/models?*", lambda route: route.fulfill(json={"models": [model]}))
    page = opened(context, service)
    row = page.locator("[data-model=on-its-way]")
    expect(row).to_contain_text("10 MB of 100 MB")
    expect(row.get_by_role("button")).to_be_disabled()
    expect(page.locator("#model option")).to_have_count(0)
    tell(progress("downloading", 20))
    expect(row).to_contain_text("20 MB of 100 MB at 5 MB/s")
    model |= {"status": "available", "download": None}
    tell(progress("available", 100))
    expect(row.get_by_role("button")).to_be_enabled()
    expect(row).not_to_contain_text("100 MB of")
    expect(page.locator("#model option")).to_have_text(["on-its-way"])


def row_of_flower(page: Page, address: str, queue: str) -> str:
    """Of the table as it is now: the page does not follow what changes."""
    page.goto(address)
    rows = page.get_by_role("row", name=re.compile(queue))
    return rows.inner_text() if rows.count() else ""


def test_flower_shows_how_many_messages_wait(
    browser: Browser, page: Page, service: RunningService
) -> None:
    """Of all priorities; the page links to it."""
    prompts = [(1, "first"), (50, "second"), (90, "third")]
    tasks = [service.submit(**{**COUNTING, "model": ONE_AT_A_TIME, "priority": 1})]
    service.generating(tasks[0])
    tasks += [
        service.submit(prompt=prompt, model=ONE_AT_A_TIME, priority=priority)
        for priority, prompt in prompts
    ]
    address = f"{page.get_attribute('#flower', 'href')}broker"
    password = HttpCredentials(username=FLOWER_USER, password=FLOWER_PASSWORD)
    with browser.new_context(http_credentials=password) as context:
        flower = context.new_page()
        wait_for(lambda: "3" in row_of_flower(flower, address, "gpu"))
    for task_id in tasks:
        service.http.post(f"/tasks/{task_id}/cancel").raise_for_status()


def test_curl_command_is_the_request(context: BrowserContext, service: RunningService) -> None:
    page = opened(context, service)
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.fill("#prompt", "it's here")
    page.click("#copy")
    expect(page.locator("#copied")).to_have_text("Copied.")
    command = page.evaluate("navigator.clipboard.readText()")
    assert command.startswith("curl -X POST 'http://127.0.0.1")
    assert "it'\\''s here" in command


def test_page_is_quiet_and_stays_on_its_origin(
    context: BrowserContext, service: RunningService
) -> None:
    addresses: list[str] = []
    complaints: list[str] = []
    context.on("request", lambda request: addresses.append(request.url))
    context.on("console", lambda message: complaints.append(message.text))
    context.on("weberror", lambda error: complaints.append(str(error.error)))
    page = opened(context, service)
    submit(page, "echo", "hello")
    expect_end(page, "completed")
    page.click("#answer-report")
    expect(page.locator("#report-body")).to_contain_text("hello")
    assert not complaints
    assert len(addresses) > 20
    assert not [each for each in addresses if not each.startswith(f"{service.base_url}/")]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_can_be_read_at_every_size_in_both_themes(
    browser: Browser, service: RunningService, size: str, scheme: Any
) -> None:
    width, height = SIZES[size]
    with browser.new_context(
        viewport={"width": width, "height": height}, color_scheme=scheme
    ) as context:
        page = opened(context, service)
        submit(page, "echo", "a-very-long-word" * 40)
        expect_end(page, "completed")
        page.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate(UNNAMED) == []
        assert page.evaluate(PALE) == []


def test_theme_is_remembered(context: BrowserContext, service: RunningService) -> None:
    page = opened(context, service)
    before = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.click("#theme")
    after = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert after != before
    page.reload()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == after


# Controls without a name that a screen reader could say.
UNNAMED = """[...document.querySelectorAll("button, input, select, textarea, a, meter")]
  .filter((each) => !each.closest("[hidden], dialog:not([open])"))
  .filter((each) => !(each.labels?.length || each.getAttribute("aria-label")
    || (each.textContent.trim() && !["SELECT", "TEXTAREA"].includes(each.tagName))))
  .map((each) => each.outerHTML)"""
# Texts whose contrast to what is behind them is below 4.5 : 1.
PALE = """(() => {
  const channels = (color) => color.match(/[\\d.]+/g).map(Number);
  const linear = (c) => (c /= 255) <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
  const behind = (node) => {
    for (let each = node; each; each = each.parentElement) {
      const color = channels(getComputedStyle(each).backgroundColor);
      if (color.length === 3 || color[3] === 1) return color;
    }
  };
  const isPale = (node) => {
    const [a, b] = [channels(getComputedStyle(node).color), behind(node)].map(light);
    return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05) < 4.5;
  };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const found = new Set();
  while (walker.nextNode()) {
    const node = walker.currentNode.parentElement;
    const isSeen = node.checkVisibility() && walker.currentNode.data.trim();
    if (isSeen && !node.closest(":disabled, option, noscript") && isPale(node)) {
      found.add(`${node.tagName}.${node.className}: ${node.textContent.slice(0, 40)}`);
    }
  }
  return [...found];
})()"""
