"""From checked creates to stored predictions: money held, rows inserted, both in batches."""

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass

from reprise.billing.v1 import ledger_pb2, ledger_pb2_grpc
from sqlalchemy.exc import SQLAlchemyError

from services.chassis import telemetry
from services.chassis.channels import Peer
from services.chassis.errors import (
    FieldViolation,
    InvalidInput,
    RepriseError,
    ResourceExhausted,
    Unavailable,
)
from services.scheduler.backlog import Backlog
from services.scheduler.commits import Commits
from services.scheduler.dispatch import Dispatcher
from services.scheduler.fleet import Fleet
from services.scheduler.leases import LeaseKey
from services.scheduler.live import LivePrediction, LivePredictions
from services.scheduler.record import PredictionRecord
from services.scheduler.runs import Runs
from services.scheduler.settings import SchedulerSettings
from services.scheduler.store import PredictionStore

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Applicant:
    """A create on its way; all its repeats wait for the same future."""

    record: PredictionRecord
    outcome: asyncio.Future[LivePrediction]


class Intake:
    """One call of billing at a time; the next batch collects meanwhile."""

    def __init__(
        self,
        *,
        settings: SchedulerSettings,
        store: PredictionStore,
        billing: Peer,
        predictions: LivePredictions,
        backlog: Backlog,
        fleet: Fleet,
        commits: Commits,
        dispatcher: Dispatcher,
        runs: Runs,
    ) -> None:
        self._settings = settings
        self._store = store
        self._billing = billing
        self._ledger = ledger_pb2_grpc.LedgerServiceStub(billing.channel)
        self._predictions = predictions
        self._backlog = backlog
        self._fleet = fleet
        self._commits = commits
        self._dispatcher = dispatcher
        self._runs = runs
        self._applicants: dict[str, _Applicant] = {}
        self._waiting: list[_Applicant] = []
        self._added = asyncio.Event()

    def __contains__(self, prediction_id: object) -> bool:
        """Whether a create of this id is on its way."""
        return prediction_id in self._applicants

    def outcome(self, prediction_id: str) -> asyncio.Future[LivePrediction]:
        """What becomes of a create that is on its way."""
        return self._applicants[prediction_id].outcome

    def apply(self, record: PredictionRecord) -> None:
        """Starts a create; its outcome comes even when nobody waits any more."""
        self._backlog.check_room(len(self._applicants) + 1)
        outcome: asyncio.Future[LivePrediction] = asyncio.get_running_loop().create_future()
        # A caller that went away never asks; that is no fault.
        outcome.add_done_callback(_retrieve)
        applicant = _Applicant(record, outcome)
        self._applicants[record.id] = applicant
        self._waiting.append(applicant)
        self._added.set()

    async def run(self) -> None:
        """Holds and stores what was applied for, for ever."""
        while True:
            await self._added.wait()
            if len(self._predictions) >= self._settings.hold_delay_from:
                # Under load a full batch is worth more than the short wait costs.
                await asyncio.sleep(self._settings.hold_delay_s)
            batch = self._waiting[: self._settings.hold_batch_size_max]
            self._waiting = self._waiting[len(batch) :]
            if not self._waiting:
                self._added.clear()
            try:
                # One call holds for all of them: it belongs to the trace of the first.
                with telemetry.use_traceparent(batch[0].record.traceparent):
                    results = await self._hold(batch)
            except RepriseError as error:
                unavailable = Unavailable(f"no money could be held: {error.message}")
                for applicant in batch:
                    self._refuse(applicant, unavailable)
                continue
            granted = self._sort_out(batch, results)
            if granted:
                self._commits.start(self._store_batch(granted))

    async def _hold(self, batch: Sequence[_Applicant]) -> Sequence[ledger_pb2.HoldResult]:
        holds = [
            ledger_pb2.NewHold(
                hold_id=applicant.record.id,
                account_id=applicant.record.account_id,
                hardware=applicant.record.hardware,
                run_ms_max=applicant.record.run_timeout_ms,
            )
            for applicant in batch
        ]
        response = await self._billing.call(
            self._ledger.CreateHolds,
            ledger_pb2.CreateHoldsRequest(holds=holds),
            timeout_s=self._settings.peer_timeout_s,
        )
        results: Sequence[ledger_pb2.HoldResult] = response.results
        if len(results) != len(batch):
            raise Unavailable("billing answered another number of holds than was asked for")
        return results

    def _sort_out(
        self, batch: Sequence[_Applicant], results: Sequence[ledger_pb2.HoldResult]
    ) -> list[_Applicant]:
        granted = []
        for applicant, result in zip(batch, results, strict=True):
            if result.HasField("hold"):
                applicant.record.held_amount_micros = result.hold.amount_micros
                applicant.record.price_micros_per_second = result.hold.price_micros_per_second
                granted.append(applicant)
            elif result.reason == "HOLD_SETTLED":
                # The create of an earlier call, which has ended since.
                self._commits.start(self._answer_stored(applicant))
            else:
                self._refuse(applicant, _refusal(applicant.record, result))
        return granted

    async def _store_batch(self, batch: list[_Applicant]) -> None:
        leased = [item.record for item in batch if self._dispatcher.try_lease(item.record)]
        try:
            is_stored = await self._store.insert([item.record for item in batch])
        except SQLAlchemyError:
            log.exception("predictions not stored", extra={"event": "insert_failed"})
            self._take_back(leased)
            for applicant in batch:
                self._refuse(applicant, Unavailable("the prediction could not be stored"))
            return
        if not is_stored:
            self._take_back(leased)
            await self._store_fresh(batch)
            return
        for applicant in batch:
            live = LivePrediction(applicant.record)
            self._runs.admit(live)
            self._accept(applicant, live)
        await self._dispatcher.send_leases(leased)
        await self._void_lost(leased)

    async def _void_lost(self, leased: Sequence[PredictionRecord]) -> None:
        """Voids leases whose worker was lost while the rows were on their way."""
        lost = [
            LeaseKey(record.id, record.attempt)
            for record in leased
            if record.worker_id is not None and record.worker_id not in self._fleet.workers
        ]
        if lost:
            await self._runs.lose_leases(lost)

    async def _store_fresh(self, batch: list[_Applicant]) -> None:
        """One of the ids exists: a repeat of a create from before a restart."""
        existing = await self._store.existing(item.record.id for item in batch)
        for applicant in batch:
            if applicant.record.id in existing:
                await self._answer_stored(applicant)
        fresh = [item for item in batch if item.record.id not in existing]
        if fresh:
            await self._store_batch(fresh)

    async def _answer_stored(self, applicant: _Applicant) -> None:
        live = self._predictions.get(applicant.record.id)
        if live is None:
            stored = await self._store.get(applicant.record.id)
            live = LivePrediction(stored) if stored is not None else None
        if live is not None:
            self._accept(applicant, live)
            return
        message = (
            "this request was given up after a failure, and its money given back; send it anew"
        )
        self._refuse(applicant, InvalidInput(message, reason="REQUEST_EXPIRED"))

    def _take_back(self, leased: Sequence[PredictionRecord]) -> None:
        for record in leased:
            if record.worker_id is not None:
                self._fleet.release(record.worker_id, LeaseKey(record.id, record.attempt))
            record.worker_id = None
            record.attempt = 0

    def _accept(self, applicant: _Applicant, live: LivePrediction) -> None:
        del self._applicants[applicant.record.id]
        applicant.outcome.set_result(live)

    def _refuse(self, applicant: _Applicant, error: RepriseError) -> None:
        del self._applicants[applicant.record.id]
        applicant.outcome.set_exception(error)


def _refusal(record: PredictionRecord, result: ledger_pb2.HoldResult) -> RepriseError:
    if result.reason == "INSUFFICIENT_CREDIT":
        return ResourceExhausted(
            result.detail or "not enough credit for this run", reason=result.reason
        )
    if result.reason == "UNKNOWN_HARDWARE":
        text = f"there is no price for the hardware {record.hardware!r} of this version"
        violation = FieldViolation("version", text, "unknown_hardware")
        return InvalidInput(text, reason=result.reason, fields=[violation])
    return Unavailable(result.detail or f"billing refused the hold: {result.reason}")


def _retrieve(outcome: asyncio.Future[LivePrediction]) -> None:
    if not outcome.cancelled():
        outcome.exception()
