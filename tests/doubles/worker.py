"""A worker on NATS that takes leases, runs a callable for each and reports as the contract says."""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field

from reprise.inference.v1 import events_pb2
from reprise.scheduler.v1 import events_pb2 as scheduler_events_pb2
from reprise.wire.v1 import json_pb2

from services.chassis.bus import Bus
from services.chassis.errors import Unavailable

log = logging.getLogger(__name__)

RESEND_S = 0.5


@dataclass
class Run:
    """One attempt as the callable sees it."""

    worker: "FakeWorker"
    lease: scheduler_events_pb2.Lease
    revoked: asyncio.Event = field(default_factory=asyncio.Event)
    sequence: int = 0

    def log(self, text: str) -> None:
        self.worker.report(self, logged=events_pb2.RunLogged(text=text))

    def output(self, *items: str) -> None:
        """Appends output items, each a JSON text."""
        texts = [json_pb2.Json(text=item) for item in items]
        self.worker.report(self, output=events_pb2.RunOutput(items=texts))


Behaviour = Callable[[Run], Awaitable[events_pb2.RunCompleted]]


def succeeded(output: str | None = None, *, run_us: int = 1000) -> events_pb2.RunCompleted:
    completed = events_pb2.RunCompleted(outcome=events_pb2.RUN_OUTCOME_SUCCEEDED, run_us=run_us)
    if output is not None:
        completed.output.text = output
    return completed


def failed(
    error: str,
    blame: events_pb2.Blame.ValueType = events_pb2.BLAME_MODEL,
    *,
    run_us: int = 1000,
) -> events_pb2.RunCompleted:
    return events_pb2.RunCompleted(
        outcome=events_pb2.RUN_OUTCOME_FAILED, error=error, blame=blame, run_us=run_us
    )


async def echo(run: Run) -> events_pb2.RunCompleted:
    """The input is the output."""
    return succeeded(run.lease.input.text)


