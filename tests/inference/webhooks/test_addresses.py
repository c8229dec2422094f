"""Where webhooks may go: addresses, and URLs as people and attackers write them."""

import socket
import threading
from collections.abc import Iterator
from ipaddress import ip_address
from typing import Any

import pytest
from django.core.checks import run_checks
from pytest_django import Settings
from rest_framework.test import APIClient

from inference.models import GenerationTask, RegisteredModel
from inference.webhooks import addresses, urls
from inference.webhooks.addresses import (
    Address,
    RefusedAddressError,
    UnresolvedHostError,
    is_public,
    literal,
)
from inference.webhooks.urls import RefusedUrlError, check, parse

PUBLIC = "93.184.216.34"
NOT_PUBLIC = [
    *("127.0.0.1", "127.255.255.254", "0.0.0.0", "10.0.0.1", "172.16.0.1", "172.31.255.255"),  # noqa: S104
    *("192.168.1.1", "169.254.169.254", "169.254.0.1", "100.64.0.1", "100.100.100.200"),
    *("192.0.0.1", "192.0.2.1", "192.88.99.1", "198.18.0.1", "198.19.255.255", "198.51.100.1"),
    *("203.0.113.1", "224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.255"),
    *("::", "::1", "fe80::1", "fec0::1", "fc00::1", "fd00:ec2::254", "ff02::1", "100::1"),
    *("2001:db8::1", "3fff::1", "2001::1", "2001:2::1", "2001:10::1", "5f00::1"),
    *("::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254", "::127.0.0.1"),
    *("64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::7f00:1"),
    *("2002:7f00:1::", "2002:a9fe:a9fe::1", "2002:5db8:d822::1"),
    *("2001:0:4136:e378:8000:63bf:3fff:fdd2",),
]


@pytest.fixture(autouse=True)
def _no_verdicts() -> Iterator[None]:
    urls._verdicts.clear()
    urls._waited_until = 0.0
    yield
    urls._verdicts.clear()


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """What the resolver knows; it counts what it is asked in the key `asked`."""
    known: dict[str, list[str]] = {"asked": []}

    def resolve(host: str, seconds: float) -> list[Address]:
        known["asked"].append(host)
        if host not in known:
            raise UnresolvedHostError(f"{host} does not resolve")
        return [ip_address(each) for each in known[host]]

    monkeypatch.setattr(addresses, "resolve", resolve)
    return known


def refusal(url: str) -> str:
    with pytest.raises(RefusedUrlError) as caught:
        check(url)
    return str(caught.value)


# Addresses


@pytest.mark.parametrize("address", NOT_PUBLIC)
def test_address_that_is_not_public_is_refused(address: str) -> None:
    assert not is_public(ip_address(address))
    host = f"[{address}]" if ":" in address else address
    assert "not public" in refusal(f"https://{host}/hook")


@pytest.mark.parametrize(
    "address",
    [
        *(PUBLIC, "8.8.8.8", "100.63.255.255", "172.32.0.1"),
        *("2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"),
    ],
)
def test_public_address_is_accepted(address: str) -> None:
    assert is_public(ip_address(address))
    check(f"https://[{address}]/hook" if ":" in address else f"https://{address}/hook")


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("2130706433", "127.0.0.1"),
        ("017700000001", "127.0.0.1"),
        ("0x7f000001", "127.0.0.1"),
        ("0177.0.0.1", "127.0.0.1"),
        ("0x7f.1", "127.0.0.1"),
        ("127.1", "127.0.0.1"),
        ("0", "0.0.0.0"),  # noqa: S104
        ("0xa9fea9fe", "169.254.169.254"),
        ("2852039166", "169.254.169.254"),
        ("10.1", "10.0.0.1"),
        ("134744072", "8.8.8.8"),
    ],
)
@pytest.mark.parametrize("dot", ["", "."])
def test_other_spelling_of_an_address_is_refused_as_what_it_means(
    written: str, meant: str, dot: str
) -> None:
    assert literal(written) == ip_address(meant)
    assert meant in refusal(f"https://{written}{dot}/hook")


