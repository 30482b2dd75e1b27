"""Pushes a model: only the blobs that the server lacks, then the version."""

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from reprise.storage.v1 import artifact_pb2, model_pb2

from cli.client import CallFailed, Client

CHUNK_SIZE = 1024 * 1024
UPLOAD_TIMEOUT_S = 3600.0
# Never part of a model, whatever the folder holds beside it.
_LEFT_OUT = {".git", ".venv", "venv", "__pycache__", ".cog", "node_modules", ".DS_Store"}
_LEFT_OUT_SUFFIXES = {".pyc"}
_LABEL_SUFFIXES = {".txt", ".json"}


@dataclass(frozen=True, slots=True)
class LocalFile:
    """One file that goes into the version."""

    source: Path
    entry: model_pb2.VersionFile


@dataclass(frozen=True, slots=True)
class Project:
    """What is pushed."""

    kind: model_pb2.VersionKind.ValueType
    files: list[LocalFile]


def read_project(path: Path, config: Path | None) -> Project:
    """A folder with a cog.yaml, or an ONNX file with its reprise.yaml and labels."""
    if path.is_dir() and (path / "cog.yaml").is_file():
        files = [_local_file(path, source) for source in sorted(_walk(path))]
        return Project(model_pb2.VERSION_KIND_COG, files)
    if path.is_file() and path.suffix == ".onnx":
        return _read_engine(path, config)
    if path.is_dir():
        raise CallFailed(f"{path}: no cog.yaml in this folder; push a Cog project or an .onnx file")
    if not path.exists():
        raise CallFailed(f"{path}: no such file or folder")
    raise CallFailed(f"{path}: neither a folder with a cog.yaml nor an .onnx file")


def _read_engine(path: Path, config: Path | None) -> Project:
    files = [_local_file(path.parent, path)]
    if config is not None:
        if not config.is_file():
            raise CallFailed(f"--config {config}: no such file")
        entry = _local_file(config.parent, config).entry
        entry.path = "reprise.yaml"
        files.append(LocalFile(config, entry))
        files.extend(_local_file(config.parent, source) for source in _labels(config))
    files.extend(
        _local_file(path.parent, source) for source in sorted(path.parent.glob(f"{path.name}.data"))
    )
    return Project(model_pb2.VERSION_KIND_ENGINE, files)


def _labels(config: Path) -> Iterator[Path]:
    """Files of labels that the config names, as lines or as a JSON list."""
    # What the config means, and whether it is text at all, is judged where the model is built.
    text = config.read_bytes().decode(errors="replace")
    for source in sorted(config.parent.iterdir()):
        if source.suffix in _LABEL_SUFFIXES and source.name in text and source.is_file():
            yield source


def _walk(folder: Path) -> Iterator[Path]:
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name not in _LEFT_OUT]
        for name in names:
            source = Path(parent, name)
            if name in _LEFT_OUT or source.suffix in _LEFT_OUT_SUFFIXES:
                continue
            if source.is_symlink() and not source.resolve().is_relative_to(folder.resolve()):
                raise CallFailed(f"{source}: links to a file outside of the project; copy it in")
            yield source


def _local_file(root: Path, source: Path) -> LocalFile:
    with source.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    status = source.stat()
    entry = model_pb2.VersionFile(
        path=str(PurePosixPath(source.relative_to(root))),
        digest=digest,
        size_bytes=status.st_size,
        is_executable=bool(status.st_mode & 0o100),
    )
    return LocalFile(source, entry)


async def upload_missing(
    client: Client, project: Project, on_progress: Callable[[int, int], None]
) -> int:
    """Sends the blobs that the server lacks; returns how many bytes that were."""
    by_digest = {item.entry.digest: item for item in project.files}
    request = artifact_pb2.ListMissingBlobsRequest(digests=list(by_digest))
    answer = await client.call(client.artifacts.ListMissingBlobs, request)
    missing = [by_digest[digest] for digest in answer.digests]
    total = sum(item.entry.size_bytes for item in missing)
    sent = 0

    def count(size: int) -> None:
        nonlocal sent
        sent += size
        on_progress(sent, total)

    for item in missing:
        await client.call(client.artifacts.UploadBlob, _parts(item, count), UPLOAD_TIMEOUT_S)
    return total


async def _parts(
    item: LocalFile, count: Callable[[int], None]
) -> AsyncIterator[artifact_pb2.UploadBlobRequest]:
    header = artifact_pb2.BlobHeader(digest=item.entry.digest, size_bytes=item.entry.size_bytes)
    yield artifact_pb2.UploadBlobRequest(header=header)
    with item.source.open("rb") as file:
        while chunk := await asyncio.to_thread(file.read, CHUNK_SIZE):
            yield artifact_pb2.UploadBlobRequest(chunk=chunk)
            count(len(chunk))


async def create_version(
    client: Client, request: model_pb2.CreateVersionRequest, on_step: Callable[[str], None]
) -> model_pb2.Version:
    """Builds the version on the server; its steps are told as they happen."""
    version: model_pb2.Version | None = None
    async for message in client.stream(client.models.CreateVersion, request):
        if message.HasField("version"):
            version = message.version
        else:
            on_step(message.step)
    if version is None:
        raise CallFailed("the server ended the build without a version; see its logs")
    return version
