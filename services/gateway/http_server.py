"""Granian inside the process's own event loop, on a socket whose port is known."""

import asyncio
import contextlib
import logging
import socket
from pathlib import Path
from typing import Any

from granian._granian import SocketHolder
from granian.constants import HTTPModes, Interfaces, SSLProtocols
from granian.http import HTTP1Settings
from granian.server.embed import Server

from services.gateway.app import App

log = logging.getLogger(__name__)

BACKLOG = 1024
# Event streams hold a connection each.
CONNECTION_COUNT_MAX = 8192


class _Granian(Server):
    """Listens on a socket that we opened: port 0 works, and the port can be told."""

    _shd: Any

    def __init__(self, listener: socket.socket, app: Any, **options: Any) -> None:
        super().__init__(app, **options)
        self._listener = listener

    def _init_shared_socket(self) -> None:
        # Granian owns and closes the descriptor from here on.
        holder: Any = SocketHolder  # Its stub lacks the constructor.
        self._shd = holder(self._listener.detach(), False, BACKLOG)
        self._ssp = None


class HttpServer:
    """The HTTP server of the gateway."""

    def __init__(
        self,
        app: App,
        *,
        host: str,
        port: int,
        tls_cert: Path | None,
        tls_key: Path | None,
        stop_grace_s: float,
    ) -> None:
        self._app = app
        self._stop_grace_s = stop_grace_s
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server((host, port), family=family, backlog=BACKLOG)
        listener.setblocking(False)
        self.port: int = listener.getsockname()[1]
        self._server = _Granian(
            listener,
            app,
            address=host,
            port=self.port,
            interface=Interfaces.ASGINL,
            http=HTTPModes.http1,
            http1_settings=HTTP1Settings(header_read_timeout=30_000),
            websockets=False,
            backlog=BACKLOG,
            backpressure=CONNECTION_COUNT_MAX,
            log_enabled=False,
            ssl_cert=tls_cert,
            ssl_key=tls_key,
            ssl_protocol_min=SSLProtocols.tls12,
        )

    async def run(self) -> None:
        """Serves until it is cancelled; then requests under way may end."""
        log.info("http port open", extra={"event": "http_port_open", "port": self.port})
        serving = asyncio.create_task(self._server.serve())
        try:
            await asyncio.shield(serving)
        finally:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._stop_grace_s):
                    await self._app.idle()
            self._server.stop()  # type: ignore[no-untyped-call]  # granian's, untyped
            await serving
