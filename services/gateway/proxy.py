"""The public gRPC port: token checked, call passed on to its owner as bytes."""

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from reprise.wire.v1 import options_pb2

from services.chassis import channels, errors
from services.chassis.errors import RepriseError
from services.gateway.auth import ANONYMOUS, Authenticator, Identity, check_access
from services.gateway.backends import Backends
from services.gateway.problem import hidden
from services.gateway.routes import PUBLIC_SERVICES, access_of, rpc_path

log = logging.getLogger(__name__)

# For callers without a deadline: a service that is away must not hold them for ever.
TIMEOUT_MAX_S = 600.0

_AUTHORIZATION = "authorization"


class ProxyHandler(grpc.GenericRpcHandler):
    """Passes every public method on; any other one does not exist here."""

    def __init__(
        self, services: Iterable[ServiceDescriptor], backends: Backends, auth: Authenticator
    ) -> None:
        self._backends = backends
        self._authenticator = auth
        self._handlers = {
            rpc_path(method): self._handler_of(method)
            for service in services
            for method in service.methods
            if access_of(method)
        }

    def service(self, handler_call_details: Any) -> "grpc.RpcMethodHandler[Any, Any] | None":
        """The method's handler; None is answered with UNIMPLEMENTED."""
        return self._handlers.get(handler_call_details.method)

    def _handler_of(self, method: MethodDescriptor) -> "grpc.RpcMethodHandler[Any, Any]":
        channel = self._backends.peer_of(method).channel
        path, access = rpc_path(method), access_of(method)
        if method.server_streaming:
            bind = channel.stream_stream if method.client_streaming else channel.unary_stream
            make = (
                grpc.stream_stream_rpc_method_handler
                if method.client_streaming
                else grpc.unary_stream_rpc_method_handler
            )
            return make(self._streaming(bind(path), method, access))
        if method.client_streaming:
            answer = self._answering(channel.stream_unary(path), method, access)
            return grpc.stream_unary_rpc_method_handler(answer)
        return grpc.unary_unary_rpc_method_handler(
            self._answering(channel.unary_unary(path), method, access)
        )

    def _answering(self, rpc: Any, method: MethodDescriptor, access: int) -> Any:
        async def answer(request: Any, context: Any) -> Any:
            try:
                metadata = await self._metadata(method, access, context)
                timeout_s = min(context.time_remaining() or TIMEOUT_MAX_S, TIMEOUT_MAX_S)
                return await rpc(request, metadata=metadata, timeout=timeout_s)
            except (RepriseError, grpc.aio.AioRpcError) as error:
                await _pass_on(context, error)
            except (asyncio.CancelledError, grpc.aio.AbortError):
                raise
            except Exception as error:  # noqa: BLE001 - the outermost frame of a call
                await _pass_on(context, hidden(error, method.full_name))

        return answer

    def _streaming(self, rpc: Any, method: MethodDescriptor, access: int) -> Any:
        async def stream(request: Any, context: Any) -> AsyncIterator[bytes]:
            call = None
            try:
                metadata = await self._metadata(method, access, context)
                call = rpc(request, metadata=metadata, timeout=context.time_remaining())
                async for message in call:
                    yield message
            except (RepriseError, grpc.aio.AioRpcError) as error:
                await _pass_on(context, error)
            except (asyncio.CancelledError, grpc.aio.AbortError):
                raise
            except Exception as error:  # noqa: BLE001 - the outermost frame of a call
                await _pass_on(context, hidden(error, method.full_name))
            finally:
                if call is not None:
                    call.cancel()

        return stream

    async def _metadata(self, method: MethodDescriptor, access: int, context: Any) -> Any:
        sent = dict(context.invocation_metadata() or ())
        identity = await self._identify(access, str(sent.get(_AUTHORIZATION, "")))
        check_access(access, identity)
        peer = self._backends.peer_of(method)
        return peer.metadata(identity.account_id, identity.is_operator, secrets.token_hex(16))

    async def _identify(self, access: int, authorization: str) -> Identity:
        if access == options_pb2.ACCESS_PUBLIC:
            return ANONYMOUS
        return await self._authenticator.identify(authorization)


async def _pass_on(context: Any, error: RepriseError | grpc.aio.AioRpcError) -> None:
    """Ends the call with an error's status and details, unchanged."""
    if isinstance(error, RepriseError):
        context.set_trailing_metadata(((errors.DETAILS_KEY, errors.to_details(error)),))
        await context.abort(error.status, error.message)
        return
    kept = [pair for pair in error.trailing_metadata() or () if pair[0] == errors.DETAILS_KEY]
    context.set_trailing_metadata(tuple(kept))
    await context.abort(error.code(), error.details() or "")


class PublicGrpcServer:
    """The server on the public port, with its own health and reflection."""

    def __init__(
        self,
        backends: Backends,
        auth: Authenticator,
        *,
        listen: str,
        tls_cert: Path | None,
        tls_key: Path | None,
        stop_grace_s: float,
    ) -> None:
        self._stop_grace_s = stop_grace_s
        self._health = health.aio.HealthServicer()
        self._names = [service.full_name for service in PUBLIC_SERVICES]
        size_max = channels.MESSAGE_SIZE_MAX
        self._server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", size_max),
                ("grpc.max_send_message_length", size_max),
                ("grpc.so_reuseport", 0),
            ]
        )
        self._server.add_generic_rpc_handlers((ProxyHandler(PUBLIC_SERVICES, backends, auth),))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection(
            [*self._names, health.SERVICE_NAME, reflection.SERVICE_NAME], self._server
        )
        self.port = self._bind(listen, tls_cert, tls_key)

    async def run(self) -> None:
        """Serves until it is cancelled."""
        await self._server.start()
        log.info("grpc port open", extra={"event": "grpc_port_open", "port": self.port})
        for name in ("", *self._names):
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)
        try:
            await self._server.wait_for_termination()
        finally:
            await self._health.enter_graceful_shutdown()
            await self._server.stop(self._stop_grace_s)

    def _bind(self, listen: str, tls_cert: Path | None, tls_key: Path | None) -> int:
        if tls_cert is None or tls_key is None:
            return self._server.add_insecure_port(listen)
        pair = (tls_key.read_bytes(), tls_cert.read_bytes())
        return self._server.add_secure_port(listen, grpc.ssl_server_credentials([pair]))
