"""Builds through the worker's own gRPC port, with real environments and the real cog server."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path
from typing import Any, cast

import orjson
import pytest
from reprise.inference.v1 import build_pb2, build_pb2_grpc
from reprise.storage.v1 import model_pb2

from services.chassis.errors import InvalidInput
from tests.integration.inference.conftest import COG_PROJECTS, WAIT_S, Mesh
from tests.models import onnx_builders


async def build(
    mesh: Mesh,
    files: list[model_pb2.VersionFile],
    kind: model_pb2.VersionKind.ValueType = model_pb2.VERSION_KIND_COG,
) -> tuple[list[str], build_pb2.BuiltVersion]:
    request = build_pb2.BuildVersionRequest(kind=kind, files=files, account_id="alice")
    steps: list[str] = []
    peer = mesh.peer()
    stub = build_pb2_grpc.BuildServiceStub(peer.channel)
    built = None
    async for answer in peer.stream(stub.BuildVersion, request):
        if answer.WhichOneof("result") == "step":
            steps.append(answer.step)
        else:
            built = answer.built
    assert built is not None
    return steps, built


def nothing_is_left(mesh: Mesh) -> bool:
    folders = [mesh.data_dir / name for name in ("builds", "running", "partial")]
    return not any(path for folder in folders for path in folder.iterdir())


async def test_a_cog_project_is_built_started_once_and_leaves_nothing(mesh: Mesh) -> None:
    await mesh.start_worker()
    steps, built = await build(mesh, mesh.put_files(COG_PROJECTS / "text_echo"))
    assert "the model is ready" in steps
    assert not [line for line in steps if "virtual environment" in line or "CPython" in line]
    assert steps.index("starting the model once") < steps.index("the model is ready")
    schema = orjson.loads(built.openapi_schema.text)
    assert list(schema["components"]["schemas"]["Input"]["properties"]) == ["text", "times"]
    assert not built.is_iterator
    assert not built.has_file_output
    assert nothing_is_left(mesh)
    assert not [process for process in mesh.children() if "cog" in " ".join(process.cmdline())]


async def test_files_and_iterators_are_found_in_the_schema(mesh: Mesh) -> None:
    await mesh.start_worker()
    _, built = await build(mesh, mesh.put_files(COG_PROJECTS / "file_output"))
    assert built.has_file_output
    _, built = await build(mesh, mesh.put_files(COG_PROJECTS / "token_stream"))
    assert built.is_iterator


@pytest.mark.parametrize(
    ("project", "words"),
    [
        ("bad_default", ["predict.py:", "steps", "0"]),
        ("import_error", ["setup failed", "a_package_that_is_not_there"]),
        ("setup_failure", ["setup failed", "weights are missing", "loading weights"]),
        ("exit_in_setup", ["setup failed", "process ended in setup()", "no answer of the driver"]),
    ],
)
async def test_a_project_that_cannot_run_is_refused_with_the_place_and_the_reason(
    mesh: Mesh, project: str, words: list[str]
) -> None:
    await mesh.start_worker()
    with pytest.raises(InvalidInput) as refusal:
        await build(mesh, mesh.put_files(COG_PROJECTS / project))
    assert all(word in refusal.value.message for word in words), refusal.value.message
    assert nothing_is_left(mesh)


async def test_a_path_that_leaves_its_folder_is_refused(mesh: Mesh) -> None:
    await mesh.start_worker()
    files = [mesh.storage.artifacts.put("../evil.py", b"x")]
    with pytest.raises(InvalidInput, match=r"'\.\./evil\.py' is not a relative path"):
        await build(mesh, files)
    assert not (mesh.data_dir / "evil.py").exists()


async def test_blobs_with_other_bytes_than_promised_are_not_used(mesh: Mesh) -> None:
    await mesh.start_worker()
    files = mesh.put_files(COG_PROJECTS / "text_echo")
    blobs = mesh.storage.artifacts.blobs
    blobs[files[0].digest] = b"#" * len(blobs[files[0].digest])
    with pytest.raises(Exception, match="other bytes"):
        await build(mesh, files)
    assert not list((mesh.data_dir / "blobs").rglob(files[0].digest))


async def test_an_onnx_file_is_compiled_and_described(mesh: Mesh, tmp_path: Path) -> None:
    await mesh.start_worker()
    path = onnx_builders.mlp(tmp_path / "model.onnx")
    files = [mesh.storage.artifacts.put("model.onnx", path.read_bytes())]
    _, built = await build(mesh, files, model_pb2.VERSION_KIND_ENGINE)
    schema = orjson.loads(built.openapi_schema.text)
    assert list(schema["components"]["schemas"]["Input"]["properties"]) == ["x"]
    assert built.runtime_version.startswith("openvino ")
    assert nothing_is_left(mesh)
    assert not [p for p in mesh.children() if "engine_host" in " ".join(p.cmdline())]


async def test_a_broken_onnx_file_is_refused(mesh: Mesh, tmp_path: Path) -> None:
    await mesh.start_worker()
    content = onnx_builders.mlp(tmp_path / "model.onnx").read_bytes()[:-100]
    files = [mesh.storage.artifacts.put("model.onnx", content)]
    with pytest.raises(InvalidInput):
        await build(mesh, files, model_pb2.VERSION_KIND_ENGINE)
    assert nothing_is_left(mesh)


async def test_a_build_whose_caller_goes_away_ends_and_leaves_nothing(mesh: Mesh) -> None:
    await mesh.start_worker()
    request = build_pb2.BuildVersionRequest(
        kind=model_pb2.VERSION_KIND_COG,
        files=mesh.put_files(COG_PROJECTS / "slow_setup"),
        account_id="alice",
    )
    peer = mesh.peer()
    stub = build_pb2_grpc.BuildServiceStub(peer.channel)
    answers = cast("AsyncGenerator[Any, None]", peer.stream(stub.BuildVersion, request))
    async with aclosing(answers):
        async for answer in answers:
            if answer.step == "starting the model once":
                break
    async with asyncio.timeout(WAIT_S):
        while not nothing_is_left(mesh):
            await asyncio.sleep(0.02)
