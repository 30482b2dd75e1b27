"""Brings a cog project to life: environment, schema, started runner; for builds and replicas."""

import asyncio
import os
import secrets
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from services.inference.artifacts import ArtifactCache
from services.inference.cog.config import CogConfig, Host, read_config, refuse_on_host
from services.inference.cog.environment import EnvironmentStore
from services.inference.cog.errors import CogProjectError, EnvironmentBuildFailed, SetupFailed
from services.inference.cog.requirements import read_requirements
from services.inference.cog.runner import CogRunner
from services.inference.cog.sandbox import Sandbox
from services.inference.cog.schema import ModelSchema, extract_schema
from services.inference.cog.server_process import RunnerLimits, RunnerSpec
from services.inference.loaded_model import LoadedModel, LoadFailed
from services.inference.versions import Version

OnStep = Callable[[str], None]

_LOG_TAIL_MAX = 2000
_QUERY_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class CogProject:
    """A project whose text was read and found right; nothing of it has run."""

    project_dir: Path
    config: CogConfig
    reference: str
    schema: ModelSchema

    @property
    def concurrency(self) -> int:
        return self.config.concurrency_max or self.schema.concurrency


def read_project(project_dir: Path) -> CogProject:
    """Raises CogProjectError."""
    config = read_config(project_dir)
    if config.predict is None:
        raise CogProjectError(
            where="cog.yaml: predict",
            problem="there is a `train` but nothing to predict with",
            fix='Add `predict: "predict.py:Predictor"`.',
        )
    schema = extract_schema(project_dir, config.predict, cog_version=config.cog_version)
    return CogProject(project_dir, config, config.predict, schema)


class CogLoader:
    """Starts projects one by one or side by side; environments are shared by content."""

    def __init__(
        self,
        *,
        artifacts: ArtifactCache,
        environments: EnvironmentStore,
        sandbox: Sandbox,
        limits: RunnerLimits,
        running_dir: Path,
    ) -> None:
        """`running_dir` holds one folder for each running model."""
        self._artifacts = artifacts
        self._environments = environments
        self._sandbox = sandbox
        self._limits = limits
        self._running_dir = running_dir

    async def prepare(self) -> None:
        """Removes what the models of an earlier process left."""
        await asyncio.to_thread(shutil.rmtree, self._running_dir, ignore_errors=True)
        self._running_dir.mkdir(parents=True)

    async def host(self, config: CogConfig) -> Host:
        """This host, as far as the project asks for it."""
        versions = await self._environments.python_versions()
        packages = await installed_packages(config.system_packages)
        return Host(python_versions=versions, system_packages=packages)

    async def check_host(self, config: CogConfig) -> None:
        """Raises CogProjectError for what this host does not have."""
        refuse_on_host(config, await self.host(config))

    async def start(
        self,
        project: CogProject,
        schema: Mapping[str, Any],
        on_step: OnStep,
        *,
        on_environment: Callable[[], None] = lambda: None,
    ) -> CogRunner:
        """A ready runner. Raises CogProjectError, EnvironmentBuildFailed or SetupFailed."""
        requirements = await asyncio.to_thread(
            read_requirements, project.config, project.project_dir
        )
        environment = await self._environments.ensure(requirements, on_step)
        on_environment()
        spec = RunnerSpec(
            project_dir=project.project_dir,
            reference=project.reference,
            schema=schema,
            environment=environment,
            scratch_dir=self._running_dir / secrets.token_hex(8),
            concurrency=project.concurrency,
            variables=project.config.environment,
        )
        spec.scratch_dir.mkdir(parents=True)
        runner = CogRunner(spec, self._sandbox, self._limits)
        await runner.start()
        return runner

    async def load(self, version: Version) -> LoadedModel:
        """Raises LoadFailed."""
        project_dir = await self._artifacts.version_dir(version.spec)
        schema = orjson.loads(version.spec.openapi_schema.text)
        try:
            project = await asyncio.to_thread(read_project, project_dir)
            return await self.start(project, schema, _ignore)
        except CogProjectError as error:
            raise LoadFailed(str(error), is_models_fault=True) from error
        except EnvironmentBuildFailed as error:
            raise LoadFailed(
                f"the environment could not be built: {error.reason}", is_models_fault=False
            ) from error
        except SetupFailed as error:
            raise LoadFailed(describe(error), is_models_fault=True) from error


def describe(error: SetupFailed) -> str:
    """The reason and the end of what the model printed."""
    logs = error.logs.strip()[-_LOG_TAIL_MAX:]
    return f"setup failed: {error.reason}" + (f"\n{logs}" if logs else "")


async def installed_packages(names: Sequence[str]) -> frozenset[str]:
    """Those of the named Debian packages that this host has; none where it has no dpkg."""
    if not names or shutil.which("dpkg-query") is None:
        return frozenset()
    process = await asyncio.create_subprocess_exec(
        "dpkg-query",
        "-W",
        "-f=${db:Status-Status} ${Package}\\n",
        "--",
        *(name.partition("=")[0] for name in names),
        env={"PATH": os.defpath},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        async with asyncio.timeout(_QUERY_TIMEOUT_S):
            output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    lines = (line.partition(" ") for line in output.decode(errors="replace").splitlines())
    found = {name for status, _, name in lines if status == "installed"}
    return frozenset(name for name in names if name.partition("=")[0] in found)


def _ignore(_line: str) -> None:
    return
