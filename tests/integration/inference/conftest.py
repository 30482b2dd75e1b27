"""A real worker process with a real NATS server; storage, gateway and scheduler are doubles."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import orjson
import psutil
import pytest
from reprise.gateway.v1 import account_pb2, fetch_pb2, fetch_pb2_grpc
from reprise.inference.v1 import build_pb2_grpc, events_pb2
from reprise.scheduler.v1 import events_pb2 as scheduler_events_pb2
from reprise.storage.v1 import model_pb2

from services.chassis.bus import Bus
from services.chassis.channels import Peer, open_channel
from services.chassis.settings import ServiceSettings
from services.inference.cog.config import CogConfig
from services.inference.cog.environment import EnvironmentStore
from services.inference.cog.requirements import read_requirements
from services.inference.cog_loading import read_project
from tests.doubles.storage import FakeStorage
from tests.servers import NatsServer, free_port, nats_server

MESH_KEY = "mesh"
COG_PROJECTS = Path(__file__).parents[2] / "models" / "cog"
WAIT_S = 30.0


class FakeFetcher(fetch_pb2_grpc.FetchServiceServicer):
    """Pages by URL."""

    def __init__(self) -> None:
        self.pages: dict[str, bytes] = {}

    async def FetchUrl(self, request: Any, context: Any) -> AsyncIterator[Any]:
        if request.url not in self.pages:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the address is not public")
        yield fetch_pb2.FetchUrlResponse(chunk=self.pages[request.url], content_type="text/plain")


class FakeAccounts:
    """Accounts by token; answers Authenticate, the one method that services call."""

    def __init__(self) -> None:
        self.tokens = {"alices-token": "alice"}

    def add_to(self, server: grpc.aio.Server) -> None:
        method = grpc.unary_unary_rpc_method_handler(
            self._authenticate,
            request_deserializer=account_pb2.AuthenticateRequest.FromString,
            response_serializer=account_pb2.AuthenticateResponse.SerializeToString,
        )
        service = account_pb2.DESCRIPTOR.services_by_name["AccountService"].full_name
        handler = grpc.method_handlers_generic_handler(service, {"Authenticate": method})
        server.add_generic_rpc_handlers((handler,))

    async def _authenticate(self, request: Any, context: Any) -> Any:
        if request.token not in self.tokens:
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "the token is unknown")
        return account_pb2.AuthenticateResponse(account_id=self.tokens[request.token])


class FakeGateway:
    """The parts of the gateway that workers call."""

    def __init__(self) -> None:
        self.fetcher = FakeFetcher()
        self.accounts = FakeAccounts()

    def add_to(self, server: grpc.aio.Server) -> None:
        fetch_pb2_grpc.add_FetchServiceServicer_to_server(self.fetcher, server)
        self.accounts.add_to(server)


class SchedulerSeat:
    """Grants leases and hears reports, as the scheduler does."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._news = asyncio.Condition()
        self.workers: dict[str, events_pb2.WorkerReported] = {}
        self.stopped: list[str] = []
        self.events: list[events_pb2.RunEvent] = []
        self.reports: list[events_pb2.RunsReported] = []
        # While set, reports are heard and not acknowledged.
        self.is_deaf = False

    async def listen(self) -> None:
        await self._bus.consume(events_pb2.WorkerReported, self._on_worker)
        await self._bus.consume(events_pb2.WorkerStopped, self._on_stopped)
        await self._bus.consume(events_pb2.RunsReported, self._on_runs)

    async def grant(self, *leases: scheduler_events_pb2.Lease) -> None:
        await self._bus.publish(
            scheduler_events_pb2.LeasesGranted(leases=leases), to=self.worker.worker_id
        )

    async def revoke(self, prediction_id: str, attempt: int = 1) -> None:
        event = scheduler_events_pb2.LeaseRevoked(prediction_id=prediction_id, attempt=attempt)
        await self._bus.publish(event, to=self.worker.worker_id)

    async def request_replica(self, version_id: str) -> None:
        event = scheduler_events_pb2.ReplicaRequested(version_id=version_id, account_id="alice")
        await self._bus.publish(event, to=self.worker.worker_id)

    @property
    def worker(self) -> events_pb2.WorkerReported:
        return next(reversed(self.workers.values()))

    def steps(self, prediction_id: str, attempt: int = 1) -> list[str]:
        return [
            event.WhichOneof("step") or ""
            for event in self.of(prediction_id)
            if event.attempt == attempt
        ]

    def of(self, prediction_id: str) -> list[events_pb2.RunEvent]:
        """Without repeats."""
        found = {
            (event.attempt, event.sequence): event
            for event in self.events
            if event.prediction_id == prediction_id
        }
        return [found[key] for key in sorted(found)]

    def logs(self, prediction_id: str) -> str:
        return "".join(event.logged.text for event in self.of(prediction_id))

    async def completed(self, prediction_id: str, attempt: int = 1) -> events_pb2.RunCompleted:
        def find() -> events_pb2.RunCompleted | None:
            for event in self.of(prediction_id):
                if event.attempt == attempt and event.HasField("completed"):
                    return event.completed
            return None

        await self.until(lambda: find() is not None)
        found = find()
        assert found is not None
        return found

    async def until(self, predicate: Callable[[], bool], timeout_s: float = WAIT_S) -> None:
        async with asyncio.timeout(timeout_s), self._news:
            await self._news.wait_for(predicate)

    def replica(self, version_id: str) -> events_pb2.ReplicaReport | None:
        reports = [r for w in self.workers.values() for r in w.replicas]
        return next((r for r in reports if r.version_id == version_id), None)

    async def _on_worker(self, event: events_pb2.WorkerReported) -> None:
        self.workers.pop(event.worker_id, None)
        self.workers[event.worker_id] = event
        await self._tell()

    async def _on_stopped(self, event: events_pb2.WorkerStopped) -> None:
        self.stopped.append(event.worker_id)
        self.workers.pop(event.worker_id, None)
        await self._tell()

    async def _on_runs(self, event: events_pb2.RunsReported) -> None:
        self.reports.append(event)
        self.events.extend(event.events)
        await self._tell()
        if self.is_deaf:
            raise ConnectionError("not acknowledged")

    async def _tell(self) -> None:
        async with self._news:
            self._news.notify_all()


