"""The Open Inference Protocol v2 over gRPC for engine versions, on a public port of its own.

Models are named "owner/name", with a version id or without, and loaded by the first call. Calls
carry an API token and share the engine's slots with predictions; they are not billed yet.
"""

import asyncio
import importlib.metadata
import logging
import secrets
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import grpc
from grpc_reflection.v1alpha import reflection
from prometheus_client import Histogram
from reprise.inference.v1 import engine_pb2, events_pb2
from reprise.oip import open_inference_pb2 as oip
from reprise.oip import open_inference_pb2_grpc

from services.chassis import errors
from services.chassis.channels import MESSAGE_SIZE_MAX
from services.chassis.errors import Internal, InvalidInput, RepriseError, ResourceExhausted
from services.inference import oip_tensors
from services.inference.cog.errors import RunnerBusy
from services.inference.engine_loading import EngineModel
from services.inference.loaded_model import LoadFailed
from services.inference.oip_access import EngineCatalogue, TokenCheck
from services.inference.replicas import ReplicaPool
from services.inference.versions import Version

log = logging.getLogger(__name__)

_INFER_SECONDS = Histogram("reprise_infer_seconds", "Time of one call of the tensor protocol")
_SERVICE_NAME = "inference.GRPCInferenceService"
_PLATFORM = "reprise"
_STOP_GRACE_S = 2.0
_CALL_COUNT_MAX = 1024

Context = grpc.aio.ServicerContext[Any, Any]
Answer = TypeVar("Answer")


class OpenInferenceServicer(open_inference_pb2_grpc.GRPCInferenceServiceServicer):
    """Unpacks, asks the engine, packs."""

    def __init__(self, *, tokens: TokenCheck, engines: EngineCatalogue, pool: ReplicaPool) -> None:
        self._tokens = tokens
        self._engines = engines
        self._pool = pool

    async def ServerLive(
        self, request: oip.ServerLiveRequest, context: Context
    ) -> oip.ServerLiveResponse:
        return oip.ServerLiveResponse(live=True)

    async def ServerReady(
        self, request: oip.ServerReadyRequest, context: Context
    ) -> oip.ServerReadyResponse:
        return oip.ServerReadyResponse(ready=True)

    async def ServerMetadata(
        self, request: oip.ServerMetadataRequest, context: Context
    ) -> oip.ServerMetadataResponse:
        return oip.ServerMetadataResponse(
            name=_PLATFORM, version=importlib.metadata.version("reprise"), extensions=[]
        )

    async def ModelReady(
        self, request: oip.ModelReadyRequest, context: Context
    ) -> oip.ModelReadyResponse:
        return await _answer(context, self._model_ready(request, context))

    async def ModelMetadata(
        self, request: oip.ModelMetadataRequest, context: Context
    ) -> oip.ModelMetadataResponse:
        return await _answer(context, self._model_metadata(request, context))

    async def ModelInfer(
        self, request: oip.ModelInferRequest, context: Context
    ) -> oip.ModelInferResponse:
        with _INFER_SECONDS.time():
            return await _answer(context, self._model_infer(request, context))

    async def _model_ready(
        self, request: oip.ModelReadyRequest, context: Context
    ) -> oip.ModelReadyResponse:
        version = await self._find(request.name, request.version, context)
        # Asking is the first step of using: the next answer may be yes.
        replica = self._pool.request(version)
        return oip.ModelReadyResponse(ready=replica.state == events_pb2.REPLICA_STATE_READY)

    async def _model_metadata(
        self, request: oip.ModelMetadataRequest, context: Context
    ) -> oip.ModelMetadataResponse:
        version = await self._find(request.name, request.version, context)
        async with self._model(version) as model:
            return oip.ModelMetadataResponse(
                name=request.name,
                versions=[version.id],
                platform=model.signature.runtime.replace(" ", "_"),
                inputs=[_metadata(spec) for spec in model.signature.inputs],
                outputs=[_metadata(spec) for spec in model.signature.outputs],
            )

    async def _model_infer(
        self, request: oip.ModelInferRequest, context: Context
    ) -> oip.ModelInferResponse:
        version = await self._find(request.model_name, request.model_version, context)
        inputs = oip_tensors.read_inputs(request)
        async with self._model(version) as model:
            outputs = await model.infer(inputs)
        response = oip.ModelInferResponse(
            model_name=request.model_name, model_version=version.id, id=request.id
        )
        oip_tensors.write_outputs(response, oip_tensors.pick_outputs(request, outputs))
        return response

    async def _find(self, name: str, version: str, context: Context) -> Version:
        metadata = dict(context.invocation_metadata() or ())
        account_id = await self._tokens.account_id(str(metadata.get("authorization", "")))
        return await self._engines.find(name, version, account_id)

    @asynccontextmanager
    async def _model(self, version: Version) -> AsyncIterator[EngineModel]:
        try:
            async with self._pool.slot(version) as replica:
                assert isinstance(replica.model, EngineModel)
                yield replica.model
        except LoadFailed as error:
            raise InvalidInput(f"the engine does not load: {error.reason}") from error
        except RunnerBusy as error:
            raise ResourceExhausted(str(error)) from error


