"""How the OpenAPI description differs from what drf-spectacular reads off the routes."""

from functools import cache
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, NotRequired, get_args, get_origin, get_type_hints, is_typeddict

import yaml
from django.conf import settings
from django.http import HttpRequest, HttpResponse
from drf_spectacular.extensions import (
    OpenApiSerializerExtension,
    OpenApiSerializerFieldExtension,
)
from drf_spectacular.generators import SchemaGenerator
from drf_spectacular.openapi import AutoSchema
from drf_spectacular.plumbing import (
    build_array_type,
    build_object_type,
    get_doc,
    resolve_type_hint,
)
from drf_spectacular.renderers import OpenApiJsonRenderer
from drf_spectacular.utils import Direction, OpenApiResponse
from rest_framework import serializers

from inference.api.task_stream import CONTENT_TYPE, AnyAccept
from inference.openai.either_shape import either_shape
from inference.openai.errors import OpenAIErrorBody
from inference.openai.messages.errors import AnthropicErrorBody
from monitoring.api.strict_serializer import StrictSerializer
from sopllm.exceptions import ErrorBody

Endpoint = tuple[str, str, str, Any]
Schema = dict[str, Any]

# By the beginning of the path, of which the first that fits counts.
_ERRORS: list[tuple[str, Any]] = [
    ("/v1/messages", AnthropicErrorBody),
    ("/v1/models", either_shape("OpenAIOrAnthropicError", OpenAIErrorBody, AnthropicErrorBody)),
    ("/v1/", OpenAIErrorBody),
    ("/", ErrorBody),
]
_MEANINGS = {
    400: "A field, a parameter or a header is not valid; the message says which.",
    401: "No key, or one that lets nobody in.",
    403: "The key has not the scope for it.",
    404: "It is not there, or not yours.",
    406: "The answer is JSON, which `Accept` leaves out.",
    408: "The body came too slowly.",
    409: "What it is about is in a state, or exists already, so that this cannot be done.",
    410: "The task was cancelled, or deleted, while the request waited for it.",
    413: "The body is too large.",
    415: "The body is of another type.",
    429: "A limit of the key is reached; `Retry-After` says how long.",
    500: "The server failed unexpectedly.",
    502: "The provider of the model has failed, or has refused the service's own key.",
    503: "The queue is full, or a part of the service is away; `Retry-After` says how long.",
    504: "A time limit of the task, or of the provider, is over.",
}
# What each operation's description is made of, beside its shapes: by group, in the order of use.
_OPERATIONS = "operations.yaml"
_APPS = ("inference/api", "conversations", "inference/openai", "monitoring", "sopllm/access")
_GROUPS = {
    "tasks": "Work for a model: submit it, read or follow its answer, cancel it.",
    "conversations": "Dialogues with memory, which tasks continue.",
    "models": "What tasks can name: the catalogue, registrations, models in memory.",
    "embeddings": "Vectors of texts, and how near texts are to each other.",
    "webhooks": "What calls of your own server are signed with.",
    "v1 chat": "OpenAI's chat completions and completions.",
    "v1 responses": "OpenAI's responses, also in the background.",
    "v1 embeddings": "OpenAI's embeddings; texts ranked as Jina and Cohere do.",
    "v1 models": "The registered models, as OpenAI lists them.",
    "v1 batches": "OpenAI's files and batches.",
    "v1 messages": "Anthropic's messages.",
    "monitor": "How the service is: health, queues, GPUs, events, logs, statistics.",
    "keys": "API keys: yours, and for those who administer, all.",
}
_resolve: Any = resolve_type_hint  # which has no annotations itself


@cache
def _operations() -> dict[str, Schema]:
    """The entries of all operations, each with its group as a tag, in the order of use."""
    paths = [Path(settings.BASE_DIR) / app / _OPERATIONS for app in _APPS]
    files = [yaml.safe_load(path.read_text()) for path in paths]
    return {
        name: {"tags": [group], **entry}
        for group in _GROUPS
        for file in files
        for name, entry in file.get(group, {}).items()
    }


def in_order_of_use(result: Schema, **_: Any) -> Schema:
    """The groups, and the paths within them, as people come to need them."""
    order = {name: place for place, name in enumerate(_operations())}

    def place(methods: Schema) -> int:
        return min(order.get(each["operationId"], len(order)) for each in methods.values())

    paths = {
        path: dict(sorted(methods.items(), key=lambda each: place(dict([each]))))
        for path, methods in sorted(result["paths"].items(), key=lambda each: place(each[1]))
    }
    tags = [{"name": name, "description": text} for name, text in _GROUPS.items()]
    return {**result, "tags": tags, "paths": paths}


def without_trailing_slashes(endpoints: list[Endpoint]) -> list[Endpoint]:
    """Each route answers with and without one; the description names the shorter."""
    return [(path.rstrip("/"), regex, method, view) for path, regex, method, view in endpoints]


def description(_: HttpRequest) -> HttpResponse:
    """The description at /openapi.json, made once a process: it is open to everybody."""
    return HttpResponse(_encoded(), content_type=OpenApiJsonRenderer.media_type)


