"""What the scheduler counts."""

from prometheus_client import Counter, Gauge, Histogram

from services.scheduler.lifecycle import CANCELED, FAILED, SUCCEEDED
from services.scheduler.record import PredictionRecord

BACKLOG = Gauge("reprise_scheduler_backlog_size", "Predictions that wait for a lease")
OPEN = Gauge("reprise_scheduler_open_predictions", "Predictions that have not ended")
WORKERS = Gauge("reprise_scheduler_workers", "Workers that report")
UNSETTLED = Gauge("reprise_scheduler_unsettled", "Ended predictions without a receipt")
LEASES = Counter("reprise_scheduler_leases", "Leases granted")
LOST_ATTEMPTS = Counter("reprise_scheduler_lost_attempts", "Attempts ended by platform faults")
ENDED = Counter("reprise_scheduler_ended", "Predictions that ended", ["status"])
_ENDED_AS = {
    SUCCEEDED: ENDED.labels("succeeded"),
    FAILED: ENDED.labels("failed"),
    CANCELED: ENDED.labels("canceled"),
}
RUN_TIME = Histogram("reprise_scheduler_run_seconds", "From the start of a run to its end")
TOTAL_TIME = Histogram("reprise_scheduler_total_seconds", "From creation to the end")


def note_end(record: PredictionRecord) -> None:
    """Counts one ended prediction."""
    ended_at = record.completed_at or record.created_at
    _ENDED_AS[record.status].inc()
    TOTAL_TIME.observe((ended_at - record.created_at) / 1e6)
    if record.started_at is not None:
        RUN_TIME.observe(max(ended_at - record.started_at, 0) / 1e6)
