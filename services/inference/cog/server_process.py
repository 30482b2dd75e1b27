"""The process tree of one cog server: start, readiness, health and the end of everything in it."""

import asyncio
import contextlib
import os
import re
import shutil
import signal
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import orjson

from services.inference.cog.connection import Connection
from services.inference.cog.environment import Environment
from services.inference.cog.errors import SetupFailed
from services.inference.cog.sandbox import (
    Confinement,
    ResourceLimits,
    Sandbox,
    process_environment,
)
from services.inference.cog.stderr_lines import ServerLog

_SERVER_LOG_FILTER = ",".join(
    ["warn", "coglet::transport::http::server=info", "coglet::setup=info", "coglet::user=info"]
)
_START_ATTEMPTS = 4
_NAME_TAKEN = "failed to create transport: Address already in use"
_LAUNCHER_GRACE_S = 5.0
_LAST_WORDS_S = 0.2
_SETUP_PREFIX = re.compile(
    r"(?:\[[^]]*\] |worker setup failed(?: \(slot [0-9a-f-]+\))?: |[Ss]etup failed: )+"
)
_CRASHED = "worker crashed"
# The server forwards the model's lines from inside of the model's process: the last ones may be
# gone with it.
_DIED_IN_SETUP = (
    "the model's process ended in setup() without an exception (exit, crash or out of memory); "
    "what it printed just before may be missing"
)
_Value = TypeVar("_Value")


@dataclass(frozen=True, slots=True)
class RunnerLimits:
    """Every wait and every size that a model can stretch."""

    start_timeout_s: float = 600.0
    stop_grace_s: float = 10.0
    health_poll_s: float = 0.025
    health_timeout_s: float = 30.0
    busy_retry_s: float = 0.1
    busy_poll_s: float = 0.001
    max_log_bytes: int = 1024 * 1024
    max_event_bytes: int = 256 * 1024 * 1024
    processes: ResourceLimits = field(default_factory=ResourceLimits)


@dataclass(frozen=True, slots=True)
class RunnerSpec:
    """What to run. `scratch_dir` belongs to this runner alone and is removed when it stops."""

    project_dir: Path
    reference: str
    schema: Mapping[str, Any]
    environment: Environment
    scratch_dir: Path
    concurrency: int = 1
    variables: Mapping[str, str] = field(default_factory=dict)
    devices: tuple[Path, ...] = ()