@cache
def _encoded() -> bytes:
    generator: Any = SchemaGenerator  # which has no annotations itself
    text: bytes = OpenApiJsonRenderer().render(generator().get_schema(request=None, public=True))
    return text


def _nullable(schema: Schema) -> Schema:
    """The same, or null."""
    return {**({"allOf": [schema]} if "$ref" in schema else schema), "nullable": True}


class OperationSchema(AutoSchema):
    """An operation with its summary, group, examples and errors."""

    @property
    def _entry(self) -> Schema:
        return _operations().get(self.get_operation_id(), {})

    def get_summary(self) -> str | None:
        return self._entry.get("summary")

    def get_tags(self) -> list[str]:
        tags: list[str] = self._entry.get("tags", [])
        return tags

    def _map_basic_serializer(self, serializer: Any, direction: Direction) -> Schema:
        """With what a strict serializer refuses beside."""
        schema: Schema = super()._map_basic_serializer(  # type: ignore[no-untyped-call]
            serializer, direction
        )
        if isinstance(serializer, StrictSerializer):
            schema["additionalProperties"] = False
            for name, field in serializer.fields.items():
                if serializer.null_means_default and not field.required:
                    schema["properties"][name] = _nullable(schema["properties"][name])
                if isinstance(field, serializers.CharField) and not field.allow_blank:
                    schema["properties"][name].setdefault("minLength", 1)
        return schema

    def _get_filter_parameters(self) -> list[Schema]:
        """Empty ones narrow nothing: the forms of the browsable API send them all."""
        parameters = super()._get_filter_parameters()  # type: ignore[no-untyped-call]
        return [each | {"allowEmptyValue": True} for each in parameters]

    def _get_request_body(self, direction: Direction = "request") -> Schema | None:
        body: Schema | None = super()._get_request_body(direction)  # type: ignore[no-untyped-call]
        if body and "request" in self._entry:
            for content in body["content"].values():
                content["example"] = self._entry["request"]
        return body

    def _get_response_bodies(self, direction: Direction = "response") -> Schema:
        bodies: Schema = super()._get_response_bodies(direction)
        for status, body in bodies.items():
            for media_type, content in body.get("content", {}).items():
                name = "response"
                if media_type == CONTENT_TYPE:
                    # The shape of events is no matter of version 3.0.
                    del content["schema"]
                    name = "stream"
                if status.startswith("2") and name in self._entry:
                    content["example"] = self._entry[name]
        shape = next(shape for path, shape in _ERRORS if self.path.startswith(path))
        for code in self._error_codes():
            error = self._get_response_for_code(  # type: ignore[no-untyped-call]
                OpenApiResponse(shape, _MEANINGS[code]), str(code), ["application/json"]
            )
            bodies.setdefault(str(code), error)
        return bodies

    def _error_codes(self) -> list[int]:
        """Those that each operation can give, its own, and those that go with its parts."""
        codes = {400, 401, 403, 429, 500, 503, *self._entry.get("errors", ())}
        if "{" in self.path:
            codes.add(404)
        if self.view.content_negotiation_class is not AnyAccept:
            codes.add(406)
        if self._get_request_body():
            codes |= {408, 413, 415}
        return sorted(codes)


class ConfigExtension(OpenApiSerializerFieldExtension):  # type: ignore[no-untyped-call]
    """The shapes that a field names, of which a value may have several."""

    target_class = "inference.api.model_serializers.ConfigField"

    def map_serializer_field(self, auto_schema: AutoSchema, direction: Direction) -> Schema:
        shapes = [auto_schema.resolve_serializer(each, direction) for each in self.target.shapes]
        return {"anyOf": [shape.ref for shape in shapes]}


class TypedDictExtension(OpenApiSerializerExtension):  # type: ignore[no-untyped-call]
    """A body that is a TypedDict, and those within it, are components of the same names."""

    @classmethod
    def _matches(cls, target: Any) -> bool:
        return is_typeddict(target)

    def get_name(self, auto_schema: AutoSchema, direction: Direction) -> str:
        name: str = self.target.__name__
        return name

    def map_serializer(self, auto_schema: AutoSchema, direction: Direction) -> Schema:
        """The formats of strings are their annotations, as in `Annotated[str, "date-time"]`."""

        def schema(hint: Any) -> Schema:
            origin, args = get_origin(hint), get_args(hint)
            if is_typeddict(hint):
                found = auto_schema.resolve_serializer(hint, direction).ref
            elif origin is NotRequired:
                found = schema(args[0])
            elif origin is Annotated:
                found = {**_resolve(args[0]), "format": args[1]}
            elif origin is list:
                found = build_array_type(schema(args[0]))
            elif origin is dict and args[1] is not Any:
                found = {"type": "object", "additionalProperties": schema(args[1])}
            elif NoneType in args:
                [some] = [schema(arg) for arg in args if arg is not NoneType]
                found = _nullable(some)
            else:
                found = _resolve(hint)
            return found

        hints = get_type_hints(self.target, include_extras=True)
        return build_object_type(
            properties={name: schema(hint) for name, hint in hints.items()},
            required=sorted(self.target.__required_keys__),
            description=get_doc(self.target),
        )
