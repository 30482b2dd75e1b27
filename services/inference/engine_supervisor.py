"""Starts, watches and restarts the engine host; only the first engine makes it start."""

import asyncio
import logging
import os
import secrets
import shutil
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from reprise.inference.v1 import engine_pb2, engine_pb2_grpc

from services.chassis import channels
from services.chassis.channels import Peer
from services.chassis.errors import NotFound, RepriseError, Unavailable
from services.inference.engine_order import MESH_KEY_VARIABLE, HostOrder

log = logging.getLogger(__name__)

# A unix socket's path has room for 107 bytes.
_SOCKET_PATH_MAX = 100
_STOP_GRACE_S = 3.0
_DYING_S = 1.0
_READY_LINE = b"ready\n"
_OPTIONS: list[tuple[str, Any]] = [
    # A host that died never comes back under its socket: calls must fail at once, not wait.
    ("grpc.enable_retries", 0),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.max_receive_message_length", channels.MESSAGE_SIZE_MAX),
    ("grpc.max_send_message_length", channels.MESSAGE_SIZE_MAX),
]


@dataclass(frozen=True, slots=True)
class EngineHostSpec:
    """`start_timeout_s` covers the host's own start, `load_timeout_s` one engine."""

    data_dir: Path
    mesh_key: str
    sandbox: Sequence[str] = ()
    start_timeout_s: float = 30.0
    load_timeout_s: float = 600.0
    run_timeout_s: float = 600.0


class HostDied(Unavailable):
    """The host's process ended during the call."""

    def __init__(self, exit_status: int) -> None:
        ending = f"signal {-exit_status}" if exit_status < 0 else f"exit status {exit_status}"
        super().__init__(f"the engine host ended with {ending}")
        self.ending = ending


