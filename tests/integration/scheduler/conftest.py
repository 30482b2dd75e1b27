"""One scheduler process, one NATS server and fresh neighbours for each test."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.integration.scheduler.process import SchedulerProcess
from tests.servers import nats_server


@pytest.fixture
async def scheduler(tmp_path: Path) -> AsyncIterator[SchedulerProcess]:
    folder = tmp_path / "nats"
    folder.mkdir()
    async with nats_server(folder) as nats:
        process = SchedulerProcess(tmp_path, nats)
        try:
            await process.start_neighbours()
            await process.start()
            yield process
        finally:
            await process.close()
