"""Registering cloud models: what is refused, where keys are kept, and that nobody sees them."""

import json
import logging
import subprocess
import sys
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.core.serializers import serialize
from django.test import Client
from django.urls import reverse
from rest_framework.test import APIClient

from inference import encryption
from inference.errors import ErrorCode, InferenceError
from inference.models import RegisteredModel
from inference.providers import hosts
from inference.providers.api_keys import api_key_of
from monitoring.redis.client import client
from tests.inference.api.test_models import MODEL_FIELDS, MODELS, register
from tests.inference.api.test_tasks import assert_error

KEY = "sk-test-0123456789/abcdefghijklmnop+=="
SERVER = "http://127.0.0.1:8081/v1"
CLOUD = ("openai", "anthropic", "openai_compatible", "litellm")
NAMES = {
    "openai": "gpt-4o-mini",
    "anthropic": "claude-sonnet-4-5",
    "openai_compatible": "meta-llama/Llama-3.3-70B-Instruct",
    "litellm": "groq/llama-3.3-70b-versatile",
}
BAD: dict[str, list[Any]] = {
    "model_name": [
        *("", None, 201 * "x", "a b", "ä", "x\ty", "a\nb", "/gpt", "gpt/", "a//b", "/", "a\0b"),
        {"a": 1},
    ],
    "api_key": [
        *("", " ", "a b", "a\tb", "a\0b", "schlüssel", None, 4097 * "k", "a\nb", "a\x7fb"),
        *(["k"], {"k": 1}),
    ],
    "api_key_env_var": [
        *("SECRET_KEY", "DATABASE_URL", "PATH", "", "_API_KEY", "XAPI_KEY", "openai_api_key"),
        *("OPENAI_API_KEY_2", "A B_API_KEY", "API_KEY", "SECRET_KEY\nX_API_KEY"),
        "LANGFUSE_SECRET_KEY",
    ],
    "base_url": [
        *("", "ftp://x", "x", "//x", "http://", "http:///v1", "http://u:p@x/v1", "http://k@x"),
        *("file:///etc/x", "http://x?a=b", "http://x/?", "http://x/#", "https:x", "http://x:port"),
        *("http://x:70000", "http://[::1", "/", "http://x y", "http://x\ty", "http://x\\y"),
        *("http://:8", f"http://{2100 * 'x'}", "http://ü.de", "http://x:0"),
    ],
    "timeout": [0, 0.5, 3601, "soon", None],
    "max_retries": [-1, 11, 1.5, "x"],
    "context_window": [0, 63, 10_000_001],
    "max_output_tokens": [0, 128_001],
    "drop_params": ["perhaps", None],
    "generation_params": [{"temperature": 3}, {"top": 1}, []],
    "api_base": [SERVER],
    "organization": ["org"],
}


def config_of(provider: str, **more: Any) -> dict[str, Any]:
    address = {"base_url": SERVER} if provider == "openai_compatible" else {}
    return {"model_name": NAMES[provider]} | address | more


def refused(api: APIClient, provider: str, field: str, **config: Any) -> str:
    """What the refusal says, which is all that is in the answer of what was given."""
    response = register(api, "x", provider, **config)
    assert_error(response, 400, "validation_error", f"config.{field}")
    assert not RegisteredModel.objects.exists()
    return str(response.json()["message"])


@pytest.mark.parametrize("provider", CLOUD)
def test_cloud_model_is_registered_with_its_config(api: APIClient, provider: str) -> None:
    config = config_of(
        provider,
        base_url="https://proxy.example.com:8443/openai/v1/",
        timeout=30.5,
        max_retries=0,
        context_window=128_000,
        max_output_tokens=4096,
        drop_params=True,
        generation_params={"temperature": 0.2, "max_tokens": 100},
    )
    response = register(api, "cloud", provider, **config, api_key=KEY)
    assert response.status_code == 201, response.json()
    body = response.json()
    assert set(body) == MODEL_FIELDS
    assert body["config"] == config
    assert (body["provider"], body["status"], body["loaded"]) == (provider, "available", False)
    assert (body["context_window"], body["max_output_tokens"]) == (128_000, 4096)
    assert (body["supports_streaming"], body["supports_structured_output"]) == (True, True)
    assert body["api_key_source"] == "registration"
    assert body["circuit"] == {"state": "closed", "failures": 0, "retry_at": None}
    assert api.get(f"{MODELS}/cloud").json() == body
    assert api.get(f"{MODELS}?provider={provider}").json()["models"] == [body]


@pytest.mark.parametrize(
    ("provider", "variable", "source"),
    [
        ("openai", "OPENAI_API_KEY", "environment"),
        ("anthropic", "ANTHROPIC_API_KEY", "environment"),
        ("openai_compatible", None, None),
        ("litellm", None, None),
    ],
)
def test_model_without_a_key_takes_that_of_its_provider(
    api: APIClient, provider: str, variable: str | None, source: str | None
) -> None:
    body = register(api, "x", provider, **config_of(provider)).json()
    assert body["config"].get("api_key_env_var") == variable
    assert body["api_key_source"] == source


