"""The monitor page as it is served: what it loads, and what it allows itself."""

import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
from django.conf import settings
from django.contrib.staticfiles import finders
from django.test import Client

STATIC = Path(settings.BASE_DIR) / "monitoring" / "static" / "monitoring"
MODULES = sorted((STATIC / "js").glob("*.js"))
STYLES = sorted((STATIC / "css").glob("*.css"))


class Page(HTMLParser):
    """The elements of a page, with their attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.scripts = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_data(self, data: str) -> None:
        if self.elements and self.elements[-1][0] in ("script", "style"):
            self.scripts += data.strip()

    def attributes(self, *tags: str) -> list[dict[str, str]]:
        return [attributes for tag, attributes in self.elements if tag in tags]


@pytest.fixture
def page(client: Client) -> Page:
    return Page(client.get("/").content.decode())


def test_page_allows_nothing_from_elsewhere(client: Client) -> None:
    response = client.get("/")
    assert response.status_code == 200
    assert response["Content-Type"].startswith("text/html")
    policy = response["Content-Security-Policy"]
    assert "default-src 'self'" in policy.split("; ")
    assert "unsafe" not in policy
    assert "http" not in policy


def test_page_has_nothing_that_its_policy_forbids(page: Page) -> None:
    assert page.scripts == ""
    for _, attributes in page.elements:
        assert "style" not in attributes
        assert not [name for name in attributes if name.startswith("on")]


def test_everything_the_page_loads_is_here(page: Page) -> None:
    loaded = [each["src"] for each in page.attributes("script", "img")]
    loaded += [each["href"] for each in page.attributes("link")]
    assert len(loaded) > 5
    for address in loaded:
        assert address.startswith("/static/"), address
        assert finders.find(address.removeprefix("/static/")), address


def test_every_field_has_a_label(page: Page) -> None:
    labelled = {each.get("for") for each in page.attributes("label")}
    fields = page.attributes("input", "select", "textarea")
    inside_a_label = {"log-level"}
    assert len(fields) > 10
    assert {each["id"] for each in fields} <= labelled | inside_a_label


def test_page_holds_no_name_twice(page: Page) -> None:
    names = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(names) == len(set(names))


def test_references_between_elements_hold(page: Page) -> None:
    names = {attributes.get("id") for _, attributes in page.elements}
    for _, attributes in page.elements:
        for name in ("for", "aria-describedby", "aria-labelledby"):
            assert set(attributes.get(name, "").split()) <= names, attributes


@pytest.mark.parametrize("module", MODULES, ids=lambda path: path.name)
def test_modules_import_modules_that_are_here(module: Path) -> None:
    source = module.read_text()
    imported = re.findall(r"^import .*?from \"(.+)\";|^import \"(.+)\";", source, re.MULTILINE)
    for name in (first or second for first, second in imported):
        assert (module.parent / name).is_file(), name


@pytest.mark.parametrize("module", MODULES, ids=lambda path: path.name)
def test_modules_make_no_markup_from_text(module: Path) -> None:
    source = module.read_text()
    for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
        assert word not in source


def test_modules_name_only_elements_that_the_page_has(page: Page) -> None:
    names = {attributes.get("id") for _, attributes in page.elements}
    for module in MODULES:
        for name in re.findall(r"byId\(\"([\w-]+)\"\)", module.read_text()):
            assert name in names, f"{module.name}: {name}"


@pytest.mark.skipif(not shutil.which("node"), reason="No node: apt-get install nodejs")
@pytest.mark.parametrize("module", MODULES, ids=lambda path: path.name)
def test_modules_are_valid(module: Path) -> None:
    command = ["node", "--check", "--input-type=module", "-"]
    subprocess.run(command, input=module.read_bytes(), check=True, timeout=30)


def test_styles_load_nothing() -> None:
    assert len(STYLES) > 2
    for style in STYLES:
        assert "url(" not in style.read_text()
        assert "@import" not in style.read_text()


def test_page_links_to_what_else_there_is(client: Client, page: Page) -> None:
    links = {each["href"] for each in page.attributes("a")}
    assert {"/docs", "/redoc", "/api/v1/", "/metrics", "/admin/"} <= links
    assert f"http://127.0.0.1:{settings.FLOWER_PORT}/" in links
