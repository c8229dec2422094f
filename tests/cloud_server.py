"""A stand-in for the clouds over real HTTP: OpenAI's chats and embeddings, Anthropic's messages,
rerankers.

It checks requests as they do, answers with the words of the last message, and fails on demand. As a
program, for benchmarks: python -m tests.cloud_server --port 8901 --delay-ms 50 --fault-rate 0.1
"""

import argparse
import asyncio
import contextlib
import json
import random
import re
import threading
import time
import uuid
from collections import deque
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from aiohttp import web

KEY = "stand-in-key"


class Fault(StrEnum):
    """What a request can meet instead of an answer, or in the middle of it."""

    UNAUTHORIZED = "unauthorized"
    FORBIDDEN = "forbidden"
    NO_SUCH_MODEL = "no_such_model"
    RATE_LIMITED = "rate_limited"
    NO_QUOTA = "no_quota"
    CONTEXT_TOO_LONG = "context_too_long"
    CONTENT_POLICY = "content_policy"
    INVALID = "invalid"
    SERVER_ERROR = "server_error"
    BAD_GATEWAY = "bad_gateway"
    UNAVAILABLE = "unavailable"
    OVERLOADED = "overloaded"
    DISCONNECT = "disconnect"
    HANG = "hang"
    CUT = "cut"
    ENDS_EARLY = "ends_early"
    ERROR_MIDWAY = "error_midway"
    HANG_MIDWAY = "hang_midway"
    INVALID_JSON = "invalid_json"
    NO_USAGE = "no_usage"
    FILTERED = "filtered"
    DRIP = "drip"
    BUSY_FILTER = "busy_filter"
    ERROR_IN_STREAM = "error_in_stream"
    WHOLE = "whole"
    STRAY_EVENTS = "stray_events"
    BLOCKS = "blocks"
    BAD_NUMBERS = "bad_numbers"
    CUT_AT_END = "cut_at_end"
    HANG_AT_END = "hang_at_end"
    HALVES = "halves"
    TWO_CALLS = "two_calls"
    NETWORK_ERROR = "network_error"
    UNKNOWN_REASON = "unknown_reason"
    ABSURD_RETRY_AFTER = "absurd_retry_after"


# What a benchmark's random faults are: another try, another model, or the reader mends them.
PASSING_FAULTS = (
    Fault.RATE_LIMITED,
    Fault.SERVER_ERROR,
    Fault.UNAVAILABLE,
    Fault.DISCONNECT,
    Fault.CUT,
    Fault.ENDS_EARLY,
    Fault.INVALID_JSON,
    Fault.BUSY_FILTER,
    Fault.ERROR_IN_STREAM,
    Fault.WHOLE,
    Fault.STRAY_EVENTS,
    Fault.BLOCKS,
    Fault.BAD_NUMBERS,
    Fault.CUT_AT_END,
    Fault.HANG_AT_END,
    Fault.HALVES,
    Fault.TWO_CALLS,
    Fault.NETWORK_ERROR,
    Fault.UNKNOWN_REASON,
    Fault.ABSURD_RETRY_AFTER,
)
_DRIP_SECONDS = 0.15


@dataclass(frozen=True, slots=True)
class _Refusal:
    """An answer that is no 200: the status, and OpenAI's and Anthropic's words for it."""

    status: int
    message: str
    code: str | None = None
    type: str = "invalid_request_error"
    anthropic_type: str = "invalid_request_error"
    retry_after: str | None = None