@pytest.mark.parametrize(
    ("field", "value"), [(field, value) for field, values in BAD.items() for value in values]
)
def test_bad_config_is_refused_by_the_field(api: APIClient, field: str, value: Any) -> None:
    refused(api, "openai_compatible", field, **config_of("openai_compatible") | {field: value})


def test_all_bad_fields_are_named_at_once(api: APIClient) -> None:
    config = config_of("openai", timeout=0, max_retries=99, api_key_env_var="PATH")
    details = register(api, "x", "openai", **config).json()["details"]
    assert set(details["config"]) == {"timeout", "max_retries", "api_key_env_var"}


def test_config_must_name_the_providers_model(api: APIClient) -> None:
    for provider in CLOUD:
        refused(api, provider, "model_name", base_url=SERVER)


@pytest.mark.parametrize(
    "base_url",
    [
        *("http://localhost:11434/v1", "http://10.0.0.7:8000", "https://api.example.com/v1/"),
        *("http://[::1]:8080/v1", "https://xn--bcher-kva.example", "http://vllm", SERVER),
    ],
)
def test_server_may_be_on_this_machine_or_network(api: APIClient, base_url: str) -> None:
    config = config_of("openai_compatible", base_url=base_url)
    assert register(api, "x", "openai_compatible", **config).json()["config"] == config


METADATA = (
    *(
        "http://169.254.169.254/latest",
        "http://169.254.1.1",
        "http://2852039166",
        "http://[fe80::1]",
    ),
    *("http://0xA9FEA9FE", "http://[::ffff:169.254.169.254]", "http://metadata.google.internal"),
    *("http://100.100.100.200", "http://[fd00:ec2::254]", "http://METADATA.google.internal./x"),
)


@pytest.mark.parametrize("base_url", METADATA)
@pytest.mark.parametrize("provider", CLOUD)
def test_model_is_not_where_machines_tell_their_credentials(
    api: APIClient, provider: str, base_url: str
) -> None:
    config = config_of(provider, api_key=KEY) | {"base_url": base_url}
    assert "PROVIDER_ALLOWED_HOSTS" in refused(api, provider, "base_url", **config)


def test_any_host_may_be_allowed(api: APIClient, settings: Any) -> None:
    settings.PROVIDER_ALLOWED_HOSTS = ["metadata", "169.254.7.7:80"]
    for number, host in enumerate(("metadata:8080", "169.254.7.7:80")):
        config = config_of("openai", base_url=f"http://{host}/v1")
        assert register(api, f"x{number}", "openai", **config).status_code == 201
    refused_config = config_of("openai", base_url="http://169.254.7.7:81")
    assert hosts.refusal("openai", refused_config) is not None


@pytest.mark.parametrize("base_url", ["http://127.0.0.1:1", "http://localhost", "http://[::1]/v1"])
def test_model_is_on_this_machine_in_local_mode_alone(settings: Any, base_url: str) -> None:
    config = {"model_name": "x", "base_url": base_url, "api_key_env_var": "OPENAI_API_KEY"}
    assert hosts.refusal("openai", config) is None
    settings.APP_ENV = "production"
    why = hosts.refusal("openai", config)
    assert why is not None
    assert "APP_ENV=local" in why
    settings.PROVIDER_ALLOWED_HOSTS = ["127.0.0.1:1", "localhost", "::1"]
    assert hosts.refusal("openai", config) is None


@pytest.mark.parametrize(
    ("provider", "variable", "base_url"),
    [
        ("openai", None, "https://evil.example.com/v1"),
        ("openai", None, "https://openai.com.evil.example/v1"),
        ("openai", None, "https://notopenai.com"),
        ("openai", None, "http://api.openai.com"),
        ("anthropic", "OPENAI_API_KEY", "https://api.anthropic.com"),
        ("openai_compatible", "OPENAI_API_KEY", "http://10.0.0.7:8000"),
        ("litellm", "GROQ_API_KEY", "https://evil.example.com"),
        ("openai_compatible", "MY_API_KEY", "https://evil.example.com"),
    ],
)
def test_key_of_the_environment_stays_with_its_provider(
    api: APIClient,
    settings: Any,
    monkeypatch: pytest.MonkeyPatch,
    provider: str,
    variable: str | None,
    base_url: str,
) -> None:
    monkeypatch.setenv(variable or "OPENAI_API_KEY", KEY)
    config = config_of(provider) | {"base_url": base_url}
    if variable:
        config["api_key_env_var"] = variable
    assert "API_KEY does not go to" in refused(api, provider, "base_url", **config)
    model = RegisteredModel(name="x", provider=provider, config=config)
    model.config.setdefault("api_key_env_var", "OPENAI_API_KEY")
    with pytest.raises(InferenceError, match="PROVIDER_ALLOWED_HOSTS"):
        api_key_of(model)
    settings.PROVIDER_ALLOWED_HOSTS = [base_url.split("/")[2]]
    assert register(api, "x", provider, **config).status_code == 201
    assert api_key_of(model) == KEY


