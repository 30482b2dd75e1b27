"""Bad requests are refused with the name of the field."""

import pytest
from reprise.billing.v1 import ledger_pb2

from services.billing import checks, pricing
from services.chassis.errors import InvalidInput, PermissionDenied


def new_hold(**changes: object) -> ledger_pb2.NewHold:
    fields: dict[str, object] = {
        "hold_id": "p1",
        "account_id": "alice",
        "hardware": "cpu",
        "run_ms_max": 1000,
    }
    return ledger_pb2.NewHold(**(fields | changes))  # type: ignore[arg-type]  # one bad field each


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"hold_id": ""}, "holds[1].hold_id"),
        ({"hold_id": "starting_credit:alice"}, "holds[1].hold_id"),
        ({"hold_id": "p" * 256}, "holds[1].hold_id"),
        ({"account_id": ""}, "holds[1].account_id"),
        ({"account_id": "Alice"}, "holds[1].account_id"),
        ({"account_id": "a:b"}, "holds[1].account_id"),
        ({"hardware": ""}, "holds[1].hardware"),
        ({"run_ms_max": 0}, "holds[1].run_ms_max"),
        ({"run_ms_max": pricing.RUN_MS_MAX + 1}, "holds[1].run_ms_max"),
    ],
)
def test_a_bad_hold_is_refused_by_its_place_and_field(
    changes: dict[str, object], field: str
) -> None:
    request = ledger_pb2.CreateHoldsRequest(holds=[new_hold(), new_hold(**changes)])
    with pytest.raises(InvalidInput) as refusal:
        checks.check_holds(request, batch_size_max=2)
    assert [violation.field for violation in refusal.value.fields] == [field]
    assert field in refusal.value.message


@pytest.mark.parametrize(
    ("settlement", "field"),
    [
        (ledger_pb2.Settlement(hold_id="p1"), "settlements[0].action"),
        (ledger_pb2.Settlement(release=ledger_pb2.Release()), "settlements[0].hold_id"),
        (
            ledger_pb2.Settlement(hold_id="p1", capture=ledger_pb2.Capture(run_ms=-1)),
            "settlements[0].capture.run_ms",
        ),
        (
            ledger_pb2.Settlement(hold_id="p1", release=ledger_pb2.Release(reason="x" * 201)),
            "settlements[0].release.reason",
        ),
    ],
)
def test_a_bad_settlement_is_refused_by_its_place_and_field(
    settlement: ledger_pb2.Settlement, field: str
) -> None:
    request = ledger_pb2.SettleHoldsRequest(settlements=[settlement])
    with pytest.raises(InvalidInput) as refusal:
        checks.check_settlements(request, batch_size_max=2)
    assert [violation.field for violation in refusal.value.fields] == [field]


def test_a_batch_beyond_the_bound_is_refused() -> None:
    holds = ledger_pb2.CreateHoldsRequest(holds=[new_hold()] * 3)
    with pytest.raises(InvalidInput, match="holds must have at most 2 items"):
        checks.check_holds(holds, batch_size_max=2)
    release = ledger_pb2.Settlement(hold_id="p1", release=ledger_pb2.Release())
    settlements = ledger_pb2.SettleHoldsRequest(settlements=[release] * 3)
    with pytest.raises(InvalidInput, match="settlements must have at most 2 items"):
        checks.check_settlements(settlements, batch_size_max=2)


@pytest.mark.parametrize(
    ("request_", "request_id", "field"),
    [
        (ledger_pb2.AddCreditRequest(amount_micros=0), "r1", "amount_micros"),
        (ledger_pb2.AddCreditRequest(amount_micros=-5), "r1", "amount_micros"),
        (ledger_pb2.AddCreditRequest(amount_micros=10**15 + 1), "r1", "amount_micros"),
        (ledger_pb2.AddCreditRequest(amount_micros=1, note="x" * 201), "r1", "note"),
        (ledger_pb2.AddCreditRequest(amount_micros=1, account_id="A b"), "r1", "account_id"),
        (ledger_pb2.AddCreditRequest(amount_micros=1), "", "request_id"),
    ],
)
def test_bad_credit_is_refused_by_its_field(
    request_: ledger_pb2.AddCreditRequest, request_id: str, field: str
) -> None:
    with pytest.raises(InvalidInput) as refusal:
        checks.check_add_credit(request_, request_id=request_id)
    assert [violation.field for violation in refusal.value.fields] == [field]


def test_the_most_credit_with_the_longest_note_is_accepted() -> None:
    request = ledger_pb2.AddCreditRequest(amount_micros=10**15, note="x" * 200)
    checks.check_add_credit(request, request_id="r1")


def test_only_an_operator_adds_credit() -> None:
    checks.check_operator(is_operator=True)
    with pytest.raises(PermissionDenied):
        checks.check_operator(is_operator=False)
