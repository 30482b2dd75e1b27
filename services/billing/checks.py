"""What requests must look like: each refusal names its field and says what is allowed."""

import re
from collections.abc import Sized

from reprise.billing.v1 import ledger_pb2

from services.billing.pricing import RUN_MS_MAX
from services.chassis.errors import InvalidInput, PermissionDenied, invalid_field

ACCOUNT_ID = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
# Without colons: what the ledger adds by itself has one in its name.
HOLD_ID = re.compile(r"[A-Za-z0-9_.-]{1,255}")
ID_LENGTH_MAX = 255
NOTE_LENGTH_MAX = 200
CREDIT_MICROS_MAX = 10**15


def amount_error(problem: str) -> InvalidInput:
    """A refusal of amount_micros."""
    return invalid_field("amount_micros", problem, "number_lte")


def check_operator(*, is_operator: bool) -> None:
    if not is_operator:
        raise PermissionDenied("only an operator may add credit")


def check_add_credit(request: ledger_pb2.AddCreditRequest, *, request_id: str) -> None:
    if request.account_id:
        _check_account_id(request.account_id, "account_id")
    if request.amount_micros <= 0:
        raise invalid_field("amount_micros", "must be more than 0", "number_gt")
    if request.amount_micros > CREDIT_MICROS_MAX:
        raise amount_error(f"must be at most {CREDIT_MICROS_MAX}")
    _check_length(request.note, "note", NOTE_LENGTH_MAX)
    # It makes the repeat of a lost call harmless: without it, credit could be added twice.
    _check_id(request_id, "request_id")


def check_list_entries(request: ledger_pb2.ListLedgerEntriesRequest) -> None:
    _check_length(request.prediction_id, "prediction_id", ID_LENGTH_MAX)


def check_list_open_holds(request: ledger_pb2.ListOpenHoldsRequest) -> None:
    if request.older_than_s < 0:
        raise invalid_field("older_than_s", "must not be negative", "number_gte")


def check_holds(request: ledger_pb2.CreateHoldsRequest, *, batch_size_max: int) -> None:
    _check_batch(request.holds, "holds", batch_size_max)
    for index, hold in enumerate(request.holds):
        field = f"holds[{index}]"
        _check_hold_id(hold.hold_id, f"{field}.hold_id")
        _check_account_id(hold.account_id, f"{field}.account_id")
        _check_id(hold.hardware, f"{field}.hardware")
        if not 0 < hold.run_ms_max <= RUN_MS_MAX:
            problem = f"must be from 1 to {RUN_MS_MAX}"
            raise invalid_field(f"{field}.run_ms_max", problem, "number_lte")


def check_settlements(request: ledger_pb2.SettleHoldsRequest, *, batch_size_max: int) -> None:
    _check_batch(request.settlements, "settlements", batch_size_max)
    for index, settlement in enumerate(request.settlements):
        field = f"settlements[{index}]"
        _check_hold_id(settlement.hold_id, f"{field}.hold_id")
        if settlement.HasField("capture"):
            # No upper bound: beyond the hold, the hold is what is charged.
            if settlement.capture.run_ms < 0:
                raise invalid_field(f"{field}.capture.run_ms", "must not be negative", "number_gte")
        elif settlement.HasField("release"):
            _check_length(settlement.release.reason, f"{field}.release.reason", NOTE_LENGTH_MAX)
        else:
            raise invalid_field(f"{field}.action", "must be capture or release", "required")


def _check_batch(items: Sized, field: str, size_max: int) -> None:
    if len(items) > size_max:
        raise invalid_field(field, f"must have at most {size_max} items", "array_lte")


def _check_id(value: str, field: str) -> None:
    if not value:
        raise invalid_field(field, "is required", "required")
    _check_length(value, field, ID_LENGTH_MAX)


def _check_hold_id(value: str, field: str) -> None:
    if not HOLD_ID.fullmatch(value):
        problem = "must be a prediction id: 1 to 255 letters, digits, dots, dashes or underscores"
        raise invalid_field(field, problem, "pattern")


def _check_length(value: str, field: str, length_max: int) -> None:
    if len(value) > length_max:
        problem = f"must have at most {length_max} characters"
        raise invalid_field(field, problem, "string_lte")


def _check_account_id(value: str, field: str) -> None:
    if not value:
        raise invalid_field(field, "is required", "required")
    if not ACCOUNT_ID.fullmatch(value):
        problem = "must be a username: 1 to 64 lower-case letters, digits and dashes"
        raise invalid_field(field, problem, "pattern")
