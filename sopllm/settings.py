"""Django settings, from the environment and `.env`; docs/settings.md explains each variable."""

import base64
import secrets
import socket
from datetime import timedelta
from pathlib import Path
from typing import Any

import dj_database_url
import django_stubs_ext
from csp.constants import NONE, SELF
from django.core.exceptions import ImproperlyConfigured
from dotenv import load_dotenv

from monitoring.redis.connections import connection_class
from sopllm import __version__
from sopllm.env import (
    env_bool,
    env_choice,
    env_float,
    env_int,
    env_ints,
    env_limit,
    env_list,
    env_path,
    env_str,
    read_secret_files,
)

# Lets Django classes take type parameters at run time, as the type checker wants them.
django_stubs_ext.monkeypatch()

BASE_DIR = Path(__file__).resolve().parent.parent
load_dotenv(BASE_DIR / ".env")
read_secret_files()

# The service.

APP_NAME = env_str("APP_NAME", "SOP LLM Executor")
VERSION = __version__
APP_ENV = env_choice("APP_ENV", "local", ("local", "production"))
SERVER_HOST = env_str("SERVER_HOST", "127.0.0.1")
SERVER_PORT = env_int("SERVER_PORT", 8000, 1, 65535)
FLOWER_PORT = env_int("FLOWER_PORT", 5555, 1, 65535)
WEB_PROCESSES = env_int("WEB_PROCESSES", 2, 1, 64)
WEB_THREADS = env_int("WEB_THREADS", 4, 1, 256)
MAX_CONNECTIONS = env_int("MAX_CONNECTIONS", 4000, 1)
REQUEST_TIMEOUT_SECONDS = env_float("REQUEST_TIMEOUT_SECONDS", 10.0, 0.1, 3600)
LOG_LEVEL = env_choice("LOG_LEVEL", "INFO", ("DEBUG", "INFO", "WARNING", "ERROR"))

VAR_DIR = env_path("VAR_DIR", BASE_DIR / "var")
VAR_DIR.mkdir(mode=0o700, parents=True, exist_ok=True)
MODELS_DIR = env_path("MODELS_DIR", VAR_DIR / "models")
MODELS_DIR.mkdir(parents=True, exist_ok=True)
# Uploaded files, and what batches write: shared by web processes and default workers.
FILES_DIR = env_path("FILES_DIR", VAR_DIR / "files")
FILES_DIR.mkdir(mode=0o700, parents=True, exist_ok=True)
# KV caches of conversations, which a GPU worker keeps over restarts.
KV_DIR = env_path("KV_DIR", VAR_DIR / "kv")
# Folders of presets beside the catalogue's own.
PRESETS_DIRS = env_list("PRESETS_DIRS", [])
# The layer above the presets knows what a registration accepts: its check, by its dotted path.
PRESET_CHECK = "inference.registry.preset_registration.check"


def _stored_secret(name: str, new: str) -> str:
    """The secret in a file of VAR_DIR, mode 0600, which the first local run makes with `new`."""
    path = VAR_DIR / name
    try:
        path.touch(mode=0o600, exist_ok=False)
        path.write_text(new)
    except FileExistsError:
        pass
    return path.read_text().strip()


# Redis and the database.

