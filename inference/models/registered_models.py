"""The models that tasks can name."""

from datetime import timedelta

from django.conf import settings
from django.db import connection, models
from django.db.models import Q
from django.db.models.functions import Now

from inference.models.plain_sql import first_row


class RegisteredModelQuerySet(models.QuerySet["RegisteredModel"]):
    def read(self, name: str) -> "RegisteredModel | None":
        """The model of that name."""
        return first_row(RegisteredModel, _READ_MODEL, [name])

    def requests_for(self, worker: str) -> "RegisteredModelQuerySet":
        """Those that the worker is to load or unload, in the order of the requests.

        Not those that another one holds in memory: only it can serve them.
        """
        mine = Q(loaded_by="") | Q(loaded_by=worker)
        return self.exclude(requested="").filter(mine).order_by("requested_at", "pk")

    def has_requests_for(self, worker: str) -> bool:
        """Whether the worker is to load or unload any; plain SQL, as all that is asked often."""
        with connection.cursor() as cursor:
            cursor.execute(_HAS_REQUESTS_FOR, [worker])
            return cursor.fetchone() is not None

    def idle(self) -> "RegisteredModelQuerySet":
        """Loaded, and not used for as long as they are kept."""
        return self.filter(status=RegisteredModel.Status.LOADED, unload_at__lte=Now())


class RegisteredModel(models.Model):
    """A model that tasks can name.

    registered ──▶ downloading ──▶ available ──first use──▶ loading ──▶ loaded ──▶ available
                        └──▶ error ──▶ downloading             └──▶ error ──next use──▶ loading

    `requested` is what a GPU worker is to do with it, `unload_at` when an idle one goes: null while
    it is in use, or is kept for ever. Once `num_crashes` is MAX_CRASHES it is not loaded any more.
    """

    MAX_CRASHES = 2

    class Provider(models.TextChoices):
        LOCAL = "local"
        ECHO = "echo"
        OPENAI = "openai"
        ANTHROPIC = "anthropic"
        OPENAI_COMPATIBLE = "openai_compatible"
        LITELLM = "litellm"
        EMBEDDING = "embedding"

    CLOUD_PROVIDERS = (
        Provider.OPENAI,
        Provider.ANTHROPIC,
        Provider.OPENAI_COMPATIBLE,
        Provider.LITELLM,
    )

    class Status(models.TextChoices):
        REGISTERED = "registered"
        DOWNLOADING = "downloading"
        AVAILABLE = "available"
        LOADING = "loading"
        LOADED = "loaded"
        ERROR = "error"

    class Request(models.TextChoices):
        NONE = ""
        LOAD = "load"
        UNLOAD = "unload"

    name = models.CharField(max_length=100, unique=True)
    provider = models.CharField(max_length=20, choices=Provider.choices)
    status = models.CharField(max_length=12, choices=Status.choices, default=Status.AVAILABLE)
    status_message = models.TextField(blank=True)
    loaded_by = models.CharField(max_length=255, blank=True)
    requested = models.CharField(
        max_length=6, choices=Request.choices, default=Request.NONE, blank=True
    )
    requested_at = models.DateTimeField(null=True, blank=True)
    last_used_at = models.DateTimeField(null=True, blank=True)
    unload_at = models.DateTimeField(null=True, blank=True)
    # The settings by which it ran last, the measured ones too; null before that.
    loaded_with = models.JSONField(null=True, editable=False)
    num_crashes = models.PositiveSmallIntegerField(default=0)
    config = models.JSONField(default=dict, blank=True)
    # Never shown by the API.
    encrypted_api_key = models.TextField(blank=True, editable=False)
    # Of those that have keys of their own, by the name of the endpoint.
    encrypted_endpoint_keys = models.JSONField(default=dict, blank=True, editable=False)
    extra = models.JSONField(default=dict, blank=True)
    context_window = models.PositiveIntegerField(null=True, blank=True)
    max_output_tokens = models.PositiveIntegerField(null=True, blank=True)
    size_bytes = models.PositiveBigIntegerField(null=True, blank=True)
    created_at = models.DateTimeField(auto_now_add=True)
    updated_at = models.DateTimeField(auto_now=True)

    objects = RegisteredModelQuerySet.as_manager()

    class Meta:
        ordering = ["name"]
        indexes = [
            models.Index(fields=["requested_at"], name="model_request", condition=~Q(requested=""))
        ]

    def __str__(self) -> str:
        return self.name

    @property
    def loaded(self) -> bool:
        return self.status == self.Status.LOADED

    @property
    def is_remote(self) -> bool:
        """Whether it runs at a provider, who is asked over the network."""
        is_remote_embedding = (
            self.provider == self.Provider.EMBEDDING and "model_name" in self.config
        )
        return is_remote_embedding or self.provider in self.CLOUD_PROVIDERS

    @property
    def pinned(self) -> bool:
        """Whether only a request may unload it."""
        return bool(self.config.get("pinned", False))

    @property
    def shares_prefixes(self) -> bool:
        """Whether prompts start from what those of other owners have computed."""
        return bool(self.config.get("shares_prefixes", False))

    @property
    def keep_alive(self) -> timedelta | None:
        """How long it stays in memory when nobody uses it; None: no limit."""
        is_embedding = self.provider == self.Provider.EMBEDDING
        default = (
            settings.EMBEDDING_KEEP_ALIVE_SECONDS if is_embedding else settings.KEEP_ALIVE_SECONDS
        )
        seconds = self.config.get("keep_alive_seconds", default)
        return None if self.pinned or seconds < 0 else timedelta(seconds=seconds)

    @property
    def crashed_too_often(self) -> bool:
        return self.num_crashes >= self.MAX_CRASHES

    @property
    def crash_message(self) -> str:
        """Why it is not loaded any more, and what to do."""
        return (
            f"The model {self.name} has crashed its worker {self.num_crashes} times and is not "
            "loaded any more: delete it, and register it anew with other values, such as fewer "
            "gpu_layers, a smaller context_window, a smaller max_num_seqs or another file."
        )

    def set_status(self, status: "RegisteredModel.Status", worker: str = "", why: str = "") -> None:
        """Record where the model is; `worker` holds it in memory, `why` explains an error."""
        self.status, self.loaded_by, self.status_message = status, worker, why
        RegisteredModel.objects.filter(pk=self.pk).update(
            status=status, loaded_by=worker, status_message=why, updated_at=Now()
        )


_READ_MODEL = f"SELECT * FROM {RegisteredModel._meta.db_table} WHERE name = %s"  # noqa: S608
_HAS_REQUESTS_FOR = """
    SELECT 1 FROM inference_registeredmodel WHERE requested <> '' AND loaded_by IN ('', %s) LIMIT 1
"""


def loaded_models() -> dict[str, bool]:
    """All registered models by name, and whether each is in memory."""
    rows = RegisteredModel.objects.values_list("name", "status")
    return {name: status == RegisteredModel.Status.LOADED for name, status in rows}
