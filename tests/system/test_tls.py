"""People and keys through nginx with TLS, as deploy/nginx.conf sets it up, in production."""

import re
import shutil
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import ConsoleMessage, Page, expect, sync_playwright
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from benchmarks.running_service import ROOT, RunningService, free_port, wait_for
from tests.certificates import Authority
from tests.system.test_page import CHROMIUM, FLAGS, LIMIT_MS, expect_end, submit

NGINX = shutil.which("nginx", path="/usr/sbin:/usr/bin") or ""
HOST = "localhost"
PASSWORD = "as long as it takes"
LONG_PROMPT = " ".join(f"word{number}" for number in range(20))

pytestmark = [
    pytest.mark.skipif(not NGINX, reason="nginx is not installed: apt-get install nginx-light"),
    pytest.mark.skipif(not CHROMIUM.exists(), reason="Chromium is not installed"),
]


class Site:
    """The service in production, behind nginx."""

    def __init__(self, folder: Path) -> None:
        self.port, self.plain_port = free_port(), free_port()
        self.url = f"https://{HOST}:{self.port}"
        self.service = RunningService(
            APP_ENV="production",
            SECRET_KEY=32 * "s",
            # The start-up looks at /readyz itself.
            ALLOWED_HOSTS=f"{HOST},127.0.0.1",
            CSRF_TRUSTED_ORIGINS="",
            TRUSTED_PROXIES="127.0.0.1",
        )
        authority = Authority(folder)
        authority.server_context(HOST)
        self.tls = ssl.create_default_context(cafile=authority.file)
        pem = str(folder / f"{HOST}.pem")
        text = (ROOT / "deploy" / "nginx.conf").read_text()
        for there, here in {
            "/etc/ssl/llm.example.pem": pem,
            "/etc/ssl/private/llm.example.key": pem,
            "llm.example": HOST,
            "/run/nginx.pid": str(folder / "nginx.pid"),
            "listen 443 ": f"listen 127.0.0.1:{self.port} ",
            "listen 80;": f"listen 127.0.0.1:{self.plain_port};",
            "127.0.0.1:8000": f"127.0.0.1:{self.service.port}",
        }.items():
            assert there in text, there
            text = text.replace(there, here)
        self.config = folder / "nginx.conf"
        self.config.write_text(text)
        self.key = ""

    def manage(self, *arguments: str) -> str:
        command = [sys.executable, "manage.py", *arguments]
        done = subprocess.run(
            command, cwd=ROOT, env=self.service.env, check=True, capture_output=True, text=True
        )
        return str(done.stdout).strip()

    def client(self, **headers: str) -> httpx.Client:
        return httpx.Client(
            base_url=self.url, verify=self.tls, headers=headers, timeout=30, trust_env=False
        )

    def with_key(self) -> httpx.Client:
        return self.client(Authorization=f"Bearer {self.key}")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    site = Site(tmp_path_factory.mktemp("tls"))
    nginx = [NGINX, "-c", str(site.config), "-e", "stderr", "-g", "daemon off;"]
    site.service.start("--no-demo")
    proxy = subprocess.Popen(nginx)
    try:
        site.key = site.manage(
            *("create_api_key", "anna", "--scopes", "tasks,monitor,admin", "--quiet")
        )
        users = (
            "from django.contrib.auth.models import User as U;"
            f"U.objects.create_superuser('root', password='{PASSWORD}');"
            f"U.objects.create_user('anna', password='{PASSWORD}')"
        )
        site.manage("shell", "-c", users)
        wait_for(lambda: is_up(site))
        with site.with_key() as client:
            body = {"name": "slow-echo", "provider": "echo", "config": {"delay_ms": 100}}
            client.post("/api/v1/models/register", json=body).raise_for_status()
        yield site
    finally:
        proxy.terminate()
        proxy.wait(10)
        site.service.close()


def is_up(site: Site) -> bool:
    try:
        with site.client() as client:
            return client.get("/healthz").status_code == 200
    except httpx.TransportError:
        return False


