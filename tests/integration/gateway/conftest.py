"""One gateway process for all tests of the folder; its neighbours are fresh for each test."""

import asyncio
import contextlib
from collections.abc import Iterator

import httpx
import pytest
import replicate

from tests.integration.gateway.process import (
    TOKEN,
    Doubles,
    GatewayProcess,
    StreamingScheduler,
)
from tests.servers import NatsServer, free_port


@pytest.fixture(scope="session")
def _shared_gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    folder = tmp_path_factory.mktemp("gateway")
    nats = NatsServer(folder=folder / "nats", port=free_port())
    doubles = Doubles()
    gateway = GatewayProcess(folder, doubles, nats)
    try:
        asyncio.run(nats.start())
        doubles.start()
        asyncio.run(gateway.start())
        yield gateway
    finally:
        gateway.close()
        doubles.close()
        nats.kill()


@pytest.fixture
def gateway(_shared_gateway: GatewayProcess) -> GatewayProcess:
    """The shared gateway with neighbours that remember nothing."""
    doubles = _shared_gateway.doubles
    _reset(doubles.scheduler, StreamingScheduler())
    _reset(doubles.storage.files, type(doubles.storage.files)())
    _reset(doubles.storage.models, type(doubles.storage.models)())
    return _shared_gateway


@pytest.fixture
def http(gateway: GatewayProcess) -> Iterator[httpx.Client]:
    with gateway.http() as client:
        yield client


@pytest.fixture
def client(gateway: GatewayProcess) -> Iterator[replicate.Client]:
    """The official Python client, pointed at the gateway."""
    with official_client(gateway, TOKEN) as client:
        yield client


@contextlib.contextmanager
def official_client(gateway: GatewayProcess, token: str) -> Iterator[replicate.Client]:
    """It has no close(): its connections would outlive the test."""
    client = replicate.Client(api_token=token, base_url=gateway.url)
    try:
        yield client
    finally:
        client._client.close()


def _reset(double: object, fresh: object) -> None:
    # The servicers stay registered with the server: only what they remember is replaced.
    vars(double).clear()
    vars(double).update(vars(fresh))
