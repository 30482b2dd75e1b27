"""Room for replicas: the longest idle one goes, busy ones stay, memory has a floor."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest
from reprise.inference.v1 import events_pb2

from services.inference.loaded_model import LoadedModel, LoadFailed
from services.inference.replicas import PoolLimits, Replica, ReplicaPool
from services.inference.versions import Version
from tests.unit.inference.fakes import WAIT_S, FakeModel, version


@dataclass
class Desk:
    loaded: dict[str, list[FakeModel]] = field(default_factory=dict)
    free_bytes: int = 1000
    now: float = 0.0
    change_count: int = 0
    pool: ReplicaPool = field(init=False)

    def __post_init__(self) -> None:
        self.pool = ReplicaPool(
            self.load,
            limits=PoolLimits(replica_count_max=2, memory_floor_bytes=500),
            on_change=self.count,
            free_memory=lambda: self.free_bytes,
            clock=lambda: self.now,
        )

    async def load(self, loading: Version) -> LoadedModel:
        model = FakeModel()
        self.loaded.setdefault(loading.id, []).append(model)
        return model

    def count(self) -> None:
        self.change_count += 1

    async def use(self, version_id: str) -> FakeModel:
        self.now += 1
        async with asyncio.timeout(WAIT_S), self.pool.slot(version(version_id)):
            return self.loaded[version_id][-1]

    def present(self) -> set[str]:
        return {report.version_id for report in self.pool.reports()}


@pytest.fixture
async def desk() -> AsyncIterator[Desk]:
    desk = Desk()
    task = asyncio.create_task(desk.pool.run())
    await asyncio.sleep(0)
    yield desk
    task.cancel()
    await asyncio.wait({task})


async def test_the_longest_idle_replica_gives_way(desk: Desk) -> None:
    first = await desk.use("a")
    await desk.use("b")
    await desk.use("a")
    second = desk.loaded["b"][0]
    await desk.use("c")
    assert desk.present() == {"a", "c"}
    assert second.stopped.is_set()
    assert not first.stopped.is_set()


async def test_a_busy_replica_is_waited_for(desk: Desk) -> None:
    await desk.use("a")
    await desk.use("b")
    async with desk.pool.slot(version("a")), desk.pool.slot(version("b")):
        waiting = asyncio.create_task(desk.use("c"))
        await asyncio.wait({waiting}, timeout=0.02)
        assert not waiting.done()
    async with asyncio.timeout(WAIT_S):
        await waiting
    assert "c" in desk.present()


async def test_idle_replicas_are_stopped_for_memory(desk: Desk) -> None:
    first = await desk.use("a")
    desk.free_bytes = 100

    async def stop(*, grace_s: float | None = None) -> None:
        desk.free_bytes = 1000
        await FakeModel.stop(first, grace_s=grace_s)

    first.stop = stop  # type: ignore[method-assign]
    await desk.use("b")
    assert desk.present() == {"b"}


async def test_a_host_without_memory_says_how_much_is_missing(desk: Desk) -> None:
    desk.free_bytes = 100
    with pytest.raises(LoadFailed, match="free memory"):
        await desk.use("a")
    (report,) = desk.pool.reports()
    assert report.state == events_pb2.REPLICA_STATE_FAILED


async def test_a_replica_that_died_while_idle_is_dropped(desk: Desk) -> None:
    model = await desk.use("a")
    model.crash = "killed"
    desk.pool.check()
    assert desk.present() == set()
    await desk.use("a")
    assert len(desk.loaded["a"]) == 2


async def test_requests_for_one_version_load_it_once(desk: Desk) -> None:
    async with asyncio.TaskGroup() as tasks:
        for _ in range(5):
            tasks.create_task(desk.use("a"))
    assert len(desk.loaded["a"]) == 1


async def test_each_change_of_state_is_told(desk: Desk) -> None:
    await desk.use("a")
    assert desk.change_count == 2, "starting, ready"
    replica: Replica = desk.pool.request(version("a"))
    desk.pool.retire(replica)
    assert desk.change_count == 3


async def test_everything_stops_with_the_pool() -> None:
    desk = Desk()
    task = asyncio.create_task(desk.pool.run())
    await asyncio.sleep(0)
    models = [await desk.use("a"), await desk.use("b")]
    task.cancel()
    await asyncio.wait({task})
    assert all(model.stopped.is_set() for model in models)


async def test_a_model_that_does_not_stop_cleanly_does_not_end_the_pool(desk: Desk) -> None:
    model = await desk.use("a")

    async def stop(*, grace_s: float | None = None) -> None:
        raise ConnectionError("gone")

    model.stop = stop  # type: ignore[method-assign]
    desk.pool.retire(desk.pool.request(version("a")))
    await desk.use("b")
    await desk.use("a")
    assert desk.present() == {"a", "b"}
