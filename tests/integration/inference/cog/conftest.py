"""Real cog servers: one environment per test run, one runner per test."""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from services.inference.cog.config import CogConfig, read_config
from services.inference.cog.environment import Environment, EnvironmentStore
from services.inference.cog.events import Completed, Event
from services.inference.cog.requirements import read_requirements
from services.inference.cog.runner import CogRunner
from services.inference.cog.sandbox import Sandbox
from services.inference.cog.schema import extract_schema
from services.inference.cog.server_process import RunnerLimits, RunnerSpec

PROJECTS = Path(__file__).parents[3] / "models" / "cog"


@dataclass
class Runners:
    """Starts runners below one data folder and stops whatever a test leaves running."""

    data_dir: Path
    environment: Environment
    sandbox: Sandbox
    started: list[CogRunner] = field(default_factory=list)

    async def start(
        self, project: str, *, sandbox: Sandbox | None = None, **limits: Any
    ) -> CogRunner:
        project_dir = PROJECTS / project
        config = read_config(project_dir)
        assert config.predict is not None
        schema = extract_schema(project_dir, config.predict)
        spec = RunnerSpec(
            project_dir=project_dir,
            reference=config.predict,
            schema=schema.document,
            environment=self.environment,
            scratch_dir=self.scratch_dir(len(self.started)),
            concurrency=config.concurrency_max or schema.concurrency,
            variables=config.environment,
        )
        runner = CogRunner(spec, sandbox or self.sandbox, RunnerLimits(**limits))
        self.started.append(runner)
        await runner.start()
        return runner

    def scratch_dir(self, number: int) -> Path:
        return self.data_dir / "runners" / str(number)


async def collect(
    runner: CogRunner, prediction_id: str, /, **prediction_input: Any
) -> tuple[list[Event], Completed]:
    events = [event async for event in runner.predict(prediction_id, prediction_input)]
    assert isinstance(events[-1], Completed)
    return events, events[-1]


@pytest.fixture(scope="session")
def shared_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all workers of a parallel run, so that the environment is built once."""
    base = tmp_path_factory.getbasetemp()
    path = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "cog-data"
    path.mkdir(exist_ok=True)
    return path


@pytest.fixture(scope="session")
def environment(shared_dir: Path) -> Environment:
    requirements = read_requirements(CogConfig(), shared_dir)
    return asyncio.run(EnvironmentStore(shared_dir).ensure(requirements, lambda line: None))


@pytest.fixture
async def runners(environment: Environment, tmp_path: Path) -> AsyncIterator[Runners]:
    sandbox = await Sandbox.probe(tmp_path)
    runners = Runners(tmp_path, environment, sandbox)
    yield runners
    for runner in runners.started:
        await runner.stop(grace_s=0)


@pytest.fixture
def predict() -> Callable[..., Awaitable[tuple[list[Event], Completed]]]:
    return collect
