"""JSON logs with trace ids, Prometheus metrics and OpenTelemetry spans: one setup() per process."""

import atexit
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar, Token
from datetime import UTC, datetime
from random import getrandbits
from typing import Any

import orjson
from opentelemetry.trace import SpanKind, Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from prometheus_client import start_http_server

from services.chassis.settings import ServiceSettings

log = logging.getLogger(__name__)

_PROPAGATOR = TraceContextTextMapPropagator()
_TRACEPARENT: ContextVar[str] = ContextVar("traceparent", default="")
# One for the process, set once by setup(); None where nobody receives spans.
_tracer: Tracer | None = None
_RESERVED = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class JsonFormatter(logging.Formatter):
    """One JSON object a line: a sentence, a stable event name and ids."""

    def __init__(self, service: str) -> None:
        super().__init__()
        self._service = service

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(),
            "level": record.levelname.lower(),
            "service": self._service,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if traceparent := _TRACEPARENT.get():
            line["trace_id"] = traceparent[3:35]
        line |= {key: value for key, value in vars(record).items() if key not in _RESERVED}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return orjson.dumps(line, default=str).decode()


def setup(name: str, settings: ServiceSettings) -> None:
    """Sets up logs, metrics and traces."""
    setup_logs(name, settings.log_level)
    _setup_tracing(name, settings.otlp_endpoint)
    host, _, port = settings.metrics_listen.rpartition(":")
    server, _ = start_http_server(int(port), addr=host)
    log.info("metrics page open", extra={"event": "metrics_open", "port": server.server_port})


def setup_logs(name: str, level: str) -> None:
    """JSON lines on standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter(name))
    logging.basicConfig(level=level, handlers=[handler], force=True)


def _setup_tracing(name: str, otlp_endpoint: str) -> None:
    global _tracer
    if not otlp_endpoint:
        return
    # Imported here: the SDK costs start-up time that a process without a receiver need not pay.
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    provider = TracerProvider(resource=Resource.create({"service.name": f"reprise-{name}"}))
    exporter = OTLPSpanExporter(endpoint=otlp_endpoint, insecure=True)
    provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=1000))
    _tracer = provider.get_tracer("reprise")
    atexit.register(provider.shutdown)


class span:
    """The time of one piece of work, as a context manager.

    Where no receiver is configured nothing is recorded: the trace context travels on as text, so
    that logs can still be joined, at the price of one context variable.
    """

    __slots__ = ("_inner", "_kind", "_name", "_parent", "_token")

    def __init__(self, name: str, *, parent: str = "", kind: SpanKind = SpanKind.INTERNAL) -> None:
        self._name = name
        self._parent = parent
        self._kind = kind

    def __enter__(self) -> None:
        if _tracer is None:
            context = self._parent or _TRACEPARENT.get() or _new_traceparent()
            self._token = _TRACEPARENT.set(context)
            return
        parent = self._parent or _TRACEPARENT.get()
        self._inner = _tracer.start_as_current_span(
            self._name,
            context=_PROPAGATOR.extract({"traceparent": parent}) if parent else None,
            kind=self._kind,
            record_exception=False,
        )
        self._inner.__enter__()
        carrier: dict[str, str] = {}
        _PROPAGATOR.inject(carrier)
        self._token = _TRACEPARENT.set(carrier.get("traceparent", ""))

    def __exit__(self, *error: Any) -> None:
        _reset(self._token)
        if _tracer is not None:
            self._inner.__exit__(*error)


def current_traceparent() -> str:
    """W3C trace context of the current piece of work; empty outside of one."""
    return _TRACEPARENT.get()


@contextmanager
def use_traceparent(traceparent: str) -> Iterator[None]:
    """Makes the given trace context the parent of what happens inside."""
    token = _TRACEPARENT.set(traceparent)
    try:
        yield
    finally:
        _reset(token)


def _reset(token: Token[str]) -> None:
    # A generator that is closed from another task ends in that task's context.
    with suppress(ValueError):
        _TRACEPARENT.reset(token)


def _new_traceparent() -> str:
    return f"00-{getrandbits(128) or 1:032x}-{getrandbits(64) or 1:016x}-00"
