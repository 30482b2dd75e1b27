"""Error meanings, and the one table between them and gRPC statuses."""

import errno
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.rpc import error_details_pb2, status_pb2

DETAILS_KEY = "grpc-status-details-bin"
DOMAIN = "reprise"


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One problem of one input field."""

    field: str
    description: str
    kind: str = ""


class RepriseError(Exception):
    """An error whose text may be shown to the caller: what is wrong and what to do."""

    status: ClassVar[grpc.StatusCode] = grpc.StatusCode.INTERNAL
    default_reason: ClassVar[str] = "INTERNAL"

    def __init__(
        self, message: str, *, reason: str = "", fields: Sequence[FieldViolation] = ()
    ) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason or self.default_reason
        self.fields = tuple(fields)


class InvalidInput(RepriseError):
    """The caller sent something that can never work."""

    status = grpc.StatusCode.INVALID_ARGUMENT
    default_reason = "INVALID_INPUT"


class NotFound(RepriseError):
    """The thing does not exist, or not for this caller."""

    status = grpc.StatusCode.NOT_FOUND
    default_reason = "NOT_FOUND"


class AlreadyExists(RepriseError):
    """The name is taken."""

    status = grpc.StatusCode.ALREADY_EXISTS
    default_reason = "ALREADY_EXISTS"


class Conflict(RepriseError):
    """The thing is not in a state that allows this."""

    status = grpc.StatusCode.FAILED_PRECONDITION
    default_reason = "CONFLICT"


class Unauthenticated(RepriseError):
    """Nobody knows who calls."""

    status = grpc.StatusCode.UNAUTHENTICATED
    default_reason = "UNAUTHENTICATED"


class PermissionDenied(RepriseError):
    """The caller is known and may not."""

    status = grpc.StatusCode.PERMISSION_DENIED
    default_reason = "PERMISSION_DENIED"


class ResourceExhausted(RepriseError):
    """A limit, a size or the credit is used up."""

    status = grpc.StatusCode.RESOURCE_EXHAUSTED
    default_reason = "RESOURCE_EXHAUSTED"


class Unavailable(RepriseError):
    """Not now; the same call may work later."""

    status = grpc.StatusCode.UNAVAILABLE
    default_reason = "UNAVAILABLE"


class NotImplementedYet(RepriseError):
    """Part of the contract that this version does not serve."""

    status = grpc.StatusCode.UNIMPLEMENTED
    default_reason = "NOT_IMPLEMENTED"


class Internal(RepriseError):
    """A fault of ours; the text that callers see is only an id."""


MEANINGS: tuple[type[RepriseError], ...] = (
    InvalidInput,
    NotFound,
    AlreadyExists,
    Conflict,
    Unauthenticated,
    PermissionDenied,
    ResourceExhausted,
    Unavailable,
    NotImplementedYet,
    Internal,
)
_BY_STATUS = {meaning.status: meaning for meaning in MEANINGS} | {
    grpc.StatusCode.DEADLINE_EXCEEDED: Unavailable,
    grpc.StatusCode.CANCELLED: Unavailable,
}


def invalid_field(field: str, problem: str, kind: str = "invalid") -> InvalidInput:
    """The refusal of one input field: what is wrong with it, as the end of a sentence."""
    violation = FieldViolation(field=field, description=problem, kind=kind)
    return InvalidInput(f"{field} {problem}", fields=[violation])


def file_too_large(limit_bytes: int) -> ResourceExhausted:
    """The refusal of a file above its limit, in the words that clients know."""
    limit = f"{limit_bytes // 2**20}MB" if limit_bytes >= 2**20 else f"{limit_bytes} bytes"
    return ResourceExhausted(f"Files must be less than {limit} in size", reason="FILE_TOO_LARGE")


def of_full_disk(error: BaseException) -> ResourceExhausted | None:
    """The refusal where a fault comes from a full disk; None where it comes from elsewhere."""
    cause: BaseException | None = error
    while cause is not None:
        is_full = isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT)
        if is_full or getattr(cause, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL:
            return ResourceExhausted(
                "nothing can be stored, because the disk of the mesh is full; its operator makes "
                "room on it",
                reason="DISK_FULL",
            )
        cause = cause.__cause__
    return None


def to_details(error: RepriseError) -> bytes:
    """The google.rpc.Status that travels in the trailing metadata."""
    info = error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN)
    status = status_pb2.Status(code=error.status.value[0], message=error.message)
    status.details.append(_pack(info))
    if error.fields:
        request = error_details_pb2.BadRequest()
        for violation in error.fields:
            request.field_violations.add(
                field=violation.field, description=violation.description, reason=violation.kind
            )
        status.details.append(_pack(request))
    serialized: bytes = status.SerializeToString()
    return serialized


def from_rpc(error: grpc.aio.AioRpcError) -> RepriseError:
    """The meaning of a failed call to a peer."""
    meaning = _BY_STATUS.get(error.code(), Internal)
    reason = ""
    fields: list[FieldViolation] = []
    status = status_pb2.Status()
    for key, value in error.trailing_metadata() or ():
        if key == DETAILS_KEY and isinstance(value, bytes):
            status.ParseFromString(value)
    for detail in status.details:
        info = error_details_pb2.ErrorInfo()
        request = error_details_pb2.BadRequest()
        if detail.Unpack(info):
            reason = info.reason
        elif detail.Unpack(request):
            fields = [
                FieldViolation(field=item.field, description=item.description, kind=item.reason)
                for item in request.field_violations
            ]
    return meaning(error.details() or meaning.default_reason, reason=reason, fields=fields)


def _pack(
    message: error_details_pb2.ErrorInfo | error_details_pb2.BadRequest,
) -> AnyMessage:
    packed = AnyMessage()
    packed.Pack(message)
    return packed
