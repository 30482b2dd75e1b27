"""Billing for each test, and an audit of what it leaves behind."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.integration.billing.process import BillingProcess, LocalBilling


@pytest.fixture
async def billing(tmp_path: Path) -> AsyncIterator[LocalBilling]:
    local = LocalBilling(tmp_path)
    try:
        await local.start()
        yield local
        assert local.violations() == []
        assert not await local.differs_from_disk()
    finally:
        await local.close()


@pytest.fixture
async def billing_process(tmp_path: Path) -> AsyncIterator[BillingProcess]:
    process = BillingProcess(tmp_path)
    try:
        await process.start()
        yield process
        assert process.violations() == []
    finally:
        await process.close()
