"""Holds and settlements over gRPC."""

import asyncio
import re

import pytest
from reprise.billing.v1 import ledger_pb2

from services.chassis.errors import InvalidInput
from tests.integration.billing.process import STARTING_CREDIT_MICROS as STARTING_CREDIT
from tests.integration.billing.process import Billing, capture, new_hold, release


async def test_a_hundred_concurrent_holds_never_overdraw(billing: Billing) -> None:
    # Each costs 3 % of the credit: 33 fit.
    attempts = [
        billing.create_holds(new_hold(f"p{number}", run_ms_max=300_000)) for number in range(100)
    ]
    results = [result for (result,) in await asyncio.gather(*attempts)]
    granted = [result for result in results if result.HasField("hold")]
    refused = [result for result in results if result.reason == "INSUFFICIENT_CREDIT"]
    assert (len(granted), len(refused)) == (33, 67)
    credit = await billing.credit("alice")
    assert credit.held_micros == 33 * 30_000
    assert credit.available_micros == STARTING_CREDIT - 33 * 30_000
    assert credit.balance_micros == STARTING_CREDIT


async def test_a_refused_hold_names_both_amounts_and_the_way_out(billing: Billing) -> None:
    (result,) = await billing.create_holds(new_hold("p1", run_ms_max=20_000_000))
    assert result.reason == "INSUFFICIENT_CREDIT"
    assert "2.00 USD" in result.detail
    assert "1.00 USD" in result.detail
    assert "`reprise credit add`" in result.detail


async def test_a_capture_gives_the_rest_of_the_hold_back(billing: Billing) -> None:
    (held,) = await billing.create_holds(new_hold("p1", run_ms_max=60_000))
    assert held.hold == ledger_pb2.Hold(amount_micros=6000, price_micros_per_second=100)
    (settled,) = await billing.settle_holds(capture("p1", run_ms=1234))
    assert settled.receipt == ledger_pb2.Receipt(
        ledger_entry_id="capture:p1", captured_amount_micros=124, charged_ms=1234, is_captured=True
    )
    credit = await billing.credit("alice")
    assert credit.available_micros == STARTING_CREDIT - 124
    assert credit.held_micros == 0


async def test_a_run_beyond_its_hold_costs_the_hold(billing: Billing) -> None:
    await billing.create_holds(new_hold("p1", run_ms_max=1000))
    (settled,) = await billing.settle_holds(capture("p1", run_ms=999_999))
    assert settled.receipt.captured_amount_micros == 100
    assert settled.receipt.charged_ms == 1000


async def test_a_release_costs_nothing(billing: Billing) -> None:
    await billing.create_holds(new_hold("p1"))
    (settled,) = await billing.settle_holds(release("p1"))
    assert settled.receipt == ledger_pb2.Receipt(ledger_entry_id="release:p1")
    assert (await billing.credit("alice")).available_micros == STARTING_CREDIT


async def test_repeats_are_the_same_hold_and_the_same_receipt(billing: Billing) -> None:
    first = await billing.create_holds(new_hold("p1"), new_hold("p2"), new_hold("p1"))
    assert first[0] == first[2]
    # A repeat is the first hold, whatever it asks for now.
    assert await billing.create_holds(new_hold("p1", run_ms_max=5)) == [first[0]]
    receipts = await billing.settle_holds(capture("p1", run_ms=10), release("p2"))
    assert await billing.settle_holds(release("p1"), capture("p2", run_ms=10)) == receipts
    assert (await billing.credit("alice")).available_micros == STARTING_CREDIT - 1


async def test_concurrent_repeats_of_one_batch_settle_once(billing: Billing) -> None:
    holds = [new_hold(f"p{number}") for number in range(16)]
    answers = await asyncio.gather(*(billing.create_holds(*holds) for _ in range(8)))
    assert all(answer == answers[0] for answer in answers)
    settlements = [capture(hold.hold_id, run_ms=10) for hold in holds]
    receipts = await asyncio.gather(*(billing.settle_holds(*settlements) for _ in range(8)))
    assert all(receipt == receipts[0] for receipt in receipts)
    assert (await billing.credit("alice")).available_micros == STARTING_CREDIT - 16


async def test_a_settled_hold_is_not_reopened(billing: Billing) -> None:
    await billing.create_holds(new_hold("p1"))
    await billing.settle_holds(capture("p1", run_ms=10))
    again, new = await billing.create_holds(new_hold("p1"), new_hold("p2"))
    assert (again.reason, again.HasField("hold")) == ("HOLD_SETTLED", False)
    assert new.hold.amount_micros == 100


async def test_a_settled_hold_is_named_so_even_without_credit(billing: Billing) -> None:
    await billing.create_holds(new_hold("p1", run_ms_max=10_000_000))
    await billing.settle_holds(capture("p1", run_ms=10_000_000))
    settled, unknown = await billing.create_holds(new_hold("p1"), new_hold("p2"))
    assert (settled.reason, unknown.reason) == ("HOLD_SETTLED", "INSUFFICIENT_CREDIT")


async def test_another_accounts_hold_id_is_not_its_hold(billing: Billing) -> None:
    await billing.create_holds(new_hold("p1", "alice"))
    (result,) = await billing.create_holds(new_hold("p1", "bob"))
    assert result.reason == "HOLD_CONFLICT"
    assert not result.HasField("hold")


async def test_hardware_without_a_price_is_named_with_the_priced_ones(
    billing: Billing,
) -> None:
    hold = ledger_pb2.NewHold(hold_id="p1", account_id="alice", hardware="gpu-h900", run_ms_max=10)
    (result,) = await billing.create_holds(hold)
    assert result.reason == "UNKNOWN_HARDWARE"
    assert "gpu-h900" in result.detail
    assert "cpu, gpu" in result.detail


async def test_an_unknown_hold_is_not_settled(billing: Billing) -> None:
    await billing.create_holds(new_hold("p1"))
    known, unknown = await billing.settle_holds(capture("p1", run_ms=1), release("p404"))
    assert known.receipt.is_captured
    assert (unknown.reason, unknown.HasField("receipt")) == ("HOLD_NOT_FOUND", False)


async def test_a_bad_batch_names_its_field_and_does_nothing(billing: Billing) -> None:
    with pytest.raises(InvalidInput, match=re.escape("holds[1].run_ms_max")):
        await billing.create_holds(new_hold("p1"), new_hold("p2", run_ms_max=-1))
    (result,) = await billing.settle_holds(release("p1"))
    assert result.reason == "HOLD_NOT_FOUND"


async def test_open_holds_are_listed_by_age_in_pages(billing: Billing) -> None:
    await billing.create_holds(*[new_hold(f"p{number}") for number in range(5)])
    await billing.settle_holds(release("p2"))
    found: list[str] = []
    page_token = ""
    while True:
        page = await billing.call(
            "ListOpenHolds",
            ledger_pb2.ListOpenHoldsRequest(page_size=2, page_token=page_token),
        )
        found += page.hold_ids
        page_token = page.next_page_token
        if not page_token:
            break
    assert found == ["p0", "p1", "p3", "p4"]
    old = await billing.call("ListOpenHolds", ledger_pb2.ListOpenHoldsRequest(older_than_s=600))
    assert list(old.hold_ids) == []
