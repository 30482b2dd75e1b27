"""A real billing process on a SQLite file, which a test may kill and start again."""

import asyncio
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from reprise.billing.v1 import ledger_pb2, ledger_pb2_grpc, price_pb2_grpc
from sqlalchemy import create_engine

from services.billing.audit import Violation, audit
from services.chassis.channels import Peer, open_channel
from tests.servers import free_port, wait_for_port

ROOT = Path(__file__).parents[3]
MESH_KEY = "key of the test's mesh"


@dataclass(slots=True)
class BillingProcess:
    """`python -m services.billing`, and a peer that calls it."""

    folder: Path
    port: int = field(default_factory=free_port)
    settings: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None
    channel: grpc.aio.Channel | None = None

    @property
    def database_url(self) -> str:
        return f"sqlite:///{self.folder / 'billing.db'}"

    async def start(self) -> None:
        environment = {
            "REPRISE_BILLING_LISTEN": f"127.0.0.1:{self.port}",
            "REPRISE_BILLING_MESH_KEY": MESH_KEY,
            "REPRISE_BILLING_DATABASE_URL": self.database_url,
            "REPRISE_BILLING_STARTING_CREDIT_MICROS": "1000000",
            "REPRISE_BILLING_PRICES": '{"cpu": 100, "gpu": 975}',
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", "services.billing"],
            cwd=ROOT,
            env=os.environ | environment | self.settings,
            stderr=(self.folder / "billing.log").open("ab"),
        )
        await wait_for_port(self.port, timeout_s=30)
        if self.channel is None:
            self.channel = open_channel(f"127.0.0.1:{self.port}")

    async def kill(self) -> None:
        """kill -9: nothing that was not durable survives."""
        if self.process is not None:
            self.process.kill()
            await asyncio.to_thread(self.process.wait)
            self.process = None

    async def terminate(self) -> int:
        """A stop in good order; its exit code."""
        if self.process is None:
            raise RuntimeError("the process does not run")
        self.process.terminate()
        code = await asyncio.to_thread(self.process.wait)
        self.process = None
        return code

    async def close(self) -> None:
        if self.channel is not None:
            await self.channel.close()
        await self.kill()

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
