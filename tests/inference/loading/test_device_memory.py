"""What may be used, and does a model fit: against readings as NVML and the system give them."""

import contextlib
import logging
import os
from types import SimpleNamespace

import psutil
import pynvml
import pytest
from pytest_django import Settings

from inference.engine.errors import ModelLoadError
from inference.engine.memory_estimate import MemoryEstimate
from inference.engine.runner import GPUSplit, SplitMode
from inference.loading import device_memory
from inference.loading.device_memory import DeviceMemory, MemoryKind
from monitoring.redis.client import client
from tests.conftest import Valkey

GB = 1024**3
MB = 1024**2


@pytest.fixture(autouse=True)
def _no_reserve(monkeypatch: pytest.MonkeyPatch, settings: Settings) -> None:
    """A machine of 32 GB, of which 8 GB are in use, outside of any container."""
    for name in ("MAX_VRAM_USAGE_PERCENT", "MAX_RAM_USAGE_PERCENT"):
        setattr(settings, name, 100)
    for name in ("VRAM_RESERVE_MB", "RAM_RESERVE_MB", "MODEL_MEMORY_LIMIT_MB"):
        setattr(settings, name, 0)
    machine = SimpleNamespace(total=32 * GB, available=24 * GB)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: machine)
    monkeypatch.setattr(device_memory, "container_memory", lambda: None)


@pytest.fixture
def _a_gpu(monkeypatch: pytest.MonkeyPatch, settings: Settings) -> None:
    """Three cards; the second has 16 GB, of which 2 GB are in use by others."""
    settings.GPU_INDEXES = [1]
    readings = [
        SimpleNamespace(total=8 * GB, used=8 * GB, free=0),
        SimpleNamespace(total=16 * GB, used=2 * GB, free=14 * GB),
        SimpleNamespace(total=10 * GB, used=0, free=10 * GB),
    ]
    monkeypatch.setattr(pynvml, "nvmlInit", lambda: None)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByIndex", lambda index: index)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetMemoryInfo", lambda handle: readings[handle])


@pytest.fixture
def _no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_driver() -> None:
        raise pynvml.NVMLError_LibraryNotFound

    monkeypatch.setattr(pynvml, "nvmlInit", no_driver)


def needs(total_bytes: int, device_bytes: int = 0) -> MemoryEstimate:
    return MemoryEstimate(
        weights_bytes=total_bytes - 2 * MB,
        kv_cache_bytes=MB,
        compute_bytes=MB,
        device_bytes=device_bytes,
    )


@pytest.mark.usefixtures("_a_gpu")
@pytest.mark.parametrize(
    ("percent", "reserve_mb", "usable_mb"),
    [(100, 0, 14 * 1024), (100, 1024, 13 * 1024), (50, 0, 6 * 1024), (10, 0, 0), (50, 1024, 6144)],
)
def test_what_may_be_used_of_a_gpu_is_the_least_of_both_limits(
    settings: Settings, percent: int, reserve_mb: int, usable_mb: int
) -> None:
    settings.MAX_VRAM_USAGE_PERCENT = percent
    settings.VRAM_RESERVE_MB = reserve_mb
    usable = usable_mb * MB
    assert device_memory.read(-1) == DeviceMemory(MemoryKind.GPU, 16 * GB, 14 * GB, usable)
    device_memory.check_fits("m", needs(2 * usable, usable), gpu_layers=-1)
    with pytest.raises(ModelLoadError, match=f"GPU memory .* {usable_mb} MB may be used"):
        device_memory.check_fits("m", needs(2 * usable + GB, usable + 1), gpu_layers=-1)


