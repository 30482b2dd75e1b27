"""The data folder of one mesh: where each part lives, its secrets, and who runs on it."""

import fcntl
import json
import os
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

TOKEN_ALPHABET = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
# A unix socket's path has room for 107 bytes; the engine host listens on one below this folder.
PATH_LENGTH_MAX = 80


def default_path() -> Path:
    """REPRISE_DATA, or .reprise in the current folder."""
    return Path(os.environ.get("REPRISE_DATA", ".reprise"))


@dataclass(frozen=True, slots=True)
class RunState:
    """A running mesh as run.json tells it; the ready line of `up --json` has the same keys."""

    url: str
    grpc: str
    oip: str
    token: str
    data: str
    pids: Mapping[str, int]

    def to_json(self) -> str:
        return json.dumps(asdict(self))


class DataDir:
    """One mesh's folder; nothing is written outside of it."""

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()

    def make(self) -> None:
        """Makes the folder, for this user only."""
        if len(str(self.path)) > PATH_LENGTH_MAX:
            raise SystemExit(
                f"--data {self.path}: the path is longer than {PATH_LENGTH_MAX} characters, too "
                "long for the sockets in it; choose a shorter one"
            )
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            for name in ("nats", "db", "blobs", "inference", "logs"):
                (self.path / name).mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise SystemExit(
                f"--data {self.path}: {error.strerror}; choose another folder"
            ) from None

    def lock(self) -> IO[str] | None:
        """The lock of the one supervisor; None while another process holds it."""
        lock = self._try_lock()
        if lock is not None:
            lock.write(str(os.getpid()))
            lock.flush()
        return lock

    def is_running(self) -> bool:
        """Whether a supervisor works on this folder now."""
        if not (self.path / "lock").exists():
            return False
        lock = self._try_lock()
        if lock is None:
            return True
        lock.close()
        return False

    def supervisor_pid(self) -> int | None:
        """Who holds the lock: known also while the mesh starts, and when run.json was lost."""
        if not self.is_running():
            return None
        text = (self.path / "lock").read_text()
        if text:
            return int(text)
        # A supervisor of an earlier release, or one that has not yet written its pid.
        state = self.read_state()
        return state.pids["supervisor"] if state is not None else None

    def _try_lock(self) -> IO[str] | None:
        lock = (self.path / "lock").open("a")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            return None
        # Whoever is named there has ended, and its pid may be another process's by now.
        lock.truncate(0)
        return lock

    def secrets(self) -> dict[str, str]:
        """The mesh's own secrets, made at the first start."""
        path = self.path / "secrets.json"
        if not path.exists():
            names = ("mesh_key", "nats_token", "signing_key")
            write_private(path, json.dumps({name: secrets.token_hex(32) for name in names}))
        loaded: dict[str, str] = json.loads(path.read_text())
        return loaded

    def token(self) -> str:
        """The first account's API token, made at the first start."""
        path = self.path / "token"
        if not path.exists():
            text = "".join(secrets.choice(TOKEN_ALPHABET) for _ in range(40))
            write_private(path, f"rp_{text}\n")
        return path.read_text().strip()

    def write_metrics_targets(self, addresses: Mapping[str, str]) -> None:
        """Where each service shows its metrics, as Prometheus' file_sd_configs reads it."""
        targets = [
            {"targets": [address], "labels": {"service": name}}
            for name, address in addresses.items()
        ]
        write_private(self.path / "prometheus_targets.json", json.dumps(targets, indent=2))

    def write_state(self, state: RunState) -> None:
        write_private(self.path / "run.json", state.to_json() + "\n")

    def remove_state(self) -> None:
        (self.path / "run.json").unlink(missing_ok=True)

    def read_state(self) -> RunState | None:
        """The running mesh; None where none runs."""
        try:
            raw: dict[str, Any] = json.loads((self.path / "run.json").read_text())
        except (FileNotFoundError, json.JSONDecodeError):
            return None
        return RunState(**raw)


def write_private(path: Path, text: str) -> None:
    """Replaces a file at once, readable by this user only."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
    temporary.replace(path)
