"""What scripts/setup.sh says when it cannot go on, and that it does nothing the second time."""

import hashlib
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
TOOLS = [
    *("bash", "cat", "cut", "date", "dirname", "flock", "grep", "mkdir", "rm", "sed"),
    *("sha256sum", "sleep", "tail", "wc"),
]
REQUIREMENTS = ["requirements.txt", "requirements-dev.txt", "requirements-models.txt"]
NEW_PYTHON = 'case "$*" in *import*) echo "3.11 1"; echo venv ;; *) exit 9 ;; esac'


class Checkout:
    """A copy of what setup.sh needs, and a PATH with nothing else on it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bin = folder / "bin"
        self.bin.mkdir()
        for tool in TOOLS:
            path = shutil.which(tool)
            assert path is not None, tool
            (self.bin / tool).symlink_to(path)
        (folder / "scripts").mkdir()
        shutil.copy(ROOT / "scripts" / "setup.sh", folder / "scripts")
        for name in REQUIREMENTS:
            (folder / name).write_text("")
        (folder / "requirements.txt").write_text("llama-cpp-python==0.3.36\n")

    def add_command(self, name: str, script: str) -> Path:
        path = self.bin / name
        path.write_text(f"#!{self.bin}/bash\n{script}\n")
        path.chmod(0o755)
        return path

    def set_up(self, **env: str) -> subprocess.CompletedProcess[str]:
        """Run setup.sh with no environment but PATH: not even HOME."""
        return subprocess.run(
            [self.folder / "scripts" / "setup.sh"],
            env={"PATH": str(self.bin), **env},
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


def test_no_python_is_told_in_one_line(checkout: Checkout) -> None:
    result = checkout.set_up()
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1
    assert "Python 3.11 or newer is needed" in result.stderr


def test_old_python_is_told_with_its_version(checkout: Checkout) -> None:
    path = checkout.add_command("python3", 'echo "3.9 0"; echo venv')
    result = checkout.set_up()
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1
    assert f"{path} is Python 3.9" in result.stderr


def test_python_variable_is_honoured(checkout: Checkout) -> None:
    checkout.add_command("python3", NEW_PYTHON)
    old = checkout.add_command("old-python", 'echo "3.8 0"')
    assert f"{old} is Python 3.8" in checkout.set_up(PYTHON=str(old)).stderr


def test_broken_python_is_passed_over(checkout: Checkout) -> None:
    checkout.add_command("python3.11", "exit 127")
    checkout.add_command("python3", NEW_PYTHON)
    assert "No C++ compiler" in checkout.set_up().stderr


def test_missing_venv_module_is_told(checkout: Checkout) -> None:
    checkout.add_command("python3", 'echo "3.11 1"; exit 1')
    result = checkout.set_up()
    assert result.returncode == 1
    assert "apt-get install python3-venv" in result.stderr


def test_missing_compiler_is_told_before_anything_is_installed(checkout: Checkout) -> None:
    checkout.add_command("python3", NEW_PYTHON)
    result = checkout.set_up()
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1
    assert "apt-get install g++" in result.stderr
    assert not (checkout.folder / ".venv").exists()


def test_failed_step_shows_its_log_and_what_to_do(checkout: Checkout) -> None:
    script = (
        'case "$*" in *ensurepip*) echo "3.11 1"; echo venv ;; *) echo no network; exit 1 ;; esac'
    )
    checkout.add_command("python3", script)
    checkout.add_command("g++", "exit 0")
    result = checkout.set_up()
    assert result.returncode == 1
    assert "no network" in result.stderr
    assert "run 'make setup' again" in result.stderr.splitlines()[-1]
    assert "no network" in (checkout.folder / "var" / "log" / "setup.log").read_text()


def test_unchanged_checkout_needs_no_python(checkout: Checkout) -> None:
    files = ["scripts/setup.sh", *REQUIREMENTS]
    digest = hashlib.sha256(b"".join((checkout.folder / name).read_bytes() for name in files))
    venv = checkout.folder / ".venv"
    (venv / "bin").mkdir(parents=True)
    (venv / "bin" / "python").symlink_to(os.devnull)
    (venv / "setup-stamp").write_text(f"{digest.hexdigest()}  -\n")
    assert checkout.set_up().returncode == 1, "a .venv whose Python does not run counts as none"
    (venv / "bin" / "python").unlink()
    (venv / "bin" / "python").symlink_to(checkout.bin / "bash")
    result = checkout.set_up()
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


@pytest.mark.parametrize("name", REQUIREMENTS)
def test_every_package_is_pinned_with_hashes(name: str) -> None:
    lines = (ROOT / name).read_text().replace("\\\n", "").splitlines()
    assert len(lines) > 5
    for line in lines:
        package, *hashes = line.split()
        assert re.fullmatch(r"[a-z0-9-]+==[0-9][0-9a-z.]*", package), line
        assert hashes, line
        assert all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", each) for each in hashes), line