# A host that vanishes closes no connection. The kernel counts one as lost after so long without a
# sign of the other side, whether it waits for an answer or for an acknowledgement of what it sent.
SILENCE_SECONDS = 10
_KEEPALIVE = {"idle": 4, "interval": 2, "count": (SILENCE_SECONDS - 4) // 2}

# Without REDIS_URL, `make run` starts the embedded Valkey on a Unix socket: it needs no free port,
# and no other user can connect.
VALKEY_SOCKET = VAR_DIR / "valkey.sock"
EMBEDDED_VALKEY = not env_str("REDIS_URL")
REDIS_URL = env_str("REDIS_URL", f"unix://{VALKEY_SOCKET}")
# For connections that wait without a time limit of their own.
REDIS_KEEPALIVE: dict[str, Any] = {}
if not REDIS_URL.startswith("unix:"):
    REDIS_KEEPALIVE = {
        "socket_keepalive": True,
        "socket_keepalive_options": {
            socket.TCP_KEEPIDLE: _KEEPALIVE["idle"],
            socket.TCP_KEEPINTVL: _KEEPALIVE["interval"],
            socket.TCP_KEEPCNT: _KEEPALIVE["count"],
            socket.TCP_USER_TIMEOUT: SILENCE_SECONDS * 1000,
        },
    }
REDIS_TIMEOUT_SECONDS = env_float("REDIS_TIMEOUT_SECONDS", 1.0, 0.05, 60)

DATABASES: dict[str, Any] = {
    "default": dj_database_url.parse(
        env_str("DATABASE_URL", f"sqlite:///{VAR_DIR / 'db.sqlite3'}"), conn_max_age=None
    )
}
if DATABASES["default"]["ENGINE"].endswith("sqlite3"):
    DATABASES["default"]["ENGINE"] = "sopllm.sqlite"
    DATABASES["default"]["OPTIONS"] = {
        # Writers wait at BEGIN instead of failing later with "database is locked".
        "transaction_mode": "IMMEDIATE",
        "timeout": 20,
        # A checkpoint syncs to disk while writers wait: every 32 MB instead of every 4 MB.
        "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL; "
        "PRAGMA wal_autocheckpoint=8000;",
    }
    # The test database is a file too, so that threads share it as the service's processes do.
    DATABASES["default"]["TEST"] = {"NAME": str(VAR_DIR / "test.sqlite3")}
else:
    DATABASES["default"]["CONN_HEALTH_CHECKS"] = True
    _of_client = {f"keepalives_{name}": value for name, value in _KEEPALIVE.items()}
    # The server, too, is not to hold locks for a client that is gone.
    _of_server = {f"tcp_keepalives_{name}": value for name, value in _KEEPALIVE.items()}
    _of_server["tcp_user_timeout"] = SILENCE_SECONDS * 1000
    DATABASES["default"]["OPTIONS"] = {
        "connect_timeout": SILENCE_SECONDS // 2,
        **_of_client,
        "tcp_user_timeout": SILENCE_SECONDS * 1000,
        "options": " ".join(f"-c {name}={value}" for name, value in _of_server.items()),
        **DATABASES["default"].get("OPTIONS", {}),
    }

# Events reach the web processes by publish and subscribe: as fast as the layer that stores messages
# in lists, but without a capacity at which it drops them. Lost events are read from the event log.
CHANNEL_LAYERS = {
    "default": {
        "BACKEND": "channels_redis.pubsub.RedisPubSubChannelLayer",
        "CONFIG": {
            "hosts": [
                {
                    "address": REDIS_URL,
                    "socket_connect_timeout": REDIS_TIMEOUT_SECONDS,
                    "health_check_interval": 30,
                    **REDIS_KEEPALIVE,
                    "connection_class": connection_class(REDIS_URL),
                }
            ]
        },
    }
}

# Tasks.

TASK_TTL_SECONDS = env_int("TASK_TTL_SECONDS", 86_400, 1)
MAX_ATTEMPTS = env_int("MAX_ATTEMPTS", 10, 1, 100)
LEASE_SECONDS = env_int("LEASE_SECONDS", 30, 3, 3600)
SWEEP_INTERVAL_SECONDS = env_float("SWEEP_INTERVAL_SECONDS", 5.0, 0.2, 3600)
RING_AGAIN_SECONDS = env_float("RING_AGAIN_SECONDS", 5.0, 0.2, 3600)
MAX_PENDING_TASKS = env_int("MAX_PENDING_TASKS", 100_000, 1)
MAX_BODY_BYTES = env_int("MAX_BODY_BYTES", 10 * 1024 * 1024, 1024)
DEFAULT_MAX_TOKENS = env_int("DEFAULT_MAX_TOKENS", 512, 1, 128_000)
MIN_OUTPUT_TOKENS = env_int("MIN_OUTPUT_TOKENS", 256, 1, 128_000)
MAX_CLOUD_CONCURRENCY = env_int("MAX_CLOUD_CONCURRENCY", 256, 1, 4096)
DEFAULT_CONCURRENCY = env_int("DEFAULT_CONCURRENCY", 16, 2, 1024)
# Files and batches.
MAX_FILE_BYTES = env_int("MAX_FILE_BYTES", 200 * 1024 * 1024, 1024, 2**40)
MAX_FILE_BYTES_PER_OWNER = env_int("MAX_FILE_BYTES_PER_OWNER", 2 * 1024**3, 1024, 2**50)
FILE_TTL_SECONDS = env_int("FILE_TTL_SECONDS", 2_592_000, 1)
BATCH_MAX_TASKS = env_int("BATCH_MAX_TASKS", 512, 1, 10_000)
# Hosts that keys of the environment may go to beside those of their providers.
PROVIDER_ALLOWED_HOSTS = env_list("PROVIDER_ALLOWED_HOSTS", [])
# A cloud model that keeps failing is not called for a while.
CIRCUIT_FAILURES = env_int("CIRCUIT_FAILURES", 5, 1, 1000)
CIRCUIT_OPEN_SECONDS = env_float("CIRCUIT_OPEN_SECONDS", 10.0, 0.1, 300)
# Of a key that says no other value, and of a signed-in user.
DEFAULT_LIMITS: dict[str, Any] = {
    "requests_per_second": env_limit("DEFAULT_REQUESTS_PER_SECOND", float, 0.01, 100_000),
    "max_pending_tasks": env_limit("DEFAULT_MAX_PENDING_TASKS", int, 0, 2**31 - 1),
    "max_running_tasks": env_limit("DEFAULT_MAX_RUNNING_TASKS", int, 1, 2**31 - 1),
    "max_priority": env_limit("DEFAULT_MAX_PRIORITY", float, 0, 100),
    "max_tokens_per_day": env_limit("DEFAULT_MAX_TOKENS_PER_DAY", int, 0, 2**53),
    "max_usd_per_month": env_limit("DEFAULT_MAX_USD_PER_MONTH", float, 0, 1e9),
    "max_open_streams": env_limit("DEFAULT_MAX_OPEN_STREAMS", int, 0, 2**31 - 1),
    "weight": env_limit("DEFAULT_WEIGHT", float, 0.01, 1000),
}
# Each of these queues must have a live worker, or the service is degraded.
WORKER_QUEUES = ["gpu", "api", "embeddings", "default"]

# Downloads.

HF_ENDPOINT = env_str("HF_ENDPOINT", "https://huggingface.co").rstrip("/")

# Embeddings.

DEFAULT_EMBEDDING_MODEL = env_str("DEFAULT_EMBEDDING_MODEL", "all-minilm-l6-v2")
EMBEDDING_TIMEOUT_SECONDS = env_float("EMBEDDING_TIMEOUT_SECONDS", 30.0, 1, 600)
EMBEDDING_KEEP_ALIVE_SECONDS = env_float("EMBEDDING_KEEP_ALIVE_SECONDS", 600, -1, 31_536_000)
EMBEDDING_MAX_MODELS = env_int("EMBEDDING_MAX_MODELS", 2, 1, 100)
EMBEDDING_MAX_BATCH_TOKENS = env_int("EMBEDDING_MAX_BATCH_TOKENS", 0)  # 0: as suits the device
EMBEDDING_DEVICE = env_choice("EMBEDDING_DEVICE", "cpu", ("cpu", "cuda"))

# Webhooks.

WEBHOOK_SECRETS = env_list("WEBHOOK_SECRETS", [])
if not WEBHOOK_SECRETS and APP_ENV == "local":
    _new = f"whsec_{base64.b64encode(secrets.token_bytes(32)).decode()}"
    WEBHOOK_SECRETS = [_stored_secret("webhook_secret", _new)]
WEBHOOK_ALLOWED_HOSTS = env_list("WEBHOOK_ALLOWED_HOSTS", [])
WEBHOOK_ALLOW_HTTP = env_bool("WEBHOOK_ALLOW_HTTP", False)
WEBHOOK_RETRY_SECONDS = env_float("WEBHOOK_RETRY_SECONDS", 5.0, 0.1, 3600)

# The GPU and the engine.

# The workers that share a machine's GPUs must have the same node name, in containers too.
NODE_NAME = env_str("NODE_NAME", socket.gethostname())
GPU_INDEXES = env_ints("GPU_INDEX", [0], 0, 63)
GPU_WORKERS = env_str("GPU_WORKERS").split()  # each the GPU_INDEX of one worker
GPU_LAYERS = env_int("GPU_LAYERS", -1, -1, 10_000)
MAX_VRAM_USAGE_PERCENT = env_float("MAX_VRAM_USAGE_PERCENT", 95, 1, 100)
VRAM_RESERVE_MB = env_int("VRAM_RESERVE_MB", 512)
MAX_RAM_USAGE_PERCENT = env_float("MAX_RAM_USAGE_PERCENT", 90, 1, 100)
RAM_RESERVE_MB = env_int("RAM_RESERVE_MB", 512)
MODEL_MEMORY_LIMIT_MB = env_int("MODEL_MEMORY_LIMIT_MB", 0)  # 0: no further limit
N_CTX = env_int("N_CTX", 4096, 64, 10_000_000)
N_BATCH = env_int("N_BATCH", 0, 0, 65_536)  # 0: 512
MAX_NUM_SEQS = env_int("MAX_NUM_SEQS", 8, 1, 256)
N_THREADS = env_int("N_THREADS", 0, 0, 1024)  # 0: as many as the machine has cores
KV_MAX_BYTES = env_int("KV_MAX_BYTES", 4 * 1024**3, 0, 2**50)  # 0: none are kept

KEEP_ALIVE_SECONDS = env_float("KEEP_ALIVE_SECONDS", 600, -1, 31_536_000)
AGING_PRIORITY_PER_MINUTE = env_float("AGING_PRIORITY_PER_MINUTE", 0, 0, 100)
SWAP_WINDOW_SECONDS = env_float("SWAP_WINDOW_SECONDS", 5.0, 0, 3600)
PREEMPT_PRIORITY = env_limit("PREEMPT_PRIORITY", float, 0, 100)  # unset: nothing is paused
STEP_TIMEOUT_SECONDS = env_float("STEP_TIMEOUT_SECONDS", 120.0, 1, 86_400)

# Traces.

LANGFUSE_PUBLIC_KEY = env_str("LANGFUSE_PUBLIC_KEY")
LANGFUSE_SECRET_KEY = env_str("LANGFUSE_SECRET_KEY")
LANGFUSE_HOST = env_str("LANGFUSE_HOST", "https://cloud.langfuse.com").rstrip("/")
LANGFUSE_SAMPLE_RATE = env_float("LANGFUSE_SAMPLE_RATE", 1.0, 0, 1)

# Django.

SECRET_KEY = env_str("SECRET_KEY")
if not SECRET_KEY and APP_ENV != "local":
    raise ImproperlyConfigured(
        "SECRET_KEY is not set: give it a long random text, such as `openssl rand -hex 32` "
        "prints; with APP_ENV=local one is made for you."
    )
SECRET_KEY = SECRET_KEY or _stored_secret("secret_key", secrets.token_urlsafe(50))
# For secrets in the database: the first key encrypts, all decrypt; SECRET_KEY if there are none.
ENCRYPTION_KEYS = env_list("ENCRYPTION_KEYS", [])
DEBUG = False
ALLOWED_HOSTS = env_list("ALLOWED_HOSTS", ["127.0.0.1", "localhost", "[::1]"])
CSRF_TRUSTED_ORIGINS = env_list("CSRF_TRUSTED_ORIGINS", [])
# The addresses of proxies whose X-Forwarded-For and X-Forwarded-Proto are believed.
TRUSTED_PROXIES = env_list("TRUSTED_PROXIES", ["127.0.0.1"])
INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "axes",
    "channels",
    "rest_framework",
    "django_filters",
    "drf_spectacular",
    "drf_spectacular_sidecar",
    "monitoring",
    "conversations",
    "presets",
    "inference",
    "sopllm",
    "sopllm.access",
]
# DRF authenticates the API; sessions and messages are for the admin and the browsable API.
MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "sopllm.content_policy.PagePolicyMiddleware",
    # Refuses other host names, so that a web page cannot reach a local API by DNS rebinding.
    "django.middleware.common.CommonMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    # Answers those who are locked out.
    "axes.middleware.AxesMiddleware",
]
ROOT_URLCONF = "sopllm.urls"
ASGI_APPLICATION = "sopllm.asgi.application"
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        # Templates of ours that stand for those of libraries.
        "DIRS": [BASE_DIR / "sopllm" / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]