_REFUSALS = {
    Fault.UNAUTHORIZED: _Refusal(
        401,
        "Incorrect API key provided: {key}.",
        "invalid_api_key",
        "invalid_request_error",
        "authentication_error",
    ),
    Fault.FORBIDDEN: _Refusal(
        403,
        "Project does not have access to the model.",
        "model_not_found",
        "invalid_request_error",
        "permission_error",
    ),
    Fault.NO_SUCH_MODEL: _Refusal(
        404,
        "The model does not exist or you do not have access to it.",
        "model_not_found",
        "invalid_request_error",
        "not_found_error",
    ),
    Fault.RATE_LIMITED: _Refusal(
        429,
        "Rate limit reached for requests.",
        "rate_limit_exceeded",
        "requests",
        "rate_limit_error",
    ),
    Fault.NO_QUOTA: _Refusal(
        429,
        "You exceeded your current quota, please check your plan and billing details.",
        "insufficient_quota",
        "insufficient_quota",
        "rate_limit_error",
    ),
    Fault.CONTEXT_TOO_LONG: _Refusal(
        400,
        "This model's maximum context length is 128 tokens. However, your messages resulted "
        "in 500 tokens. Please reduce the length of the messages. prompt is too long: 500 tokens "
        "> 128 maximum",
        "context_length_exceeded",
    ),
    Fault.CONTENT_POLICY: _Refusal(
        400,
        "Your request was rejected as a result of our safety system: content_policy_violation"
        ". Output blocked by content filtering policy",
        "content_policy_violation",
    ),
    Fault.INVALID: _Refusal(
        400, "Invalid value of {key}: temperature must not be odd.", "invalid_value"
    ),
    Fault.SERVER_ERROR: _Refusal(
        500,
        "The server had an error while processing your request.",
        None,
        "server_error",
        "api_error",
    ),
    Fault.UNAVAILABLE: _Refusal(
        503,
        "That model is currently overloaded with other requests.",
        None,
        "server_error",
        "api_error",
    ),
    Fault.BUSY_FILTER: _Refusal(
        503,
        "The content filter is busy: content_policy_violation is not known.",
        None,
        "server_error",
        "api_error",
    ),
    Fault.ABSURD_RETRY_AFTER: _Refusal(
        503,
        "Come back later.",
        None,
        "server_error",
        "api_error",
        retry_after=f"Fri, 31 Dec {'9' * 20} 23:59:59 GMT",
    ),
    Fault.OVERLOADED: _Refusal(529, "Overloaded", None, "server_error", "overloaded_error"),
}

_OPENAI_FIELDS: Set[str] = {
    *("audio", "frequency_penalty", "function_call", "functions", "logit_bias", "logprobs"),
    *("max_completion_tokens", "max_tokens", "messages", "metadata", "modalities", "model"),
    *("n", "parallel_tool_calls", "prediction", "presence_penalty", "prompt_cache_key"),
    *("reasoning_effort", "response_format", "safety_identifier", "seed", "service_tier"),
    *("stop", "store", "stream", "stream_options", "temperature", "tool_choice", "tools"),
    *("top_logprobs", "top_p", "user", "verbosity", "web_search_options"),
}
_VLLM_FIELDS = {
    *("top_k", "min_p", "repetition_penalty", "repeat_penalty", "guided_regex"),
}
_ANTHROPIC_FIELDS = {
    *("cache_control", "container", "context_management", "max_tokens", "mcp_servers"),
    *("messages", "metadata", "model", "output_config", "output_format", "service_tier"),
    *("speed", "stop_sequences", "stream", "system", "temperature", "thinking"),
    *("tool_choice", "tools", "top_k", "top_p"),
}


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer to the letter: its body in parts, and what becomes of the connection after them.

    `end`: "close" as it should be, "cut", or "hang" in silence; "ping" for comments without end.
    """

    parts: Sequence[bytes]
    status: int = 200
    content_type: str = "text/event-stream"
    headers: Mapping[str, str] = field(default_factory=dict)
    end: str = "close"

    @classmethod
    def of_events(cls, *events: Any, end: str = "done") -> "Reply":
        """JSON of OpenAI's shape, each in an event; "done" is its last word and "close"."""
        parts = [_data(event) for event in events]
        if end == "done":
            return cls([*parts, b"data: [DONE]\n\n"])
        return cls(parts, end=end)

    @classmethod
    def of_json(cls, value: Any, status: int = 200, **headers: str) -> "Reply":
        """One document."""
        body = json.dumps(value).encode()
        return cls([body], status, "application/json", headers)


