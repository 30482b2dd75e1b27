"""The loaded versions of this worker, one replica each; idle ones give way when room is needed."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import psutil
from prometheus_client import Gauge, Histogram
from reprise.inference.v1 import events_pb2

from services.chassis.errors import RepriseError
from services.inference.loaded_model import LoadedModel, LoadFailed
from services.inference.versions import Version

log = logging.getLogger(__name__)

_LOADED = Gauge("reprise_replicas", "Versions that are loaded")
_COLD_START = Histogram(
    "reprise_cold_start_seconds",
    "Time from the first request for a version until its replica is ready",
    buckets=(0.1, 0.25, 0.5, 1, 2, 5, 10, 30, 60, 120, 300, 600),
)
# Long enough for several heartbeats to tell it.
_FAILURE_SHOWN_S = 5.0

Load = Callable[[Version], Awaitable[LoadedModel]]


@dataclass(frozen=True, slots=True)
class PoolLimits:
    replica_count_max: int
    memory_floor_bytes: int


class Replica:
    """One loaded or loading version. Leases wait for a slot in the order of their coming."""

    def __init__(self, version: Version, now: float) -> None:
        self.version = version
        self.state = events_pb2.REPLICA_STATE_STARTING
        self.failure: LoadFailed | None = None
        self.model: LoadedModel | None = None
        self.settled = asyncio.Event()
        self.slots = asyncio.Semaphore(1)
        # Leases that hold or await a slot.
        self.user_count = 0
        self.used_at = now
        self.has_room = False
        # No longer in the pool: its users go elsewhere, what it still runs is ended by us.
        self.is_retired = False

    @property
    def is_idle(self) -> bool:
        return self.user_count == 0 and self.state == events_pb2.REPLICA_STATE_READY

    def report(self) -> events_pb2.ReplicaReport:
        return events_pb2.ReplicaReport(
            version_id=self.version.id,
            state=self.state,
            slot_count=self.model.concurrency if self.model else 0,
            error=self.failure.reason if self.failure else "",
        )


class ReplicaPool:
    """Used from one event loop; `run()` owns the loading and stopping of replicas."""

    def __init__(
        self,
        load: Load,
        *,
        limits: PoolLimits,
        on_change: Callable[[], None],
        free_memory: Callable[[], int] = lambda: psutil.virtual_memory().available,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._load = load
        self._limits = limits
        self._on_change = on_change
        self._free_memory = free_memory
        self._clock = clock
        self._replicas: dict[str, Replica] = {}
        self._making_room = asyncio.Lock()
        self._freed = asyncio.Event()
        self._tasks: asyncio.TaskGroup | None = None

    def reports(self) -> list[events_pb2.ReplicaReport]:
        return [replica.report() for replica in self._replicas.values()]

    def request(self, version: Version) -> Replica:
        """The version's replica; starts to load it where there is none or the last one failed."""
        replica = self._replicas.get(version.id)
        if replica is None or replica.failure is not None:
            assert self._tasks is not None, "run() comes first"
            replica = Replica(version, self._clock())
            self._replicas[version.id] = replica
            self._tasks.create_task(self._start(replica))
            self._on_change()
        return replica

    @asynccontextmanager
    async def slot(self, version: Version) -> AsyncIterator[Replica]:
        """Waits for the replica and then for a free slot of it. Raises LoadFailed."""
        while True:
            replica = self.request(version)
            replica.user_count += 1
            try:
                await replica.settled.wait()
                if replica.failure is not None:
                    raise replica.failure
                async with replica.slots:
                    if replica.is_retired:
                        continue
                    yield replica
                    return
            finally:
                replica.user_count -= 1
                replica.used_at = self._clock()
                if replica.user_count == 0:
                    self._freed.set()

    def retire(self, replica: Replica, *, grace_s: float = 0.0) -> None:
        """Takes a replica out and stops it; leases that wait for it move on to the next one."""
        if replica.is_retired:
            return
        replica.is_retired = True
        if self._replicas.get(replica.version.id) is replica:
            del self._replicas[replica.version.id]
            self._on_change()
        assert self._tasks is not None, "run() comes first"
        self._tasks.create_task(self._stop(replica, grace_s))

    def replace(self, replica: Replica) -> None:
        """For one whose model died at work: the next one starts at once."""
        if not replica.is_retired:
            self.retire(replica)
            self.request(replica.version)

    def check(self) -> None:
        """Retires replicas whose process died while nobody used it; called each second."""
        for replica in list(self._replicas.values()):
            if replica.is_idle and replica.model is not None and replica.model.crash is not None:
                log.warning(
                    "idle replica died",
                    extra={
                        "event": "replica_died",
                        "version_id": replica.version.id,
                        "error": replica.model.crash,
                    },
                )
                self.retire(replica)

    async def run(self) -> None:
        try:
            async with asyncio.TaskGroup() as tasks:
                self._tasks = tasks
                await asyncio.get_running_loop().create_future()
        finally:
            await self._stop_all()

    async def _start(self, replica: Replica) -> None:
        started_at = self._clock()
        try:
            await self._make_room(replica)
            replica.model = await self._load(replica.version)
        except LoadFailed as failure:
            self._fail(replica, failure)
            return
        except RepriseError as error:
            self._fail(replica, LoadFailed(error.message, is_models_fault=False))
            return
        except Exception:
            log.exception(
                "replica failed to load",
                extra={"event": "replica_load_failed", "version_id": replica.version.id},
            )
            reason = "the platform could not load the model; the operator finds why in the logs"
            self._fail(replica, LoadFailed(reason, is_models_fault=False))
            return
        replica.slots = asyncio.Semaphore(replica.model.concurrency)
        replica.state = events_pb2.REPLICA_STATE_READY
        replica.used_at = self._clock()
        replica.settled.set()
        _LOADED.inc()
        _COLD_START.observe(self._clock() - started_at)
        self._on_change()

    def _fail(self, replica: Replica, failure: LoadFailed) -> None:
        replica.failure = failure
        replica.state = events_pb2.REPLICA_STATE_FAILED
        replica.has_room = False
        replica.settled.set()
        self._freed.set()
        self._on_change()
        asyncio.get_running_loop().call_later(_FAILURE_SHOWN_S, self._forget_failed, replica)

    def _forget_failed(self, replica: Replica) -> None:
        if self._replicas.get(replica.version.id) is replica:
            del self._replicas[replica.version.id]
            self._on_change()

    async def _make_room(self, replica: Replica) -> None:
        """Returns once the replica may be loaded; LoadFailed where memory can never suffice."""
        async with self._making_room:
            while not self._has_room():
                self._freed.clear()
                idle = [other for other in self._replicas.values() if other.is_idle]
                if idle:
                    await self._evict(min(idle, key=lambda other: other.used_at))
                elif any(other.has_room for other in self._replicas.values()):
                    await self._freed.wait()
                else:
                    free, floor = self._free_memory(), self._limits.memory_floor_bytes
                    raise LoadFailed(
                        f"the worker has {free >> 20} MiB of free memory and keeps "
                        f"{floor >> 20} MiB; free some, or lower memory_floor_bytes",
                        is_models_fault=False,
                    )
            replica.has_room = True

    def _has_room(self) -> bool:
        count = sum(replica.has_room for replica in self._replicas.values())
        return (
            count < self._limits.replica_count_max
            and self._free_memory() >= self._limits.memory_floor_bytes
        )

    async def _evict(self, replica: Replica) -> None:
        log.info(
            "idle replica evicted",
            extra={"event": "replica_evicted", "version_id": replica.version.id},
        )
        replica.is_retired = True
        del self._replicas[replica.version.id]
        self._on_change()
        await self._stop(replica, 0.0)

    async def _stop(self, replica: Replica, grace_s: float) -> None:
        await replica.settled.wait()
        if replica.model is not None:
            _LOADED.dec()
            await _stop_model(replica.model, grace_s)
        self._freed.set()

    async def _stop_all(self) -> None:
        models = [replica.model for replica in self._replicas.values() if replica.model]
        self._replicas.clear()
        _LOADED.set(0)
        await asyncio.gather(*(_stop_model(model, 0.0) for model in models))


async def _stop_model(model: LoadedModel, grace_s: float) -> None:
    """One that resists must not take the worker with it."""
    try:
        await model.stop(grace_s=grace_s)
    except Exception:
        log.exception("replica did not stop cleanly", extra={"event": "replica_stop_failed"})
