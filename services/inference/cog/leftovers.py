"""Removes the directories that the cog server leaves behind for every prediction."""

import asyncio
import contextlib
import os
import shutil
from pathlib import Path

_DELAY_S = 0.25


class Leftovers:
    """Collects finished ids and removes their directories together, in a thread.

    The model can write to this /tmp. No step follows a symbolic link, or a model could point the
    removal at a directory of the host.
    """

    def __init__(self, temp_dir: Path) -> None:
        self._temp_dir = temp_dir
        self._finished: list[str] = []
        self._removal: asyncio.Task[None] | None = None

    def add(self, prediction_id: str) -> None:
        self._finished.append(prediction_id)
        if self._removal is None or self._removal.done():
            self._removal = asyncio.create_task(self._remove_later())

    async def close(self) -> None:
        """What is still waiting is removed now."""
        if self._removal is not None:
            self._removal.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._removal
        await asyncio.to_thread(_remove, self._temp_dir, self._finished)

    async def _remove_later(self) -> None:
        while self._finished:
            await asyncio.sleep(_DELAY_S)
            batch, self._finished = self._finished, []
            await asyncio.to_thread(_remove, self._temp_dir, batch)


def _remove(temp_dir: Path, names: list[str]) -> None:
    if not names:
        return
    with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
        directory = os.open(temp_dir, os.O_DIRECTORY | os.O_CLOEXEC)
        stack.callback(os.close, directory)
        for part in ("coglet", "predictions"):
            flags = os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            directory = os.open(part, flags, dir_fd=directory)
            stack.callback(os.close, directory)
        for name in names:
            _remove_prediction(directory, name)


def _remove_prediction(directory: int, name: str) -> None:
    # Nearly always there are just two empty folders: three rmdir cost a tenth of rmtree.
    with contextlib.suppress(OSError):
        opened = os.open(name, os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
        try:
            os.rmdir("inputs", dir_fd=opened)
            os.rmdir("outputs", dir_fd=opened)
        finally:
            os.close(opened)
        os.rmdir(name, dir_fd=directory)
        return
    shutil.rmtree(name, ignore_errors=True, dir_fd=directory)
