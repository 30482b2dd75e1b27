"""Composition root of the scheduler: `python -m services.scheduler`."""

from pathlib import Path

from reprise.scheduler.v1 import (
    hardware_pb2,
    hardware_pb2_grpc,
    prediction_pb2,
    prediction_pb2_grpc,
)

from services.chassis import server, telemetry
from services.chassis.bus import Bus
from services.chassis.channels import Peer, open_channel
from services.chassis.db import Database
from services.chassis.settings import load
from services.scheduler.backlog import Backlog
from services.scheduler.commits import Commits
from services.scheduler.completed import CompletedPublisher
from services.scheduler.dispatch import Dispatcher
from services.scheduler.fleet import Fleet
from services.scheduler.intake import Intake
from services.scheduler.live import LivePredictions
from services.scheduler.recovery import recover
from services.scheduler.runs import Runs
from services.scheduler.servicer import HardwareServicer, PredictionServicer
from services.scheduler.settings import SchedulerSettings
from services.scheduler.settlement import OrphanSweeper, Settlements
from services.scheduler.store import PredictionStore
from services.scheduler.subscriber import Subscriber
from services.scheduler.supervision import Supervision
from services.scheduler.versions import Versions

MIGRATIONS = Path(__file__).parent / "migrations"


async def main() -> None:
    """Builds the parts, rebuilds what had not ended, serves until stopped."""
    settings = load(SchedulerSettings)
    telemetry.setup("scheduler", settings)
    database = Database(settings.database_url, MIGRATIONS)
    database.migrate()
    bus = await Bus.connect(settings, "scheduler")
    storage = Peer(open_channel(settings.storage_target), settings.mesh_key)
    billing = Peer(open_channel(settings.billing_target), settings.mesh_key)

    store = PredictionStore(database)
    commits = Commits(store)
    predictions = LivePredictions()
    backlog = Backlog(settings.backlog_size_max)
    fleet = Fleet()
    settlements = Settlements(settings=settings, store=store, billing=billing)
    completed = CompletedPublisher(settings, bus)
    dispatcher = Dispatcher(
        settings=settings,
        predictions=predictions,
        backlog=backlog,
        fleet=fleet,
        commits=commits,
        bus=bus,
    )
    runs = Runs(
        settings=settings,
        predictions=predictions,
        backlog=backlog,
        fleet=fleet,
        commits=commits,
        dispatcher=dispatcher,
        settlements=settlements,
        completed=completed,
    )
    supervision = Supervision(
        settings=settings,
        predictions=predictions,
        backlog=backlog,
        fleet=fleet,
        dispatcher=dispatcher,
        runs=runs,
        settlements=settlements,
        bus=bus,
    )
    intake = Intake(
        settings=settings,
        store=store,
        billing=billing,
        predictions=predictions,
        backlog=backlog,
        fleet=fleet,
        commits=commits,
        dispatcher=dispatcher,
        runs=runs,
    )
    sweeper = OrphanSweeper(
        settings=settings,
        store=store,
        billing=billing,
        predictions=predictions,
        applicants=intake,
    )
    servicer = PredictionServicer(
        settings=settings,
        store=store,
        predictions=predictions,
        versions=Versions(settings, storage),
        intake=intake,
        runs=runs,
        dispatcher=dispatcher,
    )

    await recover(store=store, runs=runs, fleet=fleet, settlements=settlements)
    await Subscriber(supervision, runs).start(bus)
    await server.serve(
        settings,
        servicers=[
            server.Servicer(
                prediction_pb2_grpc.add_PredictionServiceServicer_to_server,
                servicer,
                prediction_pb2.DESCRIPTOR.services_by_name["PredictionService"].full_name,
            ),
            server.Servicer(
                hardware_pb2_grpc.add_HardwareServiceServicer_to_server,
                HardwareServicer(fleet),
                hardware_pb2.DESCRIPTOR.services_by_name["HardwareService"].full_name,
            ),
        ],
        background=[
            commits.watch,
            intake.run,
            dispatcher.run,
            supervision.run,
            settlements.run,
            sweeper.run,
            completed.run,
        ],
        on_stop=[commits.close, bus.close, database.close],
    )


if __name__ == "__main__":
    server.run(main())
