"""The routes of models: validate, call one thing, respond."""

from typing import Any

from django.http import HttpResponseBase
from django_filters.rest_framework import DjangoFilterBackend
from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework import mixins, status, viewsets
from rest_framework.decorators import action
from rest_framework.exceptions import NotFound, ValidationError
from rest_framework.request import Request
from rest_framework.response import Response

from inference import dispatch
from inference.api.deferred_response import WAIT_PARAMETER, long_poll, requested_seconds
from inference.api.filters import ModelFilters
from inference.api.model_serializers import (
    CompatibilityRequestSerializer,
    CompatibilitySerializer,
    ModelNameSerializer,
    ModelRegistrationSerializer,
    RegisteredModelSerializer,
)
from inference.api.pagination import ModelPagination
from inference.api.preset_serializers import (
    PresetListSerializer,
    PresetRegistrationSerializer,
    PresetSerializer,
)
from inference.loading import requests
from inference.models import GenerationTask, RegisteredModel
from inference.providers import circuit_breaker
from inference.providers.cloud.endpoints import reports
from inference.registry import compatibility, downloads, preset_registration, registration
from monitoring.api import query_parameters
from monitoring.api.errors import Conflict
from monitoring.api.principal import ANY_SCOPE, Scope, principal_of
from monitoring.api.query_parameters import StrictViewSet
from presets.models import Preset


