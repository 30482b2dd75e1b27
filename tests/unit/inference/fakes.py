"""A model and its surroundings without processes, for the rules of running."""

import asyncio
from collections.abc import AsyncGenerator, Mapping
from typing import Any

import orjson
from reprise.inference.v1 import events_pb2
from reprise.scheduler.v1 import events_pb2 as scheduler_events_pb2
from reprise.storage.v1 import model_pb2

from services.chassis.errors import Unavailable
from services.inference.cog.errors import RunnerCrashed
from services.inference.cog.events import Completed, Event, Log, Output, Started, Status
from services.inference.file_shapes import read_shapes
from services.inference.versions import Version

WAIT_S = 5.0


class FakeModel:
    """Does what its input's `do` says: answer, wait, crash, fail, ignore_cancel or items."""

    def __init__(self, concurrency: int = 1) -> None:
        self.concurrency = concurrency
        self.crash: str | None = None
        self.stopped = asyncio.Event()
        self.entered: list[str] = []
        self.canceled: dict[str, asyncio.Event] = {}
        self.closed_early: list[str] = []
        self.running_max = 0
        self._running = 0

    async def predict(
        self, prediction_id: str, prediction_input: Mapping[str, Any]
    ) -> AsyncGenerator[Event, None]:
        self.entered.append(prediction_id)
        self.canceled[prediction_id] = asyncio.Event()
        self._running += 1
        self.running_max = max(self.running_max, self._running)
        completed = False
        try:
            yield Started()
            async for event in self._do(prediction_id, prediction_input):
                completed = isinstance(event, Completed)
                yield event
        finally:
            self._running -= 1
            if not completed:
                self.closed_early.append(prediction_id)

    async def _do(
        self, prediction_id: str, prediction_input: Mapping[str, Any]
    ) -> AsyncGenerator[Event, None]:
        do = prediction_input.get("do", "answer")
        yield Log("hello\n", "stdout")
        if do == "crash":
            self.crash = "exit status 3"
            raise RunnerCrashed("exit status 3")
        if do in ("wait", "ignore_cancel"):
            wait_for = self.canceled[prediction_id] if do == "wait" else self.stopped
            stopped = asyncio.create_task(self.stopped.wait())
            ended = asyncio.create_task(wait_for.wait())
            await asyncio.wait({stopped, ended}, return_when=asyncio.FIRST_COMPLETED)
            stopped.cancel()
            ended.cancel()
            if self.stopped.is_set():
                raise RunnerCrashed("the runner was stopped")
            yield Completed(Status.CANCELED)
            return
        if do == "fail":
            yield Completed(Status.FAILED, error="ValueError: no")
            return
        if do == "items":
            for index in range(3):
                yield Output(f"item {index}", index)
            yield Completed(Status.SUCCEEDED, output=["item 0", "item 1", "item 2"])
            return
        output = prediction_input.get("text", "answer")
        yield Completed(Status.SUCCEEDED, output=output, metrics={"predict_time": 1, "tokens": 2})

    async def cancel(self, prediction_id: str) -> bool:
        self.canceled[prediction_id].set()
        return True

    async def stop(self, *, grace_s: float | None = None) -> None:
        self.crash = self.crash or "the runner was stopped"
        self.stopped.set()


class Outbox:
    """The scheduler's end of the reports."""

    def __init__(self) -> None:
        self.reports: list[events_pb2.RunsReported] = []
        self.is_deaf = False
        self._news = asyncio.Condition()

    async def send(self, report: events_pb2.RunsReported) -> None:
        copy = events_pb2.RunsReported()
        copy.CopyFrom(report)
        self.reports.append(copy)
        async with self._news:
            self._news.notify_all()
        if self.is_deaf:
            raise Unavailable("nobody there")

    def events(self) -> list[events_pb2.RunEvent]:
        return [event for report in self.reports for event in report.events]

    async def until(self, predicate: Any) -> None:
        async with asyncio.timeout(WAIT_S), self._news:
            await self._news.wait_for(predicate)

    async def completed(self, prediction_id: str, attempt: int = 1) -> events_pb2.RunCompleted:
        def find() -> list[events_pb2.RunCompleted]:
            return [
                event.completed
                for event in self.events()
                if event.prediction_id == prediction_id
                and event.attempt == attempt
                and event.HasField("completed")
            ]

        await self.until(find)
        return find()[0]


class FakeVersions:
    """Every version is known; `iter...` ids are iterators."""

    async def get(self, version_id: str, account_id: str) -> Version:
        return version(version_id)


def version(version_id: str) -> Version:
    schema: dict[str, Any] = {
        "components": {"schemas": {"Input": {"properties": {}}, "Output": {}}}
    }
    spec = model_pb2.VersionSpec(version_id=version_id, is_iterator=version_id.startswith("iter"))
    return Version(spec=spec, shapes=read_shapes(schema))


def lease(
    prediction_id: str,
    *,
    version_id: str = "v1",
    attempt: int = 1,
    timeout_s: float = 60,
    **prediction_input: Any,
) -> scheduler_events_pb2.Lease:
    granted = scheduler_events_pb2.Lease(
        prediction_id=prediction_id, attempt=attempt, version_id=version_id, account_id="alice"
    )
    granted.input.text = orjson.dumps(prediction_input).decode()
    granted.run_timeout.FromNanoseconds(int(timeout_s * 1e9))
    return granted
