"""gRPC methods of the billing service."""

from typing import Any

import grpc
from reprise.billing.v1 import ledger_pb2, ledger_pb2_grpc, price_pb2, price_pb2_grpc
from sqlalchemy import Row

from services.billing import checks, pricing
from services.billing.journal import Journal
from services.billing.ledger import Credit, EntryKind, age_order, entry_id
from services.billing.settings import BillingSettings
from services.billing.store import Store
from services.chassis import paging
from services.chassis.clock import timestamp
from services.chassis.server import account_of, caller

Context = grpc.aio.ServicerContext[Any, Any]

PAGE_SIZE_DEFAULT = 100
PAGE_SIZE_MAX = 1000

_KINDS = {
    EntryKind.CREDIT: ledger_pb2.LEDGER_ENTRY_KIND_CREDIT,
    EntryKind.HOLD: ledger_pb2.LEDGER_ENTRY_KIND_HOLD,
    EntryKind.CAPTURE: ledger_pb2.LEDGER_ENTRY_KIND_CAPTURE,
    EntryKind.RELEASE: ledger_pb2.LEDGER_ENTRY_KIND_RELEASE,
}


class LedgerServicer(ledger_pb2_grpc.LedgerServiceServicer):
    """Holds, settlements, credit and the entries behind them."""

    def __init__(self, journal: Journal, store: Store, settings: BillingSettings) -> None:
        self._journal = journal
        self._store = store
        self._settings = settings

    async def GetCredit(
        self, request: ledger_pb2.GetCreditRequest, context: Context
    ) -> ledger_pb2.GetCreditResponse:
        account_id = account_of(context)
        credit = await self._journal.credit(account_id)
        return ledger_pb2.GetCreditResponse(credit=self._credit(account_id, credit))

    async def AddCredit(
        self, request: ledger_pb2.AddCreditRequest, context: Context
    ) -> ledger_pb2.AddCreditResponse:
        who, caller_id = caller(context), account_of(context)
        checks.check_operator(is_operator=who.is_operator)
        checks.check_add_credit(request, request_id=who.request_id)
        account_id = request.account_id or caller_id
        credit = await self._journal.add_credit(
            f"credit:{caller_id}:{who.request_id}",
            account_id=account_id,
            amount_micros=request.amount_micros,
            note=request.note,
        )
        return ledger_pb2.AddCreditResponse(credit=self._credit(account_id, credit))

    async def ListLedgerEntries(
        self, request: ledger_pb2.ListLedgerEntriesRequest, context: Context
    ) -> ledger_pb2.ListLedgerEntriesResponse:
        account_id = account_of(context)
        checks.check_list_entries(request)
        page = await self._store.list_entries(
            account_id,
            prediction_id=request.prediction_id,
            page_token=request.page_token,
            page_size=_page_size(request.page_size),
        )
        return ledger_pb2.ListLedgerEntriesResponse(
            entries=[self._entry(row) for row in page.rows],
            next_page_token=page.next_page_token,
            previous_page_token=page.previous_page_token,
        )

    async def CreateHolds(
        self, request: ledger_pb2.CreateHoldsRequest, context: Context
    ) -> ledger_pb2.CreateHoldsResponse:
        checks.check_holds(request, batch_size_max=self._settings.batch_size_max)
        results = await self._journal.create_holds(request.holds)
        return ledger_pb2.CreateHoldsResponse(results=results)

    async def SettleHolds(
        self, request: ledger_pb2.SettleHoldsRequest, context: Context
    ) -> ledger_pb2.SettleHoldsResponse:
        checks.check_settlements(request, batch_size_max=self._settings.batch_size_max)
        results = await self._journal.settle_holds(request.settlements)
        return ledger_pb2.SettleHoldsResponse(results=results)

    async def ListOpenHolds(
        self, request: ledger_pb2.ListOpenHoldsRequest, context: Context
    ) -> ledger_pb2.ListOpenHoldsResponse:
        checks.check_list_open_holds(request)
        page = paging.slice_page(
            self._journal.open_holds(older_than_s=request.older_than_s),
            key=age_order,
            page_token=request.page_token,
            page_size=_page_size(request.page_size),
            label="open holds",
        )
        return ledger_pb2.ListOpenHoldsResponse(
            hold_ids=[hold.operation_id for hold in page.items],
            next_page_token=page.next_page_token,
        )

    def _credit(self, account_id: str, credit: Credit) -> ledger_pb2.Credit:
        return ledger_pb2.Credit(
            account_id=account_id,
            balance_micros=credit.balance_micros,
            held_micros=credit.held_micros,
            available_micros=credit.available_micros,
            currency=self._settings.currency,
        )

    def _entry(self, row: Row[Any]) -> ledger_pb2.LedgerEntry:
        kind = EntryKind(row.kind)
        return ledger_pb2.LedgerEntry(
            id=entry_id(kind, row.operation_id),
            kind=_KINDS[kind],
            amount_micros=row.amount_micros,
            prediction_id="" if kind is EntryKind.CREDIT else row.operation_id,
            note=row.note or self._note(row),
            created_at=timestamp(row.created_at_us),
        )

    def _note(self, row: Row[Any]) -> str:
        """What an entry without a note of its own says to people."""
        if row.kind == EntryKind.HOLD:
            return f"at most {row.run_ms} ms on {row.hardware}"
        if row.kind != EntryKind.CAPTURE:
            return ""
        price = pricing.run_price(row.run_ms, price_micros_per_second=row.price_micros_per_second)
        return (
            f"{pricing.format_amount(price, self._settings.currency)} for {row.run_ms} ms "
            f"on {row.hardware}"
        )


class PriceServicer(price_pb2_grpc.PriceServiceServicer):
    """The price table."""

    def __init__(self, settings: BillingSettings) -> None:
        self._settings = settings

    async def ListPrices(
        self, request: price_pb2.ListPricesRequest, context: Context
    ) -> price_pb2.ListPricesResponse:
        page = paging.slice_page(
            self._settings.prices,
            key=lambda sku: (sku,),
            page_token=request.page_token,
            page_size=_page_size(request.page_size),
            label="prices",
        )
        return price_pb2.ListPricesResponse(
            prices=[self._price(sku) for sku in page.items], next_page_token=page.next_page_token
        )

    def _price(self, hardware: str) -> price_pb2.Price:
        return price_pb2.Price(
            hardware=hardware,
            price_micros_per_second=self._settings.prices[hardware],
            currency=self._settings.currency,
        )


def _page_size(page_size: int) -> int:
    return paging.bounded_page_size(page_size, default=PAGE_SIZE_DEFAULT, maximum=PAGE_SIZE_MAX)
