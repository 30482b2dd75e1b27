"""The billing service: `python -m services.billing`."""

from pathlib import Path

from prometheus_client import REGISTRY
from reprise.billing.v1 import ledger_pb2, ledger_pb2_grpc, price_pb2, price_pb2_grpc

from services.billing.journal import Journal
from services.billing.metrics import LedgerCollector
from services.billing.servicer import LedgerServicer, PriceServicer
from services.billing.settings import BillingSettings
from services.billing.store import Store
from services.chassis import server, telemetry
from services.chassis.clock import now_us
from services.chassis.db import Database
from services.chassis.server import Servicer
from services.chassis.settings import load

MIGRATIONS = Path(__file__).parent / "migrations"


async def main() -> None:
    settings = load(BillingSettings)
    telemetry.setup("billing", settings)
    database = Database(settings.database_url, MIGRATIONS)
    database.migrate()
    store = Store(database)
    journal = Journal(
        store,
        prices=settings.prices,
        starting_credit_micros=settings.starting_credit_micros,
        currency=settings.currency,
        now_us=now_us,
    )
    await journal.load()
    REGISTRY.register(LedgerCollector(lambda: journal.books))
    await server.serve(
        settings,
        servicers=[
            Servicer(
                ledger_pb2_grpc.add_LedgerServiceServicer_to_server,
                LedgerServicer(journal, store, settings),
                ledger_pb2.DESCRIPTOR.services_by_name["LedgerService"].full_name,
            ),
            Servicer(
                price_pb2_grpc.add_PriceServiceServicer_to_server,
                PriceServicer(settings),
                price_pb2.DESCRIPTOR.services_by_name["PriceService"].full_name,
            ),
        ],
        background=[journal.watch],
        on_stop=[journal.close, database.close],
    )


if __name__ == "__main__":
    server.run(main())