def test_key_of_another_provider_is_not_taken(api: APIClient) -> None:
    config = config_of("litellm", api_key_env_var="OPENAI_API_KEY")
    assert "is for openai" in refused(api, "litellm", "api_key_env_var", **config)
    config = config_of("litellm", api_key_env_var="MY_API_KEY")
    assert register(api, "x", "litellm", **config).status_code == 201


@pytest.mark.parametrize("base_url", ["https://api.openai.com/v1", "https://eu.api.openai.com"])
def test_key_goes_to_its_providers_own_hosts(api: APIClient, base_url: str) -> None:
    assert register(api, "x", "openai", **config_of("openai", base_url=base_url)).status_code == 201


def test_openai_compatible_needs_to_know_where_its_server_is(api: APIClient) -> None:
    message = refused(api, "openai_compatible", "base_url", model_name="x")
    assert "http://127.0.0.1:8080/v1" in message


def test_litellm_needs_the_provider_before_the_model(api: APIClient) -> None:
    assert "groq/" in refused(api, "litellm", "model_name", model_name="llama-3.3")


@pytest.mark.parametrize("provider", ["openai", "anthropic"])
def test_provider_is_not_named_twice(api: APIClient, provider: str) -> None:
    refused(api, provider, "model_name", model_name=f"{provider}/x")


@pytest.mark.parametrize(
    ("provider", "name", "value"),
    [
        *(("openai", "top_k", 5), ("anthropic", "seed", 1), ("openai", "deterministic", True)),
        ("anthropic", "deterministic", True),
        ("openai_compatible", "deterministic", True),
        ("litellm", "deterministic", True),
    ],
)
def test_parameter_that_the_provider_has_not_is_refused_unless_dropped(
    api: APIClient, provider: str, name: str, value: float
) -> None:
    config = config_of(provider, generation_params={name: value, "temperature": 1})
    message = refused(api, provider, f"generation_params.{name}", **config)
    assert "drop_params" in message
    assert register(api, "x", provider, **config, drop_params=True).status_code == 201
    nothing = config_of(provider, generation_params={name: None})
    assert register(api, "y", provider, **nothing).status_code == 201


def test_key_is_given_once(api: APIClient) -> None:
    config = config_of("openai", api_key=KEY, api_key_env_var="MY_API_KEY")
    assert KEY not in refused(api, "openai", "api_key", **config)


def test_key_is_encrypted_and_comes_out_for_the_provider_alone(api: APIClient) -> None:
    register(api, "x", "litellm", **config_of("litellm"), api_key=f" {KEY}\n")
    model = RegisteredModel.objects.get()
    assert "api_key" not in model.config
    assert KEY not in model.encrypted_api_key
    assert encryption.decrypt(model.encrypted_api_key) == KEY
    assert api_key_of(model) == KEY


