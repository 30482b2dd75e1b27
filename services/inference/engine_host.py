"""The engine host: the process that holds the executor and every loaded engine.

`python -m services.inference.engine_host ORDER`, started and watched by
`engine_supervisor.EngineHost`, with whose process it dies. A crash in a native library ends this
process and nothing else.
"""

import asyncio
import importlib.metadata
import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from reprise.inference.v1 import engine_pb2, engine_pb2_grpc

from inference_core import (
    CompileOptions,
    DeadlineExceededError,
    Engine,
    EngineCache,
    EngineError,
    EngineExecutor,
    ExecutorError,
    InvalidInputError,
    QueueFullError,
    compile_model,
    open_engine,
)
from services.chassis import channels, telemetry
from services.chassis.errors import Internal, InvalidInput, NotFound, ResourceExhausted, Unavailable
from services.chassis.server import MeshInterceptor
from services.inference.cog.launcher import die_with_parent
from services.inference.engine_order import MESH_KEY_VARIABLE, HostOrder
from services.inference.tensors import to_arrays, to_messages


@dataclass(frozen=True, slots=True)
class LoadedEngine:
    engine: Engine
    executor: EngineExecutor

    def answer(self) -> engine_pb2.LoadEngineResponse:
        engine = self.engine
        return engine_pb2.LoadEngineResponse(
            inputs=[_spec(spec) for spec in engine.signature.inputs],
            outputs=[_spec(spec) for spec in engine.signature.outputs],
            runtime=f"{engine.backend} {importlib.metadata.version(engine.backend)}",
            remarks=engine.remarks,
        )


class EngineServicer(engine_pb2_grpc.EngineServiceServicer):
    """Engines by version id."""

    def __init__(self, cache: EngineCache, sandbox: Sequence[str]) -> None:
        self._cache = cache
        self._sandbox = sandbox
        self._engines: dict[str, LoadedEngine] = {}
        self._loading = asyncio.Lock()

    async def LoadEngine(
        self, request: engine_pb2.LoadEngineRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> engine_pb2.LoadEngineResponse:
        # One at a time: compiling takes every core and much memory.
        async with self._loading:
            loaded = self._engines.get(request.version_id)
            if loaded is None:
                loaded = await self._load(request)
                self._engines[request.version_id] = loaded
        return loaded.answer()

    async def UnloadEngine(
        self, request: engine_pb2.UnloadEngineRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> engine_pb2.UnloadEngineResponse:
        loaded = self._engines.pop(request.version_id, None)
        if loaded is not None:
            await loaded.executor.close()
        return engine_pb2.UnloadEngineResponse()

    async def RunEngine(
        self, request: engine_pb2.RunEngineRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> engine_pb2.RunEngineResponse:
        loaded = self._engines.get(request.version_id)
        if loaded is None:
            raise NotFound(f"engine {request.version_id} is not loaded")
        inputs = to_arrays(request.inputs)
        started_at = time.perf_counter()
        try:
            outputs = await loaded.executor.run(inputs, deadline_s=context.time_remaining())
        except InvalidInputError as error:
            raise InvalidInput(str(error)) from error
        except QueueFullError as error:
            raise ResourceExhausted(str(error)) from error
        except DeadlineExceededError as error:
            raise Unavailable(str(error)) from error
        except ExecutorError as error:
            raise Internal(str(error)) from error
        run_us = int((time.perf_counter() - started_at) * 1_000_000)
        return engine_pb2.RunEngineResponse(outputs=to_messages(outputs), run_us=run_us)

    async def close(self) -> None:
        for loaded in self._engines.values():
            await loaded.executor.close()
        self._engines.clear()

    async def _load(self, request: engine_pb2.LoadEngineRequest) -> LoadedEngine:
        options = CompileOptions(max_batch_size=request.max_batch_size or 1)
        try:
            engine = await compile_model(
                Path(request.onnx_path), cache=self._cache, options=options, sandbox=self._sandbox
            )
            return LoadedEngine(engine, await open_engine(engine))
        except (EngineError, ValueError) as error:
            raise InvalidInput(str(error), reason="MODEL_REFUSED") from error


def _spec(spec: Any) -> engine_pb2.TensorSpec:
    shape = [dim if isinstance(dim, int) else -1 for dim in spec.shape]
    return engine_pb2.TensorSpec(name=spec.name, dtype=spec.dtype.value, shape=shape)


async def _serve(order: HostOrder, mesh_key: str) -> None:
    servicer = EngineServicer(EngineCache(Path(order.cache_dir)), order.sandbox)
    server = grpc.aio.server(
        interceptors=[MeshInterceptor(mesh_key)],
        options=[
            ("grpc.max_receive_message_length", channels.MESSAGE_SIZE_MAX),
            ("grpc.max_send_message_length", channels.MESSAGE_SIZE_MAX),
        ],
    )
    engine_pb2_grpc.add_EngineServiceServicer_to_server(servicer, server)
    server.add_insecure_port(f"unix:{order.socket}")
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    # An interrupt from the keyboard reaches the whole group: the supervisor decides when this ends.
    loop.add_signal_handler(signal.SIGINT, lambda: None)
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    await server.start()
    # The supervisor waits for this line and reads no other: a native library that prints must not
    # fill the pipe.
    os.write(sys.stdout.fileno(), b"ready\n")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    await stop.wait()
    await server.stop(1.0)
    await servicer.close()


def main() -> None:
    order = HostOrder.from_text(sys.argv[1])
    die_with_parent(signal.SIGKILL, order.parent_pid)
    # Into the worker's own log: a hidden fault is found there by the id that its caller was told.
    telemetry.setup_logs("engine_host", "INFO")
    asyncio.run(_serve(order, os.environ.pop(MESH_KEY_VARIABLE)))


if __name__ == "__main__":
    main()
