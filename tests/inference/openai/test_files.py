"""/v1/files: uploads onto the disk, and who may read them."""

import asyncio
import os
import stat
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from django.conf import settings as django_settings
from pytest_django import Settings

from inference.models import StoredFile
from inference.tasks import purge
from monitoring.api.principal import Principal, Scope
from tests.conftest import Valkey, client_of
from tests.sopllm.test_handler import call, talk

pytestmark = pytest.mark.django_db(transaction=True)

CONTENT = b'{"custom_id": "a"}\n'
OTHER = Principal("a key", "other", frozenset(Scope))


@pytest.fixture(autouse=True)
def _no_files(valkey: Valkey) -> None:
    """Every test has a broker, and begins without files."""
    for path in Path(django_settings.FILES_DIR).iterdir():
        path.unlink()


def upload(content: bytes = CONTENT, purpose: str = "batch", **fields: str) -> httpx.Response:
    async def conversation(client: httpx.AsyncClient) -> httpx.Response:
        files = {"file": ("../input.jsonl", content)}
        return await client.post("/v1/files", files=files, data={"purpose": purpose} | fields)

    response: httpx.Response = talk(conversation)
    return response


def request(method: str, path: str) -> httpx.Response:
    async def conversation(client: httpx.AsyncClient) -> httpx.Response:
        return await client.request(method, path, headers={"accept": "application/binary"})

    response: httpx.Response = talk(conversation)
    return response


def on_disk() -> list[str]:
    return [path.name for path in Path(django_settings.FILES_DIR).iterdir()]


