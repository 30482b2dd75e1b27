"""Any order of reports, losses and cancels: one end, and nothing after it."""

import asyncio
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from nats.aio.client import Client
from reprise.inference.v1 import events_pb2

from services.chassis.bus import Bus
from services.chassis.channels import Peer, open_channel
from services.chassis.db import Database
from services.scheduler.backlog import Backlog
from services.scheduler.commits import Commits
from services.scheduler.completed import CompletedPublisher
from services.scheduler.dispatch import Dispatcher
from services.scheduler.fleet import Fleet, Replica
from services.scheduler.leases import LeaseKey
from services.scheduler.lifecycle import CANCELED, FAILED, SUCCEEDED, is_final
from services.scheduler.live import LivePrediction, LivePredictions
from services.scheduler.runs import Runs, SequenceGap
from services.scheduler.settings import SchedulerSettings
from services.scheduler.settlement import Settlements
from services.scheduler.store import PredictionStore
from tests.unit.scheduler.test_live import record

MIGRATIONS = Path(__file__).parents[3] / "services/scheduler/migrations"
SETTINGS = SchedulerSettings(mesh_key="k", storage_target="127.0.0.1:9", billing_target="x:9")

STEPS = st.tuples(
    st.sampled_from(["report", "lose", "cancel", "dispatch"]),
    st.sampled_from(["w1", "w2"]),
    st.integers(1, 3),
    st.integers(1, 4),
    st.sampled_from(["started", "logged", "output", "succeeded", "platform"]),
)


def run_event(attempt: int, sequence: int, step: str) -> events_pb2.RunEvent:
    event = events_pb2.RunEvent(prediction_id="p" * 26, attempt=attempt, sequence=sequence)
    if step == "started":
        event.started.SetInParent()
    elif step == "logged":
        event.logged.text = f"{attempt}.{sequence}\n"
    elif step == "output":
        event.output.items.add(text=f'"{attempt}.{sequence}"')
    elif step == "succeeded":
        event.completed.outcome = events_pb2.RUN_OUTCOME_SUCCEEDED
    else:
        event.completed.outcome = events_pb2.RUN_OUTCOME_FAILED
        event.completed.blame = events_pb2.BLAME_PLATFORM
    return event


class Parts:
    """The scheduler's core on a real database, with a bus that reaches nobody."""

    def __init__(self, folder: Path, settings: SchedulerSettings = SETTINGS) -> None:
        self.database = Database(f"sqlite:///{folder / 'scheduler.db'}", MIGRATIONS)
        self.database.migrate()
        self.store = PredictionStore(self.database)
        self.commits = Commits(self.store)
        self.predictions = LivePredictions()
        self.backlog = Backlog(10)
        self.fleet = Fleet()
        self.bus = Bus(Client())
        self.channel = open_channel(settings.billing_target)
        self.settlements = Settlements(
            settings=settings, store=self.store, billing=Peer(self.channel, "k")
        )
        self.dispatcher = Dispatcher(
            settings=settings,
            predictions=self.predictions,
            backlog=self.backlog,
            fleet=self.fleet,
            commits=self.commits,
            bus=self.bus,
        )
        self.runs = Runs(
            settings=settings,
            predictions=self.predictions,
            backlog=self.backlog,
            fleet=self.fleet,
            commits=self.commits,
            dispatcher=self.dispatcher,
            settlements=self.settlements,
            completed=CompletedPublisher(settings, self.bus),
        )

    async def close(self) -> None:
        await self.commits.close()
        await self.channel.close()
        await self.database.close()


async def act(parts: Parts, live: LivePrediction, step: tuple[str, str, int, int, str]) -> None:
    action, worker_id, attempt, sequence, kind = step
    if action == "report":
        is_current = live.record.worker_id == worker_id and live.record.attempt == attempt
        before = (live.sequence, list(live.shown_items), live.logs_text(), live.is_ending)
        try:
            await parts.runs.report(worker_id, [run_event(attempt, sequence, kind)])
        except SequenceGap:
            assert is_current
        if not is_current:
            after = (live.sequence, list(live.shown_items), live.logs_text(), live.is_ending)
            assert after == before
    elif action == "lose":
        parts.fleet.release(worker_id, LeaseKey(live.record.id, attempt))
        if live.record.worker_id == worker_id:
            await parts.runs.lose_leases([LeaseKey(live.record.id, attempt)])
    elif action == "cancel" and not live.is_done:
        await parts.runs.cancel(live)
    elif action == "dispatch":
        parts.dispatcher.kick()
        async with asyncio.TaskGroup() as tasks:
            loop = tasks.create_task(parts.dispatcher.run())
            # Its decisions are handed to the database in its first turn.
            await asyncio.sleep(0)
            await parts.commits.barrier()
            loop.cancel()


