"""The process itself: TLS, stop, restart, revocations by event, the fetcher for the mesh."""

import asyncio
import contextlib
import ssl
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import grpc
import httpx
import nats
import pytest
import trustme
from reprise.gateway.v1 import events_pb2, fetch_pb2, fetch_pb2_grpc

from services.chassis import channels
from services.chassis.bus import subject_of
from services.gateway.auth import digest_of
from tests.integration.gateway.process import MESH_KEY, TOKEN, GatewayProcess

VERSION = "0" * 64


@contextlib.contextmanager
def _another(gateway: GatewayProcess, folder: Path, **extra: str) -> Iterator[GatewayProcess]:
    """A gateway of the test's own, beside the shared one."""
    other = GatewayProcess(folder, gateway.doubles, gateway.nats, extra=extra)
    try:
        asyncio.run(other.start())
        yield other
    finally:
        other.close()


def test_tls_serves_https_and_output_files_as_signed_urls(
    gateway: GatewayProcess, tmp_path: Path
) -> None:
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1", "localhost")
    chain, key = tmp_path / "chain.pem", tmp_path / "key.pem"
    certificate.cert_chain_pems[0].write_to_path(chain)
    certificate.private_key_pem.write_to_path(key)
    trust = ssl.create_default_context()
    authority.configure_trust(trust)
    file = gateway.doubles.storage.files.put(b"GIF", content_type="image/gif")
    gateway.doubles.scheduler.output = f'"reprise-file:{file.id}"'
    with _another(gateway, tmp_path, TLS_CERT=str(chain), TLS_KEY=str(key)) as secure:
        headers = {"Authorization": f"Bearer {TOKEN}"}
        with httpx.Client(base_url=secure.url, verify=trust, headers=headers) as http:
            output = http.post("/v1/predictions", json={"version": VERSION}).json()["output"]
            assert output.startswith(f"{secure.url}/v1/files/{file.id}/download?")
            assert http.get(output).content == b"GIF"
        credentials = grpc.ssl_channel_credentials(authority.cert_pem.bytes())
        with grpc.secure_channel(f"localhost:{secure.grpc_port}", credentials) as channel:
            grpc.channel_ready_future(channel).result(timeout=10)


def test_a_stop_lets_requests_end_and_accounts_outlive_it(
    gateway: GatewayProcess, tmp_path: Path
) -> None:
    scheduler = gateway.doubles.scheduler
    scheduler.output = None
    with _another(gateway, tmp_path, STOP_GRACE_S="10") as other:
        answers: list[httpx.Response] = []
        with other.http() as http:
            token = http.post("/v1/accounts", json={"username": "acme"}).json()["token"]

            def create() -> None:
                headers = {"Prefer": "wait"}
                body = {"version": VERSION}
                answers.append(http.post("/v1/predictions", json=body, headers=headers))

            waiting = threading.Thread(target=create)
            waiting.start()
            while not http.get("/v1/predictions").json()["results"]:
                assert waiting.is_alive()
            assert other.process is not None
            other.process.terminate()
            (prediction_id,) = scheduler.predictions
            gateway.doubles.run(scheduler.finish(prediction_id, '"late"'))
            waiting.join(10)
        assert answers[0].json()["output"] == "late"
        assert other.process.wait(timeout=15) == 0, other.log
        asyncio.run(other.start())
        with other.http(token) as acme:
            assert acme.get("/v1/account").json()["username"] == "acme"


def test_a_revocation_event_empties_the_memory_of_every_gateway(
    gateway: GatewayProcess, tmp_path: Path
) -> None:
    # Both gateways share one database, as replicas do.
    shared = f"sqlite:///{tmp_path / 'shared.sqlite'}"
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    with (
        _another(gateway, tmp_path / "a", DATABASE_URL=shared) as first,
        _another(gateway, tmp_path / "b", DATABASE_URL=shared) as second,
        first.http() as operator,
    ):
        made = operator.post("/v1/tokens", json={"name": "x"}).json()
        with second.http(made["secret"]) as user:
            assert user.get("/v1/account").status_code == 200
            revoked = asyncio.run(_revoke_and_watch(gateway, operator, made["token"]["id"]))
            assert revoked == digest_of(made["secret"])
            # The event may still be on its way to the second gateway.
            statuses = (user.get("/v1/account").status_code for _ in range(200))
            assert 401 in statuses


async def _revoke_and_watch(gateway: GatewayProcess, http: httpx.Client, token_id: str) -> str:
    bus = await nats.connect(gateway.nats.url)
    try:
        subscription = await bus.subscribe(subject_of(events_pb2.TokenRevoked))
        await bus.flush()
        await asyncio.to_thread(http.delete, f"/v1/tokens/{token_id}")
        message = await subscription.next_msg(timeout=10)
        return events_pb2.TokenRevoked.FromString(message.data).token_digest
    finally:
        await bus.close()


@contextlib.contextmanager
def _fetch_stub(gateway: GatewayProcess) -> Iterator[fetch_pb2_grpc.FetchServiceStub]:
    with grpc.insecure_channel(f"127.0.0.1:{gateway.own_port}") as channel:
        yield fetch_pb2_grpc.FetchServiceStub(channel)


class _Site(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", "300000")
        self.end_headers()
        self.wfile.write(b"x" * 300_000)

    def log_message(self, format: str, *args: object) -> None:
        return


def test_the_mesh_fetches_users_urls_through_the_gateway(
    gateway: GatewayProcess, tmp_path: Path
) -> None:
    site = HTTPServer(("127.0.0.1", 0), _Site)
    threading.Thread(target=site.serve_forever, daemon=True).start()
    request = fetch_pb2.FetchUrlRequest(url=f"http://127.0.0.1:{site.server_port}/a.txt")
    metadata = ((channels.MESH_KEY, MESH_KEY),)
    allowed = '["127.0.0.1/32"]'
    try:
        with (
            _another(gateway, tmp_path, FETCH_ALLOW_NETWORKS=allowed) as open_gateway,
            _fetch_stub(open_gateway) as stub,
        ):
            answers = list(stub.FetchUrl(request, metadata=metadata))
            with pytest.raises(grpc.RpcError) as keyless:
                list(stub.FetchUrl(request))
        with _fetch_stub(gateway) as stub, pytest.raises(grpc.RpcError) as guarded:
            list(stub.FetchUrl(request, metadata=metadata))
    finally:
        site.shutdown()
        site.server_close()
    assert b"".join(answer.chunk for answer in answers) == b"x" * 300_000
    assert (answers[0].content_type, answers[0].name) == ("text/plain", "a.txt")
    assert keyless.value.code() == grpc.StatusCode.UNAUTHENTICATED
    assert guarded.value.code() == grpc.StatusCode.INVALID_ARGUMENT
