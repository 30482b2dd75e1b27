"""Engines in their host process: predictions, the public tensor protocol, crashes."""

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import orjson
import psutil
import pytest
from reprise.inference.v1 import events_pb2
from reprise.oip import open_inference_pb2 as oip
from reprise.oip import open_inference_pb2_grpc
from reprise.storage.v1 import model_pb2

from services.chassis.errors import Internal
from services.inference.engine_supervisor import EngineHost, EngineHostSpec
from tests.integration.inference.conftest import Mesh, lease
from tests.models import onnx_builders

ID = "e" * 26
SCHEMA: dict[str, Any] = {"components": {"schemas": {"Input": {"properties": {}}, "Output": {}}}}
TOKEN = (("authorization", "Bearer alices-token"),)


def register_engine(mesh: Mesh, tmp_path: Path, name: str = "alice/sum") -> str:
    path = onnx_builders.row_sum(tmp_path / "model.onnx", width=3)
    spec = mesh.storage.models.register(
        name,
        openapi_schema=SCHEMA,
        kind=model_pb2.VERSION_KIND_ENGINE,
        files=[mesh.storage.artifacts.put("model.onnx", path.read_bytes())],
        is_private=True,
    )
    return spec.version_id


def host_processes(mesh: Mesh) -> list[psutil.Process]:
    return [process for process in mesh.children() if _is_host(process)]


def _is_host(process: psutil.Process) -> bool:
    try:
        return "services.inference.engine_host" in process.cmdline()
    except psutil.NoSuchProcess:
        # Also one that has died and whose parent has not yet taken notice.
        return False


def infer_request(values: list[float], **changes: object) -> oip.ModelInferRequest:
    request = oip.ModelInferRequest(model_name="alice/sum", id="7")
    tensor = request.inputs.add(name="x", datatype="FP32", shape=[1, len(values)])
    tensor.contents.fp32_contents.extend(values)
    return request


async def test_an_engine_answers_a_prediction(mesh: Mesh, tmp_path: Path) -> None:
    version_id = register_engine(mesh, tmp_path)
    await mesh.start_worker()
    assert host_processes(mesh) == [], "an idle worker has no engine host"
    await mesh.scheduler.grant(lease(ID, version_id, {"x": [[1, 2, 3.5]]}))
    completed = await mesh.scheduler.completed(ID)
    assert completed.outcome == events_pb2.RUN_OUTCOME_SUCCEEDED, completed.error
    assert orjson.loads(completed.output.text) == [[6.5]]


async def test_an_input_of_the_wrong_shape_is_the_inputs_fault(mesh: Mesh, tmp_path: Path) -> None:
    version_id = register_engine(mesh, tmp_path)
    await mesh.start_worker()
    await mesh.scheduler.grant(lease(ID, version_id, {"x": [[1, 2]]}))
    completed = await mesh.scheduler.completed(ID)
    assert completed.blame == events_pb2.BLAME_INPUT
    assert "x" in completed.error


async def test_a_dead_engine_host_is_a_platform_fault_and_comes_back(
    mesh: Mesh, tmp_path: Path
) -> None:
    version_id = register_engine(mesh, tmp_path)
    await mesh.start_worker()
    await mesh.scheduler.grant(lease(ID, version_id, {"x": [[1, 2, 3]]}))
    await mesh.scheduler.completed(ID)
    host = host_processes(mesh)[0]
    os.kill(host.pid, signal.SIGSTOP)
    await mesh.scheduler.grant(lease("f" * 26, version_id, {"x": [[1, 2, 3]]}))
    await mesh.scheduler.until(lambda: mesh.scheduler.steps("f" * 26) == ["started"])
    os.kill(host.pid, signal.SIGKILL)
    completed = await mesh.scheduler.completed("f" * 26)
    assert completed.blame == events_pb2.BLAME_PLATFORM
    await mesh.scheduler.grant(lease("f" * 26, version_id, {"x": [[1, 2, 3]]}, attempt=2))
    completed = await mesh.scheduler.completed("f" * 26, attempt=2)
    assert completed.outcome == events_pb2.RUN_OUTCOME_SUCCEEDED
    assert host_processes(mesh)[0].pid != host.pid


async def test_a_killed_worker_takes_its_engine_host_along(mesh: Mesh, tmp_path: Path) -> None:
    version_id = register_engine(mesh, tmp_path)
    await mesh.start_worker()
    await mesh.scheduler.grant(lease(ID, version_id, {"x": [[1, 2, 3]]}))
    await mesh.scheduler.completed(ID)
    hosts = host_processes(mesh)
    await mesh.end_worker(signal.SIGKILL)
    _, alive = await asyncio.to_thread(psutil.wait_procs, hosts, 10)
    assert alive == []