@pytest.mark.parametrize("host", ["１２７.0.0.1", "127。0。0。1", "①②⑦.0.0.1"])  # noqa: RUF001
def test_address_in_other_digits_is_refused(host: str) -> None:
    assert "127.0.0.1" in refusal(f"https://{host}/hook")


# Names


def test_name_is_refused_for_any_address_that_is_not_public(names: dict[str, list[str]]) -> None:
    names |= {"good.example": [PUBLIC], "both.example": [PUBLIC, "2606:4700::1111", "10.0.0.1"]}
    check("https://good.example/hook")
    message = refusal("https://both.example/hook")
    assert "both.example leads to an address that is not public" in message
    assert "10.0.0.1" not in message


def test_name_that_does_not_resolve_is_refused(names: dict[str, list[str]]) -> None:
    assert "nowhere.example does not resolve" in refusal("https://nowhere.example/hook")


def test_names_of_this_machine_are_refused() -> None:
    assert "not public" in refusal("https://localhost/hook")
    assert "not public" in refusal("https://LOCALHOST./hook")


def test_name_is_looked_up_once_a_minute(
    names: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    names["good.example"] = [PUBLIC]
    for _ in range(3):
        check("https://good.example/hook")
        refusal("https://nowhere.example/hook")
    assert names["asked"] == ["good.example", "nowhere.example"]
    monkeypatch.setattr(urls, "_VERDICT_SECONDS", 0.0)
    urls._verdicts.clear()
    check("https://good.example/hook")
    check("https://good.example/hook")
    assert names["asked"][2:] == ["good.example", "good.example"]


def test_number_of_verdicts_is_bounded(
    names: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(urls, "_MAX_VERDICTS", 3)
    for number in range(10):
        refusal(f"https://name-{number}.example/hook")
    assert len(urls._verdicts) <= 3


def test_international_name_is_looked_up_in_ascii(names: dict[str, list[str]]) -> None:
    names["xn--bcher-kva.example"] = [PUBLIC]
    check("https://Bücher.example/hook")
    assert parse("https://Bücher.example/hook").host == "xn--bcher-kva.example"


def test_silent_name_server_holds_up_no_request_for_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    over, asked = threading.Event(), []

    def silent(host: str, *args: object, **kwargs: object) -> list[Any]:
        asked.append(host)
        over.wait(20)
        return []

    monkeypatch.setattr(socket, "getaddrinfo", silent)
    for number in range(100):
        check(f"https://name-{number // 2}.example/hook")
    # Each was asked for once, and the rest is looked up when it is sent to.
    assert 2 <= len(asked) <= 6
    assert asked == [f"name-{number}.example" for number in range(len(asked))]
    assert "not public" in refusal("https://10.0.0.1/hook")
    over.set()


def test_slow_look_up_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    over = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: over.wait(20) and [])
    with pytest.raises(UnresolvedHostError, match="not resolved in time"):
        addresses.resolve("slow.example", 0.05)
    over.set()


def test_resolver_gives_all_addresses() -> None:
    assert ip_address("127.0.0.1") in addresses.resolve("localhost", 5)


def test_resolver_says_that_a_name_is_unknown() -> None:
    with pytest.raises(UnresolvedHostError, match=r"nowhere\.invalid does not resolve"):
        addresses.resolve("nowhere.invalid", 20)


# URLs


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("", "must begin with https"),
        ("hook", "must begin with https"),
        ("//good.example/hook", "must begin with https"),
        ("ftp://good.example/hook", "must begin with https"),
        ("file:///etc/passwd", "must begin with https"),
        ("javascript:alert(1)", "must begin with https"),
        ("http://good.example/hook", "Use https"),
        ("https:///hook", "names no host"),
        ("https:good.example/hook", "names no host"),
        ("https://", "names no host"),
        ("https://.", "names no host"),
        ("https://good..example/", "names no host"),
        (f"https://{'a' * 64}.example/", "names no host"),
        (f"https://{'a.' * 127}example/", "names no host"),
        ("https://good.example%2e/", "names no host"),
        ("https://127.0.0.%31/", "names no host"),
        ("https://a;b.example/", "names no host"),
        ("https://[::1%25lo]/", "zone"),
        ("https://[fe80::1%eth0]/", "zone"),
        ("https://[::1", "no URL"),
        ("https://[nonsense]/", "no URL"),
        ("https://good.example:0/", "from 1 to 65535"),
        ("https://good.example:65536/", "no URL"),
        ("https://good.example:-1/", "no URL"),
        ("https://good.example:http/", "no URL"),
        ("https://user@good.example/", "user name"),
        ("https://user:word@good.example/", "user name"),
        ("https://good.example@127.0.0.1/", "user name"),
        ("https://good.example/#part", "fragment"),
        ("https://good.example/#", "fragment"),
        ("https://good.example#@127.0.0.1/", "fragment"),
        ("https://good.example\\@127.0.0.1/", "backslashes"),
        ("https://good.example/a b", "blanks"),
        ("https://good.example/\n", "control"),
        ("https://good.example/\r\nX: y", "control"),
        ("https://good\t.example/", "control"),
        ("https://good.example/\x00", "control"),
        ("https://good.example/\x7f", "control"),
        ("https://good.example/\u2028", "control"),
        ("https://good.example/\ud800", "control"),
        ("https://good\u200b.example/", "control"),
        ("https://good\u00ad.example/", "control"),
        (f"https://good.example/{'a' * 2048}", "2048"),
    ],
)
def test_url_that_is_no_webhook_is_refused(
    names: dict[str, list[str]], url: str, reason: str
) -> None:
    names["good.example"] = [PUBLIC]
    assert reason in refusal(url)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://Good.Example", ("https", "good.example", 443, "/")),
        ("HTTPS://good.example./a", ("https", "good.example", 443, "/a")),
        ("https://good.example?x=1", ("https", "good.example", 443, "/?x=1")),
        ("https://good.example:8443/a/%2F?q=a%20b&c", ("https", "good.example", 8443, "")),
        ("https://good.example:/", ("https", "good.example", 443, "/")),
        ("https://[2606:4700:0::1111]:1/", ("https", "2606:4700::1111", 1, "/")),
        ("https://good.example/ä?ö=ü", ("https", "good.example", 443, "/%C3%A4?%C3%B6=%C3%BC")),
    ],
)
def test_url_is_taken_apart(url: str, expected: tuple[str, str, int, str]) -> None:
    parsed = parse(url)
    scheme, host, port, target = expected
    assert (parsed.scheme, parsed.host, parsed.port) == (scheme, host, port)
    assert parsed.target == (target or "/a/%2F?q=a%20b&c")


