"""The memory limit of a container, from control groups as Linux shows them."""

from pathlib import Path

import pytest

from inference.loading import device_memory

GB = 1024**3


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(device_memory, "_CONTROL_GROUPS", tmp_path)
    return tmp_path


def belongs_to(groups: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "memberships").write_text(groups)
    monkeypatch.setattr(device_memory, "_MEMBERSHIPS", tmp_path / "memberships")


def write(folder: Path, **files: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(f"{content}\n")


def test_version_2_counts_cached_files_as_free(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    belongs_to("0::/\n", root, monkeypatch)
    statistics = f"anon {GB}\nactive_file {GB}\ninactive_file {2 * GB}"
    write(root, memory__max=8 * GB, memory__current=5 * GB, memory__stat=statistics)
    assert device_memory.container_memory() == (8 * GB, 6 * GB)


def test_version_1_is_read_too(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    belongs_to("5:cpu:/x\n4:memory:/docker/abc\n0::/\n", root, monkeypatch)
    write(
        root / "memory" / "docker" / "abc",
        memory__limit_in_bytes=4 * GB,
        memory__usage_in_bytes=3 * GB,
        memory__stat=f"total_active_file 0\ntotal_inactive_file {GB}",
    )
    assert device_memory.container_memory() == (4 * GB, 2 * GB)


def test_tightest_limit_on_the_way_to_the_root_counts(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    belongs_to("0::/slice/service\n", root, monkeypatch)
    write(root / "slice", memory__max=4 * GB, memory__current=3 * GB, memory__stat="active_file 0")
    inner = root / "slice" / "service"
    write(inner, memory__max=8 * GB, memory__current=GB, memory__stat="active_file 0")
    assert device_memory.container_memory() == (4 * GB, GB)


def test_group_named_as_on_the_host_is_found_at_the_root(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    belongs_to("0::/system.slice/docker-abc.scope\n", root, monkeypatch)
    write(root, memory__max=2 * GB, memory__current=GB, memory__stat="active_file 0")
    assert device_memory.container_memory() == (2 * GB, GB)


def test_usage_above_the_limit_leaves_nothing(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    belongs_to("0::/\n", root, monkeypatch)
    write(root, memory__max=GB, memory__current=GB + 1, memory__stat="active_file 0")
    assert device_memory.container_memory() == (GB, 0)


def test_no_limit_is_none(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    belongs_to("0::/\n", root, monkeypatch)
    write(root, memory__max="max", memory__current=GB, memory__stat="active_file 0")
    assert device_memory.container_memory() is None


def test_system_without_control_groups_has_no_limit(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_memory, "_MEMBERSHIPS", root / "missing")
    assert device_memory.container_memory() is None