@dataclass(frozen=True, slots=True)
class PublicPort:
    """Where the protocol is served; TLS where a certificate is given."""

    listen: str
    tls_cert: Path | None
    tls_key: Path | None

    def add_to(self, server: grpc.aio.Server) -> int:
        if self.tls_cert is None or self.tls_key is None:
            return server.add_insecure_port(self.listen)
        pair = (self.tls_key.read_bytes(), self.tls_cert.read_bytes())
        return server.add_secure_port(self.listen, grpc.ssl_server_credentials([pair]))


class OpenInferenceServer:
    """The public port; runs beside the service's own."""

    def __init__(self, servicer: OpenInferenceServicer, port: PublicPort) -> None:
        self._servicer = servicer
        self._port = port
        self.bound: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def run(self) -> None:
        server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", MESSAGE_SIZE_MAX),
                ("grpc.max_send_message_length", MESSAGE_SIZE_MAX),
                ("grpc.so_reuseport", 0),
            ],
            maximum_concurrent_rpcs=_CALL_COUNT_MAX,
        )
        open_inference_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(self._servicer, server)
        reflection.enable_server_reflection([_SERVICE_NAME, reflection.SERVICE_NAME], server)
        port = self._port.add_to(server)
        await server.start()
        self.bound.set_result(port)
        log.info("tensor port opened", extra={"event": "tensor_port_opened", "port": port})
        try:
            await server.wait_for_termination()
        finally:
            await server.stop(_STOP_GRACE_S)


async def _answer(context: Context, work: Awaitable[Answer]) -> Answer:
    shown: RepriseError
    try:
        return await work
    except (Internal, LookupError, ValueError, TypeError, AssertionError) as error:
        shown = _hidden(error)
    except RepriseError as error:
        shown = error
    context.set_trailing_metadata(((errors.DETAILS_KEY, errors.to_details(shown)),))
    await context.abort(shown.status, shown.message)
    raise AssertionError("abort raises")


def _hidden(error: Exception) -> Internal:
    error_id = secrets.token_hex(6)
    log.error(
        "tensor call failed by a fault of ours",
        exc_info=error,
        extra={"event": "tensor_call_failed", "error_id": error_id},
    )
    return Internal(f"internal error {error_id}; the operator finds it in the logs by this id")


def _metadata(spec: engine_pb2.TensorSpec) -> oip.ModelMetadataResponse.TensorMetadata:
    return oip.ModelMetadataResponse.TensorMetadata(
        name=spec.name, datatype=oip_tensors.datatype(spec.dtype), shape=spec.shape
    )