@dataclass
class Mesh:
    """Everything around the worker, and the worker."""

    data_dir: Path
    nats: NatsServer
    storage: FakeStorage
    gateway: FakeGateway
    scheduler: SchedulerSeat
    environment: dict[str, str]
    grpc_port: int
    oip_port: int
    process: asyncio.subprocess.Process | None = None
    peers: list[Peer] = field(default_factory=list)

    async def start_worker(self, **settings: str) -> asyncio.subprocess.Process:
        """Returns after its first heartbeat."""
        self.scheduler.workers.clear()
        environment = self.environment | {
            f"REPRISE_INFERENCE_{name.upper()}": value for name, value in settings.items()
        }
        self.process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "services.inference", env=environment
        )
        await self.scheduler.until(lambda: bool(self.scheduler.workers))
        return self.process

    def children(self) -> list[psutil.Process]:
        assert self.process is not None
        return psutil.Process(self.process.pid).children(recursive=True)

    async def end_worker(self, number: signal.Signals = signal.SIGTERM) -> int:
        assert self.process is not None
        if self.process.returncode is None:
            self.process.send_signal(number)
        async with asyncio.timeout(WAIT_S):
            return await self.process.wait()

    def put_files(self, folder: Path) -> list[model_pb2.VersionFile]:
        return [
            self.storage.artifacts.put(str(path.relative_to(folder)), path.read_bytes())
            for path in sorted(folder.rglob("*"))
            if path.is_file() and "__pycache__" not in path.parts
        ]

    def register_cog(self, project: str) -> str:
        """The version id of one of the test projects."""
        folder = COG_PROJECTS / project
        schema = read_project(folder).schema
        spec = self.storage.models.register(
            f"alice/{project.replace('_', '-')}",
            openapi_schema=schema.document,
            files=self.put_files(folder),
            is_iterator=schema.is_iterator,
        )
        return spec.version_id

    def builder(self) -> build_pb2_grpc.BuildServiceStub:
        return build_pb2_grpc.BuildServiceStub(self.peer().channel)

    def peer(self) -> Peer:
        peer = Peer(open_channel(f"127.0.0.1:{self.grpc_port}"), MESH_KEY)
        self.peers.append(peer)
        return peer


