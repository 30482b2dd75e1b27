"""The inference service: `python -m services.inference`."""

import fcntl
import logging
import secrets
from pathlib import Path
from typing import IO

from reprise.gateway.v1 import events_pb2 as gateway_events_pb2
from reprise.inference.v1 import build_pb2, build_pb2_grpc, events_pb2
from reprise.scheduler.v1 import events_pb2 as scheduler_events_pb2
from reprise.storage.v1 import model_pb2

from services.chassis import server, telemetry
from services.chassis.bus import Bus
from services.chassis.channels import Peer, open_channel
from services.chassis.server import Servicer
from services.chassis.settings import load
from services.inference.artifacts import ArtifactCache
from services.inference.builder import BuildServicer
from services.inference.cog.environment import EnvironmentStore
from services.inference.cog.sandbox import Sandbox
from services.inference.cog.server_process import RunnerLimits
from services.inference.cog_loading import CogLoader
from services.inference.confinement import importer_words
from services.inference.engine_loading import EngineLoader, EngineOptions
from services.inference.engine_supervisor import EngineHost, EngineHostSpec
from services.inference.execution import Bench, ExecutionLimits
from services.inference.heartbeat import Heartbeat, WorkerIdentity, WorkerSnapshot
from services.inference.loaded_model import LoadedModel
from services.inference.oip_access import EngineCatalogue, TokenCheck
from services.inference.open_inference import (
    OpenInferenceServer,
    OpenInferenceServicer,
    PublicPort,
)
from services.inference.prediction_files import PredictionFiles
from services.inference.replicas import PoolLimits, ReplicaPool
from services.inference.reports import Reporter, ReportLimits
from services.inference.settings import InferenceSettings
from services.inference.versions import Version, VersionCatalogue
from services.inference.worker import Worker, WorkerLimits

log = logging.getLogger(__name__)


async def main() -> None:
    settings = load(InferenceSettings)
    telemetry.setup("inference", settings)
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    lock = _lock(settings.data_dir)
    sandbox = await _sandbox(settings)
    storage = Peer(open_channel(settings.storage_target), settings.mesh_key)
    gateway = Peer(open_channel(settings.gateway_target), settings.mesh_key)
    bus = await Bus.connect(settings, "inference")

    artifacts = ArtifactCache(settings.data_dir, storage, max_bytes=settings.cache_max_bytes)
    cog_loader = _cog_loader(settings, artifacts, sandbox)
    host_spec = _host_spec(settings, sandbox)
    engine_host = EngineHost(host_spec)
    engine_loader = _engine_loader(settings, artifacts, host=engine_host, host_spec=host_spec)
    builder = BuildServicer(
        artifacts=artifacts,
        cog_loader=cog_loader,
        engine_loader=engine_loader,
        builds_dir=settings.data_dir / "builds",
        count_max=settings.build_count_max,
    )
    for part in (builder, cog_loader, artifacts):
        await part.prepare()

    async def load_version(version: Version) -> LoadedModel:
        if version.spec.kind == model_pb2.VERSION_KIND_ENGINE:
            return await engine_loader.load(version)
        return await cog_loader.load(version)

    identity = _identity(settings, sandbox)
    snapshot = WorkerSnapshot(identity, settings.replica_count_max)
    heartbeat = Heartbeat(
        settings,
        snapshot,
        interval_s=settings.heartbeat_interval_s,
        stall_limit_s=settings.stall_limit_s,
    )
    pool = ReplicaPool(
        load_version,
        limits=PoolLimits(
            replica_count_max=settings.replica_count_max,
            memory_floor_bytes=settings.memory_floor_bytes,
        ),
        on_change=lambda: worker.on_replicas_changed(),
    )
    versions = VersionCatalogue(storage)
    worker = Worker(
        Bench(
            versions=versions,
            pool=pool,
            files=_files(settings, storage=storage, gateway=gateway),
            reporter=_reporter(settings, bus, identity.worker_id),
            limits=ExecutionLimits(
                cancel_grace_s=settings.cancel_grace_s, output_max_bytes=settings.output_max_bytes
            ),
        ),
        snapshot=snapshot,
        heartbeat=heartbeat,
        limits=WorkerLimits(
            lease_count_max=settings.lease_count_max, drain_grace_s=settings.drain_grace_s
        ),
    )
    tokens = TokenCheck(gateway, time_to_live_s=settings.token_cache_s)
    tensor_port = _tensor_port(settings, tokens, versions=versions, pool=pool)

    async def close() -> None:
        await engine_host.stop()
        await bus.close()
        lock.close()

    await _subscribe(bus, worker, tokens, to=identity.worker_id)
    await server.serve(
        settings,
        servicers=[
            Servicer(
                build_pb2_grpc.add_BuildServiceServicer_to_server,
                builder,
                build_pb2.DESCRIPTOR.services_by_name["BuildService"].full_name,
            )
        ],
        background=[worker.run, tensor_port.run],
        on_stop=[close],
    )