@pytest.mark.parametrize(
    ("percent", "reserve_mb", "usable_mb"),
    [(100, 0, 24 * 1024), (100, 1024, 23 * 1024), (50, 0, 8 * 1024), (10, 0, 0), (50, 1024, 8192)],
)
def test_what_may_be_used_of_ram_is_the_least_of_both_limits(
    settings: Settings, percent: int, reserve_mb: int, usable_mb: int
) -> None:
    settings.MAX_RAM_USAGE_PERCENT = percent
    settings.RAM_RESERVE_MB = reserve_mb
    usable = usable_mb * MB
    assert device_memory.read(0) == DeviceMemory(MemoryKind.RAM, 32 * GB, 24 * GB, usable)
    device_memory.check_fits("m", needs(usable), gpu_layers=0)
    with pytest.raises(ModelLoadError, match=f"of RAM .* {usable_mb} MB may be used"):
        device_memory.check_fits("m", needs(usable + 1), gpu_layers=0)


@pytest.mark.usefixtures("_no_gpu")
def test_a_container_has_what_it_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_memory, "container_memory", lambda: (4 * GB, 3 * GB))
    assert device_memory.read(-1) == DeviceMemory(MemoryKind.RAM, 4 * GB, 3 * GB, 3 * GB)


@pytest.mark.usefixtures("_a_gpu")
@pytest.mark.parametrize(
    ("split", "device_gb", "refusal"),
    [
        (GPUSplit(), 24, None),
        (GPUSplit(), 25, "GPU memory"),
        (GPUSplit(tensor_split=(14, 10)), 24, None),
        (GPUSplit(tensor_split=(1, 1)), 20, None),
        (GPUSplit(tensor_split=(1, 1)), 21, "the memory of GPU 2"),
        (GPUSplit(SplitMode.ROW, tensor_split=(1,)), 15, "the memory of GPU 1"),
        (GPUSplit(SplitMode.NONE, main_gpu=1), 10, None),
        (GPUSplit(SplitMode.NONE, main_gpu=1), 11, "the memory of GPU 2"),
        (GPUSplit(SplitMode.NONE, main_gpu=2), 1, "names 3 GPUs and this worker has 2"),
    ],
)
def test_each_of_several_gpus_has_its_share(
    settings: Settings, split: GPUSplit, device_gb: int, refusal: str | None
) -> None:
    settings.GPU_INDEXES = [1, 2]
    assert device_memory.read(-1) == DeviceMemory(MemoryKind.GPU, 26 * GB, 24 * GB, 24 * GB)
    fits = pytest.raises(ModelLoadError, match=refusal) if refusal else contextlib.nullcontext()
    with fits:
        device_memory.check_fits(
            "m", needs(26 * GB, device_gb * GB), gpu_layers=-1, gpu_split=split
        )


