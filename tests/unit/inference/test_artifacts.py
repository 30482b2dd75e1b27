"""Version files: fetched once, checked, linked, and never outside of their folder."""

import asyncio
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
from reprise.storage.v1 import artifact_pb2, model_pb2

from services.chassis.channels import Peer, open_channel
from services.chassis.errors import InvalidInput, Unavailable
from services.inference.artifacts import ArtifactCache, check_paths
from tests.doubles.storage import FakeArtifactService, FakeStorage

DIGEST = "0" * 64


class CountingArtifacts(FakeArtifactService):
    def __init__(self) -> None:
        super().__init__()
        self.downloads: list[str] = []
        self.is_endless = False

    async def DownloadBlob(self, request: Any, context: Any) -> AsyncIterator[Any]:
        self.downloads.append(request.digest)
        while self.is_endless:
            yield artifact_pb2.DownloadBlobResponse(chunk=b"x" * 65_536)
        async for answer in super().DownloadBlob(request, context):
            yield answer


@dataclass
class Desk:
    cache: ArtifactCache
    artifacts: CountingArtifacts
    root: Path
    files: list[model_pb2.VersionFile] = field(default_factory=list)

    def spec(self, number: int = 1) -> model_pb2.VersionSpec:
        return model_pb2.VersionSpec(version_id=f"{number:064x}", files=self.files)


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    storage = FakeStorage()
    artifacts = CountingArtifacts()
    storage.artifacts = artifacts
    server = grpc.aio.server()
    storage.add_to(server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    peer = Peer(open_channel(f"127.0.0.1:{port}"), "mesh")
    cache = ArtifactCache(tmp_path, peer, max_bytes=1_000_000)
    await cache.prepare()
    yield Desk(cache, artifacts, tmp_path)
    await peer.channel.close()
    await server.stop(0)


async def test_versions_share_their_blobs_and_each_is_fetched_once(desk: Desk) -> None:
    desk.files = [
        desk.artifacts.put("predict.py", b"code"),
        desk.artifacts.put("weights/a.bin", b"w" * 700_000),
        desk.artifacts.put("weights/b.bin", b"w" * 700_000),
    ]
    first = await desk.cache.version_dir(desk.spec(1))
    second = await desk.cache.version_dir(desk.spec(2))
    assert (first / "weights/a.bin").read_bytes() == b"w" * 700_000
    assert (first / "weights/a.bin").stat().st_ino == (second / "weights/b.bin").stat().st_ino
    assert len(desk.artifacts.downloads) == 2


async def test_files_are_read_only_and_only_the_named_ones_executable(desk: Desk) -> None:
    desk.files = [
        desk.artifacts.put("plain", b"same"),
        desk.artifacts.put("tool", b"same", is_executable=True),
    ]
    folder = await desk.cache.version_dir(desk.spec())
    assert (folder / "plain").stat().st_mode & 0o777 == 0o444
    assert (folder / "tool").stat().st_mode & 0o777 == 0o555


async def test_bytes_that_do_not_match_are_not_kept(desk: Desk) -> None:
    file = desk.artifacts.put("predict.py", b"code")
    desk.artifacts.blobs[file.digest] = b"evil"
    desk.files = [file]
    with pytest.raises(Unavailable, match="other bytes"):
        await desk.cache.version_dir(desk.spec())
    desk.artifacts.blobs[file.digest] = b"code"
    folder = await desk.cache.version_dir(desk.spec())
    assert (folder / "predict.py").read_bytes() == b"code"
    assert os.listdir(desk.root / "partial") == []


async def test_more_bytes_than_promised_are_not_read_to_their_end(desk: Desk) -> None:
    file = desk.artifacts.put("predict.py", b"code")
    desk.artifacts.is_endless = True
    desk.files = [file]
    with pytest.raises(Unavailable, match="other bytes"):
        async with asyncio.timeout(10):
            await desk.cache.version_dir(desk.spec())


@pytest.mark.parametrize(
    "path",
    ["", "/etc/passwd", "../up", "a/../../up", "a//b", "./a", "a\\b", "a\nb", "a/", "x" * 2000],
)
def test_paths_that_could_leave_their_folder_are_refused(path: str) -> None:
    with pytest.raises(InvalidInput, match="not a relative path"):
        check_paths([model_pb2.VersionFile(path=path, digest=DIGEST)])


@pytest.mark.parametrize(
    ("paths", "problem"),
    [(["a", "a"], "listed twice"), (["a", "a/b"], "a is a file and the folder of a/b")],
)
def test_paths_that_clash_are_refused(paths: list[str], problem: str) -> None:
    files = [model_pb2.VersionFile(path=path, digest=DIGEST) for path in paths]
    with pytest.raises(InvalidInput, match=problem):
        check_paths(files)


def test_a_digest_that_is_none_is_refused() -> None:
    with pytest.raises(InvalidInput, match="64 lower-case hex"):
        check_paths([model_pb2.VersionFile(path="a", digest="../../etc")])


async def test_the_versions_that_were_not_used_for_longest_go_when_there_is_too_much(
    desk: Desk,
) -> None:
    shared = desk.artifacts.put("shared", b"s" * 1000)
    folders = []
    for number in (1, 2, 3):
        own = desk.artifacts.put("own", bytes([number]) * 500_000)
        desk.files = [shared, own]
        folders.append(await desk.cache.version_dir(desk.spec(number)))
    for age, folder in zip((10, 30, 20), folders, strict=True):
        os.utime(folder, (age, age))
    await desk.cache.prepare()
    assert [folder.exists() for folder in folders] == [False, True, False]
    kept = {path.stat().st_size for path in (desk.root / "blobs").glob("*/*")}
    assert kept == {1000, 500_000}
