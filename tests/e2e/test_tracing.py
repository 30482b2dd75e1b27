"""One prediction is one trace through HTTP, gRPC and NATS."""

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

from tests.e2e.conftest import PROJECTS
from tests.e2e.mesh import start_mesh

WAIT_S = 20


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Receives spans as an OTLP back end does."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.spans: list[tuple[str, str]] = []

    def Export(self, request: object, context: object) -> object:
        with self.changed:
            for resource in request.resource_spans:
                names = {item.key: item.value.string_value for item in resource.resource.attributes}
                for scope in resource.scope_spans:
                    self.spans += [
                        (span.trace_id.hex(), names["service.name"]) for span in scope.spans
                    ]
            self.changed.notify_all()
        return trace_service_pb2.ExportTraceServiceResponse()

    def services_of(self, trace_id: str) -> set[str]:
        return {service for found, service in self.spans if found == trace_id}


@pytest.fixture
def collector() -> Iterator[tuple[Collector, str]]:
    collector = Collector()
    server = grpc.server(ThreadPoolExecutor(2))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield collector, f"http://127.0.0.1:{port}"
    server.stop(0).wait()


def test_one_prediction_is_one_trace_through_all_services(
    collector: tuple[Collector, str], tmp_path: Path
) -> None:
    spans, endpoint = collector
    trace_id = "5e" * 16
    everyone = {
        f"reprise-{name}" for name in ("gateway", "scheduler", "billing", "storage", "inference")
    }
    with start_mesh(tmp_path / "data", REPRISE_OTLP_ENDPOINT=endpoint) as mesh:
        version = mesh.push("local/echo", PROJECTS / "echo")
        with mesh.http() as http:
            answer = http.post(
                "/v1/predictions",
                json={"version": version, "input": {}},
                headers={"traceparent": f"00-{trace_id}-{'ab' * 8}-01", "Prefer": "wait"},
            )
        assert answer.json()["status"] == "succeeded"
        with spans.changed:
            complete = spans.changed.wait_for(
                lambda: spans.services_of(trace_id) >= everyone, WAIT_S
            )
        assert complete, everyone - spans.services_of(trace_id)


def test_log_lines_are_json_with_the_trace_of_their_call(tmp_path: Path) -> None:
    with start_mesh(tmp_path / "data", REPRISE_GATEWAY_LOG_LEVEL="DEBUG") as mesh:
        logs = mesh.data / "logs"
        for name in ("gateway", "scheduler", "billing", "storage", "inference"):
            lines = (logs / f"{name}.log").read_text().splitlines()
            assert lines
            for line in lines:
                record = json.loads(line)
                assert {"time", "level", "service", "logger", "message"} <= set(record)
                assert record["service"] == name
