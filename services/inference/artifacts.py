"""Version files on this host: blobs fetched once by digest, versions hard-linked from them."""

import asyncio
import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path, PurePosixPath

from reprise.storage.v1 import artifact_pb2, artifact_pb2_grpc, model_pb2

from services.chassis.channels import Peer
from services.chassis.errors import InvalidInput, Unavailable

_DIGEST = re.compile(r"[0-9a-f]{64}")
_FILE_COUNT_MAX = 20_000
_PATH_MAX = 1024
_DOWNLOADS_AT_ONCE = 4

OnStep = Callable[[str], None]


def check_paths(files: Sequence[model_pb2.VersionFile]) -> None:
    """Raises InvalidInput for paths that could leave their folder or clash with each other."""
    if len(files) > _FILE_COUNT_MAX:
        raise InvalidInput(f"files: {len(files)} files, and {_FILE_COUNT_MAX} are allowed")
    paths: set[str] = set()
    for file in files:
        path = file.path
        if (
            not path
            or len(path.encode(errors="replace")) > _PATH_MAX
            or path.startswith("/")
            or "\\" in path
            or not path.isprintable()
            or any(part in ("", ".", "..") for part in path.split("/"))
        ):
            raise InvalidInput(f"files: {path!r} is not a relative path with forward slashes")
        if not _DIGEST.fullmatch(file.digest):
            raise InvalidInput(f"files: {path}: the digest is not 64 lower-case hex digits")
        if path in paths:
            raise InvalidInput(f"files: {path} is listed twice")
        paths.add(path)
    for path in paths:
        for parent in PurePosixPath(path).parents:
            if str(parent) in paths:
                raise InvalidInput(f"files: {parent} is a file and the folder of {path}")


class ArtifactCache:
    """`root/blobs` by digest and `root/versions` by version id; what stands there is complete."""

    def __init__(self, root: Path, storage: Peer, *, max_bytes: int) -> None:
        self._blobs = root / "blobs"
        self._versions = root / "versions"
        self._partial = root / "partial"
        self._max_bytes = max_bytes
        self._storage = storage
        self._stub = artifact_pb2_grpc.ArtifactServiceStub(storage.channel)
        self._locks: dict[str, asyncio.Lock] = {}
        self._downloads = asyncio.Semaphore(_DOWNLOADS_AT_ONCE)

    async def prepare(self) -> None:
        """Removes what an earlier process left half done, and what is too much."""
        await asyncio.to_thread(shutil.rmtree, self._partial, ignore_errors=True)
        for path in (self._blobs, self._versions, self._partial):
            path.mkdir(parents=True, exist_ok=True)
        await asyncio.to_thread(self._trim)

    async def version_dir(self, spec: model_pb2.VersionSpec) -> Path:
        """The version's files, read-only, fetched where they are not here yet."""
        if not _DIGEST.fullmatch(spec.version_id):
            raise InvalidInput("version_id: 64 lower-case hex digits are expected")
        path = self._versions / spec.version_id
        if not path.is_dir():
            building = self._partial / secrets.token_hex(8)
            try:
                await self.materialise(spec.files, building)
                await asyncio.to_thread(_move_into_place, building, path)
            finally:
                await asyncio.to_thread(shutil.rmtree, building, ignore_errors=True)
        # The time of use, by which the oldest are found.
        os.utime(path)
        return path

    async def materialise(
        self, files: Sequence[model_pb2.VersionFile], target: Path, on_step: OnStep | None = None
    ) -> None:
        """Raises InvalidInput; `target` may then be there in part."""
        # Up to 20,000 paths to look at and as many files to look for.
        missing = await asyncio.to_thread(self._missing, files)
        if missing and on_step is not None:
            size = sum(file.size_bytes for file in missing.values())
            on_step(f"fetching {len(missing)} files, {size / 1e6:.1f} MB")
        try:
            async with asyncio.TaskGroup() as tasks:
                for file in missing.values():
                    tasks.create_task(self._ensure_blob(file))
        except ExceptionGroup as group:
            # One reason is enough, and callers look for its meaning.
            raise group.exceptions[0] from group
        await asyncio.to_thread(self._link, list(files), target)

    def _missing(self, files: Sequence[model_pb2.VersionFile]) -> dict[str, model_pb2.VersionFile]:
        check_paths(files)
        return {file.digest: file for file in files if not self._blob(file.digest).exists()}

    async def _ensure_blob(self, file: model_pb2.VersionFile) -> None:
        lock = self._locks.setdefault(file.digest, asyncio.Lock())
        try:
            async with lock, self._downloads:
                if not self._blob(file.digest).exists():
                    await self._download(file)
        finally:
            self._locks.pop(file.digest, None)

    async def _download(self, file: model_pb2.VersionFile) -> None:
        partial = self._partial / f"{file.digest}.{secrets.token_hex(4)}"
        hasher = hashlib.sha256()
        size = 0
        request = artifact_pb2.DownloadBlobRequest(digest=file.digest)
        try:
            with partial.open("wb") as target:
                async for answer in self._storage.stream(self._stub.DownloadBlob, request):
                    size += len(answer.chunk)
                    if size > file.size_bytes:
                        break
                    await asyncio.to_thread(_write, target.write, hasher.update, answer.chunk)
            if size != file.size_bytes or hasher.hexdigest() != file.digest:
                raise Unavailable(f"storage sent other bytes than those of {file.digest}")
            partial.chmod(0o444)
            path = self._blob(file.digest)
            path.parent.mkdir(exist_ok=True)
            partial.rename(path)
        finally:
            partial.unlink(missing_ok=True)

    def _trim(self) -> None:
        """Only while nothing runs: a version in use must not lose its files."""
        versions = sorted(self._versions.iterdir(), key=lambda path: path.stat().st_mtime)
        size = sum(path.stat().st_size for path in self._blobs.glob("*/*"))
        if size > self._max_bytes:
            size -= self._drop_unused_blobs()
        while size > self._max_bytes and versions:
            shutil.rmtree(versions.pop(0))
            size -= self._drop_unused_blobs()

    def _drop_unused_blobs(self) -> int:
        """Returns the bytes that became free."""
        freed = 0
        for blob in self._blobs.glob("*/*"):
            status = blob.stat()
            # A blob without a second name belongs to no version.
            if status.st_nlink == 1:
                blob.unlink()
                freed += status.st_size
        return freed

    def _blob(self, digest: str) -> Path:
        return self._blobs / digest[:2] / digest

    def _link(self, files: Iterable[model_pb2.VersionFile], target: Path) -> None:
        target.mkdir(parents=True)
        for file in files:
            path = target / file.path
            path.parent.mkdir(parents=True, exist_ok=True)
            blob = self._blob(file.digest)
            if file.is_executable:
                # The mode belongs to the bytes on disk, and others share them without that bit.
                shutil.copyfile(blob, path)
                path.chmod(0o555)
            else:
                os.link(blob, path)


def _write(
    write: Callable[[bytes], object], update: Callable[[bytes], object], chunk: bytes
) -> None:
    write(chunk)
    update(chunk)


def _move_into_place(building: Path, path: Path) -> None:
    try:
        building.rename(path)
    except OSError:
        # Another load of the same version was first; its files are the same.
        if not path.is_dir():
            raise
