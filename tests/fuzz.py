"""`make fuzz`: schemathesis with all its checks, against a service that is started for it.

What it knows of the service is /openapi.json. Arguments go on to `schemathesis run`.
"""

import subprocess
import sys
from pathlib import Path

from benchmarks.running_service import MINILM, ROOT, RunningService

CONFIG = Path(__file__).with_suffix(".toml")
# uv gets it, with all that it needs, into a cache of its own.
SCHEMATHESIS = (f"{ROOT}/.venv/bin/uv", "--quiet", "tool", "run", "schemathesis==4.32.5")


def main() -> int:
    service = RunningService(DEFAULT_EMBEDDING_MODEL=MINILM)
    try:
        service.start()
        service.register_echo()
        body = {"owner": "fuzz", "scopes": ["admin", "monitor", "tasks"]}
        key = service.http.post("/keys", json=body).raise_for_status().json()["key"]
        # As from another machine, since the local one needs no key.
        headers = (f"Authorization: Bearer {key}", "X-Forwarded-For: 192.0.2.1")
        command = [
            *(*SCHEMATHESIS, "--config-file", str(CONFIG)),
            *("run", f"{service.base_url}/openapi.json", "--max-response-time", "70"),
            *sys.argv[1:],
            # It would revoke its own key.
            *("--exclude-operation-id", "keys_destroy"),
            *(option for header in headers for option in ("--header", header)),
        ]
        status = subprocess.run(command, check=False).returncode
        if "Traceback" in (logs := service.log_tails(10_000)):
            print(logs[logs.index("Traceback") - 1000 :][:5000])  # noqa: T201
            return 1
        return status
    finally:
        service.close()


if __name__ == "__main__":
    raise SystemExit(main())