class ServerProcess:
    """Started once. The kernel ties the model's life to the thread that calls start(), so that
    must be one that lives as long as the platform's process: the event loop's.
    """

    def __init__(self, spec: RunnerSpec, sandbox: Sandbox, limits: RunnerLimits) -> None:
        self._spec = spec
        self._sandbox = sandbox
        self._limits = limits
        self._process: asyncio.subprocess.Process | None = None
        self._log: ServerLog | None = None
        self._drain: asyncio.Task[None] | None = None
        self._is_confined = False
        self.port = 0

    @property
    def setup_logs(self) -> str:
        return self._log.setup_logs if self._log else ""

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    @property
    def exit_status(self) -> int | None:
        return self._process.returncode if self._process else None

    async def start(self) -> None:
        """Raises SetupFailed; then nothing is left running."""
        for _ in range(_START_ATTEMPTS - 1):
            try:
                return await self._start_once()
            except SetupFailed as failure:
                # Two servers chose one name for their sockets; see the sandbox.
                if _NAME_TAKEN not in failure.reason:
                    raise
        await self._start_once()

    async def _start_once(self) -> None:
        self.port = 0
        try:
            async with asyncio.timeout(self._limits.start_timeout_s):
                await self._spawn()
                await self._until_ready()
        except TimeoutError:
            await self.stop(grace_s=0)
            reason = f"setup() had not finished after {self._limits.start_timeout_s:g} s"
            raise SetupFailed(reason, self.setup_logs) from None
        except SetupFailed as failure:
            # Only after the end of the process is everything read that the model has printed.
            await self.stop(grace_s=0)
            raise SetupFailed(failure.reason, self.setup_logs) from None
        except BaseException:
            await self.stop(grace_s=0)
            raise

    async def health(self) -> dict[str, Any]:
        """Slow while the model holds Python in C code: a slow answer is no sign of death."""
        async with asyncio.timeout(self._limits.health_timeout_s):
            connection = await Connection.open(self.port, max_answer_bytes=16 * 1024 * 1024)
            try:
                await connection.request("GET", "/health-check")
                answer: dict[str, Any] = orjson.loads(await connection.read_body())
            finally:
                connection.close()
        return answer

    def open_exchange(self) -> int:
        """A descriptor of the folder in which the server keeps files of running predictions.

        Raises OSError, also when the model's process is gone.
        """
        assert self._process is not None
        root = "/"
        if self._is_confined:
            pid = self._process.pid
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
            if not children:
                raise ProcessLookupError(f"process {pid} has no child any more")
            root = f"/proc/{children[0]}/root"
        path = Path(root, "tmp", "coglet")
        if not self._is_confined:
            path.mkdir(exist_ok=True)
        return os.open(path, os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)

    async def stop(self, *, grace_s: float) -> None:
        """Running predictions have `grace_s` to finish; then every process of the tree is
        killed.
        """
        try:
            if self._process is not None and self.exit_status is None and self.port and grace_s > 0:
                with contextlib.suppress(TimeoutError, ConnectionError):
                    async with asyncio.timeout(grace_s):
                        await self._shut_down()
        finally:
            await asyncio.shield(self._end())

    async def _shut_down(self) -> None:
        # Not SIGTERM: bubblewrap stands between us and the server, and does not pass signals on.
        # Nor does it end before the last process inside, hence the end of the connection tells
        # when the server is gone.
        connection = await Connection.open(self.port, max_answer_bytes=1024)
        try:
            await connection.request("POST", "/shutdown")
            await connection.until_closed()
        finally:
            connection.close()

    async def _end(self) -> None:
        if self._process is not None:
            if not self._is_confined:
                await self._end_unconfined(self._process)
            # Also after a clean exit: what the model started is in the same group.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            await self._process.wait()
        if self._drain is not None:
            await self._drain
        await asyncio.to_thread(shutil.rmtree, self._spec.scratch_dir, ignore_errors=True)

    async def _end_unconfined(self, process: asyncio.subprocess.Process) -> None:
        """The launcher kills its descendants, those in other process groups included."""
        with contextlib.suppress(TimeoutError, ProcessLookupError):
            async with asyncio.timeout(_LAUNCHER_GRACE_S):
                process.terminate()
                await process.wait()

    async def _spawn(self) -> None:
        spec = self._spec
        overlay_dir = spec.scratch_dir / "overlay"
        await asyncio.to_thread(_write_runtime_schema, overlay_dir, spec.schema)
        confinement = Confinement(
            project_dir=spec.project_dir,
            overlay_dir=overlay_dir,
            scratch_dir=spec.scratch_dir,
            read_only=(spec.environment.path, *_outside_usr(spec.environment.base_dir)),
            devices=spec.devices,
            limits=self._limits.processes,
        )
        python = str(spec.environment.python)
        command = [python, "-m", "cog.server.http", "--host", "127.0.0.1"]
        launch = await self._sandbox.prepare(confinement, command)
        self._is_confined = launch.is_confined
        self._log = ServerLog(self._limits.max_log_bytes)
        self._process = await asyncio.create_subprocess_exec(
            *launch.command,
            cwd=launch.working_dir,
            env=self._variables(),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        assert self._process.stderr is not None
        self._drain = asyncio.create_task(self._log.drain(self._process.stderr))

    def _variables(self) -> dict[str, str]:
        spec = self._spec
        own = {
            "PORT": "0",
            "COG_PREDICT_TYPE_STUB": spec.reference,
            "COG_MAX_CONCURRENCY": str(spec.concurrency),
            # Leaves the port, what the model prints outside of a prediction, and warnings. A
            # prediction's lines come with its event stream; here they would only cost two more
            # JSON lines each time.
            "RUST_LOG": _SERVER_LOG_FILTER,
        }
        return process_environment({**spec.variables, **own}, spec.environment.bin_dir)

    async def _until_ready(self) -> None:
        assert self._log is not None
        self.port = await self._while_running(self._log.port)
        while True:
            health = await self._while_running(self._health_when_answered())
            if health["status"] in ("READY", "BUSY", "UNHEALTHY"):
                if "channel closed" in str(health.get("user_healthcheck_error", "")):
                    raise SetupFailed("the model's process ended right after setup()", "")
                self._log.end_setup()
                return
            if health["status"] == "SETUP_FAILED":
                # The failure overtakes what the model printed just before it.
                await asyncio.sleep(_LAST_WORDS_S)
                raise SetupFailed(_setup_error(health), "")
            await asyncio.sleep(self._limits.health_poll_s)

    async def _health_when_answered(self) -> dict[str, Any]:
        # An import that holds Python for minutes is slow, not dead; the start timeout decides.
        while True:
            with contextlib.suppress(TimeoutError):
                return await self.health()

    async def _while_running(self, awaitable: Awaitable[_Value]) -> _Value:
        """The value, or SetupFailed when the process ends first."""
        assert self._process is not None
        assert self._log is not None
        value = asyncio.ensure_future(awaitable)
        ended = asyncio.create_task(self._process.wait())
        try:
            await asyncio.wait({value, ended}, return_when=asyncio.FIRST_COMPLETED)
            if value.done():
                with contextlib.suppress(ConnectionError):
                    return value.result()
                await ended
        finally:
            value.cancel()
            ended.cancel()
        last_line = self._log.tail[-1] if self._log.tail else "it printed nothing"
        status = self._process.returncode
        raise SetupFailed(f"the cog server ended with exit status {status}: {last_line}", "")


def _write_runtime_schema(overlay_dir: Path, schema: Mapping[str, Any]) -> None:
    """The server's own copy: with the streaming flag it offers event streams for every model."""
    document = orjson.loads(orjson.dumps(schema))
    document["paths"]["/predictions"]["post"]["x-cog-streaming"] = True
    path = overlay_dir / ".cog" / "openapi_schema.json"
    path.parent.mkdir(parents=True)
    path.write_bytes(orjson.dumps(document))


def _outside_usr(base_dir: Path) -> tuple[Path, ...]:
    return () if base_dir.is_relative_to("/usr") else (base_dir,)


def _setup_error(health: Mapping[str, Any]) -> str:
    lines = str(health.get("setup", {}).get("logs", "")).strip().splitlines()
    if not lines:
        return "setup() failed"
    return _DIED_IN_SETUP if lines[-1] == _CRASHED else _SETUP_PREFIX.sub("", lines[-1], count=1)