@pytest.mark.parametrize(
    ("url", "authority"),
    [
        ("https://good.example/", "good.example"),
        ("https://good.example:443/", "good.example"),
        ("https://good.example:80/", "good.example:80"),
        ("https://[2606:4700::1111]/", "[2606:4700::1111]"),
        ("https://[2606:4700::1111]:8443/", "[2606:4700::1111]:8443"),
    ],
)
def test_host_header_has_the_port_that_is_not_the_usual_one(url: str, authority: str) -> None:
    assert parse(url).authority == authority


# Settings


def test_http_is_for_those_who_allow_it(settings: Settings, names: dict[str, list[str]]) -> None:
    names |= {"good.example": [PUBLIC], "bad.example": ["10.0.0.1"]}
    settings.WEBHOOK_ALLOW_HTTP = True
    check("http://good.example/hook")
    assert "not public" in refusal("http://bad.example/hook")


@pytest.mark.parametrize(
    ("entry", "allowed", "refused"),
    [
        ("127.0.0.1", "http://127.0.0.1:8080/", "http://127.0.0.2:8080/"),
        ("127.0.0.1:8080", "http://127.0.0.1:8080/", "http://127.0.0.1:8081/"),
        ("127.0.0.1:80", "http://127.0.0.1/", "https://127.0.0.1/"),
        ("::1", "http://[::1]:8080/", "http://[::2]:8080/"),
        ("[::1]:8080", "https://[::1]:8080/", "https://[::1]/"),
        ("Inside.Example", "https://inside.example/", "https://deep.inside.example/"),
        ("inside:8080", "http://INSIDE:8080/", "http://inside/"),
    ],
)
def test_allowed_host_is_exempt(
    settings: Settings, names: dict[str, list[str]], entry: str, allowed: str, refused: str
) -> None:
    settings.WEBHOOK_ALLOWED_HOSTS = ["other.example", entry]
    check(allowed)
    assert refusal(refused)
    assert not any("inside" in host and "deep" not in host for host in names["asked"])


