"""What files of models hold, and what else an answer of a local model depends on."""

from typing import Any, TypedDict

from django.db import models


class FileIdentity(TypedDict):
    """A file that has not changed: its path below MODELS_DIR, size, and time of the last change."""

    path: str
    size_bytes: int
    modified_ns: int


class ModelProvenance(TypedDict):
    """What a local model in memory was made of: which file, library, template and values.

    `llama_cpp` names the build, `llama_cpp_system` the features of the machine that it uses.
    `chat_template_sha256` is None where the file has no template. `loaded` has the values that the
    model was loaded with.
    """

    file: FileIdentity
    llama_cpp: str
    llama_cpp_system: str
    chat_template_sha256: str | None
    loaded: dict[str, Any]


class Provenance(ModelProvenance):
    """How an answer came about: `params` chose its tokens, the seed included."""

    params: dict[str, Any]


class ModelFile(models.Model):
    """The hash of a file of a model, computed once."""

    path = models.CharField(max_length=1024)
    size_bytes = models.PositiveBigIntegerField()
    modified_ns = models.PositiveBigIntegerField()
    sha256 = models.CharField(max_length=64)

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["path", "size_bytes", "modified_ns"], name="one_hash_per_file"
            )
        ]

    def __str__(self) -> str:
        return f"{self.path}: {self.sha256}"

    @classmethod
    def sha256_of(cls, file: FileIdentity) -> str | None:
        """None while it has not been computed."""
        return cls.objects.filter(**file).values_list("sha256", flat=True).first()

    @classmethod
    def store(cls, file: FileIdentity, sha256: str) -> None:
        cls.objects.get_or_create(**file, defaults={"sha256": sha256})
