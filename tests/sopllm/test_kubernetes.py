"""The pods of deploy/kubernetes are the processes of docker-compose.yml, with no more secrets."""

import re
import shutil
import subprocess
from typing import Any

import kubernetes_validate
import pytest
import yaml
from django.conf import settings

from sopllm.processes import SECRETS_OF
from tests.sopllm.test_compose import COMPOSE

MANIFESTS = settings.BASE_DIR / "deploy/kubernetes"
PODS = {
    "web": "web",
    "gpu-worker": "gpu",
    "api-worker": "api",
    "default-worker": "default",
    "embeddings-worker": "embeddings",
    "beat": "beat",
    "flower": "flower",
}
# The secrets of the manual, and what they hold.
HELD = {
    "redis": {"REDIS_URL"},
    "database": {"DATABASE_URL"},
    "stored-keys": {"SECRET_KEY", "ENCRYPTION_KEYS"},
    "traces": {"LANGFUSE_PUBLIC_KEY", "LANGFUSE_SECRET_KEY"},
    "webhooks": {"WEBHOOK_SECRETS"},
    "provider-keys": {"OPENAI_API_KEY"},
    "downloads": {"HF_TOKEN"},
    "flower": {"FLOWER_BASIC_AUTH"},
}


def documents() -> list[dict[str, Any]]:
    files = sorted((MANIFESTS / "base").glob("*.yaml"))
    return [document for file in files for document in yaml.safe_load_all(file.read_text())]


def containers() -> dict[str, dict[str, Any]]:
    return {
        document["metadata"]["name"]: document["spec"]["template"]["spec"]["containers"][0]
        for document in documents()
        if document["kind"] in {"Deployment", "Job"} and document["metadata"]["name"] != "any"
    }


@pytest.mark.parametrize("overlay", ["base", "cpu"])
@pytest.mark.skipif(not shutil.which("kubectl"), reason="kubectl puts the manifests together")
def test_manifests_are_valid(overlay: str) -> None:
    command = ["kubectl", "kustomize", str(MANIFESTS / overlay)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    pods = 0
    for manifest in yaml.safe_load_all(done.stdout):
        if manifest["apiVersion"].startswith("keda.sh/"):
            continue  # a resource of its own, whose schema Kubernetes does not have
        kubernetes_validate.validate(manifest, kubernetes_validate.latest_version(), strict=True)
        if manifest["kind"] in {"Deployment", "Job"}:
            pods += 1
            pod = manifest["spec"]["template"]["spec"]
            assert pod["securityContext"]["runAsNonRoot"]
            assert pod["containers"][0]["securityContext"]["readOnlyRootFilesystem"]
            limits = pod["containers"][0]["resources"]["limits"]
            is_on_gpu = overlay == "base" and manifest["metadata"]["name"] == "gpu-worker"
            assert ("nvidia.com/gpu" in limits) == is_on_gpu
    assert pods == len(PODS) + 1


def test_pods_are_the_processes_of_compose() -> None:
    pods = containers()
    assert set(pods) == {*PODS, "migrate"}
    for name, container in pods.items():
        if name != "web":  # the image's own command
            assert container["args"] == COMPOSE["services"][name]["command"]


def test_pods_have_the_secrets_that_they_use() -> None:
    for name, container in containers().items():
        if name == "migrate":
            continue
        named = {each["secretRef"]["name"] for each in container["envFrom"] if "secretRef" in each}
        secrets = set().union(*(HELD[secret] for secret in named))
        used = SECRETS_OF[PODS[name]]
        assert {secret for secret in secrets if not re.fullmatch(used, secret)} == set(), name
        assert "redis" in named


def test_every_pod_is_scaled_by_what_its_queue_says() -> None:
    scaled = [each for each in documents() if each["kind"] == "ScaledObject"]
    assert {each["spec"]["scaleTargetRef"]["name"] for each in scaled} == {
        "gpu-worker",
        "api-worker",
    }
    for each in scaled:
        location = each["spec"]["triggers"][0]["metadata"]["valueLocation"]
        assert location == f"queues.{PODS[each['metadata']['name']]}.pending"
