"""The outbox of ended predictions: their holds captured or released, their receipts kept."""

import asyncio
import logging
from collections.abc import Container, Sequence
from itertools import islice
from typing import Any

from reprise.billing.v1 import ledger_pb2, ledger_pb2_grpc

from services.chassis.channels import Peer
from services.chassis.clock import now_us
from services.chassis.errors import RepriseError
from services.scheduler import lifecycle, metrics
from services.scheduler.record import PredictionRecord
from services.scheduler.settings import SchedulerSettings
from services.scheduler.store import PredictionStore

log = logging.getLogger(__name__)

_RETRY_S = 0.5
_RETRY_MAX_S = 5.0


def settlement_of(record: PredictionRecord) -> ledger_pb2.Settlement:
    """What billing shall do with an ended prediction's hold."""
    if record.release_reason:
        release = ledger_pb2.Release(reason=record.release_reason)
        return ledger_pb2.Settlement(hold_id=record.id, release=release)
    capture = ledger_pb2.Capture(run_ms=record.charged_ms)
    return ledger_pb2.Settlement(hold_id=record.id, capture=capture)


class Settlements:
    """Sends settlements in batches until each is answered."""

    def __init__(
        self, *, settings: SchedulerSettings, store: PredictionStore, billing: Peer
    ) -> None:
        self._settings = settings
        self._store = store
        self._billing = billing
        self._ledger = ledger_pb2_grpc.LedgerServiceStub(billing.channel)
        self._pending: dict[str, PredictionRecord] = {}
        self._added = asyncio.Event()

    def __len__(self) -> int:
        return len(self._pending)

    def __contains__(self, prediction_id: str) -> bool:
        return prediction_id in self._pending

    def add(self, record: PredictionRecord) -> None:
        """Takes over an ended prediction whose end is committed."""
        self._pending[record.id] = record
        self._added.set()

    async def run(self) -> None:
        """Settles what was added, for ever."""
        retry_s = _RETRY_S
        while True:
            await self._added.wait()
            await asyncio.sleep(self._settings.settlement_delay_s)
            batch = list(islice(self._pending.values(), self._settings.settlement_batch_size_max))
            try:
                await self._settle(batch)
                retry_s = _RETRY_S
            except RepriseError as error:
                log.warning(
                    "holds not settled yet",
                    extra={"event": "settlement_failed", "why": str(error), "count": len(batch)},
                )
                await asyncio.sleep(retry_s)
                retry_s = min(retry_s * 2, _RETRY_MAX_S)
            if not self._pending:
                self._added.clear()

    async def _settle(self, batch: Sequence[PredictionRecord]) -> None:
        request = ledger_pb2.SettleHoldsRequest(
            settlements=[settlement_of(record) for record in batch]
        )
        response = await self._billing.call(
            self._ledger.SettleHolds, request, timeout_s=self._settings.peer_timeout_s
        )
        receipts = [
            _receipt_row(record, result)
            for record, result in zip(batch, response.results, strict=True)
        ]
        await self._store.settle(receipts)
        for record in batch:
            del self._pending[record.id]
        metrics.UNSETTLED.set(len(self._pending))


class OrphanSweeper:
    """Gives back holds whose prediction was never stored: a crash fell between the two."""

    def __init__(
        self,
        *,
        settings: SchedulerSettings,
        store: PredictionStore,
        billing: Peer,
        predictions: Container[str],
        applicants: Container[str],
    ) -> None:
        self._settings = settings
        self._store = store
        self._billing = billing
        self._predictions = predictions
        self._applicants = applicants
        self._ledger = ledger_pb2_grpc.LedgerServiceStub(billing.channel)

    async def run(self) -> None:
        """Sweeps now and then."""
        while True:
            try:
                await self.sweep()
            except RepriseError as error:
                log.warning("sweep failed", extra={"event": "sweep_failed", "why": str(error)})
            await asyncio.sleep(self._settings.sweep_interval_s)

    async def sweep(self) -> int:
        """Releases every old hold without a row; answers how many."""
        released, page_token = 0, ""
        while True:
            request = ledger_pb2.ListOpenHoldsRequest(
                older_than_s=int(self._settings.orphan_hold_age_s),
                page_size=self._settings.settlement_batch_size_max,
                page_token=page_token,
            )
            page = await self._billing.call(
                self._ledger.ListOpenHolds, request, timeout_s=self._settings.peer_timeout_s
            )
            released += await self._release_orphans(list(page.hold_ids))
            page_token = page.next_page_token
            if not page_token:
                return released

    async def _release_orphans(self, hold_ids: list[str]) -> int:
        unknown = [hold_id for hold_id in hold_ids if not self._is_alive(hold_id)]
        stored = await self._store.existing(unknown) if unknown else set()
        # Asked again: a repeated create may have come while the database was read.
        orphans = [item for item in unknown if item not in stored and not self._is_alive(item)]
        if not orphans:
            return 0
        release = ledger_pb2.Release(reason=lifecycle.ORPHANED)
        request = ledger_pb2.SettleHoldsRequest(
            settlements=[ledger_pb2.Settlement(hold_id=item, release=release) for item in orphans]
        )
        await self._billing.call(
            self._ledger.SettleHolds, request, timeout_s=self._settings.peer_timeout_s
        )
        log.info(
            "orphaned holds released", extra={"event": "holds_released", "count": len(orphans)}
        )
        return len(orphans)

    def _is_alive(self, prediction_id: str) -> bool:
        return prediction_id in self._predictions or prediction_id in self._applicants


def _receipt_row(record: PredictionRecord, result: ledger_pb2.SettlementResult) -> dict[str, Any]:
    receipt = result.receipt
    if not result.HasField("receipt"):
        log.error(
            "billing knows no hold of an ended prediction",
            extra={
                "event": "hold_missing",
                "prediction_id": record.id,
                "reason": result.reason,
            },
        )
    return {
        "id": record.id,
        "settled_at": now_us(),
        "ledger_entry_id": receipt.ledger_entry_id or None,
        "captured_amount_micros": receipt.captured_amount_micros,
        "charged_ms": receipt.charged_ms,
    }
