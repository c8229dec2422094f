"""The energy of the processor, as Linux tells it."""

from pathlib import Path

import pytest

from monitoring.hardware import energy


@pytest.fixture
def powercap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(energy, "_POWERCAP", tmp_path)
    return tmp_path


def zone(powercap: Path, folder: str, name: str, microjoules: int) -> Path:
    path = powercap / folder
    path.mkdir()
    (path / "name").write_text(f"{name}\n")
    (path / "max_energy_range_uj").write_text("10000000\n")
    (path / "energy_uj").write_text(f"{microjoules}\n")
    return path / "energy_uj"


def test_packages_are_added_up_and_start_again_at_zero(powercap: Path) -> None:
    first = zone(powercap, "intel-rapl:0", "package-0", 9_000_000)
    second = zone(powercap, "intel-rapl:1", "package-1", 1_000_000)
    zone(powercap, "intel-rapl:0:0", "core", 5_000_000)
    (powercap / "intel-rapl").mkdir()
    read = energy.joules_of_cpu()
    assert read() == 0
    first.write_text("500000\n")
    second.write_text("3000000\n")
    assert read() == pytest.approx(1.5 + 2.0)


def test_without_readable_packages_nobody_knows(powercap: Path) -> None:
    assert energy.joules_of_cpu()() is None
    counter = zone(powercap, "intel-rapl:0", "package-0", 1)
    counter.unlink()  # as for those who may not read it
    assert energy.joules_of_cpu()() is None


def test_gpu_that_is_not_there_tells_nothing() -> None:
    assert energy.joules_of_gpus([99])() is None