class FakeWorker:
    """Ready replicas come up when asked for; `deaf_to_grants` leases are not heard."""

    def __init__(
        self,
        bus: Bus,
        worker_id: str,
        *,
        host_id: str = "",
        hardware: str = "cpu",
        slot_count: int = 1,
        replica_count_max: int = 4,
        behaviour: Behaviour = echo,
        heartbeat_s: float = 1.0,
    ) -> None:
        self.worker_id = worker_id
        self.host_id = host_id or f"host-of-{worker_id}"
        self.hardware = hardware
        self.slot_count = slot_count
        self.replica_count_max = replica_count_max
        self.behaviour = behaviour
        self.heartbeat_s = heartbeat_s
        # Version id -> why it cannot be loaded.
        self.setup_errors: dict[str, str] = {}
        self.deaf_to_grants = 0
        self.is_silent = False
        self.is_muted = False
        self.replicas: dict[str, events_pb2.ReplicaReport] = {}
        self.runs: dict[str, Run] = {}
        self.leases_heard: list[scheduler_events_pb2.Lease] = []
        self.replicas_requested: list[str] = []
        self.running_max = 0
        self._bus = bus
        self._done: set[tuple[str, int]] = set()
        self._slots: dict[str, asyncio.Semaphore] = {}
        self._running = 0
        self._events: list[events_pb2.RunEvent] = []
        self._has_events = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        await self._bus.consume(
            scheduler_events_pb2.LeasesGranted, self._granted, to=self.worker_id
        )
        await self._bus.consume(scheduler_events_pb2.LeaseRevoked, self._revoked, to=self.worker_id)
        await self._bus.consume(
            scheduler_events_pb2.ReplicaRequested, self._requested, to=self.worker_id
        )
        self._spawn(self._heartbeat())
        self._spawn(self._flush())

    async def kill(self) -> None:
        """Ends without a word, as kill -9 does."""
        self.is_silent = self.is_muted = True
        # Again and again: a cancel that meets the end of a wait_for is swallowed by it.
        while self._tasks:
            for task in list(self._tasks):
                task.cancel()
            await asyncio.wait(self._tasks, timeout=0.1)

    async def beat(self) -> None:
        """Sends one heartbeat now."""
        if self.is_silent:
            return
        report = events_pb2.WorkerReported(
            worker_id=self.worker_id,
            host_id=self.host_id,
            hardware=self.hardware,
            replica_count_max=self.replica_count_max,
            replicas=self.replicas.values(),
            leases=[
                events_pb2.HeldLease(prediction_id=key, attempt=run.lease.attempt)
                for key, run in self.runs.items()
            ],
            isolation="none",
        )
        with contextlib.suppress(Exception):
            await self._bus.publish(report)

    def load(self, version_id: str) -> None:
        """Puts a ready replica here without being asked."""
        self.replicas[version_id] = events_pb2.ReplicaReport(
            version_id=version_id,
            state=events_pb2.REPLICA_STATE_READY,
            slot_count=self.slot_count,
        )

    def report(
        self,
        run: Run,
        *,
        started: events_pb2.RunStarted | None = None,
        logged: events_pb2.RunLogged | None = None,
        output: events_pb2.RunOutput | None = None,
        completed: events_pb2.RunCompleted | None = None,
    ) -> None:
        """Queues the next step of a run."""
        run.sequence += 1
        self._events.append(
            events_pb2.RunEvent(
                prediction_id=run.lease.prediction_id,
                attempt=run.lease.attempt,
                sequence=run.sequence,
                started=started,
                logged=logged,
                output=output,
                completed=completed,
            )
        )
        self._has_events.set()

    async def _granted(self, event: scheduler_events_pb2.LeasesGranted) -> None:
        if self.is_muted:
            return
        for lease in event.leases:
            self.leases_heard.append(lease)
            if self.deaf_to_grants:
                self.deaf_to_grants -= 1
                continue
            key = (lease.prediction_id, lease.attempt)
            held = self.runs.get(lease.prediction_id)
            # A later attempt may come before the end of the earlier one is acknowledged.
            if key in self._done or (held and held.lease.attempt >= lease.attempt):
                continue
            run = self.runs[lease.prediction_id] = Run(self, lease)
            self._spawn(self._execute(run))

    async def _revoked(self, event: scheduler_events_pb2.LeaseRevoked) -> None:
        run = self.runs.get(event.prediction_id)
        if run is not None and run.lease.attempt == event.attempt:
            run.revoked.set()

    async def _requested(self, event: scheduler_events_pb2.ReplicaRequested) -> None:
        if self.is_muted:
            return
        self.replicas_requested.append(event.version_id)
        known = self.replicas.get(event.version_id)
        if known is not None and known.state != events_pb2.REPLICA_STATE_FAILED:
            return
        self._set_replica(event.version_id, events_pb2.REPLICA_STATE_STARTING)
        await self.beat()
        if error := self.setup_errors.get(event.version_id):
            self._set_replica(event.version_id, events_pb2.REPLICA_STATE_FAILED, error)
        else:
            self._evict_for(event.version_id)
            self.load(event.version_id)
        await self.beat()

    def _evict_for(self, version_id: str) -> None:
        busy = {run.lease.version_id for run in self.runs.values()}
        for other in list(self.replicas):
            if len(self.replicas) <= self.replica_count_max:
                return
            if other != version_id and other not in busy:
                del self.replicas[other]

    def _set_replica(
        self, version_id: str, state: events_pb2.ReplicaState.ValueType, error: str = ""
    ) -> None:
        self.replicas[version_id] = events_pb2.ReplicaReport(
            version_id=version_id, state=state, slot_count=self.slot_count, error=error
        )

    async def _execute(self, run: Run) -> None:
        lease = run.lease
        slots = self._slots.setdefault(lease.version_id, asyncio.Semaphore(self.slot_count))
        async with slots:
            is_free = run.revoked.is_set()
            if not is_free:
                self._running += 1
                self.running_max = max(self.running_max, self._running)
                self.report(run, started=events_pb2.RunStarted())
                completed = await self.behaviour(run)
                self._running -= 1
                self.report(run, completed=completed)
        self._done.add((lease.prediction_id, lease.attempt))
        if is_free:
            self._let_go(lease.prediction_id, lease.attempt)
            await self.beat()

    def _let_go(self, prediction_id: str, attempt: int) -> None:
        run = self.runs.get(prediction_id)
        if run is not None and run.lease.attempt == attempt:
            del self.runs[prediction_id]

    async def _heartbeat(self) -> None:
        while True:
            await self.beat()
            await asyncio.sleep(self.heartbeat_s)

    async def _flush(self) -> None:
        while True:
            await self._has_events.wait()
            self._has_events.clear()
            batch, self._events = self._events, []
            await self.send(batch)
            for event in batch:
                # Held until its end is stored: a heartbeat before that still lists it.
                if event.HasField("completed"):
                    self._let_go(event.prediction_id, event.attempt)

    async def send(self, events: Iterable[events_pb2.RunEvent]) -> None:
        """Sends one batch until it is answered."""
        report = events_pb2.RunsReported(worker_id=self.worker_id, events=events)
        while True:
            try:
                if not self.is_muted:
                    await self._bus.request(report, RESEND_S * 4)
                    return
            except Unavailable as error:
                log.debug("report not answered", extra={"why": str(error)})
            await asyncio.sleep(RESEND_S)

    def _spawn(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
