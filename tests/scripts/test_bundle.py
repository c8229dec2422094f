"""The parts that `make bundle` writes are joined by install.sh, or refused."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from django.conf import settings

SCRIPTS: Path = settings.BASE_DIR / "scripts"
# Stands in for the real one: what it is told to do is written down.
UV = '#!/bin/sh\necho "$@" >> "$(dirname "$0")/../../../told"\n'


@pytest.fixture
def dist(tmp_path: Path) -> Path:
    """The parts of a bundle of 2.5 MB."""
    folder = tmp_path / "dist/folder"
    (folder / "app").mkdir(parents=True)
    (folder / "app/weights").write_bytes(os.urandom(2_500_000))
    wheels = folder / "wheels"
    wheels.mkdir()
    (wheels / f"torch-1-cp{sys.version_info[0]}{sys.version_info[1]}-none.whl").touch()
    (wheels / "llama_cpp_python-1-py3-none.whl").touch()
    with zipfile.ZipFile(wheels / "uv-1-py3-none.whl", "w") as wheel:
        wheel.writestr("uv-1.data/scripts/uv", UV)
    subprocess.run([SCRIPTS / "pack.sh", folder, "sopllm-cpu", "1"], check=True)
    return folder.parent


def install(dist: Path, target: Path) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": os.environ["PATH"], "PYTHON": sys.executable}
    command = [dist / "install.sh", target]
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=60, check=False
    )


def test_parts_are_joined_and_installed_without_a_network(dist: Path, tmp_path: Path) -> None:
    assert len(list(dist.glob("sopllm-cpu.part*"))) == 3
    target = tmp_path / "here"
    done = install(dist, target)
    assert done.returncode == 0, done.stderr
    weights = target / "app/weights"
    assert weights.read_bytes() == (dist / "folder/app/weights").read_bytes()
    told = (target / "told").read_text().splitlines()
    assert all("--offline" in line for line in told)
    assert all("--no-index" in line for line in told if "install" in line)


def test_damaged_part_is_refused(dist: Path, tmp_path: Path) -> None:
    part = dist / "sopllm-cpu.part002"
    part.write_bytes(b"\0" + part.read_bytes()[1:])
    done = install(dist, tmp_path / "here")
    assert done.returncode == 1
    assert "sopllm-cpu.part002: FAILED" in done.stdout
    assert "copy the parts named above again" in done.stderr
    assert not (tmp_path / "here").exists()


def test_missing_part_is_refused(dist: Path, tmp_path: Path) -> None:
    (dist / "sopllm-cpu.part003").unlink()
    done = install(dist, tmp_path / "here")
    assert done.returncode == 1
    assert "sopllm-cpu.part003" in done.stderr
    assert not (tmp_path / "here").exists()


def test_nothing_is_left_where_no_python_fits(dist: Path, tmp_path: Path) -> None:
    (wheel,) = (dist / "folder/wheels").glob("torch-*")
    wheel.rename(wheel.with_name("torch-1-cp310-none.whl"))
    subprocess.run([SCRIPTS / "pack.sh", dist / "folder", "sopllm-cpu", "1"], check=True)
    done = install(dist, tmp_path / "here")
    assert done.returncode == 1
    assert "No Python that the parts have wheels for: torch-1-cp310" in done.stderr
    assert not (tmp_path / "here").exists()
