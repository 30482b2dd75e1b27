"""Brings a cog project to life: environment, schema, started runner; for builds and replicas."""

import asyncio
import secrets
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from services.inference.artifacts import ArtifactCache
from services.inference.cog.config import CogConfig, read_config, refuse_on_host
from services.inference.cog.environment import EnvironmentStore
from services.inference.cog.errors import CogProjectError, EnvironmentBuildFailed, SetupFailed
from services.inference.cog.host import gpu_devices, inspect_host
from services.inference.cog.requirements import read_requirements
from services.inference.cog.runner import CogRunner
from services.inference.cog.sandbox import Sandbox
from services.inference.cog.schema import ModelSchema, extract_schema
from services.inference.cog.server_process import RunnerLimits, RunnerSpec
from services.inference.loaded_model import LoadedModel, LoadFailed
from services.inference.versions import Version

OnStep = Callable[[str], None]

_LOG_TAIL_MAX = 2000


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

    async def check_host(self, config: CogConfig) -> None:
        """Raises CogProjectError for what this host does not have."""
        refuse_on_host(config, await inspect_host(self._environments, config.system_packages))

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
            devices=gpu_devices() if project.config.gpu else (),
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


def _ignore(_line: str) -> None:
    return
