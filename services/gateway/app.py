"""The ASGI application: every HTTP request, from its route to its answer."""

import asyncio
import re
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import orjson
from opentelemetry.trace import SpanKind
from prometheus_client import Histogram
from reprise.wire.v1 import options_pb2

from services.chassis import channels, telemetry
from services.chassis.errors import RepriseError
from services.gateway import event_stream, problem, routes
from services.gateway.auth import ANONYMOUS, Authenticator, Identity, check_access
from services.gateway.backends import Backends
from services.gateway.file_links import MARKER, LinkSigner
from services.gateway.files import Files, Reader
from services.gateway.pages import Pages
from services.gateway.repeats import RequestIds
from services.gateway.routes import Match, Route, RouteTable
from services.gateway.settings import GatewaySettings
from services.gateway.transcode import Binding, JsonFinder
from services.gateway.web import JSON_TYPE, NO_STORE, Disconnected, Exchange, Receive, Scope, Send

# Clients of the Stainless kind give up after 60 s: whatever happens, answer before.
BLOCKING_TIMEOUT_MAX_S = 58.0

_DURATION = Histogram("reprise_http_seconds", "Time of one request", ["method", "route", "status"])
_TRACEPARENT = re.compile(r"00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
_HOST = re.compile(r"[A-Za-z0-9.\-:\[\]]{1,255}")
_OPEN_TO_PAGES = (options_pb2.ACCESS_PUBLIC, options_pb2.ACCESS_SIGNED)
_PREFLIGHT = [
    (b"access-control-allow-origin", b"*"),
    (b"access-control-allow-methods", b"GET"),
    (b"access-control-allow-headers", b"authorization, cache-control, last-event-id"),
    (b"access-control-max-age", b"86400"),
]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A route with everything that was compiled for it."""

    route: Route
    binding: Binding
    json_finder: JsonFinder
    is_list: bool
    serve: Callable[["Call"], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Call:
    """One request on its way through an endpoint."""

    exchange: Exchange
    endpoint: Endpoint
    match: Match
    reader: Reader
    path: str

    @property
    def identity(self) -> Identity:
        """Who calls."""
        return self.reader.identity


class App:
    """Answers HTTP: the outermost frame of each request."""

    def __init__(
        self,
        settings: GatewaySettings,
        *,
        table: RouteTable,
        backends: Backends,
        authenticator: Authenticator,
        signer: LinkSigner,
        files: Files,
        pages: Pages,
    ) -> None:
        self._settings = settings
        self._table = table
        self._backends = backends
        self._authenticator = authenticator
        self._signer = signer
        self._files = files
        self._pages = pages
        self._request_ids = RequestIds()
        self._endpoints = {r: self._endpoint(r) for r in table.routes if r.method is not None}
        self._running = 0
        self._idle = asyncio.Event()
        self._idle.set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One HTTP exchange."""
        exchange = Exchange(scope, receive, send)
        self._enter()
        started = time.perf_counter()
        try:
            template = await self._guarded(exchange)
        finally:
            self._leave()
        elapsed = time.perf_counter() - started
        # Only methods of the table: callers must not be able to make up label values.
        method = exchange.method if template else "other"
        _DURATION.labels(method, template, str(exchange.status)).observe(elapsed)

    async def idle(self) -> None:
        """Returns once no request is being answered; event streams do not count."""
        await self._idle.wait()

    def _enter(self) -> None:
        self._running += 1
        self._idle.clear()

    def _leave(self) -> None:
        self._running -= 1
        if not self._running:
            self._idle.set()

    async def _guarded(self, exchange: Exchange) -> str:
        template = ""
        try:
            if await self._pages.serve(exchange):
                return "page"
            path = exchange.path
            if path.startswith("/v1/v1/"):
                # Clients disagree on whether the base URL ends in /v1.
                path = path[3:]
            if exchange.method == "OPTIONS":
                return await self._preflight(exchange, path)
            match = self._table.match(exchange.method, path)
            template = match.route.template
            parent = _trace_context(exchange.header(b"traceparent"))
            name = f"{exchange.method} {template}"
            with telemetry.span(name, parent=parent, kind=SpanKind.SERVER):
                await self._serve(exchange, match, path)
        except Disconnected:
            # Read only by a caller that is still there: one whose body is badly framed.
            await _refuse(exchange, problem.broken_body())
        except RepriseError as error:
            await _refuse(exchange, problem.for_callers(error, _name_of(exchange, template)))
        except Exception as error:  # noqa: BLE001 - the outermost frame of a request
            await _refuse(exchange, problem.hidden(error, _name_of(exchange, template)))
        return template

    async def _serve(self, exchange: Exchange, match: Match, path: str) -> None:
        endpoint = self._endpoints.get(match.route)
        if endpoint is None:
            raise routes.not_served(match.route)
        identity = await self._identify(exchange, match)
        check_access(match.route.access, identity)
        reader = Reader(identity, self._base_url(exchange), "")
        await endpoint.serve(Call(exchange, endpoint, match, reader, path))

    async def _identify(self, exchange: Exchange, match: Match) -> Identity:
        access = match.route.access
        if access == options_pb2.ACCESS_PUBLIC:
            return ANONYMOUS
        if access == options_pb2.ACCESS_SIGNED:
            file_id = match.variables.get("file_id", "")
            owner = self._signer.owner_of(file_id=file_id, query=exchange.query)
            if owner is not None:
                return Identity(owner)
        return await self._authenticator.identify(exchange.header(b"authorization"))

    async def _unary(self, call: Call) -> None:
        exchange, binding, route = call.exchange, call.endpoint.binding, call.endpoint.route
        assert route.method is not None
        body = await exchange.body(self._settings.body_size_max) if route.body else b""
        request = binding.request(
            variables=call.match.variables,
            query=exchange.query,
            headers=exchange.headers,
            body=body,
        )
        reader = self._with_request_id(call, body)
        for name in binding.json_fields:
            if request.HasField(name):
                host = exchange.header(b"host")
                await self._files.take_in(getattr(request, name), reader, field=name, host=host)
        wait_s = _wait_of(request)
        timeout_s = self._settings.call_timeout_s
        if wait_s is not None:
            timeout_s = min(wait_s + timeout_s, BLOCKING_TIMEOUT_MAX_S)
        response = await self._backends.call(
            route.method,
            request,
            identity=call.identity,
            request_id=reader.request_id,
            timeout_s=timeout_s,
        )
        applied = [(b"preference-applied", b"wait")] if b"prefer" in exchange.headers else []
        await self._answer(call, response, reader, applied if wait_s is not None else [])

    async def _upload(self, call: Call) -> None:
        reader = self._with_request_id(call, b"")
        response = await self._files.upload(call.exchange, call.identity, reader.request_id)
        await self._answer(call, response, reader, [])

    async def _download(self, call: Call) -> None:
        await self._files.download(call.exchange, call.match.variables["file_id"], call.reader)

    async def _events(self, call: Call) -> None:
        exchange, route, reader = call.exchange, call.endpoint.route, call.reader
        assert route.method is not None
        request = call.endpoint.binding.request(
            variables=call.match.variables,
            query=exchange.query,
            headers=exchange.headers,
            body=b"",
        )

        method = route.method

        def open_call(last_event_id: str) -> Any:
            request.last_event_id = last_event_id
            return self._backends.open_stream(method, request, identity=call.identity)

        async def render(data: str, owner: str) -> str:
            if not data.startswith(MARKER):
                return data
            owned = Reader(Identity(owner), reader.base_url, reader.request_id)
            return await self._files.give_out_chunk(data, owned)

        events = event_stream.resumed_events(open_call, request.last_event_id, channels.ACCOUNT)
        heartbeat_s = self._settings.heartbeat_s
        stream = event_stream.EventStream(exchange, events, render=render, heartbeat_s=heartbeat_s)
        # A stop does not wait for streams: their callers come back with the last event id.
        self._leave()
        try:
            await stream.run()
        finally:
            self._enter()

    async def _answer(
        self, call: Call, response: Any, reader: Reader, headers: list[tuple[bytes, bytes]]
    ) -> None:
        endpoint, exchange = call.endpoint, call.exchange
        status = endpoint.route.success_status
        if status == 204:
            await exchange.answer(status, [NO_STORE])
            return
        if found := endpoint.json_finder.find(response, MARKER):
            await self._files.give_out(found, reader, is_list=endpoint.is_list)
        payload = endpoint.binding.answer(
            response, base_url=reader.base_url, path=call.path, query=exchange.query
        )
        if status == 201 and (location := _location(payload)):
            headers = [*headers, (b"location", location.encode("latin-1", "ignore"))]
        await exchange.answer(status, [JSON_TYPE, NO_STORE, *headers], orjson.dumps(payload))

    async def _preflight(self, exchange: Exchange, path: str) -> str:
        match = self._table.match("GET", path)
        if match.route.access not in _OPEN_TO_PAGES:
            raise routes.MethodNotAllowed(["GET"])
        await exchange.answer(204, _PREFLIGHT)
        return match.route.template

    def _with_request_id(self, call: Call, body: bytes) -> Reader:
        request_id = self._request_ids.assign(
            account_id=call.identity.account_id,
            path=call.path,
            headers=call.exchange.headers,
            body=body,
        )
        return Reader(call.identity, call.reader.base_url, request_id)

    def _base_url(self, exchange: Exchange) -> str:
        if self._settings.public_url:
            return self._settings.public_url
        host = exchange.header(b"host")
        if not _HOST.fullmatch(host):
            host = f"{self._settings.http_host}:{self._settings.http_port}"
        return f"{exchange.scope['scheme']}://{host}"

    def _endpoint(self, route: Route) -> Endpoint:
        assert route.method is not None
        output = route.method.output_type
        result = output.fields_by_name.get(route.response_body)
        serve = self._unary
        if route.method.client_streaming:
            serve = self._upload
        elif route.method.server_streaming and result is not None:
            serve = self._download
        elif route.method.server_streaming:
            serve = self._events
        is_list = "next_page_token" in output.fields_by_name or bool(result and result.is_repeated)
        return Endpoint(route, Binding(route), JsonFinder(output), is_list, serve)


async def _refuse(exchange: Exchange, error: RepriseError) -> None:
    if exchange.status:
        # The answer has begun: all that can be said is that it ends here.
        return
    status, headers, body = problem.answer_of(error)
    await exchange.answer(status, headers, body)


def _name_of(exchange: Exchange, template: str) -> str:
    # Paths of streams hold a token: where the route is known, it is what the log names.
    return f"{exchange.method} {template or exchange.path[:200]}"


def _wait_of(request: Any) -> float | None:
    if "wait" not in request.DESCRIPTOR.fields_by_name or not request.HasField("wait"):
        return None
    return float(request.wait.seconds + request.wait.nanos / 1e9)


def _location(payload: Any) -> str:
    urls = payload.get("urls") if isinstance(payload, dict) else None
    return str(urls.get("get", "")) if isinstance(urls, dict) else ""


def _trace_context(header: str) -> str:
    """A caller's W3C trace context; empty when it is none, so that rubbish travels no further."""
    return header if _TRACEPARENT.fullmatch(header) else ""