def delta(content: Any = None, finish_reason: Any = None, **fields: Any) -> dict[str, Any]:
    """An event of OpenAI's: what is added, and why it ends."""
    said = fields if content is None else fields | {"content": content}
    choice = {"index": 0, "delta": said, "finish_reason": finish_reason}
    return {"id": "chatcmpl-1", "object": "chat.completion.chunk", "choices": [choice]}


@dataclass(slots=True)
class Call:
    """A request as it came; `closed_at` (monotonic) when the client went away before the end."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]
    at: float = field(default_factory=time.monotonic)
    closed_at: float | None = None
    is_answered: bool = False


class CloudServer:
    """Serves until `stop`; `faults` are met in turn, one by each request, None by a lucky one."""

    def __init__(
        self,
        port: int = 0,
        *,
        host: str = "127.0.0.1",
        key: str | None = KEY,
        delay_ms: float = 0,
        token_delay_ms: float = 0,
        fault_rate: float = 0,
        seed: int = 0,
        is_strict: bool = True,
        num_slots: int = 1_000_000,
    ) -> None:
        """`is_strict`: fields that OpenAI does not know are refused, as it does.

        `num_slots`: so many are answered at a time, the others wait, as with an engine.
        """
        self.host = host
        self.port = port
        self.key = key
        self.delay_ms = delay_ms
        self.token_delay_ms = token_delay_ms
        self.fault_rate = fault_rate
        self.is_strict = is_strict
        # All calls are hung up, also those that are being answered.
        self.is_down = False
        self.num_waiting = self.num_running = 0
        self._slots = asyncio.Semaphore(num_slots)
        self.num_slots = num_slots
        self.retry_after: str | None = None
        self.faults: deque[Fault | Reply | None] = deque()
        self.calls: list[Call] = []
        self._random = random.Random(seed)  # noqa: S311 (the same faults each time)
        self._loop = asyncio.new_event_loop()
        self._runner: web.AppRunner | None = None
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    @property
    def openai_url(self) -> str:
        return f"{self.url}/v1"

    def __enter__(self) -> "CloudServer":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Listen on the port, or on a free one when it is 0."""
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(10)

    def stop(self) -> None:
        """Close all connections."""
        assert self._runner is not None
        asyncio.run_coroutine_threadsafe(self._runner.cleanup(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    async def _start(self) -> None:
        app = web.Application(client_max_size=64 * 2**20)
        app.router.add_post("/v1/chat/completions", self._openai)
        app.router.add_post("/v1/embeddings", self._openai_embeddings)
        app.router.add_post("/v1/messages", self._anthropic)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/metrics", self._metrics)
        for path in ("/v1/rerank", "/v2/rerank"):  # Jina, Together and vLLM; Cohere
            app.router.add_post(path, self._rerank)
        # A handler is cancelled when its client goes away: that is how its end is noticed.
        options: Any = {"handler_cancellation": True, "access_log": None, "shutdown_timeout": 0.1}
        self._runner = web.AppRunner(app, **options)
        await self._runner.setup()
        site = web.TCPSite(self._runner, self.host, self.port)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def _models(self, request: web.Request) -> web.StreamResponse:
        return _hang_up(request) if self.is_down else web.json_response({"data": []})

    async def _metrics(self, request: web.Request) -> web.StreamResponse:
        """As vLLM has them, the slots as its KV cache."""
        labels = '{engine="0",model_name="stand-in"}'
        figures = {
            "num_requests_running": self.num_running,
            "num_requests_waiting": self.num_waiting,
            "kv_cache_usage_perc": self.num_running / self.num_slots,
        }
        lines = [f"vllm:{name}{labels} {float(value)}\n" for name, value in figures.items()]
        return web.Response(text="".join(lines))

    async def _openai(self, request: web.Request) -> web.StreamResponse:
        return await self._serve(request, _OpenAI(self))

    async def _openai_embeddings(self, request: web.Request) -> web.StreamResponse:
        return await self._serve(request, _OpenAIEmbeddings(self))

    async def _rerank(self, request: web.Request) -> web.StreamResponse:
        return await self._serve(request, _Rerank(self))

    async def _anthropic(self, request: web.Request) -> web.StreamResponse:
        return await self._serve(request, _Anthropic(self))

    async def _serve(self, request: web.Request, api: "_Api") -> web.StreamResponse:
        call = Call(request.path, dict(request.headers), await request.json())
        self.calls.append(call)
        fault = self._next_fault()
        try:
            async with self._slot():
                if self.delay_ms and not self.is_down:
                    await asyncio.sleep(self.delay_ms / 1000)
                if self.is_down:
                    return _hang_up(request)
                if isinstance(fault, Reply):
                    response = await _send(request, fault)
                else:
                    response = await self._answer(request, call, api, fault)
        except (asyncio.CancelledError, ConnectionError):
            call.closed_at = time.monotonic()
            raise
        call.is_answered = True
        return response

    @contextlib.asynccontextmanager
    async def _slot(self) -> AsyncIterator[None]:
        self.num_waiting += 1
        try:
            await self._slots.acquire()
        finally:
            self.num_waiting -= 1
        self.num_running += 1
        try:
            yield
        finally:
            self.num_running -= 1
            self._slots.release()

    def _next_fault(self) -> Fault | Reply | None:
        if self.faults:
            return self.faults.popleft()
        if self._random.random() < self.fault_rate:
            return self._random.choice(PASSING_FAULTS)
        return None

    async def _answer(
        self, request: web.Request, call: Call, api: "_Api", fault: Fault | None
    ) -> web.StreamResponse:
        refusal = api.refusal(call) or (_REFUSALS.get(fault) if fault else None)
        if refusal is not None:
            return self._refuse(call, api, refusal)
        if fault == Fault.BAD_GATEWAY:
            page = "<html><body><h1>502 Bad Gateway</h1></body></html>"
            return web.Response(status=502, text=page, content_type="text/html")
        if fault == Fault.HANG:
            await asyncio.sleep(3600)
        if fault == Fault.DISCONNECT:
            return _hang_up(request)
        if isinstance(api, _OpenAIEmbeddings):
            return web.json_response(api.vectors(call.body))
        answer = _Answer.to(call.body, fault)
        if not call.body.get("stream") or fault == Fault.WHOLE:
            return web.json_response(api.whole(call.body, answer))
        return await self._stream(request, api.events(call.body, answer, fault), fault)

    def _refuse(self, call: Call, api: "_Api", refusal: _Refusal) -> web.Response:
        retry_after = refusal.retry_after or self.retry_after
        headers = {"Retry-After": retry_after} if retry_after else {}
        message = refusal.message.format(key=api.key_of(call))
        body = api.error(refusal, message)
        return web.json_response(body, status=refusal.status, headers=headers)

    async def _stream(
        self, request: web.Request, events: Iterator[bytes], fault: Fault | None
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        is_cut_at_end = fault in (Fault.CUT_AT_END, Fault.HANG_AT_END)
        for number, event in enumerate(list(events)[: -1 if is_cut_at_end else None]):
            if number == 4 and fault in (Fault.CUT, Fault.ENDS_EARLY, Fault.HANG_MIDWAY):
                if fault == Fault.ENDS_EARLY:
                    break
                if fault == Fault.CUT:
                    return _hang_up(request, response)
                await asyncio.sleep(3600)
            if self.is_down:
                return _hang_up(request, response)
            await response.write(event)
            if fault == Fault.DRIP:
                await asyncio.sleep(_DRIP_SECONDS)
            elif self.token_delay_ms:
                await asyncio.sleep(self.token_delay_ms / 1000)
        if fault == Fault.HANG_AT_END:
            await asyncio.sleep(3600)
        if fault == Fault.CUT_AT_END:
            await asyncio.sleep(0.02)  # what is written arrives before the end
            return _hang_up(request, response)
        await response.write_eof()
        return response


async def _send(request: web.Request, reply: Reply) -> web.StreamResponse:
    headers = {"Content-Type": reply.content_type, **reply.headers}
    response = web.StreamResponse(status=reply.status, headers=headers)
    await response.prepare(request)
    for part in reply.parts:
        await response.write(part)
        await asyncio.sleep(0)
    if reply.end == "cut":
        await asyncio.sleep(0.02)  # what is written arrives before the end
        return _hang_up(request, response)
    while reply.end == "ping":
        await response.write(b": PROCESSING\n\n")
        await asyncio.sleep(0.05)
    if reply.end == "hang":
        await asyncio.sleep(3600)
    await response.write_eof()
    return response


def _hang_up(
    request: web.Request, response: web.StreamResponse | None = None
) -> web.StreamResponse:
    assert request.transport is not None
    request.transport.abort()
    return response or web.Response()


@dataclass(slots=True)
class _Answer:
    """What is said: text or a call of a tool, and why it ends."""

    deltas: list[str]
    finish_reason: str
    prompt_tokens: int
    cached_tokens: int
    reasoning: list[str] = field(default_factory=list)
    tool: str | None = None

    @classmethod
    def to(cls, body: dict[str, Any], fault: Fault | None) -> "_Answer":
        """The last message, word by word; of the tools the first is called with it."""
        last = _text_of(body["messages"][-1].get("content"))
        prompt = " ".join(_text_of(message.get("content")) for message in body["messages"])
        prompt_tokens = len(prompt.split())
        tool = _tool_to_call(body)
        text = _json_text(body, last, tool)
        deltas = re.findall(r"\s*\S+\s*", text)
        limit = body.get("max_completion_tokens") or body.get("max_tokens") or len(deltas)
        finish_reason = "length" if len(deltas) > limit else "stop"
        if tool is not None:
            finish_reason = "tool_calls"
        told_by_fault = {
            Fault.FILTERED: "content_filter",
            Fault.NETWORK_ERROR: "network_error",
            Fault.UNKNOWN_REASON: "bored",
        }
        finish_reason = told_by_fault.get(fault, finish_reason) if fault else finish_reason
        wants_reasoning = body.get("reasoning_effort") or body.get("thinking")
        reasoning = ["Let me ", "think."] if wants_reasoning else []
        cached_tokens = prompt_tokens // 2
        return cls(deltas[:limit], finish_reason, prompt_tokens, cached_tokens, reasoning, tool)

    @property
    def completion_tokens(self) -> int:
        return len(self.deltas) + len(self.reasoning)


def _text_of(content: Any) -> str:
    if isinstance(content, str):
        return content
    return " ".join(part.get("text", "") for part in content or ())


def _tool_to_call(body: dict[str, Any]) -> str | None:
    choice = body.get("tool_choice")
    is_refused = choice == "none" or (isinstance(choice, dict) and choice.get("type") == "none")
    if not body.get("tools") or is_refused:
        return None
    tool = body["tools"][0]
    return str(tool.get("function", tool)["name"])


def _json_text(body: dict[str, Any], text: str, tool: str | None) -> str:
    """What is asked for: JSON of a schema, an object, the arguments of a tool, or the text."""
    asked = body.get("response_format") or body.get("output_format")
    asked = asked or (body.get("output_config") or {}).get("format") or {}
    if tool is not None:
        first = body["tools"][0]
        schema = first.get("input_schema") or first["function"].get("parameters") or {}
        return json.dumps(_instance(schema, text))
    if asked.get("type") == "json_object":
        return json.dumps({"answer": text})
    if asked.get("type") == "json_schema":
        return json.dumps(_instance(asked.get("schema") or asked["json_schema"]["schema"], text))
    return text


def _instance(schema: dict[str, Any], text: str) -> Any:
    """A value of the plain schemas that tests have."""
    match schema.get("type"):
        case "object":
            members = schema.get("properties") or {"answer": {}}
            return {name: _instance(member, text) for name, member in members.items()}
        case "array":
            return [_instance(schema.get("items", {}), text)]
        case "integer" | "number":
            return 7
        case "boolean":
            return True
    return text


class _Api:
    """The wire format of one provider."""

    def __init__(self, server: CloudServer) -> None:
        self.server = server

    def key_of(self, call: Call) -> str:
        raise NotImplementedError

    def refusal(self, call: Call) -> _Refusal | None:
        raise NotImplementedError

    def error(self, refusal: _Refusal, message: str) -> dict[str, Any]:
        raise NotImplementedError

    def whole(self, body: dict[str, Any], answer: _Answer) -> dict[str, Any]:
        raise NotImplementedError

    def events(self, body: dict[str, Any], answer: _Answer, fault: Fault | None) -> Iterator[bytes]:
        raise NotImplementedError


class _OpenAI(_Api):
    required: tuple[str, ...] = ("model", "messages")
    known: Set[str] = _OPENAI_FIELDS

    def key_of(self, call: Call) -> str:
        return call.headers.get("Authorization", "").removeprefix("Bearer ")

    def refusal(self, call: Call) -> _Refusal | None:
        if self.server.key is not None and self.key_of(call) != self.server.key:
            return _REFUSALS[Fault.UNAUTHORIZED]
        for required in self.required:
            if not call.body.get(required):
                return _Refusal(400, f"Missing required parameter: '{required}'.")
        known = self.known if self.server.is_strict else self.known | _VLLM_FIELDS
        for name in call.body:
            if name not in known:
                message = f"Unrecognized request argument supplied: {name}"
                return _Refusal(400, message, "unknown_parameter")
        return None

    def error(self, refusal: _Refusal, message: str) -> dict[str, Any]:
        described = {"type": refusal.type, "param": None, "code": refusal.code}
        return {"error": {"message": message, **described}}

    def whole(self, body: dict[str, Any], answer: _Answer) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": "".join(answer.deltas)}
        if answer.tool is not None:
            message = {"role": "assistant", "content": None, "tool_calls": [self._tool(answer)]}
        choice = {"index": 0, "message": message, "finish_reason": answer.finish_reason}
        whole = _openai_object("chat.completion", body)
        return whole | {"choices": [choice], "usage": self._usage(answer)}

    def _tool(self, answer: _Answer) -> dict[str, Any]:
        function = {"name": answer.tool, "arguments": "".join(answer.deltas)}
        return {"id": "call_1", "type": "function", "function": function}

    def _usage(self, answer: _Answer) -> dict[str, Any]:
        return {
            "prompt_tokens": answer.prompt_tokens,
            "completion_tokens": answer.completion_tokens,
            "total_tokens": answer.prompt_tokens + answer.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": answer.cached_tokens},
        }

    def events(self, body: dict[str, Any], answer: _Answer, fault: Fault | None) -> Iterator[bytes]:
        base = _openai_object("chat.completion.chunk", body)
        if fault == Fault.ERROR_IN_STREAM:
            yield _data({"error": {"code": 429, "message": "Not so often."}})
            return
        for number, delta in enumerate(self._deltas(answer, fault)):
            if fault == Fault.STRAY_EVENTS:
                yield from map(_data, (None, 7, [], "x", {"choices": [None]}))
            said = delta
            if fault == Fault.BLOCKS and delta.get("content"):
                said = delta | {"content": [{"type": "text", "text": delta["content"]}]}
            if number == 3 and fault == Fault.INVALID_JSON:
                yield b'data: {"id": "chatcmpl-1", "choices": [{"ind\n\n'
            if number == 3 and fault == Fault.ERROR_MIDWAY:
                refusal = _REFUSALS[Fault.SERVER_ERROR]
                yield _data(self.error(refusal, refusal.message))
            choice = {"index": 0, "delta": said, "finish_reason": None}
            if fault == Fault.BAD_NUMBERS:
                token = {"token": "\ud83d", "logprob": float("-inf")}
                choice["logprobs"] = {"content": [token]}
            yield _data(base | {"choices": [choice]})
        last = {"index": 0, "delta": {}, "finish_reason": answer.finish_reason}
        yield _data(base | {"choices": [last]})
        wants_usage = (body.get("stream_options") or {}).get("include_usage")
        if wants_usage and fault != Fault.NO_USAGE:
            usage = self._usage(answer) | (
                {"prompt_tokens": -1} if fault == Fault.BAD_NUMBERS else {}
            )
            yield _data(base | {"choices": [], "usage": usage})
        yield b"data: [DONE]\n\n"

    def _deltas(self, answer: _Answer, fault: Fault | None) -> Iterator[dict[str, Any]]:
        yield {"role": "assistant", "content": None if answer.tool else ""}
        for text in answer.reasoning:
            yield {"reasoning_content": text}
        if fault == Fault.TWO_CALLS:
            function = {"name": "look_up", "arguments": "{}"}
            for number in range(2):
                yield {"tool_calls": [{"index": 0, "id": f"call_{number}", "function": function}]}
        if fault == Fault.HALVES:
            yield {"reasoning_content": "\ud83d"}
        if answer.tool is None:
            for text in answer.deltas:
                yield from (
                    {"content": half}
                    for half in (_halves(text) if fault == Fault.HALVES else [text])
                )
            return
        start = self._tool(answer) | {"function": {"name": answer.tool, "arguments": ""}}
        yield {"tool_calls": [{"index": 0, **start}]}
        for text in answer.deltas:
            yield {"tool_calls": [{"index": 0, "function": {"arguments": text}}]}


class _OpenAIEmbeddings(_OpenAI):
    """The vector of a text is its length, and ones, which tell them apart."""

    required: tuple[str, ...] = ("model", "input")
    known = frozenset({"model", "input", "dimensions", "encoding_format", "user"})

    def vectors(self, body: dict[str, Any]) -> dict[str, Any]:
        num_dimensions = body.get("dimensions", 4)
        data = [
            {
                "object": "embedding",
                "index": index,
                "embedding": [float(len(text)), *[1.0] * (num_dimensions - 1)],
            }
            for index, text in enumerate(body["input"])
        ]
        num_tokens = sum(len(text.split()) for text in body["input"])
        usage = {"prompt_tokens": num_tokens, "total_tokens": num_tokens}
        return {"object": "list", "data": data, "model": body["model"], "usage": usage}


class _Rerank(_OpenAIEmbeddings):
    """The score of a text is a part of 1, the larger the shorter the text is."""

    required = ("model", "query", "documents")
    known = frozenset({"model", "query", "documents", "top_n", "return_documents"})

    def vectors(self, body: dict[str, Any]) -> dict[str, Any]:
        scores = [1 / (1 + len(text)) for text in body["documents"]]
        best = sorted(range(len(scores)), key=lambda index: -scores[index])[: body["top_n"]]
        results = [{"index": index, "relevance_score": scores[index]} for index in best]
        num_tokens = len(scores)
        return {
            "id": "a",
            "results": results,
            "usage": {"total_tokens": num_tokens},
            "meta": {"billed_units": {"search_units": 1}, "tokens": {"input_tokens": num_tokens}},
        }


class _Anthropic(_Api):
    def key_of(self, call: Call) -> str:
        return call.headers.get("x-api-key", "")

    def refusal(self, call: Call) -> _Refusal | None:
        if self.server.key is not None and self.key_of(call) != self.server.key:
            wrong = "invalid x-api-key"
            return _Refusal(401, wrong, anthropic_type="authentication_error")
        if "anthropic-version" not in call.headers:
            return _Refusal(400, "anthropic-version: header is required")
        for required in ("model", "messages", "max_tokens"):
            if not call.body.get(required):
                return _Refusal(400, f"{required}: Field required")
        for name in call.body:
            if name not in _ANTHROPIC_FIELDS:
                return _Refusal(400, f"{name}: Extra inputs are not permitted")
        return None

    def error(self, refusal: _Refusal, message: str) -> dict[str, Any]:
        described = {"type": refusal.anthropic_type, "message": message}
        return {"type": "error", "error": described}

    def whole(self, body: dict[str, Any], answer: _Answer) -> dict[str, Any]:
        text = "".join(answer.deltas)
        block: dict[str, Any] = {"type": "text", "text": text}
        if answer.tool is not None:
            tool = {"type": "tool_use", "id": "toolu_1", "name": answer.tool}
            block = tool | {"input": json.loads(text)}
        start = self._message(body, answer)
        stop = {"stop_reason": self._stop_reason(answer)}
        return start | {"content": [block], **stop, "usage": self._usage(answer)}

    def _message(self, body: dict[str, Any], answer: _Answer) -> dict[str, Any]:
        return {
            "id": "msg_1",
            "type": "message",
            "role": "assistant",
            "model": body["model"],
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": self._usage(answer) | {"output_tokens": 1},
        }

    def _stop_reason(self, answer: _Answer) -> str:
        reasons = {"length": "max_tokens", "tool_calls": "tool_use", "content_filter": "refusal"}
        return reasons.get(answer.finish_reason, "end_turn")

    def _usage(self, answer: _Answer) -> dict[str, Any]:
        return {
            "input_tokens": answer.prompt_tokens - answer.cached_tokens,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": answer.cached_tokens,
            "output_tokens": answer.completion_tokens,
        }

    def events(self, body: dict[str, Any], answer: _Answer, fault: Fault | None) -> Iterator[bytes]:
        yield _event("message_start", {"message": self._message(body, answer)})
        blocks = self._blocks(answer)
        for index, (block, deltas) in enumerate(blocks):
            yield _event("content_block_start", {"index": index, "content_block": block})
            yield _event("ping", {})
            for number, delta in enumerate(deltas):
                if number == 2 and fault == Fault.INVALID_JSON:
                    yield b'event: content_block_delta\ndata: {"type": "content_blo\n\n'
                if number == 2 and fault == Fault.ERROR_MIDWAY:
                    refusal = _REFUSALS[Fault.OVERLOADED]
                    yield _event("error", self.error(refusal, refusal.message))
                yield _event("content_block_delta", {"index": index, "delta": delta})
            yield _event("content_block_stop", {"index": index})
        stop = {"stop_reason": self._stop_reason(answer), "stop_sequence": None}
        usage = {"output_tokens": answer.completion_tokens}
        yield _event("message_delta", {"delta": stop, "usage": usage})
        yield _event("message_stop", {})

    def _blocks(self, answer: _Answer) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]]]]:
        if answer.reasoning:
            deltas = [{"type": "thinking_delta", "thinking": text} for text in answer.reasoning]
            signed = {"type": "signature_delta", "signature": "c2lnbmVk"}
            yield {"type": "thinking", "thinking": "", "signature": ""}, [*deltas, signed]
        if answer.tool is None:
            texts = [{"type": "text_delta", "text": text} for text in answer.deltas]
            yield {"type": "text", "text": ""}, texts
            return
        tool = {"type": "tool_use", "id": "toolu_1", "name": answer.tool, "input": {}}
        deltas = [{"type": "input_json_delta", "partial_json": text} for text in answer.deltas]
        yield tool, deltas


