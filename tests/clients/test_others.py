"""Clients that speak as OpenAI's does: LangChain, instructor, `llm`, and its own for Node.js."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Literal

import instructor
import pytest
from conftest import API_KEY, CHAT_MODEL, ECHO, EMBEDDING_MODEL
from langchain_core.messages import HumanMessage, SystemMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from openai import OpenAI
from pydantic import BaseModel

NODE = shutil.which("node")


class City(BaseModel):
    name: str
    country: str


def test_langchain_answers_and_streams(base_url: str) -> None:
    model = ChatOpenAI(model=CHAT_MODEL, base_url=base_url, api_key=API_KEY, max_tokens=12)
    messages = [SystemMessage("You are brief."), HumanMessage("Say hello.")]
    answer = model.invoke(messages)
    assert answer.text
    assert answer.usage_metadata["output_tokens"] > 0
    assert "".join(chunk.text for chunk in model.stream(messages))


def test_langchain_structured_output(base_url: str) -> None:
    model = ChatOpenAI(
        model=CHAT_MODEL, base_url=base_url, api_key=API_KEY, max_tokens=64, temperature=0
    )
    city = model.with_structured_output(City, method="json_schema").invoke("Paris, in France.")
    assert isinstance(city, City)


def test_langchain_agent_step(base_url: str) -> None:
    @tool
    def get_weather(city: Literal["Paris", "Rome"]) -> str:
        """The weather of a city."""
        return f"It rains in {city}."

    model = ChatOpenAI(
        model=CHAT_MODEL, base_url=base_url, api_key=API_KEY, max_tokens=64, temperature=0
    )
    question = HumanMessage("What is the weather in Paris?")
    called = model.bind_tools([get_weather], tool_choice="any").invoke([question])
    results = [get_weather.invoke(call) for call in called.tool_calls]
    assert "It rains in" in results[0].content
    assert model.invoke([question, called, *results]).text


def test_langchain_embeddings(base_url: str) -> None:
    # Without the check, which cuts texts by the tokens of OpenAI's own models.
    embeddings = OpenAIEmbeddings(
        model=EMBEDDING_MODEL,
        base_url=base_url,
        api_key=API_KEY,
        check_embedding_ctx_length=False,
    )
    first, second = embeddings.embed_documents(["a cat", "a dog"])
    assert len(first) == len(second) == 384


def test_instructor_fills_a_class(base_url: str) -> None:
    client = instructor.from_openai(
        OpenAI(base_url=base_url, api_key=API_KEY), mode=instructor.Mode.JSON_SCHEMA
    )
    city = client.chat.completions.create(
        model=CHAT_MODEL,
        messages=[{"role": "user", "content": "Paris, in France."}],
        response_model=City,
        max_tokens=64,
        temperature=0,
        max_retries=0,
    )
    assert isinstance(city, City)


def test_llm_on_the_command_line(base_url: str, tmp_path: Path) -> None:
    (tmp_path / "extra-openai-models.yaml").write_text(
        f"- model_id: ours\n  model_name: {ECHO}\n  api_base: {base_url}\n"
    )
    command = [sys.executable, "-m", "llm", "-m", "ours", "--key", API_KEY, "One two three"]
    assert run(command, LLM_USER_PATH=str(tmp_path)).strip() == "One two three"


@pytest.mark.skipif(NODE is None, reason="Node.js is not installed")
def test_openai_for_node(base_url: str) -> None:
    script = str(Path(__file__).with_name("openai.mjs"))
    run([str(NODE), script], BASE_URL=base_url, API_KEY=API_KEY, PACKAGES=sys.prefix)


def run(command: list[str], **variables: str) -> str:
    """What a command prints; where it fails, the test does."""
    env = os.environ | variables
    done = subprocess.run(
        command, env=env, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
