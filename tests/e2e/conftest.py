"""One live mesh for the journeys, started and ended as a user would."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.mesh import Mesh, start_mesh

PROJECTS = Path(__file__).parent / "projects"


@pytest.fixture(scope="session")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    """A mesh that all journeys share; those that break things start their own."""
    with start_mesh(tmp_path_factory.mktemp("mesh") / "data") as running:
        yield running


@pytest.fixture(scope="session")
def echo(mesh: Mesh) -> str:
    """A model that answers its text, sleeps, logs, fails: whatever its input says."""
    return mesh.push("local/echo", PROJECTS / "echo")


@pytest.fixture(scope="session")
def counter(mesh: Mesh) -> str:
    """A model that streams numbers."""
    return mesh.push("local/counter", PROJECTS / "counter")


@pytest.fixture(scope="session")
def mirror(mesh: Mesh) -> str:
    """A model that takes a file and gives one back."""
    return mesh.push("local/mirror", PROJECTS / "mirror")