async def begin(parts: Parts) -> LivePrediction:
    """A stored prediction that the two workers may run."""
    for worker_id in ("w1", "w2"):
        worker = parts.fleet.adopt(worker_id, 0.0)
        worker.hardware = "cpu"
        worker.replicas["v"] = Replica(events_pb2.REPLICA_STATE_READY, 1, "")
    row = record()
    await parts.store.insert([row])
    live = LivePrediction(row)
    parts.runs.admit(live)
    return live


async def play(folder: Path, steps: list[tuple[str, str, int, int, str]]) -> None:
    parts = Parts(folder)
    try:
        live = await begin(parts)
        row = live.record
        final = None
        shown = 0
        for step in steps:
            await act(parts, live, step)
            shown, before = len(live.shown_items), shown
            assert live.is_done or shown >= before, "an output only grows"
            stored = await parts.store.get(row.id)
            assert stored is not None
            assert stored.status == live.record.status
            assert stored.attempt == live.record.attempt
            if final is not None:
                assert stored == final, "nothing changes after the end"
            elif is_final(stored.status):
                final = stored
                assert row.id in parts.settlements
                assert row.id not in parts.predictions
                assert len(parts.backlog) == 0
    finally:
        await parts.close()


@hypothesis_settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)
@given(st.lists(STEPS, min_size=3, max_size=14))
def test_no_order_of_events_changes_an_ended_prediction(
    steps: list[tuple[str, str, int, int, str]],
) -> None:
    start = ("dispatch", "w1", 1, 1, "started")
    begun = ("report", "w1", 1, 1, "started")
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(play(Path(folder), [start, begun, *steps]))


@asynccontextmanager
async def decided(parts: Parts) -> AsyncIterator[None]:
    """What happens inside leaves no decision that could not be taken: one would end the process."""
    watch = asyncio.create_task(parts.commits.watch())
    async with asyncio.timeout(10):
        yield
        await parts.commits.barrier()
    await asyncio.wait({watch}, timeout=0)
    assert not watch.done()
    watch.cancel()


async def test_cancels_at_once_end_a_prediction_once(tmp_path: Path) -> None:
    parts = Parts(tmp_path)
    try:
        live = await begin(parts)
        async with decided(parts):
            await asyncio.gather(*(parts.runs.cancel(live) for _ in range(3)))
        assert live.record.status == CANCELED
    finally:
        await parts.close()


async def test_a_completion_that_comes_with_a_cancel_ends_a_prediction_once(tmp_path: Path) -> None:
    parts = Parts(tmp_path)
    try:
        live = await begin(parts)
        await act(parts, live, ("dispatch", "w1", 1, 1, "started"))
        worker_id = live.record.worker_id
        assert worker_id is not None
        async with decided(parts):
            await asyncio.gather(
                parts.runs.cancel(live),
                parts.runs.report(worker_id, [run_event(1, 1, "succeeded")]),
            )
        assert live.record.status == SUCCEEDED
    finally:
        await parts.close()


async def test_an_endless_output_is_not_kept_beyond_its_bound(tmp_path: Path) -> None:
    parts = Parts(tmp_path, SETTINGS.model_copy(update={"output_size_max": 20}))
    try:
        live = await begin(parts)
        await act(parts, live, ("dispatch", "w1", 1, 1, "started"))
        worker_id = live.record.worker_id
        assert worker_id is not None
        for sequence in range(1, 50):
            await parts.runs.report(worker_id, [run_event(1, sequence, "output")])
        assert live.items_size <= 20 + len('"1.49"')
        await parts.runs.report(worker_id, [run_event(1, 50, "succeeded")])
        assert live.record.status == FAILED
        assert "20 bytes" in (live.record.error or "")
    finally:
        await parts.close()
