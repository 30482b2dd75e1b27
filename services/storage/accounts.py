"""Whose call it is, for methods that make no sense without an account."""

from typing import Any

from services.chassis.errors import Unauthenticated
from services.chassis.server import caller


def account_of(grpc_context: Any) -> str:
    """The calling account; bytes that belong to nobody could be reached by nobody."""
    account_id = caller(grpc_context).account_id
    if not account_id:
        raise Unauthenticated("the call names no account; peers must pass the account they act for")
    return account_id
