"""One attempt of a prediction, from its input to its reported output."""

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import aclosing, suppress
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import orjson
from prometheus_client import Counter, Histogram
from reprise.inference.v1 import events_pb2
from reprise.scheduler.v1 import events_pb2 as scheduler_events_pb2
from reprise.wire.v1 import json_pb2

from services.chassis import telemetry
from services.chassis.errors import RepriseError
from services.inference.cog.errors import InputRejected, RunnerBusy, RunnerCrashed
from services.inference.cog.events import Completed, Log, Output, Status
from services.inference.file_shapes import FileShape
from services.inference.journal import RunJournal
from services.inference.loaded_model import LoadFailed
from services.inference.prediction_files import InputFileRefused, PredictionFiles
from services.inference.replicas import Replica, ReplicaPool
from services.inference.reports import Reporter
from services.inference.versions import Version, VersionCatalogue

log = logging.getLogger(__name__)

_RUNS = Counter("reprise_runs", "Ended runs", ["outcome"])
_RUN_SECONDS = Histogram(
    "reprise_run_seconds",
    "Wall time in the model",
    buckets=(0.001, 0.002, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 30, 120, 600),
)
_ENDED = {
    events_pb2.RUN_OUTCOME_SUCCEEDED: _RUNS.labels("succeeded"),
    events_pb2.RUN_OUTCOME_FAILED: _RUNS.labels("failed"),
    events_pb2.RUN_OUTCOME_CANCELED: _RUNS.labels("canceled"),
}
_CANCEL_REPEAT_S = 0.2
_PLATFORM_FAULT = "the platform could not run the prediction"


class StopReason(StrEnum):
    """Why a run was ended from outside."""

    REVOKED = "revoked"
    TIMEOUT = "timeout"
    # The worker goes away: nothing is reported, the scheduler gives the lease to another one.
    ABANDONED = "abandoned"


@dataclass(frozen=True, slots=True)
class ExecutionLimits:
    cancel_grace_s: float
    output_max_bytes: int


@dataclass(frozen=True, slots=True)
class Failure:
    error: str
    blame: "events_pb2.Blame.ValueType"


class _RunFailed(Exception):
    def __init__(self, error: str, blame: "events_pb2.Blame.ValueType") -> None:
        super().__init__(error)
        self.failure = Failure(error, blame)


@dataclass(frozen=True, slots=True)
class Bench:
    """What every run of a worker works with."""

    versions: VersionCatalogue
    pool: ReplicaPool
    files: PredictionFiles
    reporter: Reporter
    limits: ExecutionLimits


