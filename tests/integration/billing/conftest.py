"""One billing process for each test, and an audit of what it leaves behind."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.integration.billing.process import BillingProcess


@pytest.fixture
async def billing(tmp_path: Path) -> AsyncIterator[BillingProcess]:
    process = BillingProcess(tmp_path)
    try:
        await process.start()
        yield process
        assert process.violations() == []
    finally:
        await process.close()