STATIC_URL = "/static/"
WHITENOISE_USE_FINDERS = True
WHITENOISE_AUTOREFRESH = False
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
USE_TZ = True
TIME_ZONE = "UTC"
LANGUAGE_CODE = "en"
APPEND_SLASH = False

# People: sign-in, cookies, what their browsers may do.

AUTHENTICATION_BACKENDS = [
    "axes.backends.AxesStandaloneBackend",
    "django.contrib.auth.backends.ModelBackend",
]
LOGIN_URL = "/login"
LOGIN_REDIRECT_URL = "/"
LOGOUT_REDIRECT_URL = "/login"
# Five wrong passwords for a name from one address: no more tries from there for 15 minutes.
AXES_FAILURE_LIMIT = 5
AXES_COOLOFF_TIME = timedelta(minutes=15)
AXES_LOCKOUT_PARAMETERS = [["username", "ip_address"]]
AXES_LOCKOUT_TEMPLATE = "sopllm/locked_out.html"
AXES_RESET_ON_SUCCESS = True
AXES_DISABLE_ACCESS_LOG = True
AXES_VERBOSE = False
# Its actions ask for no permission; `manage.py axes_reset_username NAME` lets somebody in again.
AXES_ENABLE_ADMIN = False
SECURE_COOKIES = env_bool("SECURE_COOKIES", APP_ENV != "local")
SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = SECURE_COOKIES
SESSION_COOKIE_HTTPONLY = True
SECURE_HSTS_SECONDS = env_int("HSTS_SECONDS", 0 if APP_ENV == "local" else 31_536_000, 0)
SECURE_REFERRER_POLICY = "same-origin"
SILENCED_SYSTEM_CHECKS = [
    # HSTS for other hosts of the domain, or in browsers' lists, is for the domain's owner to say.
    "security.W005",
    "security.W021",
    # The proxy that has the certificate redirects from http; this service speaks no TLS.
    "security.W008",
]
# Scripts, styles and connections of this service alone; markup can run nothing.
CONTENT_SECURITY_POLICY = {
    "DIRECTIVES": {
        "default-src": [SELF],
        "base-uri": [NONE],
        "form-action": [SELF],
        "frame-ancestors": [NONE],
        "object-src": [NONE],
    }
}
DATA_UPLOAD_MAX_MEMORY_SIZE = MAX_BODY_BYTES
# Where a file that has arrived is moved to its place.
FILE_UPLOAD_HANDLERS = ["django.core.files.uploadhandler.TemporaryFileUploadHandler"]
FILE_UPLOAD_TEMP_DIR = FILES_DIR

