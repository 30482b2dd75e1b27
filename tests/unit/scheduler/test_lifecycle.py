"""Status changes and who pays for each end."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from reprise.inference.v1 import events_pb2

from services.scheduler import lifecycle
from services.scheduler.lifecycle import (
    ALLOWED,
    CANCELED,
    FAILED,
    PROCESSING,
    STARTING,
    SUCCEEDED,
    Ending,
    Retry,
)

OUTCOMES = st.sampled_from(list(events_pb2.RunOutcome.values()))
BLAMES = st.sampled_from(list(events_pb2.Blame.values()))


@given(st.lists(st.sampled_from(list(ALLOWED)), max_size=8))
def test_no_sequence_of_allowed_changes_leaves_a_final_status(changes: list[int]) -> None:
    status = STARTING
    for to in changes:
        was_final = lifecycle.is_final(status)
        if lifecycle.may_change(status, to):
            assert not was_final
            status = to


def test_a_lost_attempt_may_wait_again_and_an_ended_one_may_not() -> None:
    assert lifecycle.may_change(PROCESSING, STARTING)
    assert not any(lifecycle.may_change(final, STARTING) for final in (SUCCEEDED, FAILED, CANCELED))


@given(OUTCOMES, BLAMES, st.text(max_size=5), st.integers(0, 5), st.integers(-5, 10**9))
def test_every_failure_has_a_text_and_only_the_platforms_are_tried_again(
    outcome: events_pb2.RunOutcome.ValueType,
    blame: events_pb2.Blame.ValueType,
    error: str,
    fault_count: int,
    run_us: int,
) -> None:
    completed = events_pb2.RunCompleted(outcome=outcome, blame=blame, error=error, run_us=run_us)
    result = lifecycle.after_run(completed, fault_count=fault_count, attempt_max=3)
    if isinstance(result, Retry):
        assert blame == events_pb2.BLAME_PLATFORM
        assert fault_count + 1 < 3
    else:
        assert (result.status == FAILED) == bool(result.error)
        assert result.run_us >= 0
        is_free = blame in (events_pb2.BLAME_INPUT, events_pb2.BLAME_PLATFORM)
        assert bool(result.release_reason) == (result.status == FAILED and is_free)


@pytest.mark.parametrize(
    ("was_started", "fault_count", "attempt", "expected"),
    [
        (True, 0, 1, "retry"),
        (True, 1, 2, "retry"),
        (True, 2, 3, "ended"),
        (False, 2, 3, "retry"),
        (False, 0, 12, "ended"),
    ],
)
def test_lost_attempts_are_bounded_and_leases_that_never_started_count_less(
    was_started: bool, fault_count: int, attempt: int, expected: str
) -> None:
    result = lifecycle.after_lost_attempt(
        was_started=was_started,
        fault_count=fault_count,
        attempt=attempt,
        attempt_max=3,
        lease_max=12,
    )
    assert ("retry" if isinstance(result, Retry) else "ended") == expected
    if isinstance(result, Ending):
        assert result.release_reason == lifecycle.WORKER_LOST


def test_a_cancel_costs_the_time_since_the_start_and_nothing_before_it() -> None:
    assert lifecycle.canceled(started_at=None, now=9).release_reason == lifecycle.NEVER_STARTED
    assert lifecycle.canceled(started_at=5, now=9) == Ending(CANCELED, run_us=4)


def test_a_failure_without_a_text_is_a_bug() -> None:
    with pytest.raises(AssertionError):
        Ending(FAILED)
    with pytest.raises(AssertionError):
        Ending(STARTING)
