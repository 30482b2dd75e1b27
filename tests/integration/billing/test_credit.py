"""Credit, ledger entries and prices over gRPC."""

import asyncio
from typing import Any

import pytest
from reprise.billing.v1 import ledger_pb2, price_pb2

from services.chassis.errors import (
    AlreadyExists,
    InvalidInput,
    PermissionDenied,
    Unauthenticated,
)
from tests.integration.billing.process import STARTING_CREDIT_MICROS as STARTING_CREDIT
from tests.integration.billing.process import Billing, capture, new_hold, release


async def add_credit(
    billing: Billing, request_id: str, *, account_id: str = "alice", **fields: Any
) -> ledger_pb2.Credit:
    request = ledger_pb2.AddCreditRequest(account_id=account_id, **fields)
    response = await billing.call(
        "AddCredit", request, account_id="root", is_operator=True, request_id=request_id
    )
    credit: ledger_pb2.Credit = response.credit
    return credit


async def list_entries(billing: Billing, account_id: str, **fields: Any) -> Any:
    request = ledger_pb2.ListLedgerEntriesRequest(**fields)
    return await billing.call("ListLedgerEntries", request, account_id=account_id)


async def test_a_new_account_has_the_starting_credit_once(billing: Billing) -> None:
    credits = await asyncio.gather(*(billing.credit("alice") for _ in range(20)))
    assert {credit.available_micros for credit in credits} == {STARTING_CREDIT}
    page = await list_entries(billing, "alice")
    assert [entry.id for entry in page.entries] == ["starting_credit:alice"]
    assert page.entries[0].kind == ledger_pb2.LEDGER_ENTRY_KIND_CREDIT
    assert credits[0].currency == "USD"


async def test_the_same_request_adds_credit_once(billing: Billing) -> None:
    repeats = [add_credit(billing, "r1", amount_micros=5, note="gift") for _ in range(10)]
    for credit in await asyncio.gather(*repeats):
        assert credit.available_micros == STARTING_CREDIT + 5
    again = await add_credit(billing, "r2", amount_micros=5, note="gift")
    assert again.balance_micros == STARTING_CREDIT + 10


async def test_a_request_id_cannot_be_used_for_other_credit(billing: Billing) -> None:
    await add_credit(billing, "r1", amount_micros=5)
    with pytest.raises(AlreadyExists) as refusal:
        await add_credit(billing, "r1", amount_micros=6)
    assert refusal.value.reason == "REQUEST_ID_REUSED"
    with pytest.raises(AlreadyExists):
        await add_credit(billing, "r1", account_id="bob", amount_micros=5)
    assert (await billing.credit("bob")).balance_micros == STARTING_CREDIT


async def test_credit_is_added_by_operators_only(billing: Billing) -> None:
    request = ledger_pb2.AddCreditRequest(amount_micros=5)
    with pytest.raises(PermissionDenied):
        await billing.call("AddCredit", request, account_id="alice", request_id="r1")
    with pytest.raises(Unauthenticated):
        await billing.call("GetCredit", ledger_pb2.GetCreditRequest())


async def test_credit_beyond_its_bound_names_the_field(billing: Billing) -> None:
    with pytest.raises(InvalidInput) as refusal:
        await add_credit(billing, "r1", amount_micros=10**15 + 1)
    assert [violation.field for violation in refusal.value.fields] == ["amount_micros"]


async def test_added_credit_pays_for_holds(billing: Billing) -> None:
    hold = new_hold("p1", run_ms_max=20_000_000)
    assert (await billing.create_holds(hold))[0].reason == "INSUFFICIENT_CREDIT"
    await add_credit(billing, "r1", amount_micros=1_000_000)
    assert (await billing.create_holds(hold))[0].hold.amount_micros == 2_000_000


async def test_the_entries_of_an_account_sum_to_its_available_credit(
    billing: Billing,
) -> None:
    await billing.create_holds(new_hold("p1"), new_hold("p2"), new_hold("p3"))
    await billing.settle_holds(capture("p1", run_ms=600), release("p2", "worker_lost"))
    page = await list_entries(billing, "alice")
    available = (await billing.credit("alice")).available_micros
    assert sum(entry.amount_micros for entry in page.entries) == available
    shown = {entry.id: (entry.amount_micros, entry.note) for entry in page.entries}
    assert shown == {
        "starting_credit:alice": (STARTING_CREDIT, "Starting credit"),
        "hold:p1": (-100, "at most 1000 ms on cpu"),
        "hold:p2": (-100, "at most 1000 ms on cpu"),
        "hold:p3": (-100, "at most 1000 ms on cpu"),
        "capture:p1": (40, "0.00006 USD for 600 ms on cpu"),
        "release:p2": (100, "worker_lost"),
    }
    times = [entry.created_at.ToNanoseconds() for entry in page.entries]
    assert times == sorted(times, reverse=True)


async def test_an_account_sees_no_entry_of_another(billing: Billing) -> None:
    await billing.create_holds(new_hold("p1", "alice"), new_hold("p2", "bob"))
    page = await list_entries(billing, "bob")
    assert {entry.id for entry in page.entries} == {"starting_credit:bob", "hold:p2"}
    foreign = await list_entries(billing, "bob", prediction_id="p1")
    assert list(foreign.entries) == []
    own = await list_entries(billing, "alice", prediction_id="p1")
    assert [entry.prediction_id for entry in own.entries] == ["p1"]


async def test_entries_come_in_pages_forth_and_back(billing: Billing) -> None:
    await billing.create_holds(*[new_hold(f"p{number}") for number in range(4)])
    first = await list_entries(billing, "alice", page_size=2)
    assert [entry.id for entry in first.entries] == ["hold:p3", "hold:p2"]
    second = await list_entries(billing, "alice", page_size=2, page_token=first.next_page_token)
    assert [entry.id for entry in second.entries] == ["hold:p1", "hold:p0"]
    last = await list_entries(billing, "alice", page_size=2, page_token=second.next_page_token)
    assert [entry.id for entry in last.entries] == ["starting_credit:alice"]
    assert last.next_page_token == ""
    back = await list_entries(billing, "alice", page_size=2, page_token=last.previous_page_token)
    assert back.entries == second.entries
    # A cursor says where, not whose: another account's shows only one's own entries.
    foreign = await list_entries(billing, "bob", page_token=first.next_page_token)
    assert list(foreign.entries) == []


async def test_a_broken_page_token_is_named(billing: Billing) -> None:
    with pytest.raises(InvalidInput, match="page_token"):
        await list_entries(billing, "alice", page_token="no cursor")


async def test_prices_are_listed_in_pages(billing: Billing) -> None:
    first = await billing.call("ListPrices", price_pb2.ListPricesRequest(page_size=1))
    assert list(first.prices) == [
        price_pb2.Price(hardware="cpu", price_micros_per_second=100, currency="USD")
    ]
    rest = await billing.call(
        "ListPrices", price_pb2.ListPricesRequest(page_token=first.next_page_token)
    )
    assert [price.hardware for price in rest.prices] == ["gpu"]
    assert rest.next_page_token == ""
