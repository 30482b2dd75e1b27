"""Reconciliation of a worker's report with the books."""

from services.scheduler.leases import (
    RESEND_COUNT_MAX,
    Grant,
    LeaseKey,
    Reconciliation,
    reconcile,
)

KEY = LeaseKey("p", 1)


def test_a_fresh_grant_that_is_not_listed_yet_is_left_alone() -> None:
    granted = {KEY: Grant("v", granted_at=10.0)}
    for now in (10.1, 11.4):
        result = reconcile(granted=granted, revoked=(), held=(), now=now, resend_after_s=1.5)
        assert not result.resend


def test_a_grant_missing_twice_is_sent_again_and_in_the_end_lost() -> None:
    grant = Grant("v", granted_at=0.0)
    sent, now = 0, 2.0
    while True:
        result = reconcile(granted={KEY: grant}, revoked=(), held=(), now=now, resend_after_s=1.5)
        now += 1.0
        if result.lost:
            break
        if result.resend:
            sent += 1
            grant.granted_at, grant.missing_since, grant.resend_count = now, None, sent
    assert sent == RESEND_COUNT_MAX


def test_a_grant_that_is_listed_again_starts_anew() -> None:
    grant = Grant("v", granted_at=0.0, resend_count=2, missing_since=1.0)
    result = reconcile(granted={KEY: grant}, revoked=(), held=[KEY], now=9, resend_after_s=1.5)
    assert result == Reconciliation()
    assert grant.missing_since is None
    assert grant.resend_count == 0


def test_unknown_and_older_attempts_are_revoked() -> None:
    granted = {LeaseKey("p", 2): Grant("v", granted_at=0.0)}
    result = reconcile(granted=granted, revoked=(), held=[KEY], now=0.1, resend_after_s=1.5)
    assert result.revoke == [KEY]


def test_a_revoked_lease_frees_its_slot_once_it_is_gone() -> None:
    held = reconcile(granted={}, revoked=[KEY], held=[KEY], now=1, resend_after_s=1.5)
    assert held.freed == []
    gone = reconcile(granted={}, revoked=[KEY], held=[], now=2, resend_after_s=1.5)
    assert gone.freed == [KEY]
