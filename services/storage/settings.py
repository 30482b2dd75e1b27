"""Settings of the storage service."""

from pydantic_settings import SettingsConfigDict

from services.chassis.settings import ServiceSettings

MIB = 1024 * 1024


class StorageSettings(ServiceSettings):
    """Read from REPRISE_STORAGE_*."""

    model_config = SettingsConfigDict(env_prefix="REPRISE_STORAGE_")

    database_url: str
    """Catalogue and file records, for instance sqlite:////var/lib/reprise/storage.db."""
    blob_url: str
    """Where bytes live: file:///folder, or a bucket as s3://, gs:// or az:// URL."""
    inference_target: str
    """Address of an inference service, which proves pushed content before it becomes a version."""
    hardware_default: str = "cpu"
    """Hardware of models whose owner chose none."""
    build_timeout_s: float = 3600.0
    """How long the build of one version may take."""
    inference_wait_s: float = 10.0
    """How long a push waits for an inference service that is not there."""
    build_count_max: int = 4
    """Builds at a time; further pushes wait for their turn."""
    file_ttl_s: int = 86_400
    """How long a file lives."""
    file_size_bytes_max: int = 100 * MIB
    """Size from which a file is refused."""
    upload_idle_s: float = 60.0
    """How long an upload may send nothing before it is given up."""
    sweep_interval_s: float = 60.0
    """Time between two removals of expired files."""
    event_memory_s: int = 8 * 86_400
    """How long ids of counted events are kept; longer than the bus may repeat an event."""
