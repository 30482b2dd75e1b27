"""Reconciliation: what a worker says it holds against what it was given. Pure."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

# A lease sent this often to a worker that never lists it is lost there.
RESEND_COUNT_MAX = 3
# A report that crossed a grant or a completion is not yet a loss: missing twice, this far apart.
MISSING_CONFIRM_S = 0.5


@dataclass(frozen=True, slots=True)
class LeaseKey:
    """One attempt of one prediction."""

    prediction_id: str
    attempt: int


@dataclass(slots=True)
class Grant:
    """When a lease was sent, and since when its worker does not list it (monotonic)."""

    version_id: str
    granted_at: float
    resend_count: int = 0
    missing_since: float | None = None


@dataclass(frozen=True, slots=True)
class Reconciliation:
    """What to do after a report."""

    resend: list[LeaseKey] = field(default_factory=list)
    lost: list[LeaseKey] = field(default_factory=list)
    revoke: list[LeaseKey] = field(default_factory=list)
    # Revoked before, and now gone: their slots are free.
    freed: list[LeaseKey] = field(default_factory=list)


def reconcile(
    *,
    granted: Mapping[LeaseKey, Grant],
    revoked: Collection[LeaseKey],
    held: Iterable[LeaseKey],
    now: float,
    resend_after_s: float,
) -> Reconciliation:
    """Compares one report with the books; notes in each grant since when it is missing."""
    listed = set(held)
    result = Reconciliation()
    result.revoke.extend(key for key in listed if key not in granted)
    result.freed.extend(key for key in revoked if key not in listed)
    for key, grant in granted.items():
        if key in listed:
            grant.missing_since = None
            grant.resend_count = 0
        elif now - grant.granted_at >= resend_after_s and _is_confirmed(grant, now):
            is_lost = grant.resend_count >= RESEND_COUNT_MAX
            (result.lost if is_lost else result.resend).append(key)
    return result


def _is_confirmed(grant: Grant, now: float) -> bool:
    if grant.missing_since is None:
        grant.missing_since = now
        return False
    return now - grant.missing_since >= MISSING_CONFIRM_S
