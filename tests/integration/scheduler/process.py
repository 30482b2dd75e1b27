"""A real scheduler process with a real NATS server, a SQLite file and fake neighbours."""

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.duration_pb2 import Duration
from reprise.billing.v1 import ledger_pb2
from reprise.scheduler.v1 import prediction_pb2, prediction_pb2_grpc
from reprise.storage.v1 import model_pb2
from sqlalchemy import Row, create_engine, text

from services.chassis.bus import Bus
from services.chassis.channels import Peer, open_channel
from services.chassis.settings import ServiceSettings
from tests.doubles.billing import FakeBilling
from tests.doubles.storage import FakeStorage
from tests.doubles.worker import Behaviour, FakeWorker, echo
from tests.servers import NatsServer, free_port, wait_for_port

ROOT = Path(__file__).parents[3]
MESH_KEY = "key of the test's mesh"
SCHEMA = {
    "openapi": "3.0.2",
    "components": {
        "schemas": {
            "Input": {
                "type": "object",
                "properties": {
                    "text": {"type": "string"},
                    "count": {"type": "integer", "minimum": 1, "maximum": 9, "nullable": True},
                    "mode": {"allOf": [{"$ref": "#/components/schemas/mode"}]},
                },
                "required": ["text"],
            },
            "mode": {"type": "string", "enum": ["fast", "slow"]},
            "Output": {},
        }
    },
}

STARTING = prediction_pb2.PREDICTION_STATUS_STARTING
PROCESSING = prediction_pb2.PREDICTION_STATUS_PROCESSING
SUCCEEDED = prediction_pb2.PREDICTION_STATUS_SUCCEEDED
FAILED = prediction_pb2.PREDICTION_STATUS_FAILED
CANCELED = prediction_pb2.PREDICTION_STATUS_CANCELED
FINAL = (SUCCEEDED, FAILED, CANCELED)


