"""`Prefer: wait`: how long a create may hold its answer back."""

import re
from collections.abc import Mapping

from services.chassis.errors import FieldViolation, InvalidInput

# py2 and the Stainless clients give up after 60 s and post again; stay clear of that.
WAIT_MAX_S = 55.0
WAIT_DEFAULT_S = 60.0
_GRACE_S = 5.0
_CLIENT_TIMEOUTS = (b"x-stainless-read-timeout", b"x-stainless-timeout")

_CANCEL_AFTER = re.compile(r"(?:(\d{1,9})h)?(?:(\d{1,9})m)?(?:(\d{1,9})s)?")
CANCEL_AFTER_MIN_S = 5
CANCEL_AFTER_MAX_S = 24 * 3600


def wait_of(headers: Mapping[bytes, bytes]) -> float | None:
    """Seconds that the caller wants to wait, within what its client endures; None: not at all."""
    prefer = headers.get(b"prefer")
    if prefer is None:
        return None
    wait = parse_prefer(prefer.decode("latin-1"))
    return None if wait is None else clamp_wait(wait, headers)


def parse_prefer(prefer: str) -> float | None:
    """The seconds of the first well-formed wait preference; other preferences are ignored."""
    for preference in prefer.split(","):
        name, _, value = preference.partition(";")[0].partition("=")
        if name.strip().lower() != "wait":
            continue
        value = value.strip().strip('"')
        if not value:
            return WAIT_DEFAULT_S
        if value.isascii() and value.isdigit() and int(value[:9]) > 0:
            return float(value[:9])
    return None


def clamp_wait(wait_s: float, headers: Mapping[bytes, bytes]) -> float:
    """A wait that ends before any known client stops listening."""
    limit = WAIT_MAX_S
    for name in _CLIENT_TIMEOUTS:
        text = headers.get(name, b"").decode("latin-1")
        try:
            listens_s = float(text) if text else 0.0
        except ValueError:
            continue
        if 0 < listens_s < limit + _GRACE_S:
            limit = max(listens_s - _GRACE_S, listens_s / 2)
    return min(wait_s, limit)


def parse_cancel_after(text: str) -> int:
    """Seconds of a Cancel-After header: 90, 30s, 5m, 1h30m45s."""
    text = text.strip()
    if text.isascii() and text.isdigit():
        seconds = int(text[:9])
    else:
        match = _CANCEL_AFTER.fullmatch(text) if text else None
        if match is None:
            raise _bad_cancel_after()
        hours, minutes, rest = (int(part or 0) for part in match.groups())
        seconds = hours * 3600 + minutes * 60 + rest
    if not CANCEL_AFTER_MIN_S <= seconds <= CANCEL_AFTER_MAX_S:
        raise _bad_cancel_after()
    return seconds


def _bad_cancel_after() -> InvalidInput:
    violation = FieldViolation(
        field="Cancel-After",
        description="must be seconds or units such as 90, 30s, 5m or 1h30m, from 5s to 24h",
        kind="invalid",
    )
    return InvalidInput("Cancel-After is not a duration", fields=[violation])
