"""Client commands against a port whose services are doubles."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from reprise.scheduler.v1 import prediction_pb2
from reprise.storage.v1 import model_pb2_grpc

from cli import commands
from cli.client import Endpoint, connect
from tests.doubles.scheduler import FakeScheduler
from tests.doubles.storage import FakeModelService

WAIT_S = 10.0


class WatchedScheduler(FakeScheduler):
    """Leaves predictions waiting and tells when somebody watches one."""

    def __init__(self) -> None:
        super().__init__(output=None)
        self.watched = asyncio.Event()

    async def WatchPrediction(
        self, request: prediction_pb2.WatchPredictionRequest, context: Any
    ) -> AsyncIterator[prediction_pb2.WatchPredictionResponse]:
        self.watched.set()
        async for message in super().WatchPrediction(request, context):
            yield message


@pytest.fixture
async def scheduler() -> WatchedScheduler:
    return WatchedScheduler()


@pytest.fixture
async def endpoint(scheduler: WatchedScheduler) -> AsyncIterator[Endpoint]:
    models = FakeModelService()
    models.register("alice/hello")
    server = grpc.aio.server()
    scheduler.add_to(server)
    model_pb2_grpc.add_ModelServiceServicer_to_server(models, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield Endpoint(grpc=f"127.0.0.1:{port}", url="", token="t", authority=None)
    await server.stop(0)


async def test_an_interrupted_run_cancels_its_prediction_and_says_so(
    scheduler: WatchedScheduler,
    endpoint: Endpoint,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    async with connect(endpoint) as client, asyncio.timeout(WAIT_S):
        run = asyncio.create_task(
            commands.run(client, "alice/hello", [], folder=tmp_path, is_json=True)
        )
        await scheduler.watched.wait()
        # What asyncio.run does on Ctrl-C.
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await run
    [prediction] = scheduler.predictions.values()
    assert prediction.status == prediction_pb2.PREDICTION_STATUS_CANCELED
    shown = capsys.readouterr().err
    assert f"canceling {prediction.id}" in shown
    assert "canceled" in shown
