"""A folder of its own for each test run, set before Django reads its settings (pytest -p)."""

import atexit
import os
import shutil
import tempfile
from pathlib import Path

# Short, because a Unix socket's path may have 107 bytes.
VAR_DIR = Path(tempfile.mkdtemp(prefix="sopllm-", dir="/tmp"))
atexit.register(shutil.rmtree, VAR_DIR, ignore_errors=True)

# SQLite, if it names no other: pytest's processes add their own suffix to its name.
DATABASE_URL = os.environ.get("TEST_DATABASE_URL")
for name in ("DATABASE_URL", "REDIS_URL", "MODELS_DIR", "SERVER_HOST", "SERVER_PORT"):
    os.environ.pop(name, None)
os.environ.update(
    APP_ENV="local",
    # Set even where empty, so that `.env` gets no say.
    LANGFUSE_PUBLIC_KEY="",
    LANGFUSE_SECRET_KEY="",
    WEBHOOK_SECRETS="",
    WEBHOOK_ALLOWED_HOSTS="",
    PROVIDER_ALLOWED_HOSTS="",
    WEBHOOK_ALLOW_HTTP="",
    WEBHOOK_RETRY_SECONDS="",
    DEFAULT_EMBEDDING_MODEL="",
    EMBEDDING_DEVICE="cpu",
    VAR_DIR=str(VAR_DIR),
    LEASE_SECONDS="4",
    SWEEP_INTERVAL_SECONDS="1",
    RING_AGAIN_SECONDS="1",
)
if DATABASE_URL:
    os.environ["DATABASE_URL"] = DATABASE_URL
