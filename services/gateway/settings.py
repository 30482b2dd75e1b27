"""Settings of the gateway."""

import ipaddress
from pathlib import Path
from typing import Self

from pydantic import Field, field_validator, model_validator
from pydantic_settings import SettingsConfigDict

from services.chassis.settings import ServiceSettings


class GatewaySettings(ServiceSettings):
    """What the gateway needs besides what every service needs."""

    model_config = SettingsConfigDict(env_prefix="REPRISE_GATEWAY_")

    listen: str = "127.0.0.1:8611"
    """Address of the gateway's own gRPC server, for the mesh only; its port must not be 0."""
    http_host: str = "127.0.0.1"
    """Address of the HTTP server; 0.0.0.0 for every interface."""
    http_port: int = Field(default=8080, ge=0, le=65535)
    """Port of the HTTP server; 0 picks a free one, which the log names."""
    grpc_public_listen: str = "127.0.0.1:8610"
    """Address of the public gRPC port."""
    database_url: str
    """Where accounts and tokens are kept, for instance sqlite:////var/lib/reprise/gateway.db."""
    scheduler_target: str
    """Address of the scheduler's gRPC server."""
    storage_target: str
    """Address of the storage service's gRPC server."""
    billing_target: str
    """Address of the billing service's gRPC server."""
    public_url: str = ""
    """URL under which callers reach the HTTP server, without a path; empty: as the request says."""
    tls_cert: Path | None = None
    """PEM certificate chain for HTTP and public gRPC; empty: no TLS."""
    tls_key: Path | None = None
    """PEM private key of the certificate."""
    signing_key: str = Field(min_length=16)
    """Secret that signs download URLs; a change ends the URLs that are out."""
    bootstrap_token: str = ""
    """API token of the first account, which is made at start; empty: none is made."""
    bootstrap_username: str = "local"
    """User name of the first account; it is an operator."""
    body_size_max: int = Field(default=16 * 2**20, gt=0)
    """Largest JSON body in bytes."""
    file_size_max: int = Field(default=100 * 2**20, gt=0)
    """Largest file in bytes, uploaded or fetched."""
    inline_file_size_max: int = Field(default=8 * 2**20, ge=0)
    """Largest output file given as a data URL where the public URL has no TLS, in bytes."""
    data_url_size_max: int = Field(default=32 * 2**10, ge=0)
    """Data URLs in inputs that are longer are stored as files first, in characters."""
    download_url_age_s: int = Field(default=24 * 3600, gt=0)
    """How long a signed download URL works, in seconds."""
    call_timeout_s: float = Field(default=30.0, gt=0)
    """How long a call to a service may take, besides the wait that its caller asked for."""
    heartbeat_s: float = Field(default=15.0, gt=0)
    """Time between the signs of life of an event stream."""
    fetch_timeout_s: float = Field(default=60.0, gt=0)
    """How long fetching a user's URL may take."""
    fetch_allow_networks: tuple[str, ...] = ()
    """Networks that users' URLs may point to although they are not public, as ["10.1.0.0/16"]."""

    @field_validator("listen")
    @classmethod
    def _has_fixed_port(cls, listen: str) -> str:
        # The gateway's own HTTP side and the workers must know where to call.
        if listen.rpartition(":")[2] in ("", "0"):
            raise ValueError("needs a fixed port")
        return listen

    @field_validator("public_url")
    @classmethod
    def _is_root_url(cls, public_url: str) -> str:
        public_url = public_url.rstrip("/")
        if public_url and not public_url.startswith(("http://", "https://")):
            raise ValueError("must start with http:// or https://")
        return public_url

    @field_validator("fetch_allow_networks")
    @classmethod
    def _are_networks(cls, networks: tuple[str, ...]) -> tuple[str, ...]:
        for network in networks:
            ipaddress.ip_network(network)
        return networks

    @model_validator(mode="after")
    def _has_whole_certificate(self) -> Self:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("tls_cert and tls_key go together: set both or none")
        return self
