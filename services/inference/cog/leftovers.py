"""Removes the directories that the cog server leaves behind for every prediction."""

import asyncio
import contextlib
import os
import shutil

_DELAY_S = 0.25


class Leftovers:
    """Collects finished ids and removes their directories together, in a thread.

    Owns `exchange`, the descriptor of a folder that the model can write to. No step follows a
    symbolic link, or a model could point the removal at a directory of the host.
    """

    def __init__(self, exchange: int) -> None:
        self._exchange = exchange
        self._finished: list[str] = []
        self._removal: asyncio.Task[None] | None = None
        self._is_closing = asyncio.Event()

    def add(self, prediction_id: str) -> None:
        self._finished.append(prediction_id)
        if self._removal is None or self._removal.done():
            self._removal = asyncio.create_task(self._remove_later())

    async def close(self) -> None:
        """What is still waiting is removed now; a batch that has begun is finished first."""
        self._is_closing.set()
        try:
            if self._removal is not None:
                await self._removal
        finally:
            os.close(self._exchange)

    async def _remove_later(self) -> None:
        while self._finished:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_DELAY_S):
                    await self._is_closing.wait()
            batch, self._finished = self._finished, []
            await asyncio.to_thread(_remove, self._exchange, batch)


def _remove(exchange: int, names: list[str]) -> None:
    with contextlib.suppress(OSError):
        flags = os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        predictions = os.open("predictions", flags, dir_fd=exchange)
        try:
            for name in names:
                _remove_prediction(predictions, name)
        finally:
            os.close(predictions)


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