@dataclass(slots=True)
class SchedulerProcess:
    """`python -m services.scheduler`, its neighbours, and calls as the gateway makes them."""

    folder: Path
    nats: NatsServer
    billing: FakeBilling = field(default_factory=FakeBilling)
    storage: FakeStorage = field(default_factory=FakeStorage)
    port: int = field(default_factory=free_port)
    settings: dict[str, str] = field(default_factory=dict)
    workers: list[FakeWorker] = field(default_factory=list)
    spec: model_pb2.VersionSpec = field(init=False)
    process: subprocess.Popen[bytes] | None = None
    neighbours_port: int = 0
    _channel: grpc.aio.Channel | None = None
    _neighbours: grpc.aio.Server | None = None
    _buses: list[Bus] = field(default_factory=list)

    @property
    def database_url(self) -> str:
        return f"sqlite:///{self.folder / 'scheduler.db'}"

    async def start_neighbours(self) -> None:
        self.spec = self.storage.models.register("alice/echo", openapi_schema=SCHEMA)
        self._neighbours = grpc.aio.server()
        self.billing.add_to(self._neighbours)
        self.storage.add_to(self._neighbours)
        self.neighbours_port = self._neighbours.add_insecure_port("127.0.0.1:0")
        await self._neighbours.start()

    async def start(self) -> None:
        neighbours = f"127.0.0.1:{self.neighbours_port}"
        environment = {
            "LISTEN": f"127.0.0.1:{self.port}",
            "MESH_KEY": MESH_KEY,
            "NATS_URL": self.nats.url,
            "DATABASE_URL": self.database_url,
            "STORAGE_TARGET": neighbours,
            "BILLING_TARGET": neighbours,
            "HEARTBEAT_TIMEOUT_S": "2.5",
            "LEASE_RESEND_AFTER_S": "0.3",
            "REPLICA_SHARE_S": "0.3",
            "SETTLEMENT_DELAY_S": "0.01",
        } | self.settings
        self.process = subprocess.Popen(
            [sys.executable, "-m", "services.scheduler"],
            cwd=ROOT,
            env=os.environ
            | {f"REPRISE_SCHEDULER_{key}": value for key, value in environment.items()},
            stderr=(self.folder / "scheduler.log").open("ab"),
        )
        await wait_for_port(self.port, timeout_s=30)
        if self._channel is None:
            self._channel = open_channel(f"127.0.0.1:{self.port}")

    async def kill(self) -> None:
        """kill -9: nothing that was not durable survives."""
        if self.process is not None:
            self.process.kill()
            await asyncio.to_thread(self.process.wait)
            self.process = None

    async def close(self) -> None:
        for worker in self.workers:
            await worker.kill()
        for bus in self._buses:
            await bus.close()
        if self._channel is not None:
            await self._channel.close()
        await self.kill()
        if self._neighbours is not None:
            await self._neighbours.stop(0)

    async def bus(self) -> Bus:
        """A connection of its own to NATS."""
        settings = ServiceSettings(mesh_key=MESH_KEY, nats_url=self.nats.url)
        bus = await Bus.connect(settings, "test")
        self._buses.append(bus)
        return bus

    async def worker(
        self,
        worker_id: str = "w1",
        *,
        behaviour: Behaviour = echo,
        host_id: str = "",
        slot_count: int = 1,
        replica_count_max: int = 4,
        hardware: str = "cpu",
    ) -> FakeWorker:
        worker = FakeWorker(
            await self.bus(),
            worker_id,
            host_id=host_id,
            hardware=hardware,
            slot_count=slot_count,
            replica_count_max=replica_count_max,
            behaviour=behaviour,
            heartbeat_s=0.2,
        )
        self.workers.append(worker)
        await worker.start()
        return worker

    def peer(self) -> Peer:
        if self._channel is None:
            raise RuntimeError("the process was never started")
        return Peer(self._channel, MESH_KEY)

    def stub(self) -> prediction_pb2_grpc.PredictionServiceStub:
        return prediction_pb2_grpc.PredictionServiceStub(self.peer().channel)

    async def create(
        self,
        input_text: str = '{"text":"hi"}',
        *,
        wait_s: float = 0,
        account_id: str = "bob",
        request_id: str = "",
        version: str | None = None,
        **fields: Any,
    ) -> prediction_pb2.Prediction:
        request = prediction_pb2.CreatePredictionRequest(
            version=self.spec.version_id if version is None else version, **fields
        )
        request.input.text = input_text
        if wait_s:
            request.wait.CopyFrom(Duration(nanos=int(wait_s % 1 * 1e9), seconds=int(wait_s)))
        response = await self.peer().call(
            self.stub().CreatePrediction,
            request,
            timeout_s=30,
            account_id=account_id,
            request_id=request_id,
        )
        prediction: prediction_pb2.Prediction = response.prediction
        return prediction

    async def get(self, prediction_id: str, account_id: str = "bob") -> prediction_pb2.Prediction:
        request = prediction_pb2.GetPredictionRequest(prediction_id=prediction_id)
        response = await self.peer().call(
            self.stub().GetPrediction, request, timeout_s=30, account_id=account_id
        )
        prediction: prediction_pb2.Prediction = response.prediction
        return prediction

    async def cancel(self, prediction_id: str) -> prediction_pb2.Prediction:
        request = prediction_pb2.CancelPredictionRequest(prediction_id=prediction_id)
        response = await self.peer().call(
            self.stub().CancelPrediction, request, timeout_s=30, account_id="bob"
        )
        prediction: prediction_pb2.Prediction = response.prediction
        return prediction

    async def watch(
        self, prediction_id: str, *, until: Any, timeout_s: float = 20
    ) -> prediction_pb2.Prediction:
        """The first state of a prediction for which `until` holds."""
        request = prediction_pb2.WatchPredictionRequest(prediction_id=prediction_id)
        async with asyncio.timeout(timeout_s):
            async for response in self.peer().stream(
                self.stub().WatchPrediction, request, account_id="bob"
            ):
                prediction: prediction_pb2.Prediction = response.prediction
                if until(prediction):
                    return prediction
        raise AssertionError("the prediction ended before that")

    async def end_of(self, prediction_id: str) -> prediction_pb2.Prediction:
        return await self.watch(prediction_id, until=lambda item: item.status in FINAL)

    async def stream(
        self, prediction: prediction_pb2.Prediction, *, last_event_id: str = ""
    ) -> AsyncIterator[prediction_pb2.StreamPredictionResponse]:
        request = prediction_pb2.StreamPredictionRequest(
            stream_token=prediction.urls["stream"].rpartition("/")[2], last_event_id=last_event_id
        )
        async for event in self.peer().stream(self.stub().StreamPrediction, request):
            yield event

    async def receipt(self, prediction_id: str) -> ledger_pb2.Receipt:
        return await self.billing.wait_settled(prediction_id)

    def rows(self, query: str) -> list[Row[Any]]:
        engine = create_engine(self.database_url)
        try:
            with engine.connect() as connection:
                return list(connection.execute(text(query)))
        finally:
            engine.dispose()


async def eventually(condition: Any, timeout_s: float = 15) -> None:
    """Returns once a condition of another process holds."""
    async with asyncio.timeout(timeout_s):
        while True:
            outcome = condition()
            if asyncio.iscoroutine(outcome):
                outcome = await outcome
            if outcome:
                return
            await asyncio.sleep(0.02)
