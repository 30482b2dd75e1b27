"""Runs as workers report them, and every way in which a prediction ends."""

import asyncio
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from reprise.inference.v1 import events_pb2

from services.chassis.clock import now_us
from services.scheduler import lifecycle, metrics
from services.scheduler.backlog import Backlog
from services.scheduler.commits import Commits
from services.scheduler.completed import CompletedPublisher
from services.scheduler.dispatch import Dispatcher
from services.scheduler.fleet import Fleet, Worker
from services.scheduler.leases import LeaseKey
from services.scheduler.lifecycle import Ending, Retry
from services.scheduler.live import LivePrediction, LivePredictions
from services.scheduler.record import PredictionRecord, metrics_text
from services.scheduler.settings import SchedulerSettings
from services.scheduler.settlement import Settlements
from services.scheduler.store import Changes

log = logging.getLogger(__name__)


class SequenceGap(RuntimeError):
    """A report came before the one that precedes it: it is not acknowledged, so it comes again."""


@dataclass(slots=True)
class _Chunk:
    """New logs and items of one prediction within one report."""

    logs: list[str] = field(default_factory=list)
    items: list[str] = field(default_factory=list)


@dataclass(slots=True)
class _Decisions:
    """What one batch of facts leads to; shown once `changes` are committed."""

    changes: Changes = field(default_factory=Changes)
    chunks: dict[str, _Chunk] = field(default_factory=dict)
    touched: dict[str, LivePrediction] = field(default_factory=dict)
    started: dict[str, LivePrediction] = field(default_factory=dict)
    # Ended predictions with their final rows.
    ended: list[tuple[LivePrediction, PredictionRecord]] = field(default_factory=list)
    has_gap: bool = False
    # Some facts were told before; their commit may still be under way.
    has_repeats: bool = False

    def chunk(self, live: LivePrediction) -> _Chunk:
        self.touched[live.record.id] = live
        return self.chunks.setdefault(live.record.id, _Chunk())


@dataclass(frozen=True, slots=True)
class _Result:
    """What a run left behind."""

    output: str | None = None
    own_metrics: str = ""


_NO_RESULT = _Result()