def test_upload_lies_on_the_disk_for_its_owner_alone() -> None:
    response = upload()
    file = response.json()
    assert response.status_code == 200
    assert file == {
        "id": file["id"],
        "object": "file",
        "bytes": len(CONTENT),
        "created_at": file["created_at"],
        "expires_at": file["created_at"] + django_settings.FILE_TTL_SECONDS,
        "filename": "input.jsonl",
        "purpose": "batch",
        "status": "processed",
    }
    [path] = Path(django_settings.FILES_DIR).iterdir()
    assert path.name == file["id"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert request("GET", f"/v1/files/{file['id']}").json() == file
    assert request("GET", f"/v1/files/{file['id']}/content").content == CONTENT


def test_deleted_file_is_gone_from_the_disk() -> None:
    pk = upload().json()["id"]
    answer = request("DELETE", f"/v1/files/{pk}")
    assert answer.json() == {"id": pk, "object": "file", "deleted": True}
    assert on_disk() == []
    assert request("GET", f"/v1/files/{pk}").status_code == 404


def test_other_purpose_is_refused() -> None:
    answer = upload(purpose="fine-tune")
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "purpose"
    assert on_disk() == []


def test_unknown_field_is_refused() -> None:
    assert upload(porpoise="batch").json()["error"]["param"] == "porpoise"


def test_body_that_is_no_form_is_refused() -> None:
    async def conversation(client: httpx.AsyncClient) -> httpx.Response:
        return await client.post("/v1/files", json={"purpose": "batch"})

    response = talk(conversation)
    assert response.status_code == 415
    assert "multipart/form-data" in response.json()["error"]["message"]


def test_upload_without_a_body_is_refused() -> None:
    response = request("POST", "/v1/files")
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "file"


def test_file_may_be_larger_than_other_bodies(settings: Settings) -> None:
    content = b"x" * (2 * 1024 * 1024)
    settings.MAX_BODY_BYTES = 1024 * 1024
    pk = upload(content).json()["id"]
    assert request("GET", f"/v1/files/{pk}/content").content == content


def test_too_large_a_file_is_refused_and_not_kept(settings: Settings) -> None:
    settings.MAX_FILE_BYTES = 1024
    for size in (1025, 500_000):
        answer = upload(b"x" * size)
        assert answer.status_code == 413
        assert answer.json()["error"]["code"] == "payload_too_large"
    assert on_disk() == []


def test_body_in_chunks_is_read() -> None:
    boundary = "limit"
    parts = [
        f'--{boundary}\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n',
        f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n',
        "one line\n\r\n",
        f"--{boundary}--\r\n",
    ]

    async def body() -> AsyncIterator[bytes]:
        for part in parts:
            yield part.encode()

    async def conversation(client: httpx.AsyncClient) -> httpx.Response:
        headers = {"content-type": f"multipart/form-data; boundary={boundary}"}
        return await client.post("/v1/files", content=body(), headers=headers)

    assert talk(conversation).json()["bytes"] == 9


def test_files_of_an_owner_have_a_quota(settings: Settings) -> None:
    settings.MAX_FILE_BYTES_PER_OWNER = 3 * 1024
    assert upload(b"x" * 2000).status_code == 200
    answer = upload(b"x" * 2000)
    assert answer.status_code == 413
    assert "delete some" in answer.json()["error"]["message"]
    assert len(on_disk()) == StoredFile.objects.count() == 1


def test_upload_that_breaks_off_leaves_nothing() -> None:
    messages: list[Any] = [
        {"type": "http.request", "body": b"--x\r\n", "more_body": True},
        {"type": "http.disconnect"},
    ]

    async def receive() -> Any:
        return messages.pop(0)

    asyncio.run(call(receive, "/v1/files"))
    assert on_disk() == []
    assert not StoredFile.objects.exists()


def test_owner_sends_two_files_at_a_time() -> None:
    headers = {"content-type": "multipart/form-data; boundary=x"}

    async def conversation(client: httpx.AsyncClient) -> list[int]:
        released = asyncio.Event()

        async def body() -> AsyncIterator[bytes]:
            yield b"--x\r\n"
            await released.wait()

        async def send() -> int:
            return (await client.post("/v1/files", content=body(), headers=headers)).status_code

        slow = [asyncio.create_task(send()) for _ in range(2)]
        await asyncio.sleep(0)
        whole: dict[str, Any] = {"files": {"file": CONTENT}, "data": {"purpose": "batch"}}
        while (refused := await client.post("/v1/files", **whole)).status_code == 200:
            pass  # the others have not begun yet
        released.set()
        await asyncio.gather(*slow)
        return [refused.status_code, (await client.post("/v1/files", **whole)).status_code]

    assert talk(conversation) == [429, 200]


def test_list_has_pages_in_both_orders() -> None:
    ids = [upload().json()["id"] for _ in range(3)]
    first = request("GET", "/v1/files?limit=2").json()
    assert [file["id"] for file in first["data"]] == [ids[2], ids[1]]
    assert first["has_more"] is True
    assert first["last_id"] == ids[1]
    second = request("GET", f"/v1/files?limit=2&after={ids[1]}").json()
    assert [file["id"] for file in second["data"]] == [ids[0]]
    assert second["has_more"] is False
    ascending = request("GET", "/v1/files?order=asc&purpose=batch").json()
    assert [file["id"] for file in ascending["data"]] == ids
    assert request("GET", "/v1/files?purpose=batch_output").json()["data"] == []
    assert request("GET", "/v1/files?after=file-gone").status_code == 400
    assert request("GET", "/v1/files?order=up").status_code == 400


def test_file_of_another_owner_is_not_there() -> None:
    pk = upload().json()["id"]
    other = client_of(OTHER)
    assert other.get("/v1/files").json()["data"] == []
    for method, path in (("get", ""), ("get", "/content"), ("delete", "")):
        assert getattr(other, method)(f"/v1/files/{pk}{path}").status_code == 404
    body = {"input_file_id": pk, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    assert other.post("/v1/batches", body, format="json").status_code == 400
    assert request("GET", f"/v1/files/{pk}").status_code == 200


def test_purge_removes_old_files_and_what_kills_have_left() -> None:
    pk = upload().json()["id"]
    old = upload().json()["id"]
    StoredFile.objects.filter(pk=old).update(expires_at=StoredFile.objects.get(pk=old).created_at)
    left, arriving = (django_settings.FILES_DIR / name for name in ("left.upload", "new.upload"))
    for path in (left, arriving, django_settings.FILES_DIR / pk):
        path.touch()
    for name in (left.name, pk):
        os.utime(django_settings.FILES_DIR / name, (0, time.time() - 7200))
    purge()
    assert sorted(on_disk()) == sorted([pk, arriving.name])
    assert StoredFile.objects.get().pk == pk