def test_another_spelling_of_an_allowed_address_is_refused(settings: Settings) -> None:
    settings.WEBHOOK_ALLOWED_HOSTS = ["127.0.0.1"]
    assert "another spelling" in refusal("http://127.1/")


def ids() -> set[str | None]:
    return {message.id for message in run_checks()}


@pytest.mark.parametrize(
    "entry", ["http://a", "a/b", "a b", "a:x", "a:0", "a@b", "127.1", "", ":1"]
)
def test_allowed_host_that_is_none_is_told(settings: Settings, entry: str) -> None:
    settings.WEBHOOK_ALLOWED_HOSTS = ["a.example:80", entry]
    assert ids() == {"sopllm.E008"}


# Submission


@pytest.fixture
def submit(api: APIClient, echo: RegisteredModel) -> Any:
    def post(url: object) -> Any:
        body = {"model": "echo", "prompt": "a", "webhook_url": url}
        return api.post("/api/v1/tasks", body, format="json")

    return post


def test_good_url_is_part_of_the_task(submit: Any, names: dict[str, list[str]]) -> None:
    names["good.example"] = [PUBLIC]
    response = submit("https://good.example/hook?token=1")
    assert response.status_code == 201
    assert response.json()["webhook_url"] == "https://good.example/hook?token=1"


@pytest.mark.parametrize(
    "url",
    [
        *("https://10.0.0.1/", "https://nowhere.example/", "https://127.1/"),
        *("http://good.example/", "", "x", 5, ["https://good.example"]),
    ],
)
def test_bad_url_is_refused_by_its_field(
    submit: Any, names: dict[str, list[str]], url: object
) -> None:
    names["good.example"] = [PUBLIC]
    response = submit(url)
    assert response.status_code == 400
    body = response.json()
    assert body["error"] == "validation_error"
    assert "webhook_url" in body["details"]
    assert not GenerationTask.objects.exists()


def test_webhooks_need_a_secret(
    settings: Settings, submit: Any, names: dict[str, list[str]]
) -> None:
    names["good.example"] = [PUBLIC]
    settings.WEBHOOK_SECRETS = []
    response = submit("https://good.example/hook")
    assert response.status_code == 400
    assert "set WEBHOOK_SECRETS" in response.json()["message"] + str(response.json()["details"])
    assert submit(None).status_code == 201


def test_refused_address_is_told_apart_from_an_unknown_name(names: dict[str, list[str]]) -> None:
    names["inside.example"] = ["10.0.0.1"]
    with pytest.raises(RefusedAddressError):
        addresses.checked("inside.example", 1.0)
    assert addresses.checked("inside.example", 1.0, exempt=True) == [ip_address("10.0.0.1")]
    with pytest.raises(UnresolvedHostError):
        addresses.checked("nowhere.example", 1.0)
