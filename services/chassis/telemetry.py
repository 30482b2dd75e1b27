"""JSON logs with trace ids, Prometheus metrics and OpenTelemetry spans: one setup() per process."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

import orjson
from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from prometheus_client import start_http_server

from services.chassis.settings import ServiceSettings

_PROPAGATOR = TraceContextTextMapPropagator()
_RESERVED = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class JsonFormatter(logging.Formatter):
    """One JSON object a line: a sentence, a stable event name and ids."""

    def __init__(self, service: str) -> None:
        super().__init__()
        self._service = service

    def format(self, record: logging.LogRecord) -> str:
        span = trace.get_current_span().get_span_context()
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(),
            "level": record.levelname.lower(),
            "service": self._service,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if span.is_valid:
            line["trace_id"] = f"{span.trace_id:032x}"
        line |= {key: value for key, value in vars(record).items() if key not in _RESERVED}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return orjson.dumps(line, default=str).decode()


def setup(name: str, settings: ServiceSettings) -> int:
    """Sets up logs, metrics and traces; returns the port of the metrics page."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter(name))
    logging.basicConfig(level=settings.log_level, handlers=[handler], force=True)
    _setup_tracing(name, settings.otlp_endpoint)
    host, _, port = settings.metrics_listen.rpartition(":")
    server, _ = start_http_server(int(port), addr=host)
    return int(server.server_port)


def _setup_tracing(name: str, otlp_endpoint: str) -> None:
    # Without a receiver spans are not recorded, but trace ids still travel: logs can be joined.
    resource = Resource.create({"service.name": f"reprise-{name}"})
    provider = TracerProvider(resource=resource, sampler=ALWAYS_ON if otlp_endpoint else ALWAYS_OFF)
    if otlp_endpoint:
        # Imported here: the exporter costs start-up time that most processes need not pay.
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        exporter = OTLPSpanExporter(endpoint=otlp_endpoint, insecure=True)
        provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=1000))
    trace.set_tracer_provider(provider)


def flush_spans() -> None:
    """Sends the spans that still wait; called at the end of a process."""
    provider = trace.get_tracer_provider()
    if isinstance(provider, TracerProvider):
        provider.shutdown()


def tracer() -> trace.Tracer:
    """The process's tracer."""
    return trace.get_tracer("reprise")


def current_traceparent() -> str:
    """W3C trace context of the current span; empty outside of one."""
    carrier: dict[str, str] = {}
    _PROPAGATOR.inject(carrier)
    return carrier.get("traceparent", "")


def parent_context(traceparent: str) -> otel_context.Context | None:
    """The context to start a span in; None where the caller sent no trace context."""
    return _PROPAGATOR.extract({"traceparent": traceparent}) if traceparent else None


@contextmanager
def use_traceparent(traceparent: str) -> Iterator[None]:
    """Makes the given trace context the parent of what happens inside."""
    parent = parent_context(traceparent)
    if parent is None:
        yield
        return
    token = otel_context.attach(parent)
    try:
        yield
    finally:
        otel_context.detach(token)
