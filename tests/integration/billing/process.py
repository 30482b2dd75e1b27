"""Billing for tests: its servicers in this process, or the real process that a test may kill."""

import asyncio
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from reprise.billing.v1 import ledger_pb2, ledger_pb2_grpc, price_pb2_grpc
from sqlalchemy import create_engine

from services.billing.__main__ import MIGRATIONS
from services.billing.audit import Violation, audit
from services.billing.journal import Journal
from services.billing.ledger import Books
from services.billing.servicer import LedgerServicer, PriceServicer
from services.billing.settings import BillingSettings
from services.billing.store import Store
from services.chassis.channels import Peer, open_channel
from services.chassis.db import Database
from services.chassis.server import MeshInterceptor
from tests.servers import free_port, wait_for_port

ROOT = Path(__file__).parents[3]
MESH_KEY = "key of the test's mesh"
STARTING_CREDIT_MICROS = 1_000_000
PRICES = {"cpu": 100, "gpu": 975}


@dataclass(slots=True)
class Billing:
    """Billing on a SQLite file, and a peer that calls it."""

    folder: Path
    port: int = field(default_factory=free_port)
    channel: grpc.aio.Channel | None = None

    @property
    def database_url(self) -> str:
        return f"sqlite:///{self.folder / 'billing.db'}"

    def connect(self) -> None:
        if self.channel is None:
            self.channel = open_channel(f"127.0.0.1:{self.port}")

    async def call(
        self,
        method: str,
        request: object,
        *,
        account_id: str = "",
        is_operator: bool = False,
        request_id: str = "",
    ) -> Any:
        """One call as a service of the mesh makes it."""
        if self.channel is None:
            raise RuntimeError("the process was never started")
        stub: Any = ledger_pb2_grpc.LedgerServiceStub(self.channel)
        if method == "ListPrices":
            stub = price_pb2_grpc.PriceServiceStub(self.channel)
        return await Peer(self.channel, MESH_KEY).call(
            getattr(stub, method),
            request,
            timeout_s=20,
            account_id=account_id,
            is_operator=is_operator,
            request_id=request_id,
        )

    async def create_holds(self, *holds: ledger_pb2.NewHold) -> list[ledger_pb2.HoldResult]:
        response = await self.call("CreateHolds", ledger_pb2.CreateHoldsRequest(holds=holds))
        return list(response.results)

    async def settle_holds(
        self, *settlements: ledger_pb2.Settlement
    ) -> list[ledger_pb2.SettlementResult]:
        request = ledger_pb2.SettleHoldsRequest(settlements=settlements)
        response = await self.call("SettleHolds", request)
        return list(response.results)

    async def credit(self, account_id: str) -> ledger_pb2.Credit:
        response = await self.call(
            "GetCredit", ledger_pb2.GetCreditRequest(), account_id=account_id
        )
        credit: ledger_pb2.Credit = response.credit
        return credit

    def violations(self) -> list[Violation]:
        """What an audit of the file finds, whether the process runs or not."""
        engine = create_engine(self.database_url)
        try:
            with engine.connect() as connection:
                return audit(connection)
        finally:
            engine.dispose()


@dataclass(slots=True)
class LocalBilling(Billing):
    """The service's parts in this process: quick to start."""

    server: grpc.aio.Server | None = None
    database: Database | None = None
    journal: Journal | None = None

    async def start(self) -> None:
        settings = BillingSettings(
            mesh_key=MESH_KEY,
            database_url=self.database_url,
            starting_credit_micros=STARTING_CREDIT_MICROS,
            prices=PRICES,
        )
        self.database = Database(settings.database_url, MIGRATIONS)
        self.database.migrate()
        store = Store(self.database)
        self.journal = Journal(
            store,
            prices=settings.prices,
            starting_credit_micros=settings.starting_credit_micros,
            currency=settings.currency,
            now_us=lambda: time.time_ns() // 1000,
        )
        await self.journal.load()
        self.server = grpc.aio.server(interceptors=[MeshInterceptor(MESH_KEY)])
        ledger_pb2_grpc.add_LedgerServiceServicer_to_server(
            LedgerServicer(self.journal, store, settings), self.server
        )
        price_pb2_grpc.add_PriceServiceServicer_to_server(PriceServicer(settings), self.server)
        self.server.add_insecure_port(f"127.0.0.1:{self.port}")
        await self.server.start()
        self.connect()

    async def differs_from_disk(self) -> bool:
        """Whether the balances in memory are other than the sums of all postings."""
        if self.journal is None or self.database is None:
            return False
        loaded = await Store(self.database).load()
        again = Books(loaded.balances, loaded.open_holds)
        return again.balances() != self.journal.books.balances() or set(again.open_holds) != set(
            self.journal.books.open_holds
        )

    async def close(self) -> None:
        if self.channel is not None:
            await self.channel.close()
        if self.server is not None:
            await self.server.stop(0)
        if self.journal is not None:
            await self.journal.close()
        if self.database is not None:
            await self.database.close()


@dataclass(slots=True)
class BillingProcess(Billing):
    """`python -m services.billing`."""

    settings: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None

    async def start(self) -> None:
        environment = {
            "REPRISE_BILLING_LISTEN": f"127.0.0.1:{self.port}",
            "REPRISE_BILLING_MESH_KEY": MESH_KEY,
            "REPRISE_BILLING_DATABASE_URL": self.database_url,
            "REPRISE_BILLING_STARTING_CREDIT_MICROS": str(STARTING_CREDIT_MICROS),
            "REPRISE_BILLING_PRICES": json.dumps(PRICES),
        }
        with (self.folder / "billing.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "services.billing"],
                cwd=ROOT,
                env=os.environ | environment | self.settings,
                stderr=log,
            )
        await wait_for_port(self.port, timeout_s=60)
        self.connect()

    async def kill(self) -> None:
        """kill -9: nothing that was not durable survives."""
        if self.process is not None:
            self.process.kill()
            await asyncio.to_thread(self.process.wait)
            self.process = None

    async def wait(self) -> int:
        """The exit code, once the process has ended."""
        if self.process is None:
            raise RuntimeError("the process does not run")
        code = await asyncio.to_thread(self.process.wait, 30)
        self.process = None
        return code

    async def terminate(self) -> int:
        """A stop in good order; its exit code."""
        if self.process is not None:
            self.process.terminate()
        return await self.wait()

    async def close(self) -> None:
        if self.channel is not None:
            await self.channel.close()
        await self.kill()


def new_hold(
    hold_id: str, account_id: str = "alice", *, run_ms_max: int = 1000
) -> ledger_pb2.NewHold:
    return ledger_pb2.NewHold(
        hold_id=hold_id, account_id=account_id, hardware="cpu", run_ms_max=run_ms_max
    )


def capture(hold_id: str, *, run_ms: int) -> ledger_pb2.Settlement:
    return ledger_pb2.Settlement(hold_id=hold_id, capture=ledger_pb2.Capture(run_ms=run_ms))


def release(hold_id: str, reason: str = "worker_lost") -> ledger_pb2.Settlement:
    return ledger_pb2.Settlement(hold_id=hold_id, release=ledger_pb2.Release(reason=reason))
