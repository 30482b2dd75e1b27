"""The engine cache: entries checked by checksum, bounded in size, built once by one process."""

import asyncio
import fcntl
import hashlib
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import IO

from inference_core.engine import Engine

log = logging.getLogger(__name__)

MODEL_FILE = "model.onnx"
_MANIFEST_FILE = "engine.json"
_LOCK_POLL_S = 0.05
_WORKSPACE_AGE_MAX_S = 86_400.0


class EngineCache:
    """A folder of engines, shared by processes of one host.

    Args:
        root: The folder; made if absent.
        max_bytes: What all entries together may take; the least recently used go first.
    """

    def __init__(self, root: Path, *, max_bytes: int = 20 << 30) -> None:
        self._engines = root / "engines"
        self._locks = root / "locks"
        self._workspaces = root / "work"
        self._max_bytes = max_bytes
        for folder in (self._engines, self._locks, self._workspaces):
            folder.mkdir(parents=True, exist_ok=True)

    @contextmanager
    def workspace(self) -> Iterator[Path]:
        """A folder that `store` can move into the cache; gone afterwards if it was not."""
        self._drop_stale_workspaces()
        path = Path(tempfile.mkdtemp(dir=self._workspaces))
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)

    @asynccontextmanager
    async def locked(self, digest: str) -> AsyncIterator[None]:
        """Holds the entry's lock, also against other processes."""
        with self._lock_file(digest) as file:
            # Another process holds it, so there is nothing in this one to wait on.
            while not _try_lock(file):  # noqa: ASYNC110
                await asyncio.sleep(_LOCK_POLL_S)
            yield

    def load(self, digest: str) -> Engine | None:
        """The entry, or None if there is none. A corrupt one is removed. Call it under the lock."""
        folder = self._engines / digest
        if not folder.exists():
            return None
        try:
            engine = _read_entry(folder)
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning(
                "corrupt engine removed from the cache",
                extra={"event": "engine_corrupt", "digest": digest, "reason": str(error)},
            )
            shutil.rmtree(folder)
            return None
        os.utime(folder)
        return engine

    def store(self, engine: Engine, workspace: Path) -> Engine:
        """Moves a workspace with the engine's model into the cache. Call it under the lock."""
        body = engine.to_json()
        manifest = {
            "engine": body,
            "engine_sha256": _sha256_of_json(body),
            "model_sha256": _sha256_of_file(workspace / MODEL_FILE),
        }
        (workspace / _MANIFEST_FILE).write_text(json.dumps(manifest))
        folder = self._engines / engine.digest
        workspace.rename(folder)
        self._evict(keep=folder)
        return _read_entry(folder)

    def _evict(self, *, keep: Path) -> None:
        folders = sorted(self._engines.iterdir(), key=lambda folder: folder.stat().st_mtime)
        sizes = {folder: _size_of(folder) for folder in folders}
        excess = sum(sizes.values()) - self._max_bytes
        for folder in folders:
            if excess <= 0:
                return
            with self._lock_file(folder.name) as file:
                if folder != keep and _try_lock(file):
                    shutil.rmtree(folder, ignore_errors=True)
                    excess -= sizes[folder]

    def _drop_stale_workspaces(self) -> None:
        """What a killed process left behind."""
        oldest = time.time() - _WORKSPACE_AGE_MAX_S
        for folder in self._workspaces.iterdir():
            if folder.stat().st_mtime < oldest:
                shutil.rmtree(folder, ignore_errors=True)

    def _lock_file(self, digest: str) -> IO[bytes]:
        # Lock files cannot be deleted without a race, so their number is bounded instead.
        return (self._locks / digest[:3]).open("ab")


def _try_lock(file: IO[bytes]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _read_entry(folder: Path) -> Engine:
    manifest = json.loads((folder / _MANIFEST_FILE).read_text())
    if _sha256_of_json(manifest["engine"]) != manifest["engine_sha256"]:
        raise ValueError(f"{_MANIFEST_FILE} does not match its checksum")
    onnx_path = folder / MODEL_FILE
    if _sha256_of_file(onnx_path) != manifest["model_sha256"]:
        raise ValueError(f"{MODEL_FILE} does not match its checksum")
    return Engine.from_json(manifest["engine"], onnx_path=onnx_path)


def _sha256_of_json(document: object) -> str:
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def _sha256_of_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())
