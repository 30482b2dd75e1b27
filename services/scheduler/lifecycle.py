"""The status changes that a prediction may make, and how each way to end is charged."""

from dataclasses import dataclass
from typing import TypeAlias

from reprise.inference.v1 import events_pb2
from reprise.scheduler.v1 import prediction_pb2

STARTING = prediction_pb2.PREDICTION_STATUS_STARTING
PROCESSING = prediction_pb2.PREDICTION_STATUS_PROCESSING
SUCCEEDED = prediction_pb2.PREDICTION_STATUS_SUCCEEDED
FAILED = prediction_pb2.PREDICTION_STATUS_FAILED
CANCELED = prediction_pb2.PREDICTION_STATUS_CANCELED

Status: TypeAlias = prediction_pb2.PredictionStatus.ValueType

# PROCESSING -> STARTING: the attempt was lost and the prediction waits again.
ALLOWED: dict[Status, frozenset[Status]] = {
    STARTING: frozenset({PROCESSING, SUCCEEDED, FAILED, CANCELED}),
    PROCESSING: frozenset({STARTING, SUCCEEDED, FAILED, CANCELED}),
    SUCCEEDED: frozenset(),
    FAILED: frozenset(),
    CANCELED: frozenset(),
}

NEVER_STARTED = "never_started"
INPUT_UNUSABLE = "input_unusable"
WORKER_LOST = "worker_lost"
PLATFORM_FAULT = "platform_fault"
SETUP_FAILED = "setup_failed"
ORPHANED = "prediction_never_stored"


def is_final(status: Status) -> bool:
    """Whether no change can follow."""
    return not ALLOWED[status]


def may_change(status: Status, to: Status) -> bool:
    """Whether a prediction may go from one status to the other."""
    return to in ALLOWED[status]


@dataclass(frozen=True, slots=True)
class Ending:
    """How a prediction ends: captured for its run time, or released with a reason."""

    status: Status
    error: str | None = None
    run_us: int = 0
    # Empty: the run time is captured.
    release_reason: str = ""
    # Added to the logs, for people.
    log_line: str = ""

    def __post_init__(self) -> None:
        assert is_final(self.status)
        assert bool(self.error) == (self.status == FAILED), "a failure, and only it, says why"


@dataclass(frozen=True, slots=True)
class Retry:
    """The attempt is void: the prediction waits for the next one."""

    reason: str


def canceled(*, started_at: int | None, now: int, log_line: str = "") -> Ending:
    """The end by a cancel or a deadline; times in microseconds."""
    if started_at is None:
        return Ending(CANCELED, release_reason=NEVER_STARTED, log_line=log_line)
    return Ending(CANCELED, run_us=max(now - started_at, 0), log_line=log_line)


def setup_failed(error: str) -> Ending:
    """The end of what waits for a version that cannot be loaded."""
    return Ending(
        FAILED, error=_text(error, "The model could not be started."), release_reason=SETUP_FAILED
    )


def output_too_large(*, run_us: int, size_max: int) -> Ending:
    """The end of a run whose output passes the bound."""
    return Ending(
        FAILED,
        error=f"The output is larger than {size_max} bytes; return files instead.",
        run_us=run_us,
    )


def after_lost_attempt(
    *, was_started: bool, fault_count: int, attempt: int, attempt_max: int, lease_max: int
) -> Ending | Retry:
    """What follows an attempt that its worker will not end; fault_count is before this loss."""
    faults = fault_count + was_started
    if faults < attempt_max and attempt < lease_max:
        return Retry(WORKER_LOST)
    return Ending(
        FAILED,
        error=(
            f"worker_lost: the worker was lost in each of {attempt} attempts."
            " This is a fault of the platform, not of your input; nothing was charged."
        ),
        release_reason=WORKER_LOST,
    )


def after_run(
    completed: events_pb2.RunCompleted, *, fault_count: int, attempt_max: int
) -> Ending | Retry:
    """What a worker's report of a completed run means."""
    run_us = max(completed.run_us, 0)
    if completed.outcome == events_pb2.RUN_OUTCOME_SUCCEEDED:
        return Ending(SUCCEEDED, run_us=run_us)
    if completed.outcome == events_pb2.RUN_OUTCOME_CANCELED:
        return Ending(CANCELED, run_us=run_us)
    if completed.blame == events_pb2.BLAME_PLATFORM:
        return _after_platform_fault(completed.error, fault_count + 1, attempt_max)
    if completed.blame == events_pb2.BLAME_INPUT:
        error = _text(completed.error, "The input could not be used.")
        return Ending(FAILED, error=error, run_us=run_us, release_reason=INPUT_UNUSABLE)
    if completed.blame == events_pb2.BLAME_TIMEOUT:
        error = _text(completed.error, "The run reached its time limit.")
        return Ending(FAILED, error=error, run_us=run_us)
    return Ending(FAILED, error=_text(completed.error, "The model failed."), run_us=run_us)


def _after_platform_fault(error: str, faults: int, attempt_max: int) -> Ending | Retry:
    if faults < attempt_max:
        return Retry(PLATFORM_FAULT)
    return Ending(
        FAILED,
        error=(
            f"platform_fault: {_text(error, 'the run could not be made')} ({faults} attempts)."
            " This is a fault of the platform, not of your input; nothing was charged."
        ),
        release_reason=PLATFORM_FAULT,
    )


def _text(error: str, otherwise: str) -> str:
    return error.strip() or otherwise
