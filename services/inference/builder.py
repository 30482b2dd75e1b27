"""Builds: proves that uploaded content is a model that runs, before it becomes a version."""

import asyncio
import contextlib
import secrets
import shutil
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import orjson
from reprise.inference.v1 import build_pb2, build_pb2_grpc
from reprise.storage.v1 import model_pb2

from services.chassis.errors import InvalidInput
from services.inference.artifacts import ArtifactCache
from services.inference.cog.errors import CogProjectError, EnvironmentBuildFailed, SetupFailed
from services.inference.cog_loading import CogLoader, CogProject, describe, read_project
from services.inference.engine_loading import EngineLoader
from services.inference.file_shapes import read_shapes

_STEP_BACKLOG_MAX = 10_000
_STEP_MAX = 2_000

OnStep = Callable[[str], None]


class BuildServicer(build_pb2_grpc.BuildServiceServicer):
    """A bounded number of builds at a time, each in a folder of its own that is gone afterwards."""

    def __init__(
        self,
        *,
        artifacts: ArtifactCache,
        cog_loader: CogLoader,
        engine_loader: EngineLoader,
        builds_dir: Path,
        count_max: int,
    ) -> None:
        self._artifacts = artifacts
        self._cog_loader = cog_loader
        self._engine_loader = engine_loader
        self._builds_dir = builds_dir
        self._slots = asyncio.Semaphore(count_max)

    async def prepare(self) -> None:
        """Removes what an earlier process left."""
        await asyncio.to_thread(shutil.rmtree, self._builds_dir, ignore_errors=True)
        self._builds_dir.mkdir(parents=True)

    async def BuildVersion(
        self,
        request: build_pb2.BuildVersionRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> AsyncIterator[build_pb2.BuildVersionResponse]:
        steps: asyncio.Queue[str | None] = asyncio.Queue(_STEP_BACKLOG_MAX)

        def tell(line: str) -> None:
            # A reader that is this far behind will not miss a line of an installer.
            with contextlib.suppress(asyncio.QueueFull):
                steps.put_nowait(line[:_STEP_MAX])

        async with _ended_with(self._build(request, tell), steps) as build:
            while (line := await steps.get()) is not None:
                yield build_pb2.BuildVersionResponse(step=line)
            yield build_pb2.BuildVersionResponse(built=await build)

    async def _build(
        self, request: build_pb2.BuildVersionRequest, tell: OnStep
    ) -> build_pb2.BuiltVersion:
        if self._slots.locked():
            tell("waiting for another build to end")
        async with self._slots:
            target = self._builds_dir / secrets.token_hex(8)
            try:
                await self._artifacts.materialise(request.files, target, tell)
                if request.kind == model_pb2.VERSION_KIND_COG:
                    return await self._build_cog(target, tell)
                if request.kind == model_pb2.VERSION_KIND_ENGINE:
                    return await self._build_engine(target, request.files, tell)
                raise InvalidInput("kind: cog or engine is expected")
            finally:
                await asyncio.shield(asyncio.to_thread(shutil.rmtree, target, ignore_errors=True))

    async def _build_cog(self, project_dir: Path, tell: OnStep) -> build_pb2.BuiltVersion:
        try:
            tell("reading cog.yaml and the model's signature")
            project = await asyncio.to_thread(read_project, project_dir)
            for warning in project.config.warnings:
                tell(f"warning: {warning}")
            await self._cog_loader.check_host(project.config)
            await self._try_cog(project, tell)
        except CogProjectError as error:
            raise InvalidInput(str(error), reason="PROJECT_REFUSED") from error
        except EnvironmentBuildFailed as error:
            raise InvalidInput(
                f"the environment could not be built: {error}", reason="ENVIRONMENT_FAILED"
            ) from error
        except SetupFailed as error:
            raise InvalidInput(describe(error), reason="SETUP_FAILED") from error
        return _built(
            project.schema.document,
            runtime_version=project.config.cog_version,
            is_iterator=project.schema.is_iterator,
            warnings=project.config.warnings,
        )

    async def _try_cog(self, project: CogProject, tell: OnStep) -> None:
        tell(f"preparing Python {project.config.python_minor} and the packages")
        document = project.schema.document
        runner = await self._cog_loader.start(
            project, document, tell, on_environment=lambda: tell("starting the model once")
        )
        try:
            for line in runner.setup_logs.splitlines():
                tell(line)
            tell("the model is ready")
        finally:
            await runner.stop(grace_s=0)

    async def _build_engine(
        self, folder: Path, files: Sequence[model_pb2.VersionFile], tell: OnStep
    ) -> build_pb2.BuiltVersion:
        tell("checking the ONNX file, compiling it and comparing its outputs with the reference")
        proof = await self._engine_loader.prove(folder, [file.path for file in files])
        for remark in proof.remarks:
            tell(f"note: {remark}")
        return _built(
            proof.openapi_schema,
            runtime_version=proof.runtime,
            is_iterator=False,
            warnings=proof.remarks,
        )


def _built(
    schema: dict[str, Any], *, runtime_version: str, is_iterator: bool, warnings: Sequence[str]
) -> build_pb2.BuiltVersion:
    built = build_pb2.BuiltVersion(
        runtime_version=runtime_version,
        is_iterator=is_iterator,
        has_file_output=read_shapes(schema).output is not None,
        warnings=warnings,
    )
    built.openapi_schema.text = orjson.dumps(schema).decode()
    return built


@asynccontextmanager
async def _ended_with(
    work: Coroutine[Any, Any, build_pb2.BuiltVersion], steps: asyncio.Queue[str | None]
) -> AsyncGenerator[asyncio.Task[build_pb2.BuiltVersion], None]:
    """The build as a task that ends with its caller; the end of the steps is a None."""
    task = asyncio.create_task(work)

    def close(_task: object) -> None:
        if steps.full():
            steps.get_nowait()
        steps.put_nowait(None)

    task.add_done_callback(close)
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.wait({task})