class Runs:
    """Changes the status of predictions: each change is decided here, committed, then shown."""

    def __init__(
        self,
        *,
        settings: SchedulerSettings,
        predictions: LivePredictions,
        backlog: Backlog,
        fleet: Fleet,
        commits: Commits,
        dispatcher: Dispatcher,
        settlements: Settlements,
        completed: CompletedPublisher,
    ) -> None:
        self._settings = settings
        self._predictions = predictions
        self._backlog = backlog
        self._fleet = fleet
        self._commits = commits
        self._dispatcher = dispatcher
        self._settlements = settlements
        self._completed = completed

    def admit(self, live: LivePrediction) -> None:
        """Takes over a stored prediction, with or without a lease."""
        record = live.record
        self._predictions.add(live)
        if record.worker_id is None:
            self._backlog.append(record.version_id, record.id)
            self._dispatcher.kick()
        if record.deadline_at is not None:
            delay_s = max(record.deadline_at - now_us(), 0) / 1e6
            loop = asyncio.get_running_loop()
            live.deadline_timer = loop.call_later(delay_s, self._expire, live)

    async def report(self, worker_id: str, events: Sequence[events_pb2.RunEvent]) -> None:
        """Stores what a worker reports; returns once it is durable."""
        now = now_us()
        decisions = _Decisions()
        for event in events:
            self._step(worker_id, event, decisions, now)
        self._add_facts(decisions)
        self._dispatcher.kick()
        await self._commit(decisions)
        if decisions.has_repeats:
            await self._commits.barrier()
        if decisions.has_gap:
            raise SequenceGap(f"worker {worker_id} has a report before this one to send")

    async def cancel(self, live: LivePrediction) -> None:
        """Ends a prediction for its caller; returns once that, or another end, is committed."""
        # A caller that goes away does not take its cancel along.
        self._commits.start(self._end_early(live, reason="canceled"))
        await live.wait_end(self._settings.peer_timeout_s)

    async def fail_waiting(self, version_id: str, error: str) -> None:
        """Ends all that wait for a version that cannot be loaded."""
        now = now_us()
        decisions = _Decisions()
        for prediction_id in self._backlog.waiting(version_id):
            live = self._predictions.get(prediction_id)
            if live is not None and not live.is_ending:
                self._end(live, lifecycle.setup_failed(error), decisions, now)
        await self._commit(decisions)

    async def lose_leases(self, keys: Iterable[LeaseKey]) -> None:
        """Voids attempts that their worker will never end."""
        now = now_us()
        decisions = _Decisions()
        for key in keys:
            live = self._predictions.get(key.prediction_id)
            if live is None or live.is_ending or live.record.attempt != key.attempt:
                continue
            record = live.record
            outcome = lifecycle.after_lost_attempt(
                was_started=record.started_at is not None,
                fault_count=record.fault_count,
                attempt=record.attempt,
                attempt_max=self._settings.attempt_count_max,
                lease_max=self._settings.lease_count_max,
            )
            self._conclude(live, outcome, decisions, now)
        self._add_facts(decisions)
        self._dispatcher.kick()
        await self._commit(decisions)

    async def _end_early(self, live: LivePrediction, *, reason: str, log_line: str = "") -> None:
        if live.is_ending:
            # Another cancel or its completion came first.
            return
        record, now = live.record, now_us()
        ending = lifecycle.canceled(started_at=record.started_at, now=now, log_line=log_line)
        worker, key = self._worker_of(record), LeaseKey(record.id, record.attempt)
        decisions = _Decisions()
        if worker is not None:
            # The slot stays taken until the worker has let go.
            worker.revoke(key)
        self._end(live, ending, decisions, now)
        await self._commit(decisions)
        if worker is not None:
            await self._dispatcher.send_revocation(worker.worker_id, key, reason)

    def _expire(self, live: LivePrediction) -> None:
        line = "Canceled: the deadline of this prediction has passed.\n"
        self._commits.start(self._end_early(live, reason="deadline", log_line=line))

    def _step(
        self, worker_id: str, event: events_pb2.RunEvent, decisions: _Decisions, now: int
    ) -> None:
        key = LeaseKey(event.prediction_id, event.attempt)
        live = self._predictions.get(event.prediction_id)
        if live is None or live.is_ending or not _is_current(live.record, worker_id, event):
            # A stale attempt changes nothing but the slot that it leaves.
            decisions.has_repeats = True
            if event.HasField("completed"):
                self._fleet.release(worker_id, key)
            return
        if event.sequence <= live.sequence:
            decisions.has_repeats = True
            return
        if event.sequence > live.sequence + 1:
            decisions.has_gap = True
            return
        live.sequence = event.sequence
        match event.WhichOneof("step"):
            case "started":
                self._start(live, decisions, now)
            case "logged":
                kept = live.add_logs(event.logged.text, self._settings.logs_size_max)
                decisions.chunk(live).logs.append(kept)
            case "output":
                chunk = decisions.chunk(live)
                # Beyond the bound the run fails at its end: nothing more of it is kept.
                if live.items_size <= self._settings.output_size_max:
                    items = [item.text for item in event.output.items]
                    live.add_items(items)
                    chunk.items.extend(items)
            case "completed":
                self._fleet.release(worker_id, key)
                self._complete(live, event.completed, decisions, now)

    def _start(self, live: LivePrediction, decisions: _Decisions, now: int) -> None:
        record = live.record
        if not lifecycle.may_change(record.status, lifecycle.PROCESSING):
            # Told twice; only that this step was heard is stored.
            decisions.chunk(live)
            return
        record.status = lifecycle.PROCESSING
        record.started_at = now
        decisions.started[record.id] = live
        decisions.touched[record.id] = live

    def _complete(
        self,
        live: LivePrediction,
        completed: events_pb2.RunCompleted,
        decisions: _Decisions,
        now: int,
    ) -> None:
        record = live.record
        outcome = lifecycle.after_run(
            completed,
            fault_count=record.fault_count,
            attempt_max=self._settings.attempt_count_max,
        )
        output = completed.output.text if completed.HasField("output") else None
        if isinstance(outcome, Ending):
            self._dispatcher.note_run(record.version_id, completed.run_us)
            # A short run's start was reported together with its end.
            started_at = max(now - max(completed.run_us, 0), record.created_at)
            record.started_at = min(record.started_at or now, started_at)
            size_max = self._settings.output_size_max
            if max(live.items_size, len(output or "")) > size_max:
                outcome = lifecycle.output_too_large(run_us=completed.run_us, size_max=size_max)
                output = None
                live.items.clear()
        self._conclude(live, outcome, decisions, now, _Result(output, completed.metrics.text))

    def _conclude(
        self,
        live: LivePrediction,
        outcome: Ending | Retry,
        decisions: _Decisions,
        now: int,
        result: _Result = _NO_RESULT,
    ) -> None:
        if isinstance(outcome, Ending):
            self._end(live, outcome, decisions, now, result)
        else:
            self._retry(live, outcome, decisions)

    def _retry(self, live: LivePrediction, outcome: Retry, decisions: _Decisions) -> None:
        record = live.record
        metrics.LOST_ATTEMPTS.inc()
        if record.started_at is not None or outcome.reason != lifecycle.WORKER_LOST:
            record.fault_count += 1
            line = f"Attempt {record.attempt} was lost ({outcome.reason}); running again.\n"
            decisions.chunk(live).logs.append(live.add_logs(line, self._settings.logs_size_max))
        live.sequence += 1
        self._flush_chunk(live, decisions)
        live.void_attempt()
        record.status = lifecycle.STARTING
        record.started_at = None
        record.worker_id = None
        decisions.changes.requeue(record)
        decisions.touched[record.id] = live
        self._backlog.restore(record.version_id, record.id)
        log.info(
            "attempt lost",
            extra={
                "event": "attempt_lost",
                "prediction_id": record.id,
                "attempt": record.attempt,
                "reason": outcome.reason,
            },
        )

    def _end(
        self,
        live: LivePrediction,
        ending: Ending,
        decisions: _Decisions,
        now: int,
        result: _Result = _NO_RESULT,
    ) -> None:
        assert not live.is_ending, "a prediction ends once"
        live.is_ending = True
        record = live.record
        self._backlog.remove(record.version_id, record.id)
        decisions.chunks.pop(record.id, None)
        output = result.output
        if record.is_iterator:
            output = f"[{','.join(live.items)}]" if live.items else output
        final = replace(
            record,
            status=ending.status,
            worker_id=None,
            completed_at=max(now, record.created_at),
            output=output,
            logs=live.logs_text() + ending.log_line,
            error=ending.error,
            charged_ms=0 if ending.release_reason else -(-ending.run_us // 1000),
            release_reason=ending.release_reason,
        )
        run_us = ending.run_us if record.started_at is not None else None
        final.metrics = metrics_text(final, run_us=run_us, own=result.own_metrics)
        decisions.changes.finish(final)
        if live.has_chunks:
            decisions.changes.consolidate(record.id)
        decisions.ended.append((live, final))

    def _add_facts(self, decisions: _Decisions) -> None:
        for live in decisions.started.values():
            if not live.is_ending and live.record.status == lifecycle.PROCESSING:
                decisions.changes.start(live.record)
        for prediction_id in list(decisions.chunks):
            self._flush_chunk(decisions.touched[prediction_id], decisions)

    def _flush_chunk(self, live: LivePrediction, decisions: _Decisions) -> None:
        chunk = decisions.chunks.pop(live.record.id, None)
        if chunk is None:
            return
        live.has_chunks = True
        decisions.changes.add_chunk(
            live.record,
            sequence=live.sequence,
            logs="".join(chunk.logs),
            items=chunk.items,
        )

    async def _commit(self, decisions: _Decisions) -> None:
        await self._commits.commit(decisions.changes)
        for live in decisions.touched.values():
            live.wake_changed()
        for live, final in decisions.ended:
            self._show_end(live, final)

    def _show_end(self, live: LivePrediction, final: PredictionRecord) -> None:
        live.record = final
        self._predictions.remove(final.id)
        live.wake_all()
        self._settlements.add(final)
        self._completed.add(final)
        metrics.note_end(final)

    def _worker_of(self, record: PredictionRecord) -> Worker | None:
        return self._fleet.workers.get(record.worker_id) if record.worker_id else None

    def overdue(self, worker: Worker) -> list[LeaseKey]:
        """Leases whose run is far past its timeout: the worker does not stop it."""
        now = now_us()
        grace_us = int(self._settings.run_overdue_s * 1e6)
        keys = []
        for key in worker.granted:
            live = self._predictions.get(key.prediction_id)
            if live is None or live.record.started_at is None:
                continue
            if now - live.record.started_at > live.record.run_timeout_ms * 1000 + grace_us:
                keys.append(key)
        return keys


def _is_current(record: PredictionRecord, worker_id: str, event: events_pb2.RunEvent) -> bool:
    return record.worker_id == worker_id and record.attempt == event.attempt