def test_key_of_the_environment_is_read_when_it_is_used(
    api: APIClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(api, "x", "litellm", **config_of("litellm", api_key_env_var="GROQ_API_KEY"))
    model = RegisteredModel.objects.get()
    assert model.encrypted_api_key == ""
    monkeypatch.setenv("GROQ_API_KEY", f"{KEY}\n")
    assert api_key_of(model) == KEY
    monkeypatch.setenv("GROQ_API_KEY", "another")
    assert api_key_of(model) == "another"


def test_model_without_a_key_has_none_whatever_is_in_the_environment(
    api: APIClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    register(api, "x", "openai_compatible", **config_of("openai_compatible"))
    assert api_key_of(RegisteredModel.objects.get()) is None


@pytest.mark.parametrize("value", [None, "", "  ", f"{KEY}\nX-Other: 1", f"{KEY} x", f"{KEY}ü"])
def test_unusable_key_of_the_environment_is_told_without_the_key(
    db: None, monkeypatch: pytest.MonkeyPatch, value: str | None
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("OPENAI_API_KEY", value)
    config = {"api_key_env_var": "OPENAI_API_KEY"}
    model = RegisteredModel(name="gpt", provider="openai", config=config)
    with pytest.raises(InferenceError, match="OPENAI_API_KEY") as caught:
        api_key_of(model)
    failure = caught.value
    assert (failure.code, failure.retryable) == (ErrorCode.AUTHENTICATION_FAILED, False)
    assert "gpt" in failure.message
    assert KEY not in failure.message


def test_key_that_was_encrypted_with_a_lost_key_is_told(db: None) -> None:
    model = RegisteredModel(name="gpt", provider="openai", encrypted_api_key="gAAAAABlost")
    with pytest.raises(InferenceError, match="ENCRYPTION_KEYS") as caught:
        api_key_of(model)
    assert caught.value.code == ErrorCode.AUTHENTICATION_FAILED


@pytest.fixture
def staff(client: Client, db: None) -> Client:
    client.force_login(User.objects.create_superuser("root", password="long enough"))
    return client


def test_key_is_seen_nowhere(
    api: APIClient, staff: Client, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[str] = []

    def post(config: dict[str, Any], **more: Any) -> None:
        body = {"name": "cloud", "provider": "openai", "config": config} | more
        for accept in ("application/json", "text/html"):
            answer = api.post(f"{MODELS}/register", body, format="json", headers={"Accept": accept})
            seen.append(answer.content.decode())

    with caplog.at_level(logging.DEBUG):
        good = config_of("openai", api_key=KEY)
        post(good)
        post(good)  # the name is taken now
        post(good | {"timeout": 0})
        post(good | {"api_key": f"{KEY} {KEY}"})
        post(good | {"api_key": [KEY]})
        post(good | {"api_key_env_var": "X_API_KEY"})
        post(good | {"generation_params": {"top_k": 1}})
        post({"model_name": "x", "api_key": 200 * KEY})
        post({"api_key": KEY, "base_url": f"http://{KEY}@x"})
        post({"model_path": "x", "api_key": KEY}, provider="local")
        post({"api_key": KEY}, provider="echo")
        post({"api_key": KEY}, provider="no such")
        post({"api_key": KEY}, name="a b")
        broken = json.dumps({"name": "x", "config": {"api_key": KEY}})[:-1]
        answer = api.post(f"{MODELS}/register", broken, content_type="application/json")
        seen.append(answer.content.decode())
        form = api.post(f"{MODELS}/register", f"api_key={KEY}", content_type="text/plain")
        seen.append(form.content.decode())
    model = RegisteredModel.objects.get()
    seen += [api.get(path).content.decode() for path in (MODELS, f"{MODELS}/cloud", "/metrics")]
    html = {"Accept": "text/html"}
    seen += [api.get(path, headers=html).content.decode() for path in (MODELS, f"{MODELS}/cloud")]
    for view, args in (("changelist", []), ("change", [model.pk]), ("history", [model.pk])):
        page = staff.get(reverse(f"admin:inference_registeredmodel_{view}", args=args))
        assert page.status_code == 200
        assert model.encrypted_api_key not in page.content.decode()
        seen.append(page.content.decode())
    seen += [record.getMessage() for record in caplog.records]
    seen += [repr(model), str(model), serialize("json", [model])]
    seen.append(json.dumps(all_of_redis()))
    assert len(seen) >= 40
    for text in seen:
        assert KEY not in text
        assert KEY not in text.replace("&#x2F;", "/").replace("&#x27;", "'")


def all_of_redis() -> list[Any]:
    """The values of all keys, whatever their types."""
    reads = {
        "string": "GET",
        "hash": "HGETALL",
        "zset": "ZRANGE",
        "list": "LRANGE",
        "set": "SMEMBERS",
    }
    found: list[Any] = []
    for key in client().scan_iter():
        kind = client().type(key)
        found.append(key)
        if kind == "stream":
            found.append(client().xrange(key))
        else:
            ends = (0, -1) if kind in ("zset", "list") else ()
            found.append(str(client().execute_command(reads[kind], key, *ends)))
    return found


def test_model_that_is_registered_anew_has_the_new_key_alone(api: APIClient) -> None:
    config = config_of("openai")
    register(api, "x", "openai", **config, api_key="first")
    assert api.delete(f"{MODELS}/x?delete_file=true").status_code == 204
    body = register(api, "x", "openai", **config).json()
    assert body["api_key_source"] == "environment"
    assert RegisteredModel.objects.get().encrypted_api_key == ""


def test_cloud_model_cannot_be_loaded(api: APIClient) -> None:
    register(api, "x", "openai", **config_of("openai"))
    for what in ("load", "unload"):
        response = api.post(f"{MODELS}/{what}", {"model": "x"}, format="json")
        assert_error(response, 400, "validation_error", "model")


def test_cloud_models_are_known_without_their_libraries() -> None:
    code = (
        "import sys, sopllm.asgi, sopllm.urls\n"
        "from inference.providers.registry import provider_class\n"
        f"assert all(provider_class(kind).prefix is not None for kind in {CLOUD})\n"
        "print([name for name in ('litellm', 'openai', 'langfuse') if name in sys.modules])"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert process.stdout.decode().strip() == "[]"
