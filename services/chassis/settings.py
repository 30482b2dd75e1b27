"""Settings: read once from the environment into a frozen object."""

from typing import TypeVar

from pydantic import ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict


class ServiceSettings(BaseSettings):
    """What every service needs; each service adds its own fields and its prefix."""

    model_config = SettingsConfigDict(frozen=True, use_attribute_docstrings=True, extra="ignore")

    listen: str = "127.0.0.1:0"
    """Address of the service's own gRPC server, for the mesh only."""
    metrics_listen: str = "127.0.0.1:0"
    """Address of the Prometheus page; port 0 picks a free one."""
    mesh_key: str
    """Secret that every call between services carries."""
    nats_url: str = "nats://127.0.0.1:4222"
    """Where the NATS server is."""
    nats_token: str = ""
    """Token for the NATS server; empty when it asks for none."""
    log_level: str = "INFO"
    """DEBUG, INFO, WARNING or ERROR."""
    otlp_endpoint: str = ""
    """Where spans go by OTLP over gRPC, for instance http://127.0.0.1:4317; empty: nowhere."""
    stop_grace_s: float = 5.0
    """How long running calls may go on after a stop was asked for."""


S = TypeVar("S", bound=ServiceSettings)


def load(settings_type: type[S]) -> S:
    """Reads the environment; a missing or bad key ends the process with all of them named."""
    try:
        return settings_type()
    except ValidationError as error:
        prefix = settings_type.model_config.get("env_prefix", "")
        lines = [
            f"  {prefix}{'.'.join(str(part) for part in problem['loc']).upper()}: {problem['msg']}"
            for problem in error.errors()
        ]
        raise SystemExit("settings are missing or wrong:\n" + "\n".join(lines)) from None
