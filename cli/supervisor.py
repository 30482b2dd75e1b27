"""Starts NATS and the services, restarts what dies, ends all that it started."""

import asyncio
import contextlib
import ctypes
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from cli import mesh
from cli.data_dir import DataDir, RunState
from cli.mesh import Address, Process
from cli.tls import ensure_certificate

READY_TIMEOUT_S = 60.0
HEALTH_POLL_S = 0.02
STOP_TIMEOUT_S = 10.0
# A process that ended so often before the mesh was ready will not start by itself.
START_ATTEMPT_COUNT_MAX = 3
RESTART_DELAY_MIN_S = 0.1
RESTART_DELAY_MAX_S = 5.0
# A process that ran this long starts again without delay.
STEADY_AFTER_S = 10.0
LOG_SIZE_MAX = 64 * 1024 * 1024
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)


@dataclass(slots=True)
class _Running:
    process: Process
    child: asyncio.subprocess.Process | None = None
    started_at: float = 0.0
    delay_s: float = RESTART_DELAY_MIN_S
    end_count: int = 0


@dataclass(frozen=True, slots=True)
class Restart:
    """A process died and was started again."""

    name: str
    exit_status: int
    pid: int
    log_path: Path

    def describe(self) -> str:
        status = self.exit_status
        ending = f"signal {-status}" if status < 0 else f"exit status {status}"
        return (
            f"{self.name} died ({ending}) and was started again as process {self.pid}; "
            f"its log is {self.log_path}"
        )


@dataclass(slots=True)
class Supervisor:
    """The processes of one mesh; `on_ready` is called once every service has answered."""

    data_dir: DataDir
    address: Address
    is_tls: bool
    on_ready: Callable[[RunState], None]
    on_restart: Callable[[Restart], None]
    _running: dict[str, _Running] = field(default_factory=dict)
    _is_ready: bool = False
    _is_stopping: bool = False

    async def run(self) -> None:
        """Runs the mesh until SIGINT or SIGTERM."""
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop.set)
        parts: list[asyncio.Task[Any]] = [asyncio.create_task(stop.wait())]
        try:
            for process in self._processes():
                item = self._running[process.name] = _Running(process)
                await self._start(item)
                parts.append(asyncio.create_task(self._keep(item)))
            parts.append(asyncio.create_task(self._announce()))
            # But for `stop` each ends only by failing, and that ends the mesh.
            ended, _ = await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
            for part in ended:
                part.result()
        finally:
            self._is_stopping = True
            for part in parts:
                part.cancel()
            await self._stop_all()
            self.data_dir.remove_state()

    def state(self) -> RunState:
        """The mesh as run.json tells it."""
        pids = {
            name: item.child.pid for name, item in self._running.items() if item.child is not None
        }
        host = self.address.reachable_host
        return RunState(
            url=self._url(),
            grpc=f"{host}:{self.address.grpc_port}",
            oip=f"{host}:{self.address.oip_port}",
            token=self.data_dir.token(),
            data=str(self.data_dir.path),
            pids={"supervisor": os.getpid(), **pids},
        )

    def _url(self) -> str:
        scheme = "https" if self.is_tls else "http"
        return f"{scheme}://{self.address.reachable_host}:{self.address.http_port}"

    def _processes(self) -> list[Process]:
        certificate = None
        if self.is_tls:
            certificate = ensure_certificate(self.data_dir.path / "tls", self.address.host)
        return mesh.processes(self.data_dir, self.address, self._url(), certificate)

    async def _start(self, item: _Running) -> None:
        log_path = self._log_path(item.process)
        _rotate(log_path)
        with log_path.open("ab") as log_file:
            item.child = await asyncio.create_subprocess_exec(
                *item.process.command,
                cwd=self.data_dir.path,
                env=item.process.environment,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log_file,
                stderr=log_file,
                start_new_session=True,
                preexec_fn=_die_with_parent,
            )
        item.started_at = time.monotonic()

    async def _announce(self) -> None:
        await self._wait_until_ready()
        self._is_ready = True
        self._write_state()
        self.on_ready(self.state())
        await asyncio.get_running_loop().create_future()

    async def _keep(self, item: _Running) -> None:
        while True:
            assert item.child is not None
            status = await item.child.wait()
            if time.monotonic() - item.started_at > STEADY_AFTER_S:
                item.delay_s = RESTART_DELAY_MIN_S
            item.end_count += 1
            if not self._is_ready and item.end_count == START_ATTEMPT_COUNT_MAX:
                raise SystemExit(self._cannot_start(item))
            await asyncio.sleep(item.delay_s)
            item.delay_s = min(item.delay_s * 2, RESTART_DELAY_MAX_S)
            await self._start(item)
            self._write_state()
            log_path = self._log_path(item.process)
            self.on_restart(Restart(item.process.name, status, item.child.pid, log_path))

    def _log_path(self, process: Process) -> Path:
        return self.data_dir.path / "logs" / f"{process.name}.log"

    def _write_state(self) -> None:
        # Before it is ready, nobody must take the mesh for one that runs.
        if self._is_ready and not self._is_stopping:
            self.data_dir.write_state(self.state())

    async def _wait_until_ready(self) -> None:
        targets = [item.process.health_target for item in self._running.values()]
        try:
            async with asyncio.timeout(READY_TIMEOUT_S), asyncio.TaskGroup() as group:
                for target in filter(None, targets):
                    group.create_task(_wait_until_serving(target))
        except TimeoutError:
            logs = self.data_dir.path / "logs"
            raise SystemExit(
                f"the mesh was not ready after {READY_TIMEOUT_S:.0f} s; the logs are in {logs}"
            ) from None

    def _cannot_start(self, item: _Running) -> str:
        log_path = self._log_path(item.process)
        return (
            f"{item.process.name} cannot start; the end of its log ({log_path}) says why:\n"
            f"{_tail(log_path)}"
        )

    async def _stop_all(self) -> None:
        # NATS last: the services say good-bye over it.
        services = [item for name, item in self._running.items() if name != "nats"]
        await _stop(services)
        await _stop([item for name, item in self._running.items() if name == "nats"])


async def _stop(items: list[_Running]) -> None:
    children = [item.child for item in items if item.child is not None]
    alive = [child for child in children if child.returncode is None]
    for child in alive:
        with contextlib.suppress(ProcessLookupError):
            child.terminate()
    if alive:
        waits = [asyncio.create_task(child.wait()) for child in alive]
        await asyncio.wait(waits, timeout=STOP_TIMEOUT_S)
    for child in children:
        # Whatever a process started and left behind belongs to its group.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
    for child in alive:
        await child.wait()


async def _wait_until_serving(target: str) -> None:
    async with grpc.aio.insecure_channel(
        target, options=[("grpc.max_reconnect_backoff_ms", 100)]
    ) as channel:
        check: Any = health_pb2_grpc.HealthStub(channel).Check  # type: ignore[attr-defined]
        while True:
            try:
                answer = await check(health_pb2.HealthCheckRequest(), wait_for_ready=True)
            except grpc.aio.AioRpcError:
                continue
            if answer.status == health_pb2.HealthCheckResponse.SERVING:
                return
            await asyncio.sleep(HEALTH_POLL_S)


def _die_with_parent() -> None:
    # Even after kill -9 of the supervisor nothing of the mesh stays behind.
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _rotate(path: Path) -> None:
    if path.exists() and path.stat().st_size > LOG_SIZE_MAX:
        path.replace(path.with_suffix(".old.log"))


def _tail(path: Path, size: int = 2000) -> str:
    if not path.exists():
        return ""
    return path.read_bytes()[-size:].decode(errors="replace")
