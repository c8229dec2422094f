"""The routes of models: validate, call one thing, respond."""

from typing import Any

from django.db.models import QuerySet
from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework import mixins, status, viewsets
from rest_framework.decorators import action
from rest_framework.exceptions import NotFound, ValidationError
from rest_framework.request import Request
from rest_framework.response import Response

from inference import circuit, compatibility, dispatch, long_poll, model_requests, registration
from inference.long_poll import WAIT_PARAMETER, WaitingResponse
from inference.model_serializers import (
    CompatibilityRequestSerializer,
    CompatibilitySerializer,
    ModelNameSerializer,
    ModelRegistrationSerializer,
    RegisteredModelSerializer,
)
from inference.models import GenerationTask, RegisteredModel
from inference.pagination import ModelPagination
from monitoring.api_errors import Conflict
from presets.packaged import PackagedPreset, packaged_presets


class RegisteredModelViewSet(
    mixins.ListModelMixin, mixins.RetrieveModelMixin, viewsets.GenericViewSet[RegisteredModel]
):
    """Models that tasks can name."""

    queryset = RegisteredModel.objects.order_by("name")
    serializer_class = RegisteredModelSerializer
    pagination_class = ModelPagination
    lookup_field = "name"
    lookup_value_regex = "[A-Za-z0-9._:-]{1,100}"

    def get_object(self) -> RegisteredModel:
        return self._read(self.kwargs["name"])

    def get_queryset(self) -> QuerySet[RegisteredModel]:
        models = super().get_queryset()
        params = self.request.query_params
        if provider := params.get("provider"):
            if provider not in RegisteredModel.Provider.values:
                choices = ", ".join(RegisteredModel.Provider.values)
                raise ValidationError({"provider": [f"Choose one of {choices}."]})
            models = models.filter(provider=provider)
        if loaded := params.get("loaded"):
            if loaded not in ("true", "false"):
                raise ValidationError({"loaded": ["Give true or false."]})
            is_loaded = {"status": RegisteredModel.Status.LOADED}
            models = models.filter(**is_loaded) if loaded == "true" else models.exclude(**is_loaded)
        return models

    @extend_schema(parameters=[OpenApiParameter("provider", str), OpenApiParameter("loaded", bool)])
    def list(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """All registered models."""
        page = self.paginate_queryset(self.filter_queryset(self.get_queryset())) or []
        context = {"circuits": circuit.states(page)}
        models = RegisteredModelSerializer(page, many=True, context=context)
        return self.get_paginated_response(models.data)

    @extend_schema(request=ModelRegistrationSerializer, responses={201: RegisteredModelSerializer})
    @action(detail=False, methods=["post"])
    def register(self, request: Request) -> Response:
        """Register a model, of a `provider` with the `config` that it takes.

        `local`: a GGUF file in MODELS_DIR. `openai`, `anthropic`: their APIs, with `base_url` a
        proxy of them. `openai_compatible`: a server that speaks OpenAI's format, at `base_url`.
        `litellm`: any `provider/model` of LiteLLM. `echo`: says the prompt back. An `api_key` is
        kept encrypted and never shown; or name the worker's variable by `api_key_env_var`.
        """
        fields = ModelRegistrationSerializer().run_validation(request.data)
        try:
            model = registration.register(**fields)
        except registration.ModelExistsError as error:
            message = f"There is a model {error} already: delete it first, or take another name."
            raise Conflict(message) from error
        return Response(RegisteredModelSerializer(model).data, status=201)

    @extend_schema(
        request=ModelNameSerializer,
        responses={202: RegisteredModelSerializer},
        parameters=[WAIT_PARAMETER],
    )
    @action(detail=False, methods=["post"])
    def load(self, request: Request) -> Response:
        """Load a local model; idle ones make room for it. `?wait=30` answers once it is done."""
        return self._ask(request, RegisteredModel.Request.LOAD)

    @extend_schema(
        request=ModelNameSerializer,
        responses={202: RegisteredModelSerializer},
        parameters=[WAIT_PARAMETER],
    )
    @action(detail=False, methods=["post"])
    def unload(self, request: Request) -> Response:
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
        delete_file = request.query_params.get("delete_file", "false")
        if delete_file not in ("true", "false"):
            raise ValidationError({"delete_file": ["Give true or false."]})
        if GenerationTask.objects.unfinished().filter(model_name=model.name).exists():
            raise Conflict(f"Tasks still use {model.name}: wait for them, or cancel them.")
        if delete_file == "true" and (other := registration.shares_file(model)):
            raise Conflict(f"The model {other} uses the same file: delete that model first.")
        model.delete()
        if model.provider == RegisteredModel.Provider.LOCAL:
            dispatch.ring_for_models()
        if delete_file == "true":
            registration.delete_file(model)
        return Response(status=status.HTTP_204_NO_CONTENT)

    def _ask(self, request: Request, what: RegisteredModel.Request) -> Response:
        """Have the worker do it; asked again after a wait, only see how far it is."""
        seconds = long_poll.requested_seconds(request)
        model = self._read(ModelNameSerializer().run_validation(request.data)["model"])
        if not long_poll.is_repeat(request):
            self._check_loadable(model)
            model_requests.ask(model, what)
        is_pending = model.requested == what
        return WaitingResponse(
            RegisteredModelSerializer(model).data,
            wait_for=model_requests.wait_key(model) if is_pending else None,
            wait_seconds=seconds,
            status=202,
        )

    def _check_loadable(self, model: RegisteredModel) -> None:
        if model.provider != RegisteredModel.Provider.LOCAL:
            message = f"{model.name} is of the provider {model.provider}: only local models load."
            raise ValidationError({"model": [message]})
        if model.crashed_too_often:
            raise ValidationError({"model": [model.crash_message]})

    def _read(self, name: str) -> RegisteredModel:
        model = RegisteredModel.objects.read(name)
        if model is None:
            raise NotFound(f"There is no model {name}: GET /api/v1/models lists them.")
        return model


def _read_preset(name: str) -> PackagedPreset:
    presets = packaged_presets()
    for preset in presets:
        if preset.name == name:
            return preset
    names = ", ".join(preset.name for preset in presets)
    raise NotFound(f"There is no preset {name}: the presets are {names}.")
