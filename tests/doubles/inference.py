"""A build service that answers at once, for tests of its callers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

import grpc
from reprise.inference.v1 import build_pb2, build_pb2_grpc
from reprise.wire.v1 import json_pb2

NOOP_SCHEMA = (
    '{"openapi":"3.0.2","info":{"title":"Cog","version":"0.1.0"},"paths":{},"components":{"schemas":'
    '{"Input":{"type":"object","title":"Input","required":["text"],"properties":{"text":'
    '{"type":"string","title":"Text","x-order":0}}},"Output":{"type":"string","title":"Output"}}}}'
)


class FakeBuildService(build_pb2_grpc.BuildServiceServicer):
    """Builds anything: the given steps, then the given result; or the given refusal."""

    def __init__(
        self,
        *,
        steps: Sequence[str] = ("reading the project", "starting the model"),
        built: build_pb2.BuiltVersion | None = None,
    ) -> None:
        self.steps = list(steps)
        self.built = built or build_pb2.BuiltVersion(
            openapi_schema=json_pb2.Json(text=NOOP_SCHEMA), runtime_version="0.22.0"
        )
        # Set to make every build fail with this message.
        self.refusal: str | None = None
        self.requests: list[build_pb2.BuildVersionRequest] = []

    async def BuildVersion(
        self,
        request: build_pb2.BuildVersionRequest,
        context: grpc.aio.ServicerContext[
            build_pb2.BuildVersionRequest, build_pb2.BuildVersionResponse
        ],
    ) -> AsyncIterator[build_pb2.BuildVersionResponse]:
        self.requests.append(request)
        for step in self.steps:
            yield build_pb2.BuildVersionResponse(step=step)
        if self.refusal is not None:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, self.refusal)
        yield build_pb2.BuildVersionResponse(built=self.built)
