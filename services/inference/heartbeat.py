"""Tells the scheduler that this worker lives, from a thread of its own: load must not cost leases.

A frozen process beats no more, and neither does one whose event loop stood still for too long.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from reprise.inference.v1 import events_pb2

from services.chassis.bus import Bus
from services.chassis.settings import ServiceSettings

log = logging.getLogger(__name__)

_JOIN_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class WorkerIdentity:
    worker_id: str
    host_id: str
    hardware: str
    isolation: str


class WorkerSnapshot:
    """What a heartbeat says; the event loop writes and the thread reads under one lock."""

    def __init__(self, identity: WorkerIdentity, replica_count_max: int) -> None:
        self._lock = threading.Lock()
        self._identity = identity
        # Guarded by the lock, as is all below.
        self._leases: dict[str, int] = {}
        self._replicas: list[events_pb2.ReplicaReport] = []
        self._replica_count_max = replica_count_max
        self._seen_at = time.monotonic()

    @property
    def worker_id(self) -> str:
        return self._identity.worker_id

    def hold(self, prediction_id: str, attempt: int) -> None:
        with self._lock:
            self._leases[prediction_id] = attempt

    def let_go(self, prediction_id: str, attempt: int) -> None:
        with self._lock:
            if self._leases.get(prediction_id) == attempt:
                del self._leases[prediction_id]

    def set_replicas(self, reports: Sequence[events_pb2.ReplicaReport]) -> None:
        with self._lock:
            self._replicas = list(reports)

    def take_no_more(self) -> None:
        """From now on the worker offers nothing, and only ends what it has."""
        with self._lock:
            self._replica_count_max = 0
            self._replicas = []

    def touch(self) -> None:
        """The event loop moves."""
        with self._lock:
            self._seen_at = time.monotonic()

    def stalled_s(self) -> float:
        with self._lock:
            return time.monotonic() - self._seen_at

    def report(self) -> events_pb2.WorkerReported:
        identity = self._identity
        with self._lock:
            return events_pb2.WorkerReported(
                worker_id=identity.worker_id,
                host_id=identity.host_id,
                hardware=identity.hardware,
                replica_count_max=self._replica_count_max,
                replicas=self._replicas,
                leases=[
                    events_pb2.HeldLease(prediction_id=prediction_id, attempt=attempt)
                    for prediction_id, attempt in self._leases.items()
                ],
                isolation=identity.isolation,
            )


class Heartbeat:
    """The only sender of WorkerReported, and of WorkerStopped after the last: none overtakes."""

    def __init__(
        self,
        settings: ServiceSettings,
        snapshot: WorkerSnapshot,
        *,
        interval_s: float,
        stall_limit_s: float,
    ) -> None:
        self._settings = settings
        self._snapshot = snapshot
        self._interval_s = interval_s
        self._stall_limit_s = stall_limit_s
        self._poke: Callable[[], None] = lambda: None

    def poke(self) -> None:
        """The next heartbeat leaves now."""
        self._poke()

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        ended = loop.create_future()

        def finish(error: BaseException | None) -> None:
            if not ended.done():
                ended.set_exception(error or RuntimeError("the heartbeat ended"))

        stop = threading.Event()
        thread = threading.Thread(
            target=self._thread, args=(stop, loop, finish), name="heartbeat", daemon=True
        )
        thread.start()
        try:
            await ended
        finally:
            stop.set()
            self.poke()
            await asyncio.to_thread(thread.join, _JOIN_TIMEOUT_S)

    def _thread(
        self,
        stop: threading.Event,
        loop: asyncio.AbstractEventLoop,
        finish: Callable[[BaseException | None], None],
    ) -> None:
        error: BaseException | None = None
        try:
            asyncio.run(self._beat(stop))
        except Exception as failure:
            log.exception("heartbeat failed", extra={"event": "heartbeat_failed"})
            error = failure
        if not stop.is_set():
            loop.call_soon_threadsafe(finish, error)

    async def _beat(self, stop: threading.Event) -> None:
        loop = asyncio.get_running_loop()
        wake = asyncio.Event()
        self._poke = lambda: _wake_up(loop, wake)
        bus = await Bus.connect(self._settings, "inference-heartbeat")
        try:
            while not stop.is_set():
                if self._snapshot.stalled_s() < self._stall_limit_s:
                    await bus.publish(self._snapshot.report())
                else:
                    log.error("event loop stands still", extra={"event": "event_loop_stalled"})
                wake.clear()
                await _wait(wake, self._interval_s)
            await bus.publish(events_pb2.WorkerStopped(worker_id=self._snapshot.worker_id))
        finally:
            self._poke = lambda: None
            await bus.close()


def _wake_up(loop: asyncio.AbstractEventLoop, wake: asyncio.Event) -> None:
    if not loop.is_closed():
        loop.call_soon_threadsafe(wake.set)


async def _wait(wake: asyncio.Event, timeout_s: float) -> None:
    try:
        async with asyncio.timeout(timeout_s):
            await wake.wait()
    except TimeoutError:
        return
