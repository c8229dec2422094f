"""Three hosts, and a machine beside them with Valkey, PostgreSQL, a cloud, and the tests."""

import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import httpx

from benchmarks.running_service import MINILM, ROOT, wait_for
from tests.cloud_server import CloudServer
from tests.cluster.host import Host
from tests.cluster.network import Network, run
from tests.cluster.servers import Postgres, Valkey

# Of the range for tests of networks, which nobody routes (RFC 2544).
ADDRESS = "198.18.77.{}"
OURS = ADDRESS.format(1)
PORT = 8000
ECHO, CLOUD = "slow-echo", "cloud"
START_LIMIT_SECONDS = 90.0

_SETTINGS = {
    "APP_ENV": "production",
    "LEASE_SECONDS": "6",
    "SWEEP_INTERVAL_SECONDS": "1",
    "RING_AGAIN_SECONDS": "1",
    "N_THREADS": "1",
    "DEFAULT_EMBEDDING_MODEL": MINILM,
    "EMBEDDING_TIMEOUT_SECONDS": "20",
    "PROVIDER_ALLOWED_HOSTS": OURS,
    "LANGFUSE_PUBLIC_KEY": "",
    "LANGFUSE_SECRET_KEY": "",
    "WEBHOOK_SECRETS": "",
    "WEBHOOK_ALLOWED_HOSTS": "",
    "HF_HUB_OFFLINE": "1",
}
# Prints a key for the API.
_SET_UP = """
import django
django.setup()
from django.core.management import call_command
call_command("migrate", verbosity=0)
call_command("register_packaged_models", verbosity=0)
call_command("create_api_key", "tests", scopes="tasks,monitor,admin", quiet=True)
"""


class Cluster:
    """The hosts `web`, `gpu` and `workers`, started, and a client of the API."""

    def __init__(self) -> None:
        # Short, because a Unix socket's path may have 107 bytes; PostgreSQL's user looks into it.
        self.var_dir = Path(tempfile.mkdtemp(prefix="sopllm-", dir="/tmp"))
        self.var_dir.chmod(0o711)
        self._network = Network()
        _attach_this_machine(self._network)
        self.valkey = Valkey(OURS, self.var_dir)
        self.postgres = Postgres(OURS, self.var_dir)
        self.cloud = CloudServer(host=OURS, token_delay_ms=50)
        web_address = ADDRESS.format(11)
        self._env = {
            **os.environ,
            **_SETTINGS,
            "DJANGO_SETTINGS_MODULE": "sopllm.settings",
            "SECRET_KEY": secrets.token_hex(32),
            "REDIS_URL": self.valkey.url,
            "DATABASE_URL": self.postgres.url,
            "VAR_DIR": str(self.var_dir),
            "MODELS_DIR": str(self.var_dir / "models"),
            "FILES_DIR": str(self.var_dir / "files"),
            "SERVER_PORT": str(PORT),
            "ALLOWED_HOSTS": web_address,
        }
        clock_library = self.var_dir / "clock.so"
        source = Path(__file__).with_name("clock.c")
        run("cc", "-O1", "-shared", "-fPIC", "-o", clock_library, source)
        of_all = (self._network, self.var_dir, self._env)
        self.web = Host("web", web_address, *of_all, ["web", "beat"], clock_library)
        self.gpu = Host("gpu", ADDRESS.format(12), *of_all, ["gpu"], clock_library)
        names = ["api", "embeddings", "default"]
        self.workers = Host("workers", ADDRESS.format(13), *of_all, names, clock_library)
        self.hosts = (self.web, self.gpu, self.workers)
        self.base_url = f"http://{web_address}:{PORT}"
        self.key = ""

    def start(self) -> None:
        """Start all, and wait until each kind of worker is there."""
        self.valkey.start()
        self.postgres.start()
        self.cloud.start()
        done = subprocess.run(
            [sys.executable, "-c", _SET_UP],
            cwd=ROOT,
            env=self._env,
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.key = done.stdout.split()[-1]
        for host in self.hosts:
            host.start()
        with self.client() as http:
            wait_for(lambda: self.is_ready(http), START_LIMIT_SECONDS, every_seconds=0.2)
            echo = {"name": ECHO, "provider": "echo", "config": {"delay_ms": 100}}
            config = {
                "model_name": "stand-in",
                "base_url": self.cloud.openai_url,
                "api_key": self.cloud.key,
                "timeout": 20,
            }
            cloud = {"name": CLOUD, "provider": "openai_compatible", "config": config}
            for body in (echo, cloud):
                http.post("/models/register", json=body).raise_for_status()

    def client(self, timeout_seconds: float = 5.0) -> httpx.Client:
        """A client of the API that soon gives up."""
        return httpx.Client(
            base_url=f"{self.base_url}/api/v1",
            headers={"Authorization": f"Bearer {self.key}"},
            timeout=timeout_seconds,
            trust_env=False,
        )

    def is_ready(self, http: httpx.Client) -> bool:
        """Whether the web host is there, and knows a worker of each queue."""
        try:
            body: dict[str, Any] = http.get(f"{self.base_url}/readyz").json()
            return all(body["components"]["workers"].values())
        except (httpx.HTTPError, ValueError, KeyError):
            return False

    def close(self) -> None:
        """End all, and remove the folder."""
        for host in self.hosts:
            host.kill()
        self.cloud.stop()
        self.valkey.stop(signal.SIGKILL)
        self.postgres.stop(signal.SIGQUIT)
        shutil.rmtree(self.var_dir, ignore_errors=True)


def _attach_this_machine(network: Network) -> None:
    device = "sop-tests"
    network.attach(device, OURS)
    run("ip", "address", "add", f"{OURS}/24", "dev", device)
    run("ip", "link", "set", device, "up")