async def _subscribe(bus: Bus, worker: Worker, tokens: TokenCheck, *, to: str) -> None:
    async def forget_token(event: gateway_events_pb2.TokenRevoked) -> None:
        tokens.forget(event.token_digest)

    await bus.consume(scheduler_events_pb2.LeasesGranted, worker.on_leases_granted, to=to)
    await bus.consume(scheduler_events_pb2.LeaseRevoked, worker.on_lease_revoked, to=to)
    await bus.consume(scheduler_events_pb2.ReplicaRequested, worker.on_replica_requested, to=to)
    await bus.consume(gateway_events_pb2.TokenRevoked, forget_token)


def _tensor_port(
    settings: InferenceSettings,
    tokens: TokenCheck,
    *,
    versions: VersionCatalogue,
    pool: ReplicaPool,
) -> OpenInferenceServer:
    engines = EngineCatalogue(versions, time_to_live_s=settings.token_cache_s)
    return OpenInferenceServer(
        OpenInferenceServicer(tokens=tokens, engines=engines, pool=pool),
        PublicPort(settings.oip_listen, settings.oip_tls_cert, settings.oip_tls_key),
    )


def _files(settings: InferenceSettings, *, storage: Peer, gateway: Peer) -> PredictionFiles:
    return PredictionFiles(
        storage=storage,
        gateway=gateway,
        timeout_s=settings.transfer_timeout_s,
        input_max_bytes=settings.input_file_max_bytes,
    )


def _reporter(settings: InferenceSettings, bus: Bus, worker_id: str) -> Reporter:
    async def send(report: events_pb2.RunsReported) -> None:
        await bus.request(report, settings.report_timeout_s)

    return Reporter(
        send,
        worker_id=worker_id,
        limits=ReportLimits(
            report_max_bytes=settings.report_max_bytes,
            backlog_max_bytes=settings.report_backlog_max_bytes,
            log_interval_s=settings.log_interval_s,
        ),
    )


def _cog_loader(
    settings: InferenceSettings, artifacts: ArtifactCache, sandbox: Sandbox
) -> CogLoader:
    environments = EnvironmentStore(
        settings.data_dir / "python",
        interpreters=settings.interpreters,
        build_timeout_s=settings.build_timeout_s,
        allow_source_builds=settings.allow_source_builds,
    )
    return CogLoader(
        artifacts=artifacts,
        environments=environments,
        sandbox=sandbox,
        limits=RunnerLimits(
            start_timeout_s=settings.load_timeout_s, max_log_bytes=settings.log_max_bytes
        ),
        running_dir=settings.data_dir / "running",
    )


def _engine_loader(
    settings: InferenceSettings,
    artifacts: ArtifactCache,
    *,
    host: EngineHost,
    host_spec: EngineHostSpec,
) -> EngineLoader:
    return EngineLoader(
        artifacts=artifacts,
        host=host,
        host_spec=host_spec,
        options=EngineOptions(
            slot_count=settings.engine_slot_count, max_batch_size=settings.engine_batch_size_max
        ),
    )


def _host_spec(settings: InferenceSettings, sandbox: Sandbox) -> EngineHostSpec:
    engines_dir = settings.data_dir / "engines"
    return EngineHostSpec(
        data_dir=settings.data_dir,
        mesh_key=settings.mesh_key,
        sandbox=importer_words(sandbox, writable=engines_dir),
        start_timeout_s=settings.engine_start_timeout_s,
        load_timeout_s=settings.load_timeout_s,
    )


async def _sandbox(settings: InferenceSettings) -> Sandbox:
    sandbox = await Sandbox.probe(settings.data_dir)
    if settings.require_sandbox and not sandbox.status.enabled:
        raise SystemExit(
            f"models cannot be confined here ({sandbox.status.reason}); "
            "unset REPRISE_INFERENCE_REQUIRE_SANDBOX to run them unconfined"
        )
    level = logging.INFO if sandbox.status.enabled else logging.WARNING
    log.log(level, "model isolation: %s", sandbox.status.reason, extra={"event": "isolation"})
    return sandbox


def _lock(data_dir: Path) -> IO[bytes]:
    """Two workers in one folder would remove each other's running models."""
    file = (data_dir / "lock").open("ab")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise SystemExit(
            f"another worker uses {data_dir}; give this one a folder of its own"
        ) from None
    return file


def _identity(settings: InferenceSettings, sandbox: Sandbox) -> WorkerIdentity:
    return WorkerIdentity(
        worker_id=secrets.token_hex(16),
        host_id=settings.host_id or _kept_host_id(settings.data_dir),
        hardware=settings.hardware,
        isolation=sandbox.status.reason,
    )


def _kept_host_id(data_dir: Path) -> str:
    path = data_dir / "host_id"
    if not path.exists():
        path.write_text(secrets.token_hex(16))
    return path.read_text().strip()


if __name__ == "__main__":
    server.run(main())