@pytest.fixture
def page(site: Site) -> Iterator[Page]:
    """A page of a browser that was never here; anything that it complains of fails the test."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        expect.set_options(timeout=LIMIT_MS)
        page = browser.new_context(ignore_https_errors=True).new_page()
        page.set_default_timeout(LIMIT_MS)
        complaints: list[str] = []
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda message: complain(message, complaints))
        yield page
        browser.close()
        assert not complaints


def complain(message: ConsoleMessage, complaints: list[str]) -> None:
    # The page knows refusals; ReDoc's logo from outside is to be blocked.
    if message.type == "error" and not re.search("status of 40|cdn.redoc.ly", message.text):
        complaints.append(message.text)


def sign_in(page: Page, site: Site, name: str, path: str = "/") -> None:
    page.goto(site.url + path)
    page.wait_for_url("**/login?next=*")
    page.fill("#id_username", name)
    page.fill("#id_password", PASSWORD)
    page.click("button[type=submit]")


def test_keys_and_nothing_else_open_the_api(site: Site) -> None:
    with site.client() as client:
        assert client.get("/api/v1/tasks").status_code == 401
    with site.with_key() as client:
        assert client.get("/api/v1/tasks").status_code == 200


def test_http_leads_to_https_which_browsers_remember(site: Site) -> None:
    response = httpx.get(f"http://{HOST}:{site.plain_port}/docs", trust_env=False)
    assert (response.status_code, response.headers["location"]) == (301, f"https://{HOST}/docs")
    with site.client() as client:
        response = client.get("/login")
    assert "max-age=31536000" in response.headers["strict-transport-security"]
    assert "Secure" in response.headers["set-cookie"]


def test_tokens_come_through_while_the_task_runs(site: Site) -> None:
    body = {"model": "slow-echo", "prompt": LONG_PROMPT}
    with site.with_key() as client:
        task = f"/api/v1/tasks/{client.post('/api/v1/tasks', json=body).json()['task_id']}"
        with client.stream("GET", f"{task}/stream") as stream:
            next(line for line in stream.iter_lines() if line == "event: token")
            assert client.get(task).json()["status"] == "processing"


def test_files_may_be_larger_than_other_bodies(site: Site) -> None:
    large = 12 * 1024 * 1024 * b"x"
    with site.with_key() as client:
        sent = client.post("/v1/files", data={"purpose": "batch"}, files={"file": ("f", large)})
        assert sent.json()["bytes"] == len(large)
        assert client.post("/api/v1/tasks", content=large).status_code == 413


def test_socket_opens_for_its_own_origin_alone(site: Site) -> None:
    def greeting(origin: str) -> str:
        address = f"wss://{HOST}:{site.port}/ws/monitor"
        headers = {"Authorization": f"Bearer {site.key}", "Origin": origin}
        with connect(
            address, ssl=site.tls, additional_headers=headers, proxy=None, compression=None
        ) as socket:
            return str(socket.recv(10))

    assert "connected" in greeting(site.url)
    others = (f"http://{HOST}:{site.port}", f"https://{HOST}", f"https://evil.test:{site.port}")
    for origin in others:
        with pytest.raises(InvalidStatus, match="403"):
            greeting(origin)


def test_user_sees_what_is_theirs(site: Site, page: Page) -> None:
    sign_in(page, site, "anna")
    expect(page.locator("#connection")).to_have_text("Live")
    expect(page.locator("#who")).to_have_text("Signed in as anna")
    expect(page.locator("#whose")).to_have_text("Tasks of anna")
    expect(page.get_by_role("heading", name="Service log")).to_be_hidden()
    expect(page.get_by_role("heading", name="GPUs and memory")).to_be_hidden()
    submit(page, "slow-echo", "one two three")
    expect_end(page, "completed")
    expect(page.locator("#answer")).to_have_text("one two three")
    page.click("#copy")
    expect(page.locator("#command")).to_contain_text('"Authorization: Bearer $SOPLLM_KEY"')
    page.click("#sign-out")
    page.wait_for_url("**/login?next=*")


def test_staff_see_all_panels_and_pages(site: Site, page: Page) -> None:
    sign_in(page, site, "root")
    expect(page.locator("#connection")).to_have_text("Live")
    expect(page.locator("#components li")).not_to_have_count(0)
    expect(page.locator("#log > li")).not_to_have_count(0)
    page.goto(f"{site.url}/docs")
    expect(page.locator(".opblock").first).to_be_visible()
    page.goto(f"{site.url}/redoc")
    expect(page.locator(".menu-content")).to_be_visible()
    page.goto(f"{site.url}/admin/access/apikey/add/")
    page.fill("#id_owner", "carol")
    page.click("[name=_save]")
    expect(page.locator(".messagelist")).to_contain_text("sopllm_")
    page.goto(f"{site.url}/admin/inference/registeredmodel/")
    expect(page.locator(".status-available").first).to_be_visible()


def test_browsable_api_submits_for_who_signed_in(site: Site, page: Page) -> None:
    sign_in(page, site, "anna", "/api/v1/conversations")
    expect(page.locator(".navbar-text")).to_have_text("anna")
    page.fill("textarea[name=_content]", '{"title": "no such field"}')
    page.get_by_role("button", name="POST").click()
    expect(page.locator(".response-info")).to_contain_text("HTTP 4")
    page.get_by_role("button", name="Log out").click()
    page.wait_for_url("**/login")


def test_key_of_the_docs_authorizes(site: Site, page: Page) -> None:
    page.goto(f"{site.url}/docs")
    page.get_by_role("button", name="Authorize").first.click()
    page.fill(".auth-container input", site.key)
    page.locator(".auth-btn-wrapper button[type=submit]").click()
    page.locator(".auth-btn-wrapper .btn-done").click()
    block = page.locator(".opblock", has_text="/api/v1/keys/me").first
    block.locator(".opblock-summary-control").click()
    block.get_by_role("button", name="Try it out").click()
    block.get_by_role("button", name="Execute").click()
    expect(block.locator(".live-responses-table")).to_contain_text('"owner": "anna"')
