"""Foreign clients in environments of their own: each scenario is one process with a JSON report."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SCENARIOS = Path(__file__).parent / "scenarios"
UV = str(Path(sys.executable).with_name("uv"))
INSTALL_TIMEOUT_S = 120
PLAY_TIMEOUT_S = 60


def python_with(folder: Path, *requirements: str) -> str:
    """A Python that has these packages and nothing of ours."""
    python = folder / "bin" / "python"
    for command in (
        ["venv", "--quiet", "--python", sys.executable, str(folder)],
        ["pip", "install", "--quiet", "--python", str(python), *requirements],
    ):
        answer = subprocess.run(
            [UV, *command], capture_output=True, text=True, timeout=INSTALL_TIMEOUT_S, check=False
        )
        assert answer.returncode == 0, answer.stderr
    return str(python)


def play(command: list[str], variables: Mapping[str, str]) -> dict[str, Any]:
    """What a scenario reported."""
    answer = subprocess.run(
        command,
        env=os.environ | dict(variables),
        capture_output=True,
        text=True,
        timeout=PLAY_TIMEOUT_S,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr
    report: dict[str, Any] = json.loads(answer.stdout)
    return report
