"""How the answer of a task came about, as the API tells it."""

from typing import Any

from rest_framework import serializers
from rest_framework.exceptions import ValidationError

from inference.loading import file_hashes, weights
from inference.models import GenerationTask, ModelFile, RegisteredModel, TaskAttempt


class ProvenanceSerializer(serializers.Serializer[Any]):
    """Of an answer of a local model. Hashes are SHA-256, in hexadecimal digits."""

    model_file = serializers.CharField(help_text="Below MODELS_DIR.")
    model_sha256 = serializers.CharField(
        allow_null=True, help_text="Null for about a minute after the file has come."
    )
    llama_cpp = serializers.CharField()
    llama_cpp_system = serializers.CharField(help_text="What the build uses of the machine.")
    chat_template_sha256 = serializers.CharField(allow_null=True)
    loaded = serializers.DictField(
        help_text="The values that the model was loaded with; `gpu_split` is null without a GPU."
    )
    params = serializers.DictField(help_text="As used, the seed included.")


def provenance(task: GenerationTask) -> dict[str, Any] | None:
    """Of its last attempt; None unless that was answered by a local model."""
    attempt = last_attempt(task)
    if attempt is None or attempt.provenance is None:
        return None
    told = dict(attempt.provenance)
    file = told.pop("file")
    return {"model_file": file["path"], "model_sha256": ModelFile.sha256_of(file), **told}


def last_attempt(task: GenerationTask) -> TaskAttempt | None:
    """The last one that has ended."""
    return task.attempts.order_by("-number").first()


def check(told: dict[str, Any], model: RegisteredModel) -> None:
    """Raise ValidationError unless the file of the model holds what it did for that answer."""
    expected = told.get("model_sha256")
    if not expected:
        raise ValidationError({"provenance": ["It has no model_sha256 to compare with."]})
    if model.provider != RegisteredModel.Provider.LOCAL:
        raise ValidationError({"provenance": [f"{model.name} has no file: it is not local."]})
    try:
        file = file_hashes.identity(weights.resolve_file(model.config["model_path"]))
    except (ValueError, OSError) as error:
        raise ValidationError({"provenance": [str(error)]}) from error
    found = ModelFile.sha256_of(file)
    if found is None:
        message = f"The hash of {file['path']} is not known yet: submit again in a minute."
        raise ValidationError({"provenance": [message]})
    if found != expected:
        message = f"{model.name} has another file now, {found}: register the one of that answer."
        raise ValidationError({"provenance": [message]})
