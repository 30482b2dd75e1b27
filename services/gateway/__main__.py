"""Starts the gateway: `python -m services.gateway`."""

import logging
import secrets
from pathlib import Path

from reprise.gateway.v1 import account_pb2, account_pb2_grpc, events_pb2, fetch_pb2, fetch_pb2_grpc

from services.chassis import server, settings, telemetry
from services.chassis.bus import Bus
from services.chassis.channels import Peer, open_channel
from services.chassis.clock import now_us
from services.chassis.db import Database
from services.chassis.server import Servicer
from services.gateway.app import App
from services.gateway.auth import Authenticator, digest_of
from services.gateway.backends import Backends
from services.gateway.fetcher import Fetcher
from services.gateway.file_links import LinkSigner
from services.gateway.files import Files
from services.gateway.http_server import HttpServer
from services.gateway.pages import Pages
from services.gateway.proxy import PublicGrpcServer
from services.gateway.routes import build_routes
from services.gateway.servicer import AccountServicer, FetchServicer, check_username
from services.gateway.settings import GatewaySettings
from services.gateway.store import Store

log = logging.getLogger(__name__)

MIGRATIONS = Path(__file__).parent / "migrations"


async def main(config: GatewaySettings) -> None:
    """Builds the gateway's parts and serves until it is told to stop."""
    telemetry.setup("gateway", config)
    database = Database(config.database_url, MIGRATIONS)
    database.migrate()
    store = Store(database)
    await bootstrap(store, config)

    authenticator = Authenticator(store.identity)
    bus = await Bus.connect(config, "gateway")
    await listen_for_revocations(bus, authenticator)

    backends = Backends(open_peers(config))
    signer = LinkSigner(config.signing_key, config.download_url_age_s)
    app = App(
        config,
        table=build_routes(),
        backends=backends,
        authenticator=authenticator,
        signer=signer,
        files=Files(backends, signer, config),
        pages=Pages(),
    )
    http_server = HttpServer(
        app,
        host=config.http_host,
        port=config.http_port,
        tls_cert=config.tls_cert,
        tls_key=config.tls_key,
        stop_grace_s=config.stop_grace_s,
    )
    grpc_server = PublicGrpcServer(
        backends,
        authenticator,
        listen=config.grpc_public_listen,
        tls_cert=config.tls_cert,
        tls_key=config.tls_key,
        stop_grace_s=config.stop_grace_s,
    )
    fetcher = Fetcher(
        size_max=config.file_size_max,
        timeout_s=config.fetch_timeout_s,
        allow_networks=config.fetch_allow_networks,
    )
    await server.serve(
        config,
        servicers=[
            Servicer(
                account_pb2_grpc.add_AccountServiceServicer_to_server,
                AccountServicer(store, authenticator, bus),
                account_pb2.DESCRIPTOR.services_by_name["AccountService"].full_name,
            ),
            Servicer(
                fetch_pb2_grpc.add_FetchServiceServicer_to_server,
                FetchServicer(fetcher),
                fetch_pb2.DESCRIPTOR.services_by_name["FetchService"].full_name,
            ),
        ],
        background=[http_server.run, grpc_server.run],
        on_stop=[bus.close, database.close],
    )


def open_peers(config: GatewaySettings) -> dict[str, Peer]:
    """A channel to each service; the gateway calls its own rpcs the same way."""
    targets = {
        "gateway": config.listen,
        "scheduler": config.scheduler_target,
        "storage": config.storage_target,
        "billing": config.billing_target,
    }
    return {name: Peer(open_channel(target), config.mesh_key) for name, target in targets.items()}


async def bootstrap(store: Store, config: GatewaySettings) -> None:
    """Makes the first account, an operator, where a token for it is set."""
    if not config.bootstrap_token:
        return
    check_username(config.bootstrap_username)
    await store.ensure_operator(
        username=config.bootstrap_username,
        digest=digest_of(config.bootstrap_token),
        token_id=secrets.token_hex(8),
        now_us=now_us(),
    )


async def listen_for_revocations(bus: Bus, authenticator: Authenticator) -> None:
    """Keeps the tokens in memory as true as those in the database."""

    async def forget(event: events_pb2.TokenRevoked) -> None:
        authenticator.forget(event.token_digest)

    async def forget_all() -> None:
        authenticator.forget_all()

    await bus.consume(events_pb2.TokenRevoked, forget)
    bus.on_reconnect(forget_all)


if __name__ == "__main__":
    server.run(main(settings.load(GatewaySettings)))
