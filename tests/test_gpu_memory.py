"""Does a model fit: against readings as NVML gives them."""

from types import SimpleNamespace

import pynvml
import pytest
from pytest_django import Settings

from inference import gpu_memory
from inference.engine.errors import ModelLoadError

GB = 1024**3
MB = 1024**2


@pytest.fixture
def _a_gpu(monkeypatch: pytest.MonkeyPatch, settings: Settings) -> None:
    """A card of 16 GB, of which 2 GB are in use by others."""
    reading = SimpleNamespace(total=16 * GB, used=2 * GB, free=14 * GB)
    monkeypatch.setattr(pynvml, "nvmlInit", lambda: None)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByIndex", lambda index: index)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetMemoryInfo", lambda handle: reading)
    settings.MAX_VRAM_USAGE_PERCENT = 100
    settings.VRAM_RESERVE_MB = 0


@pytest.fixture
def _no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_driver() -> None:
        raise pynvml.NVMLError_LibraryNotFound

    monkeypatch.setattr(pynvml, "nvmlInit", no_driver)


@pytest.mark.usefixtures("_a_gpu")
@pytest.mark.parametrize(
    ("percent", "reserve_mb", "available_mb"),
    [(100, 0, 14 * 1024), (100, 1024, 13 * 1024), (50, 0, 6 * 1024), (10, 0, 0), (50, 1024, 6144)],
)
def test_what_may_be_used_is_the_least_of_both_limits(
    settings: Settings, percent: int, reserve_mb: int, available_mb: int
) -> None:
    settings.MAX_VRAM_USAGE_PERCENT = percent
    settings.VRAM_RESERVE_MB = reserve_mb
    gpu_memory.check_fits(available_mb * MB, -1)
    with pytest.raises(ModelLoadError, match=f"{available_mb} MB may be used"):
        gpu_memory.check_fits(available_mb * MB + 1, -1)


@pytest.mark.usefixtures("_a_gpu")
def test_model_without_layers_on_the_gpu_always_fits() -> None:
    gpu_memory.check_fits(100 * GB, 0)
    with pytest.raises(ModelLoadError, match="fewer gpu_layers"):
        gpu_memory.check_fits(100 * GB, 1)


@pytest.mark.usefixtures("_no_gpu")
def test_without_a_gpu_nothing_is_checked() -> None:
    assert not gpu_memory.has_gpu()
    gpu_memory.check_fits(100 * GB, -1)


@pytest.mark.usefixtures("_a_gpu")
def test_gpu_is_seen() -> None:
    assert gpu_memory.has_gpu()


@pytest.mark.usefixtures("_a_gpu")
def test_index_of_no_gpu_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_such(index: int) -> None:
        raise pynvml.NVMLError_InvalidArgument

    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByIndex", no_such)
    assert not gpu_memory.has_gpu()