async def test_clients_of_the_open_inference_protocol_are_answered(
    mesh: Mesh, tmp_path: Path
) -> None:
    version_id = register_engine(mesh, tmp_path)
    await mesh.start_worker()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{mesh.oip_port}") as channel:
        stub = open_inference_pb2_grpc.GRPCInferenceServiceStub(channel)
        assert (await stub.ServerLive(oip.ServerLiveRequest())).live
        assert (await stub.ServerReady(oip.ServerReadyRequest())).ready
        metadata = await stub.ModelMetadata(
            oip.ModelMetadataRequest(name="alice/sum"), metadata=TOKEN
        )
        assert [(t.name, t.datatype, list(t.shape)) for t in metadata.inputs] == [
            ("x", "FP32", [-1, 3])
        ]
        assert list(metadata.versions) == [version_id]
        ready = await stub.ModelReady(oip.ModelReadyRequest(name="alice/sum"), metadata=TOKEN)
        assert ready.ready

        typed = await stub.ModelInfer(infer_request([1, 2, 3]), metadata=TOKEN)
        assert (typed.id, typed.model_version) == ("7", version_id)
        assert np.frombuffer(typed.raw_output_contents[0], np.float32).tolist() == [6]
        assert list(typed.outputs[0].shape) == [1, 1]

        raw = oip.ModelInferRequest(model_name="alice/sum", model_version=version_id)
        raw.inputs.add(name="x", datatype="FP32", shape=[2, 3])
        raw.raw_input_contents.append(np.arange(6, dtype=np.float32).tobytes())
        answer = await stub.ModelInfer(raw, metadata=TOKEN)
        assert np.frombuffer(answer.raw_output_contents[0], np.float32).tolist() == [3, 12]


async def test_the_tensor_port_refuses_what_it_must(mesh: Mesh, tmp_path: Path) -> None:
    register_engine(mesh, tmp_path)
    mesh.gateway.accounts.tokens["bobs-token"] = "bob"
    mesh.register_cog("text_echo")
    await mesh.start_worker()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{mesh.oip_port}") as channel:
        stub = open_inference_pb2_grpc.GRPCInferenceServiceStub(channel)

        async def code(request: oip.ModelInferRequest, token: str) -> grpc.StatusCode:
            metadata = (("authorization", token),) if token else ()
            with pytest.raises(grpc.aio.AioRpcError) as refusal:
                await stub.ModelInfer(request, metadata=metadata)
            return refusal.value.code()

        good = infer_request([1, 2, 3])
        assert await code(good, "") is grpc.StatusCode.UNAUTHENTICATED
        assert await code(good, "Bearer guessed") is grpc.StatusCode.UNAUTHENTICATED
        assert await code(good, "Bearer bobs-token") is grpc.StatusCode.NOT_FOUND
        mine = "Bearer alices-token"
        assert await code(infer_request([1, 2]), mine) is grpc.StatusCode.INVALID_ARGUMENT
        short = oip.ModelInferRequest(model_name="alice/sum", raw_input_contents=[b"123"])
        short.inputs.add(name="x", datatype="FP32", shape=[1, 3])
        assert await code(short, mine) is grpc.StatusCode.INVALID_ARGUMENT
        cog = oip.ModelInferRequest(model_name="alice/text-echo")
        assert await code(cog, mine) is grpc.StatusCode.NOT_FOUND


async def test_a_hidden_fault_of_the_host_is_found_in_the_log_by_its_id(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = onnx_builders.row_sum(tmp_path / "model.onnx", width=3)
    host = EngineHost(
        EngineHostSpec(data_dir=tmp_path, mesh_key="k" * 32, sandbox=("/no/such/program",))
    )
    try:
        with pytest.raises(Internal) as caught:
            await host.load("e" * 64, path, max_batch_size=1)
    finally:
        await host.stop()
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("{")]
    (found,) = [line for line in map(orjson.loads, lines) if "error_id" in line]
    assert found["error_id"] in caught.value.message
    assert found["service"] == "engine_host"
    assert "/no/such/program" in found["exception"]


async def test_the_host_goes_with_its_last_engine(mesh: Mesh, tmp_path: Path) -> None:
    engine_id, cog_id = register_engine(mesh, tmp_path), mesh.register_cog("text_echo")
    await mesh.start_worker(replica_count_max="1")
    await mesh.scheduler.grant(lease(ID, engine_id, {"x": [[1, 2, 3]]}))
    await mesh.scheduler.completed(ID)
    assert host_processes(mesh)
    await mesh.scheduler.grant(lease("f" * 26, cog_id, {"text": "x"}))
    await mesh.scheduler.completed("f" * 26)
    assert host_processes(mesh) == []
    await mesh.scheduler.grant(lease("g" * 26, engine_id, {"x": [[1, 2, 3]]}))
    completed = await mesh.scheduler.completed("g" * 26)
    assert completed.outcome == events_pb2.RUN_OUTCOME_SUCCEEDED


async def test_a_host_that_dies_idle_is_back_before_anybody_asks(
    mesh: Mesh, tmp_path: Path
) -> None:
    version_id = register_engine(mesh, tmp_path)
    await mesh.start_worker()
    await mesh.scheduler.grant(lease(ID, version_id, {"x": [[1, 2, 3]]}))
    await mesh.scheduler.completed(ID)
    (dead,) = host_processes(mesh)
    dead.kill()

    def is_back() -> bool:
        processes = host_processes(mesh)
        return bool(processes) and all(
            process.pid != dead.pid and _has_loaded_an_engine(process) for process in processes
        )

    # Heard at each heartbeat, five times a second.
    await mesh.scheduler.until(is_back)


def _has_loaded_an_engine(process: psutil.Process) -> bool:
    """The CPU's own compiler is only mapped into the process with the first engine."""
    path = Path(f"/proc/{process.pid}/maps")
    return path.exists() and "openvino_intel_cpu_plugin" in path.read_text()
