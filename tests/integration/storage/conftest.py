"""One storage service for each test."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.integration.storage.service import StorageService, run_service


@pytest.fixture
async def storage(tmp_path: Path) -> AsyncIterator[StorageService]:
    async for service in run_service(tmp_path, file_size_bytes_max=1_000_000, upload_idle_s=5):
        yield service
