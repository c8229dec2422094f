"""What runs on a host: some processes of the service, each started again when it dies.

python -m tests.cluster.supervised web beat
"""

import os
import sys
from collections.abc import Callable

import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "sopllm.settings")
django.setup()

from django.conf import settings  # noqa: E402 (after the set-up)

from sopllm import processes  # noqa: E402
from sopllm.management.commands.serve import listen  # noqa: E402
from sopllm.supervisor import ProcessSpec, Supervisor  # noqa: E402

# Open as long as this process lives; on hosts without a web process nobody comes there.
listener = listen(settings.SERVER_HOST, settings.SERVER_PORT, "SERVER_PORT")
SPECS: dict[str, Callable[[], ProcessSpec]] = {
    "web": lambda: processes.web(1, listener),
    "beat": processes.beat,
    "gpu": lambda: processes.gpu_workers()[0],
    "api": processes.api_worker,
    "default": processes.default_worker,
    "embeddings": processes.embeddings_worker,
}


def say(line: str) -> None:
    print(line, flush=True)  # noqa: T201 (into the host's log)


if __name__ == "__main__":
    specs = [SPECS[name]() for name in sys.argv[1:]]
    supervisor = Supervisor(settings.VAR_DIR / "log", say)
    supervisor.run(lambda: supervisor.start(*specs))
