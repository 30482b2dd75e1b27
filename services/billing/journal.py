"""Writes operations to the ledger: first in the books in memory, then durably, or not at all."""

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from reprise.billing.v1 import ledger_pb2
from sqlalchemy.exc import SQLAlchemyError

from services.billing import checks, ledger, pricing
from services.billing.ledger import (
    Books,
    BrokenLedger,
    Credit,
    Entry,
    EntryKind,
    OpenHold,
    available_of,
)
from services.billing.store import DuplicateEntry, Store
from services.chassis.errors import AlreadyExists, Unavailable

log = logging.getLogger(__name__)

# A repeat of holds settled long ago is found out by the database: once for each such batch.
_ATTEMPT_COUNT_MAX = 3


class Journal:
    """The one writer of the ledger, and keeper of its books."""

    def __init__(
        self,
        store: Store,
        *,
        prices: Mapping[str, int],
        starting_credit_micros: int,
        currency: str,
        now_us: Callable[[], int],
    ) -> None:
        self._store = store
        self._prices = prices
        self._starting_credit_micros = starting_credit_micros
        self._currency = currency
        self._now_us = now_us
        self.books = Books()
        # Operation id -> the commit that writes its entry. Calls wait for it and never cancel it.
        self._commits: dict[str, asyncio.Task[None]] = {}
        self._end: asyncio.Future[None] | None = None

    async def load(self) -> None:
        """Builds the books from the ledger; raises BrokenLedger where they do not add up."""
        loaded = await self._store.load()
        self.books = Books(loaded.balances, loaded.open_holds)
        self._end = asyncio.get_running_loop().create_future()

    async def watch(self) -> None:
        """Runs until the books can no longer be trusted; then raises why."""
        if self._end is None:
            raise RuntimeError("watch() before load()")
        await asyncio.shield(self._end)

    async def close(self) -> None:
        """Waits for the commits under way."""
        await asyncio.gather(*set(self._commits.values()), return_exceptions=True)

    async def credit(self, account_id: str) -> Credit:
        """The account's credit; a first look opens its ledger."""
        await self._open_accounts({account_id})
        return self.books.credit(account_id)

    async def add_credit(
        self, operation_id: str, *, account_id: str, amount_micros: int, note: str
    ) -> Credit:
        """Pays credit in; the same operation does so once."""
        await self._open_accounts({account_id})
        if -self.books.spendable(ledger.FUNDING) + amount_micros > ledger.FUNDING_MICROS_MAX:
            raise checks.amount_error("would pass the most credit that one ledger can hold")
        entry = ledger.credit_entry(
            operation_id,
            account_id=account_id,
            amount_micros=amount_micros,
            note=note,
            now_us=self._now_us(),
        )
        if not await self._write_credit(entry):
            await self._expect_repeat_of(entry)
        return self.books.credit(account_id)

    async def create_holds(
        self, requests: Sequence[ledger_pb2.NewHold]
    ) -> list[ledger_pb2.HoldResult]:
        """Reserves the longest run of each prediction; a repeat answers the same hold."""
        await self._open_accounts({request.account_id for request in requests})
        settled: set[str] = set()
        for _ in range(_ATTEMPT_COUNT_MAX):
            try:
                return await self._try_holds(requests, settled)
            except DuplicateEntry:
                settled |= await self._settled(request.hold_id for request in requests)
        raise Unavailable("the holds were created and settled meanwhile; call again")

    async def settle_holds(
        self, settlements: Sequence[ledger_pb2.Settlement]
    ) -> list[ledger_pb2.SettlementResult]:
        """Captures or releases each hold once; a repeat answers the first receipt."""
        ids = [settlement.hold_id for settlement in settlements]
        await self._durable(ids)
        receipts: dict[str, ledger_pb2.Receipt] = {}
        fresh: list[Entry] = []
        for settlement in settlements:
            hold = self.books.open_holds.get(settlement.hold_id)
            if hold is None:
                continue
            entry = hold.settlement
            if entry is None:
                entry = _settlement_entry(hold, settlement, now_us=self._now_us())
                self.books.begin(entry)
                fresh.append(entry)
            receipts[settlement.hold_id] = _receipt(entry)
        self._start_commit(fresh)
        await self._durable(receipts)
        receipts |= await self._store.find_receipts({*ids} - receipts.keys())
        return [_settlement_result(hold_id, receipts.get(hold_id)) for hold_id in ids]

    def open_holds(self, *, older_than_s: int) -> list[Entry]:
        """Holds of at least this age, oldest first."""
        return self.books.holds_older_than(self._now_us() - older_than_s * 1_000_000)

    async def _try_holds(
        self, requests: Sequence[ledger_pb2.NewHold], settled: set[str]
    ) -> list[ledger_pb2.HoldResult]:
        batch = _HoldBatch(settled)
        results = [self._hold(request, batch) for request in requests]
        self._start_commit(batch.fresh)
        await self._durable(batch.awaited)
        # A refused hold may be a repeat of one that was settled and so left the memory.
        refused = {result.hold_id for result in results if result.reason} - settled
        settled_before = await self._settled(refused)
        return [
            _settled_result(result.hold_id) if result.hold_id in settled_before else result
            for result in results
        ]

    def _hold(self, request: ledger_pb2.NewHold, batch: "_HoldBatch") -> ledger_pb2.HoldResult:
        """The result of one request; a new hold is begun in the books and joins the batch."""
        if request.hold_id in batch.settled:
            return _settled_result(request.hold_id)
        known = self.books.open_holds.get(request.hold_id)
        if known is not None:
            batch.awaited.add(request.hold_id)
            return _known_result(known, request)
        price = self._prices.get(request.hardware)
        if price is None:
            return self._unknown_hardware(request)
        entry = ledger.hold_entry(
            request.hold_id,
            account_id=request.account_id,
            hardware=request.hardware,
            price_micros_per_second=price,
            run_ms_max=request.run_ms_max,
            now_us=self._now_us(),
        )
        needed = entry.moved_micros
        if needed > self.books.spendable(available_of(request.account_id)):
            return self._insufficient_credit(request, needed)
        self.books.begin(entry)
        batch.fresh.append(entry)
        batch.awaited.add(request.hold_id)
        return _granted_result(self.books.open_holds[request.hold_id])

    def _unknown_hardware(self, request: ledger_pb2.NewHold) -> ledger_pb2.HoldResult:
        detail = (
            f'the hardware "{request.hardware}" has no price; '
            f"priced are {', '.join(sorted(self._prices))} (setting REPRISE_BILLING_PRICES)"
        )
        return ledger_pb2.HoldResult(
            hold_id=request.hold_id, reason="UNKNOWN_HARDWARE", detail=detail
        )

    def _insufficient_credit(
        self, request: ledger_pb2.NewHold, needed_micros: int
    ) -> ledger_pb2.HoldResult:
        available_micros = self.books.spendable(available_of(request.account_id))
        needed = pricing.format_amount(needed_micros, self._currency)
        available = pricing.format_amount(available_micros, self._currency)
        detail = (
            f"the longest run of this prediction costs {needed}, but {available} of credit is "
            f'available to the account "{request.account_id}"; an operator adds credit with '
            "`reprise credit add`"
        )
        return ledger_pb2.HoldResult(
            hold_id=request.hold_id, reason="INSUFFICIENT_CREDIT", detail=detail
        )

    async def _settled(self, hold_ids: Iterable[str]) -> set[str]:
        return set(await self._store.find_receipts(set(hold_ids)))

    async def _open_accounts(self, account_ids: set[str]) -> None:
        """Gives accounts that were never seen their starting credit."""
        if not self._starting_credit_micros:
            return
        opened: list[str] = []
        for account_id in account_ids:
            if self.books.is_open(account_id):
                continue
            entry = ledger.starting_credit_entry(
                account_id, amount_micros=self._starting_credit_micros, now_us=self._now_us()
            )
            if entry.operation_id not in self._commits:
                self.books.begin(entry)
                self._start_commit([entry])
            opened.append(entry.operation_id)
        await self._durable(opened)

    async def _expect_repeat_of(self, entry: Entry) -> None:
        first = await self._store.find(entry)
        if first is None:
            raise Unavailable("the credit could not be added now; call again")
        same = (entry.account_id, entry.moved_micros, entry.note)
        if (first.account_id, first.amount_micros, first.note) != same:
            raise AlreadyExists(
                "this request id has added other credit before; use a new request id",
                reason="REQUEST_ID_REUSED",
            )

    async def _write_credit(self, entry: Entry) -> bool:
        """Writes a credit entry; False where one with its id is there already."""
        is_new = entry.operation_id not in self._commits
        if is_new:
            self.books.begin(entry)
            self._start_commit([entry])
        try:
            await self._durable([entry.operation_id])
        except DuplicateEntry:
            return False
        return is_new

    def _start_commit(self, entries: Sequence[Entry]) -> None:
        """Writes begun entries in a task of the journal, which no caller's end cancels."""
        if not entries:
            return
        task = asyncio.create_task(self._commit(entries))
        task.add_done_callback(self._note_end)
        for entry in entries:
            self._commits[entry.operation_id] = task

    async def _durable(self, operation_ids: Iterable[str]) -> None:
        """Waits until none of these entries is being written; raises what their commit raised."""
        for task in {self._commits[id_] for id_ in operation_ids if id_ in self._commits}:
            await asyncio.shield(task)

    async def _commit(self, entries: Sequence[Entry]) -> None:
        # Any other error leaves the debits standing: the process is about to end.
        try:
            await self._append(entries)
        except (DuplicateEntry, Unavailable):
            for entry in entries:
                self.books.revert(entry)
            raise
        else:
            for entry in entries:
                self.books.confirm(entry)
        finally:
            for entry in entries:
                del self._commits[entry.operation_id]

    async def _append(self, entries: Sequence[Entry]) -> None:
        """Raises DuplicateEntry or Unavailable only where nothing was written."""
        try:
            await self._store.append(entries)
        except DuplicateEntry as error:
            if any(entry.is_settlement for entry in entries):
                raise BrokenLedger("a hold that is open in memory is settled on disk") from error
            raise
        except SQLAlchemyError as error:
            # A commit that failed may still have been made: only the database knows.
            if await self._store.find(entries[0]) is None:
                log.error(
                    "ledger entries could not be written",
                    exc_info=error,
                    extra={"event": "ledger_write_failed", "entry_count": len(entries)},
                )
                raise Unavailable("the ledger could not be written; call again") from error

    def _note_end(self, commit: asyncio.Task[None]) -> None:
        error = None if commit.cancelled() else commit.exception()
        if error is None or isinstance(error, (DuplicateEntry, Unavailable)):
            return
        if self._end is not None and not self._end.done():
            self._end.set_exception(error)


