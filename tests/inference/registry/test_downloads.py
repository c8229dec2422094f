"""Files from the hub: brought in parts, checked, cancelled, and what is said when that fails."""

import errno
import hashlib
import logging
import random
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from django.conf import settings as django_settings
from django.db import connection
from django.db.models.functions import Now
from pytest_django import Settings
from rest_framework.test import APIClient

from inference import events
from inference.models import ModelDownload, RegisteredModel
from inference.registry import downloads
from inference.registry.downloads import worker
from inference.registry.downloads.partial_file import FileBusyError, PartialFile
from inference.tasks import sweep
from monitoring.redis.client import client
from tests.conftest import Valkey, wait_until
from tests.hub_server import COMMIT, HubServer, serving_hub

pytestmark = pytest.mark.django_db(transaction=True)

Status = RegisteredModel.Status
REPO, FILE = "org/tiny-GGUF", "tiny.gguf"
TOKEN = "hf_" + "t" * 34


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A GGUF file of 3 MB; its header is all that anybody reads."""
    path = tmp_path_factory.mktemp("gguf") / FILE
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(2048)
    writer.add_block_count(1)
    writer.add_embedding_length(64)
    numbers = np.random.default_rng(0).random((768, 1024), dtype=np.float32)
    writer.add_tensor("token_embd.weight", numbers)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


@pytest.fixture
def hub(content: bytes, settings: Settings, valkey: Valkey) -> Iterator[HubServer]:
    """A hub with one file, and a MODELS_DIR with none."""
    models_dir = Path(settings.VAR_DIR) / f"models-{random.randrange(10**9)}"  # noqa: S311
    models_dir.mkdir()
    settings.MODELS_DIR = models_dir
    with serving_hub() as server:
        settings.HF_ENDPOINT = server.url
        server.files[f"{REPO}/{FILE}"] = content
        yield server
    shutil.rmtree(models_dir)


@pytest.fixture
def model(hub: HubServer) -> RegisteredModel:
    """A model whose file is to come."""
    return to_come("tiny")


def to_come(name: str, **config: Any) -> RegisteredModel:
    config = {"huggingface_repo": REPO, "filename": FILE, "model_path": FILE, **config}
    return RegisteredModel.objects.create(
        name=name, provider="local", status=Status.REGISTERED, config=config
    )


def run(model: RegisteredModel) -> RegisteredModel:
    """Start the download and do what there is to do, once."""
    downloads.start(model)
    return run_again(model)


def run_again(model: RegisteredModel) -> RegisteredModel:
    """Do it now, whatever pause there should be."""
    ModelDownload.objects.exclude(due_at=None).update(due_at=Now())
    worker.download_due()
    model.refresh_from_db()
    return model


def target() -> Path:
    return Path(django_settings.MODELS_DIR) / FILE


def partial() -> Path:
    return Path(django_settings.MODELS_DIR) / f"{FILE}.partial"


def test_model_is_available_with_what_its_header_says(
    model: RegisteredModel, content: bytes
) -> None:
    assert downloads.start(model)
    assert model.status == Status.DOWNLOADING
    run_again(model)
    assert (model.status, model.status_message) == (Status.AVAILABLE, "")
    assert (model.size_bytes, model.context_window) == (len(content), 2048)
    assert model.extra["architecture"] == "llama"
    assert target().read_bytes() == content
    assert not partial().exists()


def test_start_wakes_a_default_worker(model: RegisteredModel) -> None:
    downloads.start(model)
    [queue] = client().keys("default*")
    assert client().llen(queue) == 1


def test_started_download_is_not_started_again(model: RegisteredModel) -> None:
    assert downloads.start(model)
    assert not downloads.start(model)


def test_model_that_was_left_at_its_start_is_started_by_loading_it(
    api: APIClient, model: RegisteredModel
) -> None:
    model.set_status(Status.DOWNLOADING)
    for _ in range(2):
        answer = api.post("/api/v1/models/load", {"model": "tiny"}, format="json")
        assert (answer.status_code, answer.json()["status"]) == (202, "downloading")
    assert run_again(model).status == Status.AVAILABLE


def test_available_model_is_not_downloaded(model: RegisteredModel) -> None:
    run(model)
    assert not downloads.start(model)
    assert model.status == Status.AVAILABLE


def test_file_in_a_folder_is_brought(hub: HubServer, content: bytes) -> None:
    hub.files[f"{REPO}/Q4/{FILE}"] = content
    model = run(to_come("tiny", filename=f"Q4/{FILE}", model_path=f"tiny/{FILE}"))
    assert model.status == Status.AVAILABLE
    assert (target().parent / "tiny" / FILE).read_bytes() == content


def test_broken_connection_goes_on_where_it_ended(model: RegisteredModel, hub: HubServer) -> None:
    hub.faults.next_break_after = [1_000_000, 500_000]
    assert run(model).status == Status.AVAILABLE
    assert hub.ranges == [None, "bytes=1000000-", "bytes=1500000-"]


def test_part_that_a_dead_worker_left_is_not_brought_again(
    model: RegisteredModel, hub: HubServer, content: bytes
) -> None:
    partial().write_bytes(content[:2_000_000])
    assert run(model).status == Status.AVAILABLE
    assert hub.ranges == ["bytes=2000000-"]
    assert hub.num_sent_bytes == len(content) - 2_000_000


def test_complete_part_is_only_checked(
    model: RegisteredModel, hub: HubServer, content: bytes
) -> None:
    partial().write_bytes(content)
    assert run(model).status == Status.AVAILABLE
    assert hub.fetches == []


def test_part_of_another_version_is_found_out_and_dropped(
    model: RegisteredModel, hub: HubServer, content: bytes
) -> None:
    partial().write_bytes(b"x" * 1000)
    assert run(model).status == Status.AVAILABLE
    assert hub.ranges == ["bytes=1000-", None]
    assert target().read_bytes() == content


def test_part_that_is_too_long_is_dropped(
    model: RegisteredModel, hub: HubServer, content: bytes
) -> None:
    partial().write_bytes(content + b"x")
    assert run(model).status == Status.AVAILABLE
    assert hub.ranges == [None]


def test_server_without_ranges_sends_all_of_it(
    model: RegisteredModel, hub: HubServer, content: bytes
) -> None:
    hub.faults.refuses_ranges = True
    hub.faults.next_break_after = [1_000_000]
    assert run(model).status == Status.AVAILABLE
    assert hub.ranges == [None, "bytes=1000000-"]
    assert target().read_bytes() == content


def test_wrong_bytes_are_brought_once_more(
    model: RegisteredModel, hub: HubServer, content: bytes
) -> None:
    hub.faults.next_wrong_bytes = [bytes(len(content))]
    assert run(model).status == Status.AVAILABLE
    assert hub.ranges == [None, None]
    assert target().read_bytes() == content


def test_wrong_bytes_twice_are_an_error_and_do_not_stay(
    model: RegisteredModel, hub: HubServer, content: bytes
) -> None:
    hub.faults.next_wrong_bytes = [bytes(len(content)), bytes(len(content))]
    assert run(model).status == Status.ERROR
    assert "not what the hub says" in model.status_message
    assert not partial().exists()
    assert not target().exists()


def test_more_bytes_than_announced_are_wrong(
    model: RegisteredModel, hub: HubServer, content: bytes
) -> None:
    hub.faults.next_wrong_bytes = [content + b"x", content]
    assert run(model).status == Status.AVAILABLE


def test_hub_that_sends_next_to_nothing_holds_no_slot(
    model: RegisteredModel, hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "_MEASURED_SECONDS", 0.0)
    with monkeypatch.context() as strict:
        strict.setattr(worker, "_MIN_BYTES_PER_SECOND", 10**15)
        assert run(model).status == Status.DOWNLOADING
    assert "next to nothing" in model.status_message
    download = ModelDownload.objects.get()
    assert (download.lease_until, download.due_at is None) == (None, False)
    assert run_again(model).status == Status.AVAILABLE


def test_hub_whose_connections_bring_a_byte_each_holds_no_slot(
    model: RegisteredModel, hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "_RECONNECT_SECONDS", 0.01)
    hub.faults.next_break_after = [1] * 100
    with monkeypatch.context() as strict:
        strict.setattr(worker, "_MEASURED_SECONDS", 0.2)
        assert run(model).status == Status.DOWNLOADING
    assert "next to nothing" in model.status_message
    hub.faults.next_break_after.clear()
    assert run_again(model).status == Status.AVAILABLE


def test_file_that_is_no_gguf_is_an_error(model: RegisteredModel, hub: HubServer) -> None:
    hub.files[f"{REPO}/{FILE}"] = b"no model" * 1000
    assert run(model).status == Status.ERROR
    assert "cannot be used" in model.status_message
    assert not target().exists()


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"huggingface_repo": "org/none"}, "org/none does not exist, or is private"),
        ({"filename": "none.gguf"}, "org/tiny-GGUF has no file none.gguf"),
        ({"revision": "none"}, "org/tiny-GGUF has no revision none"),
        ({"huggingface_repo": "a/b/c"}, "a/b/c names no repository"),
        ({"sha256": 64 * "0"}, f"org/tiny-GGUF has another {FILE} by now than the preset says"),
    ],
)
def test_what_is_not_there_is_an_error_that_names_it(
    hub: HubServer, config: dict[str, str], said: str
) -> None:
    model = run(to_come("tiny", **config))
    assert model.status == Status.ERROR
    assert said in model.status_message


def test_commit_and_hash_may_be_named(hub: HubServer) -> None:
    sha256 = hashlib.sha256(hub.files[f"{REPO}/{FILE}"]).hexdigest()
    model = run(to_come("tiny", revision=COMMIT, sha256=sha256))
    assert model.status == Status.AVAILABLE


def test_gated_file_needs_the_token_which_only_the_hub_gets(
    model: RegisteredModel,
    hub: HubServer,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    hub.faults.token = TOKEN
    monkeypatch.delenv("HF_TOKEN", raising=False)
    assert run(model).status == Status.ERROR
    assert "HF_TOKEN" in model.status_message
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert run(model).status == Status.AVAILABLE
    assert {fetch.authorization for fetch in hub.fetches} == {None}
    assert TOKEN not in caplog.text


def test_wrong_token_is_not_told(
    model: RegisteredModel,
    hub: HubServer,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    hub.faults.token = "another"
    monkeypatch.setenv("HF_TOKEN", f"{TOKEN}\x01")
    run(model)
    assert model.status_message
    assert TOKEN not in model.status_message + caplog.text


def test_hub_that_fails_for_a_while_is_asked_again(model: RegisteredModel, hub: HubServer) -> None:
    hub.faults.next_statuses = [503]
    assert run(model).status == Status.DOWNLOADING
    assert model.status_message == "The hub answers 503. It is tried again in 2 s."
    assert not ModelDownload.objects.due().exists()
    assert run_again(model).status == Status.AVAILABLE


def test_hub_that_is_not_there_is_given_up_in_the_end(
    model: RegisteredModel, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "_MAX_FAILURES", 3)
    settings.HF_ENDPOINT = "http://127.0.0.1:1"
    assert run(model).status == Status.DOWNLOADING
    assert run_again(model).status == Status.DOWNLOADING
    assert run_again(model).status == Status.ERROR
    assert "cannot be reached" in model.status_message
    assert "Tried 3 times" in model.status_message


def test_bytes_that_arrive_make_up_for_earlier_failures(
    model: RegisteredModel, hub: HubServer
) -> None:
    hub.faults.next_statuses = [503]
    run(model)
    assert model.download.num_failures == 1
    # What is looked up, the first connection, and the one that should go on.
    hub.faults.next_break_after = [1_000_000, 0]
    run_again(model)
    download = ModelDownload.objects.get(pk=model.pk)
    assert (download.num_failures, download.downloaded_bytes) == (1, 1_000_000)


def test_failed_download_goes_on_when_the_model_is_loaded(
    api: APIClient, model: RegisteredModel, hub: HubServer, content: bytes
) -> None:
    partial().write_bytes(content[:1_000_000])
    hub.faults.next_statuses = [404]
    assert run(model).status == Status.ERROR
    answer = api.post("/api/v1/models/load", {"model": "tiny"}, format="json")
    assert (answer.status_code, answer.json()["status"]) == (202, "downloading")
    assert run_again(model).status == Status.AVAILABLE
    assert hub.ranges == ["bytes=1000000-"]


def test_too_small_disk_is_said_before_anything_is_brought(
    model: RegisteredModel, hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage("/")._replace(free=512 * 1024**2)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    assert run(model).status == Status.ERROR
    assert "The disk of MODELS_DIR lacks 4 MB" in model.status_message
    assert hub.fetches == []


def test_disk_that_becomes_full_is_freed_again(
    model: RegisteredModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_space(self: PartialFile, chunk: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(PartialFile, "append", no_space)
    assert run(model).status == Status.ERROR
    assert "became full" in model.status_message
    assert not partial().exists()


@pytest.fixture
def small_disk(model: RegisteredModel, settings: Settings) -> Iterator[Path]:
    """MODELS_DIR on a file system of 2 MB."""
    folder = Path(settings.MODELS_DIR)
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("only root may mount a small disk")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)  # noqa: S607


def test_small_disk_that_becomes_full_is_freed_again(
    small_disk: Path, model: RegisteredModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "RESERVE_BYTES", -(1024**3))
    assert run(model).status == Status.ERROR
    assert "became full" in model.status_message
    assert list(small_disk.iterdir()) == []
    monkeypatch.undo()
    assert run(model).status == Status.ERROR
    assert "lacks 514 MB" in model.status_message


def test_other_file_of_that_name_is_left_alone(model: RegisteredModel) -> None:
    target().write_bytes(b"mine")
    assert run(model).status == Status.ERROR
    assert "another file tiny.gguf" in model.status_message
    assert target().read_bytes() == b"mine"


def test_second_model_of_a_file_waits_for_the_first(model: RegisteredModel, hub: HubServer) -> None:
    with PartialFile(partial()):
        assert run(model).status == Status.DOWNLOADING
    assert "Another model" in model.status_message
    assert hub.fetches == []
    assert run_again(model).status == Status.AVAILABLE
    second = run(to_come("second"))
    assert second.status == Status.AVAILABLE
    assert len(hub.fetches) == 1


def test_part_is_written_by_one_at_a_time(hub: HubServer) -> None:
    with PartialFile(partial()), pytest.raises(FileBusyError):
        PartialFile(partial())


def test_part_that_another_one_has_begun_is_not_discarded(hub: HubServer) -> None:
    with PartialFile(partial()) as first:
        partial().unlink()
        partial().write_bytes(b"of another download")
        first.discard()
    assert partial().exists()


class InThread:
    """A slow download in a thread of its own, of which a part has arrived."""

    def __init__(self, model: RegisteredModel, hub: HubServer) -> None:
        hub.faults.bytes_per_second = 1_000_000
        downloads.start(model)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        wait_until(lambda: partial().exists() and partial().stat().st_size)

    def _run(self) -> None:
        try:
            worker.download_due()
        finally:
            connection.close()

    def join(self) -> None:
        self._thread.join(20)
        assert not self._thread.is_alive()


def test_deleting_the_model_ends_its_download(
    api: APIClient, model: RegisteredModel, hub: HubServer, content: bytes
) -> None:
    running = InThread(model, hub)
    assert api.delete("/api/v1/models/tiny").status_code == 204
    assert not partial().exists()
    running.join()
    assert hub.num_sent_bytes < len(content)
    assert not partial().exists()
    assert not target().exists()


def test_deleting_the_row_alone_ends_the_download_too(
    model: RegisteredModel, hub: HubServer
) -> None:
    running = InThread(model, hub)
    RegisteredModel.objects.all().delete()
    running.join()
    assert not partial().exists()


def test_part_of_a_failed_download_stays_unless_the_file_is_to_go(
    api: APIClient, hub: HubServer
) -> None:
    for delete_file, stays in (("false", True), ("true", False)):
        model = to_come("tiny")
        partial().write_bytes(b"x")
        hub.faults.next_statuses = [404]
        assert run(model).status == Status.ERROR
        api.delete(f"/api/v1/models/tiny?delete_file={delete_file}")
        assert partial().exists() == stays


def test_stopping_worker_puts_its_download_back(
    model: RegisteredModel, hub: HubServer, content: bytes
) -> None:
    running = InThread(model, hub)
    try:
        downloads.stop()
        running.join()
        worker.download_due()
        assert ModelDownload.objects.get().attempt == 1
    finally:
        downloads.stopping.clear()
    assert ModelDownload.objects.due().count() == 1
    hub.faults.bytes_per_second = 0
    assert run_again(model).status == Status.AVAILABLE
    assert hub.ranges[-1] is not None


def test_worker_that_lost_its_claim_stops_and_stores_nothing(
    model: RegisteredModel, hub: HubServer
) -> None:
    running = InThread(model, hub)
    mine = ModelDownload.objects.all()
    mine.update(lease_until=Now())
    assert ModelDownload.objects.take_back() == 1
    other = ModelDownload.objects.claim_next("other:1")
    assert other is not None
    running.join()
    model.refresh_from_db()
    assert (model.status, mine.get().worker) == (Status.DOWNLOADING, "other:1")
    assert partial().exists()


def test_download_of_a_dead_worker_is_taken_back_at_once(
    model: RegisteredModel, dead_worker: str
) -> None:
    downloads.start(model)
    assert ModelDownload.objects.claim_next(dead_worker)
    assert not ModelDownload.objects.due().exists()
    client().flushall()
    sweep()
    assert ModelDownload.objects.due().exists()
    [queue] = client().keys("default*")
    assert client().llen(queue) == 1


def test_claim_that_is_not_renewed_runs_out(model: RegisteredModel, settings: Settings) -> None:
    settings.LEASE_SECONDS = 0
    downloads.start(model)
    assert ModelDownload.objects.claim_next("lost:1")
    assert ModelDownload.objects.take_back() == 1
    assert ModelDownload.objects.claim_next("other:1")


def test_no_more_than_two_files_come_at_once(model: RegisteredModel) -> None:
    downloads.start(model)
    with worker._slots, worker._slots:
        worker.download_due()
    assert ModelDownload.objects.due().exists()


def test_next_download_is_enqueued_when_one_has_ended(hub: HubServer) -> None:
    first, second = to_come("first"), to_come("second")
    downloads.start(first)
    downloads.start(second)
    client().flushall()
    worker.download_due()
    [queue] = client().keys("default*")
    assert client().llen(queue) == 1


def test_progress_is_told_and_shown(
    api: APIClient,
    model: RegisteredModel,
    hub: HubServer,
    content: bytes,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[tuple[Any, ...]] = []
    monkeypatch.setattr(events, "download_progressed", lambda *data: told.append(data))
    running = InThread(model, hub)
    shown: dict[str, Any] = {}

    def is_shown() -> bool:
        shown.update(api.get("/api/v1/models/tiny").json())
        return bool(shown["download"]["downloaded_bytes"])

    wait_until(is_shown)
    assert shown["status"] == "downloading"
    assert 0 < shown["download"]["downloaded_bytes"] < len(content)
    assert shown["download"]["total_bytes"] == len(content)
    running.join()
    assert api.get("/api/v1/models/tiny").json()["download"] is None
    names, statuses, downloaded, totals, speeds = zip(*told, strict=True)
    assert set(names) == {"tiny"}
    assert statuses[-1] == Status.AVAILABLE
    assert set(statuses[:-1]) == {Status.DOWNLOADING}
    assert list(downloaded) == sorted(downloaded)
    assert downloaded[-1] == len(content)
    assert totals[-1] == len(content)
    assert any(speeds)


def test_list_of_models_asks_once_for_all_downloads(
    api: APIClient, hub: HubServer, django_assert_max_num_queries: Any
) -> None:
    for number in range(5):
        downloads.start(to_come(f"tiny-{number}"))
    with django_assert_max_num_queries(3):
        models = api.get("/api/v1/models").json()["models"]
    assert {model["download"]["downloaded_bytes"] for model in models} == {0}
