"""Commits of decisions: memory is never ahead of the database for longer than one commit."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from services.scheduler.store import Changes, PredictionStore

T = TypeVar("T")


class Commits:
    """Writes decisions in the order in which they were taken, and owns the tasks that wait.

    A decision that cannot be written ends the process: its next start reads the truth.
    """

    def __init__(self, store: PredictionStore) -> None:
        self._store = store
        self._tasks: set[asyncio.Task[Any]] = set()
        self._failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def commit(self, changes: Changes) -> None:
        """Returns once the changes are durable."""
        if not changes:
            return
        try:
            await self._store.commit(changes)
        except BaseException as error:
            self._fail(error)
            raise

    async def barrier(self) -> None:
        """Returns once all decisions taken before are durable."""
        await self._store.barrier()

    def start(self, work: Coroutine[Any, Any, T]) -> "asyncio.Task[T]":
        """Runs work that its caller's end must not end."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._forget)
        return task

    async def watch(self) -> None:
        """Returns never; raises what made memory and database differ."""
        await self._failed

    async def close(self) -> None:
        """Ends what still runs."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if not self._failed.done():
            self._failed.cancel()

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        if not self._failed.done() and not isinstance(error, asyncio.CancelledError):
            self._failed.set_exception(error)
