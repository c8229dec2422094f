"""What is taken out of text before other people read it, and what is left."""

import pytest

from monitoring.logs.redaction import redact


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        ("connecting to redis://:hunter2@cache:6379/0 failed", "hunter2"),
        ("postgres://app:p%40ss@db/sopllm", "p%40ss"),
        ("https://app:p@ss@host/x", "p@ss"),
        ("git clone https://abcdef123456@host/x", "abcdef123456"),
        ("Authorization: Bearer abc.def-123456", "abc.def-123456"),
        ("'authorization': 'bearer ABCDEF123456'", "ABCDEF123456"),
        ("Authorization: Basic dXNlcjpwYXNz", "dXNlcjpwYXNz"),
        ("Incorrect API key provided: sk-proj-abcdefgh12345678", "sk-proj-abcdefgh12345678"),
        ("key sk-ant-api03-abcdefgh-1234_5678 refused", "sk-ant-api03-abcdefgh-1234_5678"),
        ("token hf_abcdefghijklmnop", "hf_abcdefghijklmnop"),
        ("ghp_abcdefghijklmnop0123456789 expired", "ghp_abcdefghijklmnop0123456789"),
        ("AIzaSyA1234567890abcdefghijklmnopqrstuv", "AIzaSyA1234567890"),
        ("eyJhbGciOiJI.eyJzdWIiOiIx.c2lnbmF0dXJl", "c2lnbmF0dXJl"),
        ("WEBHOOK_SECRETS=whsec_MfKQ9r8GKYqrTwjU+PD/8ILPZIo2LaLaSw==", "MfKQ9r8GKYqrTwjU"),
        ("api_key=topsecret&model=m", "topsecret"),
        ("{'api_key': 'topsecret', 'model': 'm'}", "topsecret"),
        ('{"X-API-Key": "topsecret"}', "topsecret"),
        ("OPENAI_API_KEY=topsecret", "topsecret"),
        ("password: topsecret", "topsecret"),
        ("GET /x?token=topsecret HTTP/1.1", "topsecret"),
        ("SECRET_KEY = 'topsecret'", "topsecret"),
        ("client_secret=topsecret", "topsecret"),
    ],
)
def test_secret_is_hidden(text: str, secret: str) -> None:
    assert secret not in redact(text)
    assert "***" in redact(text)


@pytest.mark.parametrize(
    "text",
    [
        "Task task_0123456789abcdef0123456789abcdef: completed, 64 tokens in 1.2 s",
        "max_tokens=64 completion_tokens: 12",
        "http://127.0.0.1:8000/api/v1/tasks?limit=10",
        "https://host:8000/a@b",
        "Model gemma-3-270m-it-q4_k_m loaded in 0.31 s",
        "No key for model gpt-x: set OPENAI_API_KEY in the worker's environment.",
        "connecting to unix:///work/var/valkey.sock: no such file",
        "someone@example.org wrote to us",
        "risk-assessment-of-the-new-model",
        "token stream of the task, bearer of news",
    ],
)
def test_text_without_secrets_is_left_as_it_is(text: str) -> None:
    assert redact(text) == text


def test_rest_of_the_line_is_kept() -> None:
    text = "POST https://u:p@host/v1 with Bearer abcdefgh failed: api_key=xyz, retried 3 times"
    expected = "POST https://***@host/v1 with Bearer *** failed: api_key=***, retried 3 times"
    assert redact(text) == expected
