"""What the clients need to know: where the service is, and the names of its models.

These tests run in an environment that has the newest SDKs and nothing of the service; its own test
suite starts it and hands the address on as SERVICE_URL.
"""

import os

import pytest

CHAT_MODEL = "smollm2-135m-instruct"
EMBEDDING_MODEL = "all-minilm-l6-v2"
# Says the prompt again, and says it a word in 100 ms.
ECHO, SLOW_ECHO = "echo", "slow-echo"
# A service on its own machine asks for no key, but the SDKs do.
API_KEY = "none-is-needed-here"


@pytest.fixture(scope="session")
def service_url() -> str:
    return os.environ["SERVICE_URL"]


@pytest.fixture(scope="session")
def base_url(service_url: str) -> str:
    """What people set in OpenAI's clients."""
    return f"{service_url}/v1"