def _halves(text: str) -> list[str]:
    """The text as pieces of one unit of UTF-16 each, as some tokenizers' bytes come out."""
    units = text.encode("utf-16-le")
    return [
        units[start : start + 2].decode("utf-16-le", "surrogatepass")
        for start in range(0, len(units), 2)
    ]


def _openai_object(kind: str, body: dict[str, Any]) -> dict[str, Any]:
    identity = {"id": f"chatcmpl-{uuid.uuid4().hex}", "object": kind, "created": int(time.time())}
    return identity | {"model": body["model"], "system_fingerprint": "fp_1"}


def _data(value: Any) -> bytes:
    return b"data: " + json.dumps(value).encode() + b"\n\n"


def _event(name: str, value: dict[str, Any]) -> bytes:
    return f"event: {name}\n".encode() + _data({"type": name, **value})


def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=8901)
    parser.add_argument("--delay-ms", type=float, default=0)
    parser.add_argument("--token-delay-ms", type=float, default=0)
    parser.add_argument("--fault-rate", type=float, default=0)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    server = CloudServer(
        given.port,
        delay_ms=given.delay_ms,
        token_delay_ms=given.token_delay_ms,
        fault_rate=given.fault_rate,
        seed=given.seed,
    )
    with server, contextlib.suppress(KeyboardInterrupt):
        print(server.url, flush=True)  # noqa: T201
        threading.Event().wait()


if __name__ == "__main__":
    _main()
