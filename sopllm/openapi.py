"""How the OpenAPI description differs from what drf-spectacular reads off the routes."""

from functools import cache
from types import NoneType
from typing import Annotated, Any, NotRequired, get_args, get_origin, get_type_hints, is_typeddict

from django.http import HttpRequest, HttpResponse
from drf_spectacular.extensions import OpenApiSerializerExtension
from drf_spectacular.generators import SchemaGenerator
from drf_spectacular.openapi import AutoSchema
from drf_spectacular.plumbing import (
    build_array_type,
    build_object_type,
    get_doc,
    resolve_type_hint,
)
from drf_spectacular.renderers import OpenApiJsonRenderer
from drf_spectacular.utils import Direction

from inference.openai.either_shape import either_shape
from inference.openai.errors import OpenAIErrorBody
from inference.openai.messages.errors import AnthropicErrorBody
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
_resolve: Any = resolve_type_hint  # which has no annotations itself


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


class SchemaWithErrors(AutoSchema):
    """Every route may refuse a request, or be without what it needs."""

    def _get_response_bodies(self, direction: Direction = "response") -> Schema:
        bodies: Schema = super()._get_response_bodies(direction)
        shape = next(shape for path, shape in _ERRORS if self.path.startswith(path))
        for code in ("4XX", "503"):
            error = self._get_response_for_code(  # type: ignore[no-untyped-call]
                shape, code, ["application/json"]
            )
            bodies.setdefault(code, error)
        return bodies


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
                found = {**({"allOf": [some]} if "$ref" in some else some), "nullable": True}
            else:
                found = _resolve(hint)
            return found

        hints = get_type_hints(self.target, include_extras=True)
        return build_object_type(
            properties={name: schema(hint) for name, hint in hints.items()},
            required=sorted(self.target.__required_keys__),
            description=get_doc(self.target),
        )