REST_FRAMEWORK = {
    "DEFAULT_AUTHENTICATION_CLASSES": ["sopllm.access.authentication.PrincipalAuthentication"],
    "DEFAULT_PERMISSION_CLASSES": ["monitoring.api.permissions.HasScope"],
    "DEFAULT_PARSER_CLASSES": ["monitoring.api.json_parser.StrictJSONParser"],
    "DEFAULT_CONTENT_NEGOTIATION_CLASS": "monitoring.api.negotiation.ContentNegotiation",
    "DEFAULT_RENDERER_CLASSES": [
        "rest_framework.renderers.JSONRenderer",
        "rest_framework.renderers.BrowsableAPIRenderer",
    ],
    "DEFAULT_SCHEMA_CLASS": "sopllm.openapi.OperationSchema",
    "EXCEPTION_HANDLER": "sopllm.exceptions.handle_exception",
    "UNAUTHENTICATED_USER": None,
    "URL_FORMAT_OVERRIDE": None,
}
SPECTACULAR_SETTINGS = {
    "TITLE": APP_NAME,
    "DESCRIPTION": "Asynchronous LLM executor: submit a task, poll or wait for its result.",
    "VERSION": VERSION,
    "SERVE_INCLUDE_SCHEMA": False,
    "SERVE_PUBLIC": True,
    "AUTHENTICATION_WHITELIST": [],
    "APPEND_COMPONENTS": {"securitySchemes": {"apiKey": {"type": "http", "scheme": "bearer"}}},
    "SECURITY": [{"apiKey": []}],
    "SWAGGER_UI_DIST": "SIDECAR",
    "SWAGGER_UI_FAVICON_HREF": "SIDECAR",
    "REDOC_DIST": "SIDECAR",
    "SCHEMA_PATH_PREFIX": r"/api/v1",
    "PREPROCESSING_HOOKS": ["sopllm.openapi.without_trailing_slashes"],
    "POSTPROCESSING_HOOKS": [
        "drf_spectacular.hooks.postprocess_schema_enums",
        "sopllm.openapi.in_order_of_use",
    ],
    "ENUM_NAME_OVERRIDES": {
        "AnthropicRoleEnum": "inference.openai.messages.blocks.ROLES",
        "RoleEnum": "conversations.models.Message.Role",
    },
}