def lease(
    prediction_id: str,
    version_id: str,
    prediction_input: Mapping[str, Any],
    *,
    attempt: int = 1,
    timeout_s: int = 60,
) -> scheduler_events_pb2.Lease:
    granted = scheduler_events_pb2.Lease(
        prediction_id=prediction_id, attempt=attempt, version_id=version_id, account_id="alice"
    )
    granted.input.text = orjson.dumps(prediction_input).decode()
    granted.run_timeout.FromSeconds(timeout_s)
    return granted


@pytest.fixture(scope="session")
def python_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Environments for every worker of a test run, so that they are built once."""
    path = tmp_path_factory.getbasetemp().parent / "cog-data"
    path.mkdir(exist_ok=True)
    requirements = read_requirements(CogConfig(), path)
    asyncio.run(EnvironmentStore(path).ensure(requirements, lambda line: None))
    return path


@asynccontextmanager
async def _neighbours(storage: FakeStorage, gateway: FakeGateway) -> AsyncIterator[int]:
    server = grpc.aio.server()
    storage.add_to(server)
    gateway.add_to(server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield port
    finally:
        await server.stop(0)


@pytest.fixture
def data_dir(tmp_path: Path, python_dir: Path) -> Path:
    path = tmp_path / "inference"
    path.mkdir()
    (path / "python").symlink_to(python_dir)
    return path


@pytest.fixture
async def mesh(tmp_path: Path, data_dir: Path) -> AsyncIterator[Mesh]:
    """Without a worker: tests start it with the settings they need."""
    storage, gateway = FakeStorage(), FakeGateway()
    async with nats_server(tmp_path / "nats") as nats, _neighbours(storage, gateway) as port:
        settings = ServiceSettings(mesh_key=MESH_KEY, nats_url=nats.url)
        bus = await Bus.connect(settings, "scheduler-double")
        scheduler = SchedulerSeat(bus)
        await scheduler.listen()
        grpc_port, oip_port = free_port(), free_port()
        own = {
            "MESH_KEY": MESH_KEY,
            "NATS_URL": nats.url,
            "DATA_DIR": str(data_dir),
            "STORAGE_TARGET": f"127.0.0.1:{port}",
            "GATEWAY_TARGET": f"127.0.0.1:{port}",
            "LISTEN": f"127.0.0.1:{grpc_port}",
            "OIP_LISTEN": f"127.0.0.1:{oip_port}",
            "HEARTBEAT_INTERVAL_S": "0.2",
            "REPORT_TIMEOUT_S": "0.5",
            "LOG_LEVEL": "WARNING",
        }
        passed = {
            name: value
            for name, value in os.environ.items()
            if name in ("PATH", "HOME", "LANG") or name.startswith(("UV_", "SSL_"))
        } | {"GRPC_ENABLE_FORK_SUPPORT": "0"}
        environment = passed | {f"REPRISE_INFERENCE_{name}": value for name, value in own.items()}
        mesh = Mesh(
            data_dir=data_dir,
            nats=nats,
            storage=storage,
            gateway=gateway,
            scheduler=scheduler,
            environment=environment,
            grpc_port=grpc_port,
            oip_port=oip_port,
        )
        try:
            yield mesh
        finally:
            if mesh.process is not None and mesh.process.returncode is None:
                mesh.process.kill()
                await mesh.process.wait()
            for peer in mesh.peers:
                await peer.channel.close()
            await bus.close()
