"""Errors as Replicate's clients expect them: problem+json objects and HTTP statuses."""

import logging
import secrets
from typing import Any

import grpc
import orjson

from services.chassis import errors
from services.chassis.errors import RepriseError
from services.gateway.routes import MethodNotAllowed

log = logging.getLogger(__name__)

CONTENT_TYPE = (b"content-type", b"application/problem+json")
RETRY_AFTER_S = 1

_BY_MEANING: dict[type[RepriseError], tuple[int, str]] = {
    errors.InvalidInput: (422, "Invalid input"),
    errors.NotFound: (404, "Not found"),
    errors.AlreadyExists: (409, "Already exists"),
    errors.Conflict: (400, "Not possible now"),
    errors.Unauthenticated: (401, "Unauthenticated"),
    errors.PermissionDenied: (403, "Permission denied"),
    errors.ResourceExhausted: (429, "Limit reached"),
    errors.Unavailable: (503, "Service unavailable"),
    errors.NotImplementedYet: (501, "Not implemented"),
    errors.Internal: (500, "Internal error"),
    MethodNotAllowed: (405, "Method not allowed"),
}
# Reasons that say more than their meaning.
_BY_REASON: dict[str, tuple[int, str]] = {
    "INSUFFICIENT_CREDIT": (402, "Insufficient credit"),
    "TOO_LARGE": (413, "Too large"),
    "FILE_TOO_LARGE": (413, "File too large"),
    "BODY_TIMEOUT": (408, "Request timeout"),
    "MALFORMED_BODY": (400, "Malformed body"),
    "DISK_FULL": (507, "Insufficient storage"),
    "INVALID_VERSION": (422, "Invalid version or not permitted"),
}


def too_large(message: str) -> errors.ResourceExhausted:
    """The body is larger than its limit, which the message names."""
    return errors.ResourceExhausted(message, reason="TOO_LARGE")


def body_timeout(pause_s: float) -> errors.Unavailable:
    """The body stopped coming."""
    return errors.Unavailable(f"No part of the body came for {pause_s:g} s.", reason="BODY_TIMEOUT")


def broken_body() -> errors.InvalidInput:
    """The body ended before its end, or its framing cannot be read."""
    return errors.InvalidInput(
        "The body broke off: send as many bytes as Content-Length says, or well-formed chunks.",
        reason="MALFORMED_BODY",
    )


def unauthenticated() -> errors.Unauthenticated:
    """The text is Replicate's own: a test of its Python client compares it."""
    return errors.Unauthenticated("You did not pass a valid authentication token")


def status_of(error: RepriseError) -> int:
    """The HTTP status of an error."""
    return _kind_of(error)[0]


def problem_of(error: RepriseError) -> dict[str, Any]:
    """The body of an error's answer."""
    status, title = _kind_of(error)
    problem: dict[str, Any] = {"title": title, "detail": error.message, "status": status}
    if error.fields:
        problem["title"] = "Input validation failed" if status == 422 else title
        problem["detail"] = "".join(
            f"- {item.field}: {item.description}\n" for item in error.fields
        )
        problem["invalid_fields"] = [
            {"type": item.kind or "invalid", "field": item.field, "description": item.description}
            for item in error.fields
        ]
    if status == 429:
        problem["retry_after"] = RETRY_AFTER_S
    problem["reason"] = error.reason
    return problem


def answer_of(error: RepriseError) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
    """Status, headers and body of an error's answer."""
    status = status_of(error)
    headers = [CONTENT_TYPE, (b"cache-control", b"no-store")]
    if status in (429, 503):
        headers.append((b"retry-after", str(RETRY_AFTER_S).encode()))
    if status in (409, 501):
        # Some clients repeat these; ours never go away by themselves.
        headers.append((b"x-should-retry", b"false"))
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if isinstance(error, MethodNotAllowed):
        headers.append((b"allow", error.allow.encode()))
    return status, headers, orjson.dumps(problem_of(error))


def for_callers(error: RepriseError, what: str) -> RepriseError:
    """The error as callers may see it: the text of a peer's unexpected fault stays in the log."""
    cause = error.__cause__
    if not isinstance(error, errors.Internal) or not isinstance(cause, grpc.aio.AioRpcError):
        return error
    # Our services send details with every error that is meant to be read.
    is_ours = any(key == errors.DETAILS_KEY for key, _ in cause.trailing_metadata() or ())
    return error if is_ours else hidden(error, what)


def hidden(error: BaseException, what: str) -> errors.Internal:
    """A fault of ours: its text goes to the log, the caller gets an id."""
    error_id = secrets.token_hex(6)
    log.error(
        "request failed by a fault of ours",
        exc_info=error,
        extra={"event": "request_failed", "error_id": error_id, "request": what},
    )
    return errors.Internal(
        f"internal error {error_id}; the operator finds it in the logs by this id"
    )


def _kind_of(error: RepriseError) -> tuple[int, str]:
    if by_reason := _BY_REASON.get(error.reason):
        return by_reason
    for meaning in type(error).__mro__:
        if kind := _BY_MEANING.get(meaning):
            return kind
    return 500, "Internal error"