LOGGING: dict[str, Any] = {
    "version": 1,
    "disable_existing_loggers": False,
    "filters": {
        "not_unavailable": {
            "()": "django.utils.log.CallbackFilter",
            "callback": lambda record: getattr(record, "status_code", 500) != 503,
        }
    },
    "formatters": {
        "line": {"format": "%(asctime)s %(levelname)s %(name)s: %(message)s"},
    },
    "handlers": {
        "console": {"class": "logging.StreamHandler", "formatter": "line", "level": LOG_LEVEL}
    },
    "root": {"handlers": ["console"], "level": LOG_LEVEL},
    "loggers": {
        # Debug lines go to the log of the task; the console's own level leaves them out.
        "inference.task_log": {"level": "DEBUG"},
        # Celery's two lines a task repeat the lifecycle's own.
        "celery.worker.strategy": {"level": "WARNING"},
        "celery.app.trace": {"level": "WARNING"},
        # Only faults of ours are logged: no 4xx answers, and no 503, which says itself what is
        # missing, and which health checks may get every second.
        "django.request": {"level": "ERROR", "filters": ["not_unavailable"]},
        "django.security.DisallowedHost": {"level": "CRITICAL"},
        "httpx": {"level": "WARNING"},
        # uvicorn's two lines a WebSocket have the query in them, where a key can be.
        "uvicorn.error": {"level": "WARNING"},
        # channels_redis logs a stack trace a second while Redis is away; monitoring logs that once.
        "channels_redis": {"level": "CRITICAL"},
    },
}
