"""Files over gRPC: their life from upload to expiry, for one account only."""

import hashlib
from typing import Any

import pytest
from reprise.storage.v1 import file_pb2
from reprise.wire.v1.json_pb2 import Json

from services.chassis.errors import InvalidInput, NotFound, ResourceExhausted, Unauthenticated
from tests.integration.storage.service import StorageService, each

CONTENT = b"pixels" * 100_000
DAY_S = 86_400


async def test_a_file_is_described_stored_and_downloaded(storage: StorageService) -> None:
    alice = storage.client("alice")
    header = file_pb2.FileHeader(
        name="cat.png", content_type="image/png", metadata=Json(text='{"n": 7}')
    )
    file = await alice.create_file(CONTENT, header)
    md5 = hashlib.md5(CONTENT, usedforsecurity=False).hexdigest()
    assert (file.name, file.content_type, file.size) == ("cat.png", "image/png", len(CONTENT))
    assert file.etag == md5
    assert dict(file.checksums) == {"md5": md5, "sha256": hashlib.sha256(CONTENT).hexdigest()}
    assert file.metadata.text == '{"n": 7}'
    assert dict(file.urls) == {"get": f"/v1/files/{file.id}"}
    assert file.expires_at.seconds - file.created_at.seconds == DAY_S
    assert await alice.get_file(file.id) == file
    bodies = await alice.download(file.id)
    assert b"".join(body.data for body in bodies) == CONTENT
    assert max(len(body.data) for body in bodies) <= 256 * 1024
    assert [body.content_type for body in bodies] == ["image/png"] + [""] * (len(bodies) - 1)


async def test_an_empty_file_still_has_its_content_type(storage: StorageService) -> None:
    alice = storage.client("alice")
    file = await alice.create_file(b"", file_pb2.FileHeader(content_type="text/plain"))
    assert file.size == 0
    bodies = await alice.download(file.id)
    assert [(body.content_type, body.data) for body in bodies] == [("text/plain", b"")]


async def test_another_account_does_not_find_a_file(storage: StorageService) -> None:
    alice, bob = storage.client("alice"), storage.client("bob")
    file = await alice.create_file(CONTENT)
    for use in (bob.get_file, bob.download):
        with pytest.raises(NotFound, match=r"^File not found$"):
            await use(file.id)
    request = file_pb2.DeleteFileRequest(file_id=file.id)
    with pytest.raises(NotFound, match=r"^File not found$"):
        await bob.call(bob.files.DeleteFile, request)
    listed = await bob.call(bob.files.ListFiles, file_pb2.ListFilesRequest())
    assert list(listed.files) == []
    assert (await alice.get_file(file.id)).id == file.id


async def test_a_file_of_nobody_is_refused(storage: StorageService) -> None:
    with pytest.raises(Unauthenticated, match="names no account"):
        await storage.client("").create_file(CONTENT)
    assert storage.stored_paths() == []


async def test_a_deleted_file_is_gone_with_its_bytes(storage: StorageService) -> None:
    alice = storage.client("alice")
    file = await alice.create_file(CONTENT)
    assert len(storage.stored_paths()) == 1
    await alice.call(alice.files.DeleteFile, file_pb2.DeleteFileRequest(file_id=file.id))
    assert storage.stored_paths() == []
    with pytest.raises(NotFound):
        await alice.download(file.id)
    with pytest.raises(NotFound):
        await alice.call(alice.files.DeleteFile, file_pb2.DeleteFileRequest(file_id=file.id))


async def test_a_file_is_gone_when_its_day_is_over_and_the_sweep_frees_its_bytes(
    storage: StorageService,
) -> None:
    alice = storage.client("alice")
    old = await alice.create_file(CONTENT)
    storage.clock.pass_s(DAY_S - 60)
    young = await alice.create_file(b"young")
    assert await storage.parts.sweeper.sweep(storage.clock()) == 0
    assert (await alice.get_file(old.id)).id == old.id
    storage.clock.pass_s(61)
    for use in (alice.get_file, alice.download):
        with pytest.raises(NotFound):
            await use(old.id)
    assert await storage.parts.sweeper.sweep(storage.clock()) == 1
    assert [path.name for path in storage.stored_paths()] == [young.id]
    assert await storage.parts.sweeper.sweep(storage.clock()) == 0


async def test_a_file_above_the_limit_is_refused_and_leaves_nothing(
    storage: StorageService,
) -> None:
    alice = storage.client("alice")
    await alice.create_file(b"x" * 1_000_000)
    before = storage.stored_paths()
    with pytest.raises(ResourceExhausted) as refused:
        await alice.create_file(b"x" * 1_000_001)
    assert refused.value.reason == "FILE_TOO_LARGE"
    assert refused.value.message == "Files must be less than 1000000 bytes in size"
    assert storage.stored_paths() == before
    listed = await alice.call(alice.files.ListFiles, file_pb2.ListFilesRequest())
    assert len(listed.files) == 1


@pytest.mark.parametrize(
    "requests",
    [
        [],
        [file_pb2.CreateFileRequest(chunk=b"x")],
        [file_pb2.CreateFileRequest()],
        [file_pb2.CreateFileRequest(header=file_pb2.FileHeader())] * 2,
    ],
    ids=["nothing", "chunk first", "neither", "two headers"],
)
async def test_an_upload_is_one_header_and_then_chunks(
    storage: StorageService, requests: list[file_pb2.CreateFileRequest]
) -> None:
    alice = storage.client("alice")
    with pytest.raises(InvalidInput, match="header"):
        await alice.call(alice.files.CreateFile, each(requests))
    assert storage.stored_paths() == []


async def test_files_are_listed_newest_first_page_by_page_in_both_directions(
    storage: StorageService,
) -> None:
    alice = storage.client("alice")
    made = [(await alice.create_file(b"x")).id for _ in range(5)]

    async def page(token: str) -> Any:
        request = file_pb2.ListFilesRequest(page_size=2, page_token=token)
        return await alice.call(alice.files.ListFiles, request)

    first = await page("")
    second = await page(first.next_page_token)
    third = await page(second.next_page_token)
    listed = [file.id for answer in (first, second, third) for file in answer.files]
    assert listed == made[::-1]
    assert (first.previous_page_token, third.next_page_token) == ("", "")
    back = await page(third.previous_page_token)
    assert back.files == second.files
    again = await page(back.previous_page_token)
    assert again.files == first.files
    assert again.previous_page_token == ""
    assert (await page(again.next_page_token)).files == second.files


@pytest.mark.parametrize("token", ["x", "e30", "eyJrMCI6IngifQ", "A" * 2000])
async def test_a_made_up_cursor_is_refused(storage: StorageService, token: str) -> None:
    alice = storage.client("alice")
    request = file_pb2.ListFilesRequest(page_token=token)
    with pytest.raises(InvalidInput, match="page_token"):
        await alice.call(alice.files.ListFiles, request)