class RegisteredModelViewSet(
    StrictViewSet,
    mixins.ListModelMixin,
    mixins.RetrieveModelMixin,
    viewsets.GenericViewSet[RegisteredModel],
):
    """Models that tasks can name."""

    scopes = (Scope.ADMIN,)
    action_scopes = dict.fromkeys(("list", "retrieve", "presets", "check_compatibility"), ANY_SCOPE)
    queryset = RegisteredModel.objects.select_related("download")
    serializer_class = RegisteredModelSerializer
    pagination_class = ModelPagination
    filter_backends = [DjangoFilterBackend]
    filterset_class = ModelFilters
    lookup_field = "name"
    lookup_value_regex = "[A-Za-z0-9._:-]{1,100}"
    known_parameters = {
        "list": (*ModelFilters.base_filters, "limit", "cursor", "offset"),
        "load": ("wait",),
        "unload": ("wait",),
        "destroy": ("delete_file",),
    }

    def get_object(self) -> RegisteredModel:
        return self._read(self.kwargs["name"])

    def list(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """All registered models."""
        page = self.paginate_queryset(self.filter_queryset(self.get_queryset())) or []
        context = {"circuits": circuit_breaker.states(page), **_known_states(request)}
        models = RegisteredModelSerializer(page, many=True, context=context)
        return self.get_paginated_response(models.data)

    def retrieve(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """One model, with what its file says of it."""
        model = RegisteredModelSerializer(self.get_object(), context=_known_states(request))
        return Response(model.data)

    @extend_schema(request=ModelRegistrationSerializer, responses={201: RegisteredModelSerializer})
    @action(detail=False, methods=["post"])
    def register(self, request: Request) -> Response:
        """Register a model, of a `provider` with the `config` that it takes.

        `local`: a GGUF file in MODELS_DIR. `openai`, `anthropic`: their APIs, with `base_url` a
        proxy of them. `openai_compatible`: a server that speaks OpenAI's format, at `base_url`.
        `openai_compatible` with `endpoints`: several of them.
        `litellm`: any `provider/model` of LiteLLM. `embedding`: makes vectors, by a folder of
        sentence-transformers or a GGUF file in MODELS_DIR, a Python package, or a `provider/model`.
        `echo`: says the prompt back. An `api_key` is kept encrypted and never shown; or name the
        worker's variable by `api_key_env_var`.
        """
        fields = ModelRegistrationSerializer().run_validation(request.data)
        model = registration.register(**fields)
        return Response(RegisteredModelSerializer(model).data, status=201)

    @extend_schema(responses=PresetListSerializer)
    @action(detail=False, methods=["get"], pagination_class=None, filter_backends=[])
    def presets(self, request: Request) -> Response:
        """The catalogue of models that are one call away."""
        context = {"registered": set(RegisteredModel.objects.values_list("name", flat=True))}
        by_kind: dict[str, list[Any]] = {kind: [] for kind in Preset.Kind.values}
        for preset in Preset.objects.order_by("name"):
            by_kind[preset.kind].append(PresetSerializer(preset, context=context).data)
        lists = {f"{kind}_models": found for kind, found in by_kind.items()}
        return Response(lists | {f"total_{kind}": len(found) for kind, found in by_kind.items()})

    @extend_schema(request=PresetRegistrationSerializer, responses={201: RegisteredModelSerializer})
    @action(detail=False, methods=["post"], url_path="register-from-preset")
    def register_from_preset(self, request: Request) -> Response:
        """Register a model of the catalogue; its file is downloaded, unless it is here."""
        fields = PresetRegistrationSerializer().run_validation(request.data)
        preset = _read_preset(fields["preset_name"])
        name = fields.get("name", preset.name)
        model = preset_registration.register(
            preset, name, fields.get("quantization"), fields.get("api_key")
        )
        if model.status == RegisteredModel.Status.REGISTERED and fields["auto_download"]:
            downloads.start(model)
        return Response(RegisteredModelSerializer(model).data, status=201)

    @extend_schema(
        request=ModelNameSerializer,
        responses={202: RegisteredModelSerializer},
        parameters=[WAIT_PARAMETER],
    )
    @action(detail=False, methods=["post"])
    def load(self, request: Request) -> HttpResponseBase:
        """Load a local model; idle ones make room for it. `?wait=30` answers once it is done.

        One whose file is still to come from the hub is downloaded, as far as it is not there yet.
        """
        return self._ask(request, RegisteredModel.Request.LOAD)

    @extend_schema(
        request=ModelNameSerializer,
        responses={202: RegisteredModelSerializer},
        parameters=[WAIT_PARAMETER],
    )
    @action(detail=False, methods=["post"])
    def unload(self, request: Request) -> HttpResponseBase:
        """Free a local model, once the tasks that run on it have ended."""
        return self._ask(request, RegisteredModel.Request.UNLOAD)

    @extend_schema(request=CompatibilityRequestSerializer, responses=CompatibilitySerializer)
    @action(detail=False, methods=["post"], url_path="check-compatibility")
    def check_compatibility(self, request: Request) -> Response:
        """Would a model or a preset fit into the memory there is, and what would it take of it."""
        fields = CompatibilityRequestSerializer().run_validation(request.data)
        how = (fields.get("quantization"), fields.get("context_window"))
        if "model" in fields:
            verdict = compatibility.check_model(self._read(fields["model"]), *how)
        else:
            verdict = compatibility.check_preset(_read_preset(fields["preset_name"]), *how)
        return Response(CompatibilitySerializer(verdict).data)

    @extend_schema(parameters=[OpenApiParameter("delete_file", bool)])
    def destroy(self, request: Request, name: str) -> Response:
        """Forget a model. Its file stays, unless `?delete_file=true`."""
        model = self.get_object()
        delete_file = query_parameters.boolean(request, "delete_file")
        if GenerationTask.objects.may_need(model.name):
            raise Conflict(f"Tasks still use {model.name}: wait for them, or cancel them.")
        if delete_file and (other := registration.shares_file(model)):
            raise Conflict(f"The model {other} uses the same file: delete that model first.")
        model.delete()
        if model.provider == RegisteredModel.Provider.LOCAL:
            dispatch.enqueue([dispatch.SERVE_MODEL_REQUESTS])
        elif model.provider == RegisteredModel.Provider.EMBEDDING:
            dispatch.enqueue([dispatch.EMBED])
        if delete_file:
            registration.delete_file(model)
        if delete_file or model.status == RegisteredModel.Status.DOWNLOADING:
            downloads.forget_partial_file(model)
        return Response(status=status.HTTP_204_NO_CONTENT)

    def _ask(self, request: Request, what: RegisteredModel.Request) -> HttpResponseBase:
        """Have the worker do it, and wait for that as long as the client wants."""
        seconds = requested_seconds(request)
        model = self._read(ModelNameSerializer().run_validation(request.data)["model"])
        if what == RegisteredModel.Request.LOAD and downloads.start_if_missing(model):
            return Response(RegisteredModelSerializer(model).data, status=202)
        if model.provider == RegisteredModel.Provider.EMBEDDING:
            message = (
                f"{model.name} is an embedding model: it is loaded when it is first asked, and "
                "the least recently used one makes room."
            )
            raise ValidationError({"model": [message]})
        if model.provider != RegisteredModel.Provider.LOCAL:
            message = f"{model.name} is of the provider {model.provider}: only local models load."
            raise ValidationError({"model": [message]})
        if model.crashed_too_often:
            raise ValidationError({"model": [model.crash_message]})
        requests.ask(model, what)

        def read() -> tuple[object, bool]:
            asked = self._read(model.name)
            return RegisteredModelSerializer(asked).data, asked.requested != what

        return long_poll(self, requests.wait_key(model), seconds, read, status=202)

    def _read(self, name: str) -> RegisteredModel:
        model = RegisteredModel.objects.read(name)
        if model is None:
            raise NotFound(f"There is no model {name}: GET /api/v1/models lists them.")
        return model


def _known_states(request: Request) -> dict[str, Any]:
    """How endpoints are, for whoever may know what all owners ask of them."""
    may_know = Scope.MONITOR in principal_of(request).scopes
    return {"endpoints": reports.read()} if may_know else {}


def _read_preset(name: str) -> Preset:
    preset = Preset.objects.filter(name=name).first()
    if preset is None:
        raise NotFound(f"There is no preset {name}: GET /api/v1/models/presets lists them.")
    return preset
