"""The storage service: `python -m services.storage`."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from reprise.storage.v1 import (
    artifact_pb2,
    artifact_pb2_grpc,
    file_pb2,
    file_pb2_grpc,
    model_pb2,
    model_pb2_grpc,
)

from services.chassis import server, telemetry
from services.chassis.channels import Peer, open_channel
from services.chassis.clock import Clock, now_us
from services.chassis.db import Database
from services.chassis.errors import InvalidInput
from services.chassis.server import Servicer
from services.chassis.settings import load
from services.storage.artifact_servicer import ArtifactServicer
from services.storage.blobs import BlobStore, open_blobs
from services.storage.builds import Builds
from services.storage.file_servicer import FileServicer
from services.storage.file_store import BlobUploads, FileStore
from services.storage.model_servicer import ModelServicer
from services.storage.pushes import Pushes
from services.storage.settings import StorageSettings
from services.storage.store import Catalogue
from services.storage.subscriber import Subscriber
from services.storage.sweeper import Sweeper

MIGRATIONS = Path(__file__).parent / "migrations"

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Parts:
    """The service's parts over their stores."""

    servicers: Sequence[Servicer]
    subscriber: Subscriber
    sweeper: Sweeper


def assemble(
    settings: StorageSettings,
    *,
    database: Database,
    blobs: BlobStore,
    inference: Peer,
    clock: Clock = now_us,
) -> Parts:
    """Builds the parts in the order in which they need each other."""
    catalogue = Catalogue(database)
    blob_uploads = BlobUploads(database)
    file_store = FileStore(database)
    builds = Builds(
        inference,
        wait_s=settings.inference_wait_s,
        timeout_s=settings.build_timeout_s,
        count_max=settings.build_count_max,
    )
    pushes = Pushes(
        catalogue,
        blob_uploads,
        builds,
        hardware_default=settings.hardware_default,
        clock=clock,
    )
    servicers = [
        Servicer(
            model_pb2_grpc.add_ModelServiceServicer_to_server,
            ModelServicer(
                catalogue, pushes, hardware_default=settings.hardware_default, clock=clock
            ),
            model_pb2.DESCRIPTOR.services_by_name["ModelService"].full_name,
        ),
        Servicer(
            file_pb2_grpc.add_FileServiceServicer_to_server,
            FileServicer(file_store, blobs, settings, clock=clock),
            file_pb2.DESCRIPTOR.services_by_name["FileService"].full_name,
        ),
        Servicer(
            artifact_pb2_grpc.add_ArtifactServiceServicer_to_server,
            ArtifactServicer(
                blob_uploads, blobs, upload_idle_s=settings.upload_idle_s, clock=clock
            ),
            artifact_pb2.DESCRIPTOR.services_by_name["ArtifactService"].full_name,
        ),
    ]
    return Parts(
        servicers=servicers,
        subscriber=Subscriber(catalogue, clock=clock),
        sweeper=Sweeper(file_store, catalogue, blobs, settings),
    )


async def main() -> None:
    settings = load(StorageSettings)
    telemetry.setup("storage", settings)
    try:
        blobs = open_blobs(settings.blob_url)
    except InvalidInput as error:
        raise SystemExit(str(error)) from None
    leftover_count = await blobs.sweep()
    if leftover_count:
        log.info(
            "unfinished uploads removed",
            extra={"event": "uploads_swept", "count": leftover_count},
        )
    database = Database(settings.database_url, MIGRATIONS)
    database.migrate()
    channel = open_channel(settings.inference_target)
    parts = assemble(
        settings, database=database, blobs=blobs, inference=Peer(channel, settings.mesh_key)
    )
    await server.serve(
        settings,
        servicers=parts.servicers,
        background=[
            partial(parts.subscriber.run, settings),
            partial(parts.sweeper.run, now_us),
        ],
        on_stop=[channel.close, database.close],
    )


if __name__ == "__main__":
    server.run(main())