@pytest.mark.usefixtures("_a_gpu")
def test_worker_of_a_gpu_that_is_not_seen_has_none(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.GPU_INDEXES = [1, 3]

    def handle(index: int) -> int:
        if index == 3:
            raise pynvml.NVMLError_InvalidArgument
        return index

    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByIndex", handle)
    assert not device_memory.has_gpu()
    assert device_memory.read(-1).kind == MemoryKind.RAM


def test_cuda_sees_the_gpus_of_the_worker(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.GPU_INDEXES = [3, 1]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("CUDA_DEVICE_ORDER", raising=False)
    device_memory.show_own_gpus()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "3,1"
    assert os.environ["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-5a4d")
    device_memory.show_own_gpus()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "GPU-5a4d"


@pytest.mark.usefixtures("_a_gpu")
def test_error_says_what_is_needed_and_what_to_change() -> None:
    with pytest.raises(ModelLoadError) as raised:
        device_memory.check_fits("llama", needs(20 * GB, 15 * GB), gpu_layers=-1)
    message = str(raised.value)
    assert "llama needs 15360 MB of GPU memory" in message
    assert "weights 20478 MB, KV cache 1 MB, compute 1 MB" in message
    for remedy in ("context_window", "MAX_NUM_SEQS", "gpu_layers", "quantization", "VRAM_RESERVE"):
        assert remedy in message


@pytest.mark.usefixtures("_a_gpu")
def test_partial_offload_is_checked_on_both_sides() -> None:
    device_memory.check_fits("m", needs(38 * GB, 14 * GB), gpu_layers=20)
    with pytest.raises(ModelLoadError, match="of GPU memory"):
        device_memory.check_fits("m", needs(38 * GB, 15 * GB), gpu_layers=20)
    with pytest.raises(ModelLoadError, match="of RAM"):
        device_memory.check_fits("m", needs(39 * GB, 14 * GB), gpu_layers=20)


@pytest.mark.usefixtures("_a_gpu")
def test_model_without_layers_on_the_gpu_needs_none_of_it() -> None:
    device_memory.check_fits("m", needs(24 * GB), gpu_layers=0)
    assert device_memory.read(0).kind == MemoryKind.RAM


def test_models_in_ram_count_even_where_their_weights_look_like_free_memory() -> None:
    staying = [needs(10 * GB), needs(2 * GB)]
    device_memory.check_fits("m", needs(20 * GB), gpu_layers=0, staying=staying)
    with pytest.raises(ModelLoadError, match="20480 MB may be used"):
        device_memory.check_fits("m", needs(21 * GB), gpu_layers=0, staying=staying)


@pytest.mark.usefixtures("_a_gpu")
def test_limit_by_hand_is_for_all_models_together(settings: Settings) -> None:
    settings.MODEL_MEMORY_LIMIT_MB = 3 * 1024
    staying = [needs(GB, GB)]
    device_memory.check_fits("m", needs(2 * GB, GB), gpu_layers=-1, staying=staying)
    with pytest.raises(ModelLoadError, match=r"raise MODEL_MEMORY_LIMIT_MB\.") as raised:
        device_memory.check_fits("m", needs(2 * GB + 1, GB), gpu_layers=-1, staying=staying)
    assert "2048 MB may be used" in str(raised.value)
    assert device_memory.read(-1).usable_bytes == 3 * GB


@pytest.mark.usefixtures("_a_gpu")
def test_gpu_of_the_index_is_seen() -> None:
    assert device_memory.has_gpu()
    assert device_memory.used_gpu_layers(-1) == -1
    assert device_memory.used_gpu_layers(0) == 0


@pytest.mark.usefixtures("_no_gpu")
def test_without_a_gpu_all_layers_are_in_ram() -> None:
    assert not device_memory.has_gpu()
    assert device_memory.used_gpu_layers(-1) == 0
    assert device_memory.read(-1).kind == MemoryKind.RAM


@pytest.mark.usefixtures("_a_gpu")
def test_index_of_no_gpu_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_such(index: int) -> None:
        raise pynvml.NVMLError_InvalidArgument

    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByIndex", no_such)
    assert not device_memory.has_gpu()


@pytest.mark.usefixtures("_a_gpu")
def test_published_reading_is_what_the_worker_read(valkey: Valkey) -> None:
    assert device_memory.published() is None
    device_memory.publish()
    assert device_memory.published() == device_memory.read(-1)
    assert 0 < client().ttl("model_memory") <= 30


@pytest.mark.usefixtures("_a_gpu")
def test_published_reading_is_that_of_the_worker_with_the_least_to_give(
    valkey: Valkey, settings: Settings
) -> None:
    readings = []
    for node, gpu_index in (("a", 1), ("b", 0), ("c", 1)):
        settings.NODE_NAME, settings.GPU_INDEXES = node, [gpu_index]
        device_memory.publish()
        readings.append(device_memory.read(-1))
    assert [reading.usable_bytes for reading in readings] == [14 * GB, 0, 14 * GB]
    assert device_memory.published() == readings[1]


@pytest.mark.usefixtures("_a_gpu")
def test_published_reading_follows_the_device(valkey: Valkey, settings: Settings) -> None:
    device_memory.publish()
    settings.VRAM_RESERVE_MB = 1024
    device_memory.publish()
    published = device_memory.published()
    assert published is not None
    assert published.usable_bytes == 13 * GB


@pytest.mark.usefixtures("_a_gpu")
def test_without_redis_nothing_is_published_and_nothing_fails(
    valkey: Valkey, caplog: pytest.LogCaptureFixture
) -> None:
    valkey.stop()
    with caplog.at_level(logging.WARNING, logger="inference.loading.device_memory"):
        device_memory.publish()
    assert "cannot be published" in caplog.text
    assert device_memory.published() is None
