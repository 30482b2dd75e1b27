"""The gRPC server of a service: mesh key, errors, health, reflection, graceful stop."""

import asyncio
import logging
import secrets
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import grpc
import uvloop
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from opentelemetry.trace import SpanKind
from prometheus_client import Histogram

from services.chassis import channels, errors, telemetry
from services.chassis.errors import Internal, RepriseError, Unauthenticated
from services.chassis.settings import ServiceSettings

log = logging.getLogger(__name__)

# Health checks and reflection tell nothing of any account, and probes cannot carry a key.
_OPEN_PREFIXES = ("/grpc.health.", "/grpc.reflection.")
_DURATION = Histogram("reprise_rpc_seconds", "Time of one call", ["method", "status"])


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls, as the gateway established it."""

    account_id: str
    is_operator: bool
    # The same over repeats of one request.
    request_id: str


@dataclass(frozen=True, slots=True)
class Servicer:
    """One gRPC service and the object that answers it."""

    add: Callable[[Any, Any], None]
    servicer: object
    full_name: str


_CALLER: ContextVar[Caller] = ContextVar("caller")


def caller(grpc_context: Any) -> Caller:
    """Who makes the current call."""
    del grpc_context  # Says at the call site that a call must be going on.
    return _CALLER.get()


def account_of(grpc_context: Any) -> str:
    """The calling account, for methods that make no sense without one."""
    account_id = caller(grpc_context).account_id
    if not account_id:
        raise Unauthenticated(
            "the call names no account: send an API token; peers pass the account they act for"
        )
    return account_id


class MeshInterceptor(grpc.aio.ServerInterceptor):
    """Lets only the mesh in; turns our errors into statuses; opens the call's span."""

    def __init__(self, mesh_key: str) -> None:
        self._mesh_key = mesh_key
        self._wrapped: dict[str, Any] = {}

    async def intercept_service(
        self, continuation: Callable[[Any], Awaitable[Any]], details: Any
    ) -> Any:
        method = details.method
        if method.startswith(_OPEN_PREFIXES):
            return await continuation(details)
        handler = self._wrapped.get(method)
        if handler is None:
            inner = await continuation(details)
            if inner is None:
                return None
            handler = self._wrapped[method] = self._wrap(inner, method)
        return handler

    def _wrap(self, handler: Any, method: str) -> Any:
        if handler.unary_unary:
            return handler._replace(unary_unary=self._answering(handler.unary_unary, method))
        if handler.stream_unary:
            return handler._replace(stream_unary=self._answering(handler.stream_unary, method))
        if handler.unary_stream:
            return handler._replace(unary_stream=self._streaming(handler.unary_stream, method))
        return handler._replace(stream_stream=self._streaming(handler.stream_stream, method))

    def _answering(self, behavior: Any, method: str) -> Any:
        async def answer(request: Any, context: Any) -> Any:
            started = time.perf_counter()
            status = "OK"
            try:
                with self._enter(context, method):
                    return await behavior(request, context)
            except RepriseError as error:
                status = error.status.name
                await _abort(context, error)
            except (asyncio.CancelledError, grpc.aio.AbortError):
                status = "CANCELLED"
                raise
            except Exception as error:  # noqa: BLE001 - the outermost frame of a call
                status = "INTERNAL"
                await _abort(context, _hidden(error, method))
            finally:
                _DURATION.labels(method, status).observe(time.perf_counter() - started)

        return answer

    def _streaming(self, behavior: Any, method: str) -> Any:
        async def stream(request: Any, context: Any) -> AsyncIterator[Any]:
            try:
                with self._enter(context, method):
                    async for message in behavior(request, context):
                        yield message
            except RepriseError as error:
                await _abort(context, error)
            except (asyncio.CancelledError, grpc.aio.AbortError):
                raise
            except Exception as error:  # noqa: BLE001 - the outermost frame of a call
                await _abort(context, _hidden(error, method))

        return stream

    def _enter(self, context: Any, method: str) -> telemetry.span:
        metadata = dict(context.invocation_metadata())
        if not secrets.compare_digest(metadata.get(channels.MESH_KEY, ""), self._mesh_key):
            raise Unauthenticated("only services of the mesh may call this port")
        _CALLER.set(
            Caller(
                account_id=metadata.get(channels.ACCOUNT, ""),
                is_operator=metadata.get(channels.OPERATOR) == "1",
                request_id=metadata.get(channels.REQUEST_ID, ""),
            )
        )
        parent = metadata.get(channels.TRACEPARENT, "")
        return telemetry.span(method[1:], parent=parent, kind=SpanKind.SERVER)


async def _abort(context: Any, error: RepriseError) -> None:
    context.set_trailing_metadata(((errors.DETAILS_KEY, errors.to_details(error)),))
    await context.abort(error.status, error.message)


def _hidden(error: Exception, method: str) -> RepriseError:
    error_id = secrets.token_hex(6)
    log.error(
        "call failed by a fault of ours",
        exc_info=error,
        extra={"event": "call_failed", "error_id": error_id, "method": method},
    )
    if full := errors.of_full_disk(error):
        return full
    return Internal(f"internal error {error_id}; the operator finds it in the logs by this id")


def run(main: Coroutine[Any, Any, None]) -> None:
    """Runs a service's main() to its end."""
    uvloop.run(main)


async def serve(
    settings: ServiceSettings,
    *,
    servicers: Sequence[Servicer],
    background: Sequence[Callable[[], Awaitable[None]]] = (),
    on_stop: Sequence[Callable[[], Awaitable[None]]] = (),
) -> None:
    """Serves until SIGTERM or SIGINT; a background task that ends early ends the process."""
    server = grpc.aio.server(
        interceptors=[MeshInterceptor(settings.mesh_key)],
        options=[
            ("grpc.max_receive_message_length", channels.MESSAGE_SIZE_MAX),
            ("grpc.max_send_message_length", channels.MESSAGE_SIZE_MAX),
            ("grpc.so_reuseport", 0),
        ],
    )
    health_servicer = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(health_servicer, server)
    for item in servicers:
        item.add(item.servicer, server)
    names = [item.full_name for item in servicers]
    reflection.enable_server_reflection(
        [*names, health.SERVICE_NAME, reflection.SERVICE_NAME], server
    )
    port = server.add_insecure_port(settings.listen)
    await server.start()
    log.info("service started", extra={"event": "service_started", "port": port})
    stop = _stop_event()
    try:
        async with asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(_forever(task)) for task in background]
            for service in ["", *names]:
                await health_servicer.set(service, health_pb2.HealthCheckResponse.SERVING)
            await stop.wait()
            await health_servicer.enter_graceful_shutdown()
            await server.stop(settings.stop_grace_s)
            for task in running:
                task.cancel()
    finally:
        await server.stop(0)
        for callback in on_stop:
            await callback()
        log.info("service stopped", extra={"event": "service_stopped"})


async def _forever(task: Callable[[], Awaitable[None]]) -> None:
    await task()
    raise RuntimeError(f"background task {getattr(task, '__qualname__', task)} ended")


def _stop_event() -> asyncio.Event:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    return stop
