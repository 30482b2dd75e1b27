"""Writes operations to the ledger: first in the books in memory, then durably, or not at all."""

import asyncio
import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

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
from services.billing.store import DuplicateEntry, ForeignEntries, Store
from services.chassis.errors import AlreadyExists, Unavailable

log = logging.getLogger(__name__)

# A repeat of holds settled long ago is found out by the database: once for each such batch.
_ATTEMPT_COUNT_MAX = 3
_LOADING = "billing loads its ledger anew; call again"


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
        entry = ledger.credit_entry(
            operation_id,
            account_id=account_id,
            amount_micros=amount_micros,
            note=note,
            now_us=self._now_us(),
        )
        await self._idle([operation_id])
        if -self.books.spendable(ledger.FUNDING) + amount_micros > ledger.FUNDING_MICROS_MAX:
            raise checks.amount_error("would pass the most credit that one ledger can hold")
        try:
            await self._write([entry])
        except DuplicateEntry:
            await self._expect_repeat_of(entry)
        return self.books.credit(account_id)

    async def create_holds(
        self, requests: Sequence[ledger_pb2.NewHold]
    ) -> list[ledger_pb2.HoldResult]:
        """Reserves the longest run of each prediction; a repeat answers the same hold."""
        await self._open_accounts({request.account_id for request in requests})
        settled: set[str] = set()
        for _ in range(_ATTEMPT_COUNT_MAX):
            await self._idle([request.hold_id for request in requests])
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
        await self._idle(ids)
        receipts: dict[str, ledger_pb2.Receipt] = {}
        fresh: list[Entry] = []
        for settlement in settlements:
            hold = self.books.open_holds.get(settlement.hold_id)
            if hold is None:
                continue
            # Set where the batch names the hold a second time.
            entry = hold.settlement
            if entry is None:
                entry = _settlement_entry(hold, settlement, now_us=self._now_us())
                self.books.begin(entry)
                fresh.append(entry)
            receipts[settlement.hold_id] = _receipt(entry)
        await self._commit_begun(fresh)
        receipts |= await self._store.find_receipts({*ids} - receipts.keys())
        return [_settlement_result(hold_id, receipts.get(hold_id)) for hold_id in ids]

    def open_holds(self, *, older_than_s: int) -> list[Entry]:
        """Holds of at least this age."""
        return self.books.holds_older_than(self._now_us() - older_than_s * 1_000_000)

    async def _try_holds(
        self, requests: Sequence[ledger_pb2.NewHold], settled: set[str]
    ) -> list[ledger_pb2.HoldResult]:
        fresh: list[Entry] = []
        results = [self._hold(request, settled, fresh) for request in requests]
        await self._commit_begun(fresh)
        # A refused hold may be a repeat of one that was settled and so left the memory.
        refused = {result.hold_id for result in results if result.reason} - settled
        settled_before = await self._settled(refused)
        return [
            _settled_result(result.hold_id) if result.hold_id in settled_before else result
            for result in results
        ]

    def _hold(
        self, request: ledger_pb2.NewHold, settled: set[str], fresh: list[Entry]
    ) -> ledger_pb2.HoldResult:
        """The result of one request; a new hold is begun in the books and joins the fresh ones."""
        if request.hold_id in settled:
            return _settled_result(request.hold_id)
        known = self.books.open_holds.get(request.hold_id)
        if known is not None:
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
        fresh.append(entry)
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
        unseen = [id_ for id_ in account_ids if not self.books.is_open(id_)]
        if not unseen or not self._starting_credit_micros:
            return
        entries = [
            ledger.starting_credit_entry(
                account_id, amount_micros=self._starting_credit_micros, now_us=self._now_us()
            )
            for account_id in unseen
        ]
        await self._idle([entry.operation_id for entry in entries])
        await self._write([entry for entry in entries if not self.books.is_open(entry.account_id)])

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

    async def _idle(self, operation_ids: Collection[str]) -> None:
        """Waits until no commit of these is under way, however it ends.

        What comes after, up to the next await, sees the books as the ledger has them.
        """
        while under_way := {self._commits[id_] for id_ in operation_ids if id_ in self._commits}:
            await asyncio.wait(under_way)
        if self._end is not None and self._end.done():
            raise Unavailable(_LOADING)

    async def _write(self, entries: Sequence[Entry]) -> None:
        """Begins entries in the books and commits them."""
        for entry in entries:
            self.books.begin(entry)
        await self._commit_begun(entries)

    async def _commit_begun(self, entries: Sequence[Entry]) -> None:
        """Returns once begun entries are durable; their commit outlives a caller that goes away."""
        if not entries:
            return
        task = asyncio.create_task(self._commit(entries))
        # Retrieved here once, because the caller may have gone.
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        for entry in entries:
            self._commits[entry.operation_id] = task
        await asyncio.shield(task)

    async def _commit(self, entries: Sequence[Entry]) -> None:
        try:
            await self._append(entries)
        except (DuplicateEntry, Unavailable):
            for entry in entries:
                self.books.revert(entry)
            raise
        except (BrokenLedger, ForeignEntries, SQLAlchemyError) as error:
            # The debits stand: what was written is not known, and the process is about to end.
            if self._end is not None and not self._end.done():
                self._end.set_exception(error)
            raise Unavailable(_LOADING) from error
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
            if not await self._store.has_written(entries):
                log.error(
                    "ledger entries could not be written",
                    exc_info=error,
                    extra={"event": "ledger_write_failed", "entry_count": len(entries)},
                )
                raise Unavailable("the ledger could not be written; call again") from error


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
