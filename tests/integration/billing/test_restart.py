"""What a killed process answered stays true after its restart."""

import asyncio

from reprise.billing.v1 import ledger_pb2

from services.chassis.errors import RepriseError
from tests.integration.billing.process import BillingProcess, capture, new_hold, release


async def test_a_batch_repeated_after_kill_9_gets_the_same_receipts(
    billing_process: BillingProcess,
) -> None:
    holds = [new_hold(f"p{number}") for number in range(32)]
    settlements = [
        release(hold.hold_id) if number % 3 else capture(hold.hold_id, run_ms=number)
        for number, hold in enumerate(holds)
    ]
    held = await billing_process.create_holds(*holds)
    await billing_process.kill()
    await billing_process.start()
    assert await billing_process.create_holds(*holds) == held
    receipts = await billing_process.settle_holds(*settlements)
    before = await billing_process.credit("alice")
    await billing_process.kill()
    await billing_process.start()
    assert await billing_process.settle_holds(*settlements) == receipts
    assert await billing_process.credit("alice") == before
    assert {result.reason for result in await billing_process.create_holds(*holds)} == {
        "HOLD_SETTLED"
    }


async def test_kill_9_among_calls_loses_nothing_that_was_answered(
    billing_process: BillingProcess,
) -> None:
    held: dict[str, ledger_pb2.HoldResult] = {}
    receipts: dict[str, ledger_pb2.SettlementResult] = {}
    has_settled = asyncio.Event()

    async def run(lane: int) -> None:
        for number in range(200):
            hold_id = f"p{lane}-{number}"
            (held[hold_id],) = await billing_process.create_holds(new_hold(hold_id))
            (receipts[hold_id],) = await billing_process.settle_holds(
                capture(hold_id, run_ms=number)
            )
            if len(receipts) >= 40:
                has_settled.set()

    lanes = [asyncio.create_task(run(lane)) for lane in range(8)]
    await asyncio.wait_for(has_settled.wait(), 30)
    await billing_process.kill()
    for lane in lanes:
        lane.cancel()
    ended = await asyncio.gather(*lanes, return_exceptions=True)
    assert all(isinstance(end, asyncio.CancelledError | RepriseError) for end in ended)
    answered = dict(receipts)
    assert billing_process.violations() == []
    await billing_process.start()
    repeated = await billing_process.settle_holds(
        *[capture(hold_id, run_ms=0) for hold_id in answered]
    )
    assert repeated == list(answered.values())
    # The holds that were open at the kill can be settled still.
    still_open = [hold_id for hold_id in held if hold_id not in answered]
    released = await billing_process.settle_holds(*[release(hold_id) for hold_id in still_open])
    assert all(result.HasField("receipt") for result in released)


async def test_a_stop_in_good_order_ends_with_success(billing_process: BillingProcess) -> None:
    await billing_process.create_holds(new_hold("p1"))
    assert await billing_process.terminate() == 0
    await billing_process.start()
    (settled,) = await billing_process.settle_holds(capture("p1", run_ms=10))
    assert settled.receipt.is_captured