class _HostProcess:
    """One life of the host."""

    def __init__(self, process: asyncio.subprocess.Process, socket: Path, mesh_key: str) -> None:
        self.process = process
        self.socket = socket
        channel = grpc.aio.insecure_channel(f"unix:{socket}", options=_OPTIONS)
        self.peer = Peer(channel, mesh_key)
        self.stub = engine_pb2_grpc.EngineServiceStub(channel)
        self.loaded: dict[str, engine_pb2.LoadEngineResponse] = {}

    @property
    def is_alive(self) -> bool:
        return self.process.returncode is None

    async def wait_if_dying(self) -> None:
        """A connection ends a moment before its process is known to be dead."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_DYING_S):
                await self.process.wait()

    async def end(self) -> None:
        await self.peer.channel.close()
        if self.is_alive:
            self.process.terminate()
            try:
                async with asyncio.timeout(_STOP_GRACE_S):
                    await self.process.wait()
            except TimeoutError:
                self.process.kill()
        await self.process.wait()
        self.socket.unlink(missing_ok=True)


class EngineHost:
    """The worker's side of the engine host.

    A host that died fails the calls in flight with Unavailable, and is started again at once when
    it held engines.
    """

    def __init__(self, spec: EngineHostSpec) -> None:
        self._spec = spec
        self._host: _HostProcess | None = None
        self._starting = asyncio.Lock()
        self._loading = asyncio.Lock()
        self._wanted: dict[str, engine_pb2.LoadEngineRequest] = {}
        # One for each living host, and for a dead one until its engines are back.
        self._watches: set[asyncio.Task[None]] = set()
        self._is_stopped = False
        self._socket_dir: Path | None = None

    @property
    def pid(self) -> int | None:
        """Of the living host."""
        return self._host.process.pid if self._host and self._host.is_alive else None

    async def load(
        self, version_id: str, onnx_path: Path, *, max_batch_size: int
    ) -> engine_pb2.LoadEngineResponse:
        """Raises InvalidInput for a model that is refused."""
        request = engine_pb2.LoadEngineRequest(
            version_id=version_id, onnx_path=str(onnx_path), max_batch_size=max_batch_size
        )
        self._wanted[version_id] = request
        try:
            return await self._ensure_loaded(request)
        except BaseException:
            if self._wanted.get(version_id) is request:
                del self._wanted[version_id]
            raise

    async def unload(self, version_id: str) -> None:
        """With the last engine the host goes too, and with it all of its memory."""
        self._wanted.pop(version_id, None)
        async with self._loading:
            host = self._host
            if host is None or not host.is_alive:
                return
            if not self._wanted:
                await self._end_host()
            elif host.loaded.pop(version_id, None) is not None:
                request = engine_pb2.UnloadEngineRequest(version_id=version_id)
                await host.peer.call(host.stub.UnloadEngine, request, timeout_s=_STOP_GRACE_S)

    async def run(
        self, version_id: str, inputs: Sequence[engine_pb2.Tensor]
    ) -> engine_pb2.RunEngineResponse:
        """Raises InvalidInput, ResourceExhausted or Unavailable."""
        host = self._host
        if host is None or not host.is_alive or version_id not in host.loaded:
            wanted = self._wanted.get(version_id)
            if wanted is None:
                raise NotFound(f"engine {version_id} is not loaded")
            await self._ensure_loaded(wanted)
            host = self._host
            assert host is not None
        request = engine_pb2.RunEngineRequest(version_id=version_id, inputs=inputs)
        try:
            answer: engine_pb2.RunEngineResponse = await host.peer.call(
                host.stub.RunEngine, request, timeout_s=self._spec.run_timeout_s
            )
        except Unavailable:
            await host.wait_if_dying()
            raise
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if host.is_alive or (task is not None and task.cancelling()):
                raise
            # Not this task was cancelled but the call, by the end of its channel.
            raise HostDied(host.process.returncode or 0) from None
        return answer

    async def stop(self) -> None:
        self._is_stopped = True
        await self._end_host()
        if self._socket_dir is not None:
            shutil.rmtree(self._socket_dir, ignore_errors=True)

    async def _end_host(self) -> None:
        for watch in self._watches:
            watch.cancel()
        async with self._starting:
            if self._host is not None:
                await self._host.end()
                self._host = None

    async def _ensure_loaded(
        self, request: engine_pb2.LoadEngineRequest
    ) -> engine_pb2.LoadEngineResponse:
        async with self._loading:
            host = await self._ensure_running()
            answer = host.loaded.get(request.version_id)
            if answer is None:
                answer = await self._load(host, request)
                host.loaded[request.version_id] = answer
            return answer

    async def _load(
        self, host: _HostProcess, request: engine_pb2.LoadEngineRequest
    ) -> engine_pb2.LoadEngineResponse:
        try:
            answer: engine_pb2.LoadEngineResponse = await host.peer.call(
                host.stub.LoadEngine, request, timeout_s=self._spec.load_timeout_s
            )
        except Unavailable as error:
            await host.wait_if_dying()
            if host.is_alive:
                raise
            raise HostDied(host.process.returncode or 0) from error
        return answer

    async def _ensure_running(self) -> _HostProcess:
        async with self._starting:
            if self._is_stopped:
                raise Unavailable("the engine host was stopped")
            if self._host is None or not self._host.is_alive:
                self._host = await self._start()
                watch = asyncio.create_task(self._watch_over(self._host))
                self._watches.add(watch)
                watch.add_done_callback(self._watches.discard)
            return self._host

    async def _start(self) -> _HostProcess:
        socket = self._make_socket_dir() / f"{secrets.token_hex(4)}.sock"
        order = HostOrder(
            socket=str(socket),
            cache_dir=str(self._spec.data_dir / "engines"),
            parent_pid=os.getpid(),
            sandbox=tuple(self._spec.sandbox),
        )
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "services.inference.engine_host",
            order.to_text(),
            env={**_passed_environment(), MESH_KEY_VARIABLE: self._spec.mesh_key},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
        )
        assert process.stdout is not None
        try:
            async with asyncio.timeout(self._spec.start_timeout_s):
                line = await process.stdout.readline()
            if line != _READY_LINE:
                raise Unavailable(f"the engine host ended with status {await process.wait()}")
        except BaseException as error:
            if process.returncode is None:
                process.kill()
                await process.wait()
            if isinstance(error, TimeoutError):
                raise Unavailable("the engine host did not start in time") from None
            raise
        log.info("engine host started", extra={"event": "engine_host_started", "pid": process.pid})
        return _HostProcess(process, socket, self._spec.mesh_key)

    async def _watch_over(self, host: _HostProcess) -> None:
        status = await host.process.wait()
        # Calls in flight see the end of their connection; closing at once would cancel them.
        await host.peer.channel.close(_DYING_S)
        log.error("engine host died", extra={"event": "engine_host_died", "exit_status": status})
        if not self._wanted or self._is_stopped:
            return
        # Once only: a host that dies again without being used is started by the next call.
        for request in list(self._wanted.values()):
            try:
                await self._ensure_loaded(request)
            except RepriseError as error:
                log.error(
                    "engine host did not come back",
                    extra={"event": "engine_host_lost", "error": error.message},
                )
                return

    def _make_socket_dir(self) -> Path:
        if self._socket_dir is None:
            wished = self._spec.data_dir / "sockets"
            if len(str(wished)) <= _SOCKET_PATH_MAX - 16:
                wished.mkdir(mode=0o700, parents=True, exist_ok=True)
                self._socket_dir = Path(tempfile.mkdtemp(dir=wished, prefix="e"))
            else:
                self._socket_dir = Path(tempfile.mkdtemp(prefix="reprise-"))
        return self._socket_dir


def _passed_environment() -> dict[str, str]:
    names = ("PATH", "HOME", "LANG", "TMPDIR", "PYTHONPATH", "LD_LIBRARY_PATH")
    return {name: os.environ[name] for name in names if name in os.environ}
