"""Settings of the scheduler."""

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from services.chassis.settings import ServiceSettings


class SchedulerSettings(ServiceSettings):
    """What the scheduler reads from the environment."""

    model_config = SettingsConfigDict(env_prefix="REPRISE_SCHEDULER_")

    database_url: str = "sqlite:///scheduler.db"
    """Where predictions are kept: sqlite:///<path> or postgresql+psycopg://..."""
    storage_target: str
    """Address of the storage service."""
    billing_target: str
    """Address of the billing service."""

    run_timeout_s: float = 600.0
    """The longest that one run may take; also what is held for it."""
    run_overdue_s: float = 30.0
    """How long past its timeout a run may stay with a worker before the lease is taken back."""
    heartbeat_timeout_s: float = 5.0
    """A worker silent for this long loses its leases."""
    lease_resend_after_s: float = 1.5
    """A lease that its worker does not list this long after the grant is sent again."""
    replica_share_s: float = 5.0
    """How long a version waits for a replica before a busy one of another version yields to it."""
    attempt_count_max: int = 3
    """How many attempts of one prediction may be lost to platform faults."""
    lease_count_max: int = 12
    """How many leases one prediction may use up, those that never started included."""
    lease_ahead_max: int = 16
    """The most extra leases that a slot of a fast version gets, so that it is never idle."""

    backlog_size_max: int = 100_000
    """How many predictions may wait; further ones are refused."""
    input_size_max: int = 16 * 1024 * 1024
    """Bytes of one prediction's input."""
    output_size_max: int = 32 * 1024 * 1024
    """Bytes of one prediction's output; a run with a larger one fails."""
    logs_size_max: int = 4 * 1024 * 1024
    """Characters of one prediction's logs; what comes after is dropped."""
    wait_max_s: float = 60.0
    """The longest that a call may wait for a prediction's end."""

    peer_timeout_s: float = 10.0
    """How long storage and billing may take to answer."""
    hold_delay_s: float = 0.002
    """How long creates collect before they are held together, once many predictions are open."""
    hold_delay_from: int = 8
    """With fewer open predictions than this, each create is held at once."""
    hold_batch_size_max: int = Field(default=256, ge=1)
    """Predictions that are held by one call of billing."""
    settlement_batch_size_max: int = Field(default=256, ge=1)
    """Holds that are settled by one call of billing."""
    settlement_delay_s: float = 0.05
    """How long ended predictions collect before they are settled together."""
    completed_delay_s: float = 0.25
    """How long ended predictions collect before one event tells of them."""
    completed_backlog_size_max: int = 10_000
    """Ended predictions that wait to be published while the bus is away; older ones are dropped."""
    sweep_interval_s: float = 30.0
    """How often holds without a prediction are looked for."""
    orphan_hold_age_s: float = 60.0
    """A hold older than this whose prediction was never stored is given back."""

    latest_version_ttl_s: float = 2.0
    """How long the latest version of a model is remembered."""
    version_cache_size_max: int = 2_000
    """How many references of versions are remembered."""