@dataclass(slots=True)
class _HoldBatch:
    """What comes together while the holds of one call are decided."""

    # Holds that the database knows as settled.
    settled: set[str]
    fresh: list[Entry] = field(default_factory=list)
    # Holds that must be durable, or durably settled, before the answer.
    awaited: set[str] = field(default_factory=set)


def _granted_result(hold: OpenHold) -> ledger_pb2.HoldResult:
    granted = ledger_pb2.Hold(
        amount_micros=hold.amount_micros,
        price_micros_per_second=hold.entry.price_micros_per_second,
    )
    return ledger_pb2.HoldResult(hold_id=hold.entry.operation_id, hold=granted)


def _known_result(hold: OpenHold, request: ledger_pb2.NewHold) -> ledger_pb2.HoldResult:
    if hold.entry.account_id != request.account_id:
        return ledger_pb2.HoldResult(
            hold_id=request.hold_id,
            reason="HOLD_CONFLICT",
            detail="this hold id belongs to another account",
        )
    if hold.settlement is not None:
        return _settled_result(request.hold_id)
    return _granted_result(hold)


def _settled_result(hold_id: str) -> ledger_pb2.HoldResult:
    return ledger_pb2.HoldResult(
        hold_id=hold_id,
        reason="HOLD_SETTLED",
        detail="this prediction was captured or released before; it cannot run again",
    )


def _settlement_entry(hold: OpenHold, settlement: ledger_pb2.Settlement, *, now_us: int) -> Entry:
    if settlement.HasField("capture"):
        return ledger.capture_entry(hold, run_ms=settlement.capture.run_ms, now_us=now_us)
    return ledger.release_entry(hold, reason=settlement.release.reason, now_us=now_us)


def _receipt(entry: Entry) -> ledger_pb2.Receipt:
    return ledger_pb2.Receipt(
        ledger_entry_id=entry.id,
        captured_amount_micros=entry.amount_on(ledger.REVENUE),
        charged_ms=entry.run_ms,
        is_captured=entry.kind is EntryKind.CAPTURE,
    )


def _settlement_result(
    hold_id: str, receipt: ledger_pb2.Receipt | None
) -> ledger_pb2.SettlementResult:
    if receipt is None:
        return ledger_pb2.SettlementResult(hold_id=hold_id, reason="HOLD_NOT_FOUND")
    return ledger_pb2.SettlementResult(hold_id=hold_id, receipt=receipt)