class Run:
    """One lease's work: `execute()` reports exactly one completed step, unless abandoned."""

    def __init__(
        self, lease: scheduler_events_pb2.Lease, bench: Bench, on_reported: Callable[["Run"], None]
    ) -> None:
        self.lease = lease
        self.prediction_id = lease.prediction_id
        self.attempt = lease.attempt
        # Distinct per attempt: the server inside may still know an earlier one.
        self._run_id = f"{lease.prediction_id}{lease.attempt}"
        self._bench = bench
        self._journal = RunJournal(lease.prediction_id, lease.attempt, lambda: on_reported(self))
        self._stop_reason: StopReason | None = None
        self._tasks: asyncio.TaskGroup | None = None
        self._task: asyncio.Task[None] | None = None
        self._has_begun = False
        self._replica: Replica | None = None
        self._has_entered_model = False
        self._left_model = asyncio.Event()
        self._run_us = 0
        self._stalled_s = 0.0
        self._log_is_at_line_start = True
        self._metrics: str | None = None

    @property
    def has_entered_model(self) -> bool:
        """It has begun to cost run time, in contrast to waiting for a replica."""
        return self._has_entered_model

    def start(self, tasks: asyncio.TaskGroup) -> None:
        self._tasks = tasks
        self._task = tasks.create_task(self.execute())

    def stop(self, reason: StopReason) -> None:
        """Ends the run from outside: at once while it waits, through the model once it runs."""
        if self._stop_reason is not None or self._journal.is_closed:
            return
        self._stop_reason = reason
        if self._replica is not None:
            assert self._tasks is not None
            self._tasks.create_task(self._stop_model(self._replica))
        elif self._task is not None and self._has_begun:
            self._task.cancel()

    def abandon(self) -> None:
        """Nothing of this attempt is told any more."""
        self._stop_reason = StopReason.ABANDONED
        self._bench.reporter.forget(self._journal)
        if self._task is not None:
            self._task.cancel()

    async def execute(self) -> None:
        self._has_begun = True
        try:
            # A task that is cancelled before its first step never runs, so it looks here instead.
            if self._stop_reason is not None:
                raise asyncio.CancelledError
            with telemetry.span("inference.run", parent=self.lease.traceparent):
                output = await self._produce()
            self._complete(events_pb2.RUN_OUTCOME_SUCCEEDED, output=output)
        except _RunFailed as error:
            self._fail(error.failure)
        except asyncio.CancelledError:
            if self._stop_reason is not StopReason.REVOKED:
                raise
            self._complete(events_pb2.RUN_OUTCOME_CANCELED)
        except RepriseError as error:
            self._fail(Failure(f"{_PLATFORM_FAULT}: {error.message}", events_pb2.BLAME_PLATFORM))
        except Exception:
            log.exception(
                "run failed by a fault of ours",
                extra={"event": "run_failed", "prediction_id": self.prediction_id},
            )
            self._fail(Failure(_PLATFORM_FAULT, events_pb2.BLAME_PLATFORM))

    async def _produce(self) -> str | None:
        """The whole output as JSON; None for an iterator, whose items were reported."""
        version = await self._bench.versions.get(self.lease.version_id, self.lease.account_id)
        prediction_input = await self._input(version)
        try:
            async with self._bench.pool.slot(version) as replica:
                completed = await self._drive(replica, version, prediction_input)
        except LoadFailed as error:
            blame = events_pb2.BLAME_MODEL if error.is_models_fault else events_pb2.BLAME_PLATFORM
            raise _RunFailed(error.reason, blame) from error
        self._note_metrics(completed)
        if completed.status is not Status.SUCCEEDED:
            raise self._failed(completed)
        if version.spec.is_iterator:
            return None
        return await self._output(completed.output, version.shapes.output)

    async def _input(self, version: Version) -> dict[str, Any]:
        value: Any = orjson.loads(self.lease.input.text or "{}")
        if not isinstance(value, dict):
            raise _RunFailed("input: an object is expected", events_pb2.BLAME_INPUT)
        if not version.shapes.input:
            return value
        try:
            return await self._bench.files.bring(value, version.shapes.input, self.lease.account_id)
        except InputFileRefused as error:
            raise _RunFailed(str(error), events_pb2.BLAME_INPUT) from error

    async def _drive(
        self, replica: Replica, version: Version, prediction_input: dict[str, Any]
    ) -> Completed:
        """Runs the model and meters it, from handing over the input to the model's last word."""
        self._note(self._journal.started(), is_urgent=False)
        self._replica = replica
        self._has_entered_model = True
        timer = self._timeout_timer()
        started_at = time.perf_counter()
        try:
            return await self._follow(replica, version, prediction_input)
        except InputRejected as error:
            raise _RunFailed(str(error), events_pb2.BLAME_INPUT) from error
        except RunnerBusy as error:
            raise _RunFailed(f"{_PLATFORM_FAULT}: {error}", events_pb2.BLAME_PLATFORM) from error
        except RunnerCrashed as error:
            raise self._crashed(replica, error) from error
        finally:
            elapsed_s = time.perf_counter() - started_at - self._stalled_s
            self._run_us = int(elapsed_s * 1_000_000)
            _RUN_SECONDS.observe(elapsed_s)
            self._replica = None
            self._left_model.set()
            if timer is not None:
                timer.cancel()

    async def _follow(
        self, replica: Replica, version: Version, prediction_input: dict[str, Any]
    ) -> Completed:
        assert replica.model is not None
        is_iterator = version.spec.is_iterator
        # Closed at once when this fails between two events: that ends the prediction in the model.
        async with aclosing(replica.model.predict(self._run_id, prediction_input)) as events:
            async for event in events:
                if isinstance(event, Log):
                    self._log(event.text)
                    await self._wait_for_room()
                elif isinstance(event, Output) and is_iterator:
                    item = await self._output(event.chunk, version.shapes.item)
                    self._note(self._journal.output(item), is_urgent=True)
                    await self._wait_for_room()
                elif isinstance(event, Completed):
                    return event
        raise RunnerCrashed("the model's server ended the prediction without a result")

    async def _output(self, value: Any, shape: FileShape | None) -> str:
        if shape is not None:
            value = await self._bench.files.store(value, shape, self.lease.account_id)
        text = orjson.dumps(value)
        max_bytes = self._bench.limits.output_max_bytes
        if len(text) > max_bytes:
            raise _RunFailed(
                f"the output has {len(text)} bytes of JSON and {max_bytes} are allowed: "
                "let the model return a Path, which is stored as a file",
                events_pb2.BLAME_MODEL,
            )
        return text.decode()

    async def _wait_for_room(self) -> None:
        reporter = self._bench.reporter
        if not reporter.has_room:
            # Nobody takes the reports: that time is not the model's.
            stalled_at = time.perf_counter()
            await reporter.wait_for_room()
            self._stalled_s += time.perf_counter() - stalled_at

    def _log(self, text: str) -> None:
        if text := self._lines(text):
            self._note(self._journal.logged(text), is_urgent=False)

    def _lines(self, text: str) -> str:
        """Progress bars redraw their line: each state becomes a line, as clients parse it."""
        if self._log_is_at_line_start:
            text = text.removeprefix("\r")
        text = text.replace("\r\n", "\n").replace("\r", "\n")
        self._log_is_at_line_start = text.endswith("\n")
        return text

    def _timeout_timer(self) -> asyncio.TimerHandle | None:
        if not self.lease.HasField("run_timeout"):
            return None
        loop = asyncio.get_running_loop()
        return loop.call_later(self._timeout_s(), self.stop, StopReason.TIMEOUT)

    def _timeout_s(self) -> float:
        timeout = self.lease.run_timeout
        return timeout.seconds + timeout.nanos / 1e9

    async def _stop_model(self, replica: Replica) -> None:
        """Asks the model to stop and, when it does not, ends it together with its replica."""
        assert replica.model is not None
        try:
            async with asyncio.timeout(self._bench.limits.cancel_grace_s):
                while not self._left_model.is_set():
                    # Repeated: the server may not have known the prediction yet.
                    await replica.model.cancel(self._run_id)
                    await self._wait_to_leave(_CANCEL_REPEAT_S)
        except Exception as error:
            # Mostly the end of the grace; whatever else it is, the slot must become free.
            log.warning(
                "run did not stop, its replica is killed",
                exc_info=None if isinstance(error, TimeoutError) else error,
                extra={"event": "run_killed", "prediction_id": self.prediction_id},
            )
            self._bench.pool.replace(replica)

    async def _wait_to_leave(self, timeout_s: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._left_model.wait()

    def _crashed(self, replica: Replica, error: RunnerCrashed) -> _RunFailed:
        if self._stop_reason is None and replica.is_retired:
            return _RunFailed(
                f"{_PLATFORM_FAULT}: its replica was stopped", events_pb2.BLAME_PLATFORM
            )
        self._bench.pool.replace(replica)
        return _RunFailed(f"the model's process died: {error}", events_pb2.BLAME_MODEL)

    def _failed(self, completed: Completed) -> _RunFailed:
        error = completed.error or "the model failed without a message"
        is_inputs_fault = error.startswith("Input validation error")
        return _RunFailed(
            error, events_pb2.BLAME_INPUT if is_inputs_fault else events_pb2.BLAME_MODEL
        )

    def _fail(self, failure: Failure) -> None:
        if self._stop_reason is StopReason.REVOKED:
            self._complete(events_pb2.RUN_OUTCOME_CANCELED)
            return
        if self._stop_reason is StopReason.TIMEOUT:
            failure = Failure(
                f"the run was stopped at its time limit of {self._timeout_s():g} s",
                events_pb2.BLAME_TIMEOUT,
            )
        self._complete(events_pb2.RUN_OUTCOME_FAILED, failure=failure)

    def _complete(
        self,
        outcome: "events_pb2.RunOutcome.ValueType",
        *,
        output: str | None = None,
        failure: Failure | None = None,
    ) -> None:
        if self._stop_reason is StopReason.ABANDONED:
            return
        completed = events_pb2.RunCompleted(outcome=outcome, run_us=self._run_us)
        if output is not None:
            completed.output.text = output
        if failure is not None:
            completed.error = failure.error
            completed.blame = failure.blame
        if self._metrics is not None:
            completed.metrics.CopyFrom(json_pb2.Json(text=self._metrics))
        _ENDED[outcome].inc()
        self._note(self._journal.completed(completed), is_urgent=True)

    def _note_metrics(self, completed: Completed) -> None:
        """The model's own numbers; the run time is metered here, not by the model's server."""
        own = {name: value for name, value in completed.metrics.items() if name != "predict_time"}
        if own:
            self._metrics = orjson.dumps(own).decode()

    def _note(self, size: int, *, is_urgent: bool) -> None:
        if self._stop_reason is not StopReason.ABANDONED:
            self._bench.reporter.note(self._journal, size, is_urgent=is_urgent)
