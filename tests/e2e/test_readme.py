"""The README's code blocks work as they stand, against a live mesh."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.conftest import PROJECTS
from tests.e2e.mesh import Mesh

README = Path(__file__).parents[2] / "README.md"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def block(language: str, marker: str) -> str:
    """The block of a language that holds the marker."""
    found = [code for name, code in BLOCK.findall(README.read_text()) if name == language]
    [code] = [code for code in found if marker in code]
    return code


@pytest.fixture(scope="module")
def variables(mesh: Mesh) -> dict[str, str]:
    # The README calls the demo's language model; this one has its name and inputs.
    mesh.push("local/smollm2", PROJECTS / "storyteller")
    return os.environ | {
        "REPLICATE_BASE_URL": mesh.url,
        "REPLICATE_API_TOKEN": mesh.token,
        "REPRISE_GRPC": mesh.grpc,
    }


def output_of(command: list[str], variables: dict[str, str], folder: Path) -> str:
    answer = subprocess.run(
        command, env=variables, cwd=folder, capture_output=True, text=True, timeout=240, check=False
    )
    assert answer.returncode == 0, answer.stderr
    return answer.stdout


@pytest.mark.parametrize("marker", ["import replicate", "import grpc"])
def test_the_python_blocks_run(marker: str, variables: dict[str, str], tmp_path: Path) -> None:
    command = [sys.executable, "-c", block("python", marker)]
    assert "Why is the sky blue?" in output_of(command, variables, tmp_path)


def test_the_curl_block_runs(variables: dict[str, str], tmp_path: Path) -> None:
    output = output_of(["bash", "-euc", block("bash", "curl")], variables, tmp_path)
    assert '"succeeded"' in output


@pytest.mark.skipif(shutil.which("npm") is None, reason="this host has no Node")
def test_the_node_block_runs(variables: dict[str, str], tmp_path: Path) -> None:
    subprocess.run(
        ["npm", "install", "--silent", "--no-audit", "--no-fund", "replicate@1"],
        cwd=tmp_path,
        check=True,
        timeout=200,
        capture_output=True,
    )
    (tmp_path / "call.mjs").write_text(block("js", "replicate"))
    assert "Why is the sky blue?" in output_of(["node", "call.mjs"], variables, tmp_path)


def test_each_link_of_the_readme_leads_somewhere() -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", README.read_text())
    assert links
    assert not [link for link in links if not (README.parent / link).exists()]
