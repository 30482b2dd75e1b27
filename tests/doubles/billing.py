"""A billing service without books: grants holds unless told otherwise, settles each one once."""

import asyncio
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import grpc
from reprise.billing.v1 import ledger_pb2, ledger_pb2_grpc, price_pb2, price_pb2_grpc

Context = grpc.aio.ServicerContext[Any, Any]


class FakeBilling(ledger_pb2_grpc.LedgerServiceServicer, price_pb2_grpc.PriceServiceServicer):
    """Both billing services in one object; tests read `holds` and `receipts`."""

    def __init__(self, *, prices: Mapping[str, int] | None = None) -> None:
        self.prices = dict(prices or {"cpu": 100})
        # Account id -> reason; every hold of that account is refused with it.
        self.refusals: dict[str, str] = {}
        # While set, every call fails with UNAVAILABLE.
        self.is_down = False
        self.holds: dict[str, ledger_pb2.NewHold] = {}
        self.receipts: dict[str, ledger_pb2.Receipt] = {}
        # Sizes of the batches that arrived, to see that callers do batch.
        self.hold_batches: list[int] = []
        self.settlement_batches: list[int] = []
        # One credit for whoever asks; holds do not change it.
        self._credit = ledger_pb2.Credit(
            balance_micros=10_000_000, available_micros=10_000_000, currency="USD"
        )
        self._settled: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)

    def add_to(self, server: grpc.aio.Server) -> None:
        ledger_pb2_grpc.add_LedgerServiceServicer_to_server(self, server)
        price_pb2_grpc.add_PriceServiceServicer_to_server(self, server)

    async def wait_settled(self, hold_id: str, *, timeout_s: float = 10) -> ledger_pb2.Receipt:
        async with asyncio.timeout(timeout_s):
            await self._settled[hold_id].wait()
        return self.receipts[hold_id]

    async def CreateHolds(
        self, request: ledger_pb2.CreateHoldsRequest, context: Context
    ) -> ledger_pb2.CreateHoldsResponse:
        await self._abort_when_down(context)
        self.hold_batches.append(len(request.holds))
        return ledger_pb2.CreateHoldsResponse(results=[self._hold(hold) for hold in request.holds])

    async def SettleHolds(
        self, request: ledger_pb2.SettleHoldsRequest, context: Context
    ) -> ledger_pb2.SettleHoldsResponse:
        await self._abort_when_down(context)
        self.settlement_batches.append(len(request.settlements))
        return ledger_pb2.SettleHoldsResponse(
            results=[self._settle(settlement) for settlement in request.settlements]
        )

    async def ListPrices(
        self, request: price_pb2.ListPricesRequest, context: Context
    ) -> price_pb2.ListPricesResponse:
        await self._abort_when_down(context)
        return price_pb2.ListPricesResponse(
            prices=[
                price_pb2.Price(hardware=sku, price_micros_per_second=price, currency="USD")
                for sku, price in sorted(self.prices.items())
            ]
        )

    async def GetCredit(
        self, request: ledger_pb2.GetCreditRequest, context: Context
    ) -> ledger_pb2.GetCreditResponse:
        await self._abort_when_down(context)
        return ledger_pb2.GetCreditResponse(credit=self._credit)

    async def AddCredit(
        self, request: ledger_pb2.AddCreditRequest, context: Context
    ) -> ledger_pb2.AddCreditResponse:
        await self._abort_when_down(context)
        self._credit.balance_micros += request.amount_micros
        self._credit.available_micros += request.amount_micros
        return ledger_pb2.AddCreditResponse(credit=self._credit)

    async def ListLedgerEntries(
        self, request: ledger_pb2.ListLedgerEntriesRequest, context: Context
    ) -> ledger_pb2.ListLedgerEntriesResponse:
        await self._abort_when_down(context)
        return ledger_pb2.ListLedgerEntriesResponse()

    async def ListOpenHolds(
        self, request: ledger_pb2.ListOpenHoldsRequest, context: Context
    ) -> ledger_pb2.ListOpenHoldsResponse:
        """All of them, whatever their age."""
        await self._abort_when_down(context)
        open_ids = [hold_id for hold_id in self.holds if hold_id not in self.receipts]
        return ledger_pb2.ListOpenHoldsResponse(hold_ids=open_ids)

    def _hold(self, new: ledger_pb2.NewHold) -> ledger_pb2.HoldResult:
        reason = self._refusal(new)
        if reason:
            return ledger_pb2.HoldResult(
                hold_id=new.hold_id, reason=reason, detail=f"refused by the test: {reason}"
            )
        kept = self.holds.setdefault(new.hold_id, new)
        price = self.prices[kept.hardware]
        hold = ledger_pb2.Hold(
            amount_micros=_amount(kept.run_ms_max, price), price_micros_per_second=price
        )
        return ledger_pb2.HoldResult(hold_id=new.hold_id, hold=hold)

    def _refusal(self, new: ledger_pb2.NewHold) -> str:
        if new.hold_id in self.receipts:
            return "HOLD_SETTLED"
        if new.hold_id in self.holds:
            return ""
        if new.hardware not in self.prices:
            return "UNKNOWN_HARDWARE"
        return self.refusals.get(new.account_id, "")

    def _settle(self, settlement: ledger_pb2.Settlement) -> ledger_pb2.SettlementResult:
        hold = self.holds.get(settlement.hold_id)
        if hold is None:
            return ledger_pb2.SettlementResult(hold_id=settlement.hold_id, reason="HOLD_NOT_FOUND")
        receipt = self.receipts.get(settlement.hold_id)
        if receipt is None:
            receipt = self._receipt(hold, settlement)
            self.receipts[settlement.hold_id] = receipt
            self._settled[settlement.hold_id].set()
        return ledger_pb2.SettlementResult(hold_id=settlement.hold_id, receipt=receipt)

    def _receipt(
        self, hold: ledger_pb2.NewHold, settlement: ledger_pb2.Settlement
    ) -> ledger_pb2.Receipt:
        if not settlement.HasField("capture"):
            return ledger_pb2.Receipt(ledger_entry_id=f"release:{hold.hold_id}")
        price = self.prices[hold.hardware]
        charged_ms = min(settlement.capture.run_ms, hold.run_ms_max)
        return ledger_pb2.Receipt(
            ledger_entry_id=f"capture:{hold.hold_id}",
            captured_amount_micros=_amount(charged_ms, price),
            charged_ms=charged_ms,
            is_captured=True,
        )

    async def _abort_when_down(self, context: Context) -> None:
        if self.is_down:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "billing is down in this test")


def _amount(run_ms: int, price_micros_per_second: int) -> int:
    return -(-run_ms * price_micros_per_second // 1000)
