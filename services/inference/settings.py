"""Settings of the inference service."""

import os
from pathlib import Path
from typing import Self

from pydantic import Field, model_validator
from pydantic_settings import SettingsConfigDict

from services.chassis.settings import ServiceSettings

_MIB = 1024 * 1024


class InferenceSettings(ServiceSettings):
    """One worker: one process per host or GPU."""

    model_config = SettingsConfigDict(env_prefix="REPRISE_INFERENCE_")

    data_dir: Path
    """Folder for blobs, environments and running models; a cache, safe to delete while stopped."""
    storage_target: str
    """Address of the storage service, for instance 127.0.0.1:7101."""
    gateway_target: str
    """Address of the gateway's internal gRPC port: guarded fetcher and check of API tokens."""
    oip_listen: str = "127.0.0.1:0"
    """Public address of the Open Inference Protocol; port 0 picks a free one."""
    oip_tls_cert: Path | None = None
    """Certificate chain in PEM for that address; without it tokens travel unencrypted."""
    oip_tls_key: Path | None = None
    """Private key of the certificate."""
    host_id: str = ""
    """The same over restarts; empty: a random one, kept in the data folder."""
    hardware: str = "cpu"
    """What callers pick and pay for."""
    replica_count_max: int = Field(default_factory=lambda: max(2, 2 * (os.cpu_count() or 1)), ge=1)
    """Versions loaded at a time."""
    memory_floor_bytes: int = 512 * _MIB
    """Idle replicas are stopped before a version is loaded with less free memory than this."""
    lease_count_max: int = 4096
    """Leases that this worker keeps; more are left to the scheduler, which offers them again."""
    heartbeat_interval_s: float = 1.0
    """Time between two heartbeats."""
    stall_limit_s: float = 30.0
    """Heartbeats end when the event loop has not moved for so long; others take the leases."""
    cancel_grace_s: float = 5.0
    """A canceled run that has not ended after this is killed together with its replica."""
    drain_grace_s: float = 20.0
    """How long running predictions may go on after a stop was asked for."""
    load_timeout_s: float = 600.0
    """A version that is not ready after this has failed to load."""
    build_count_max: int = Field(default=2, ge=1)
    """Builds at a time."""
    build_timeout_s: float = 1800.0
    """Limit for one environment to be installed."""
    allow_source_builds: bool = False
    """Let packages without a wheel run their own build code on this host, unconfined."""
    require_sandbox: bool = False
    """Refuse to start where models cannot be confined, instead of running them unconfined."""
    interpreters: tuple[Path, ...] = ()
    """Further Python interpreters for models, beside those that uv finds by itself."""
    transfer_timeout_s: float = 120.0
    """Limit for one file to be read or written."""
    cache_max_bytes: int = 100 * 1024 * _MIB
    """Blobs kept on this host; at each start the versions that were not used for longest go."""
    input_file_max_bytes: int = 64 * _MIB
    """The largest file that a prediction may take as its input."""
    output_max_bytes: int = 8 * _MIB
    """The largest JSON output of one run or one item; larger things must be files."""
    log_max_bytes: int = _MIB
    """Logs kept of one run; what comes after is cut off with a note."""
    report_max_bytes: int = 16 * _MIB
    """Size of one report to the scheduler; below the payload limit of the NATS server."""
    report_backlog_max_bytes: int = 64 * _MIB
    """Unreported output kept in memory before running models are made to wait."""
    report_timeout_s: float = 3.0
    """A report without an answer after this is sent again."""
    log_interval_s: float = 0.1
    """Longest time that a running model's log lines wait for company."""
    engine_batch_size_max: int = Field(default=32, ge=1, le=4096)
    """Calls of an engine that are merged at most."""
    engine_slot_count: int = Field(default=64, ge=1)
    """Calls that one engine takes at a time."""
    engine_start_timeout_s: float = 30.0
    """Limit for the engine host to answer after its start."""
    token_cache_s: float = 30.0
    """How long a checked API token is believed on the Open Inference Protocol port."""

    @model_validator(mode="after")
    def _has_whole_certificate(self) -> Self:
        if (self.oip_tls_cert is None) != (self.oip_tls_key is None):
            raise ValueError("oip_tls_cert and oip_tls_key go together: set both or none")
        return self
