"""The command line as a new user types it."""

import json
from pathlib import Path

from tests.e2e.mesh import Mesh

PROJECTS = Path(__file__).parent / "projects"


def test_pushing_the_same_twice_is_one_version_and_sends_nothing(mesh: Mesh, echo: str) -> None:
    answer = mesh.cli("push", "local/echo", str(PROJECTS / "echo"))
    assert answer.returncode == 0
    assert "uploaded 0 bytes" in answer.stderr
    assert answer.stdout.strip() == f"local/echo:{echo}"


def test_run_types_its_inputs_and_tells_the_cost(mesh: Mesh, echo: str) -> None:
    answer = mesh.cli("run", "local/echo", "text=ab", "size=3")
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.strip() == "ababab"
    assert "succeeded" in answer.stderr
    assert " s on cpu" in answer.stderr


def test_run_streams_text(mesh: Mesh, counter: str) -> None:
    answer = mesh.cli("run", "local/counter", "count=3")
    assert answer.stdout == "0 1 2 \n"


def test_run_saves_files(mesh: Mesh, mirror: str, tmp_path: Path) -> None:
    source = tmp_path / "in.bin"
    source.write_bytes(b"left to right")
    answer = mesh.cli(
        "run", "local/mirror", f"file=@{source}", "--output", str(tmp_path / "out"), "--json"
    )
    prediction = json.loads(answer.stdout)
    assert Path(prediction["output"]).read_bytes() == b"thgir ot tfel"


def test_a_failed_run_ends_with_status_1_and_its_error(mesh: Mesh, echo: str) -> None:
    answer = mesh.cli("run", "local/echo", "fail=broken heart")
    assert answer.returncode == 1
    assert "broken heart" in answer.stderr


def test_an_input_that_the_model_lacks_is_named_with_those_it_has(mesh: Mesh, echo: str) -> None:
    answer = mesh.cli("run", "local/echo", "txt=a")
    assert answer.returncode == 1
    assert "txt" in answer.stderr
    assert "text" in answer.stderr


def test_logs_follow_a_run_to_its_end(mesh: Mesh, echo: str) -> None:
    prediction_id = mesh.create(echo, log="a line of log", sleep_s=0.5)
    answer = mesh.cli("logs", "-f", prediction_id)
    assert "a line of log" in answer.stdout
    assert mesh.get(prediction_id)["status"] == "succeeded"


def test_predictions_and_models_are_listed(mesh: Mesh, echo: str) -> None:
    prediction_id = mesh.create(echo)
    listed = json.loads(mesh.cli("predictions", "--json").stdout)
    assert prediction_id in [item["id"] for item in listed["predictions"]]
    models = json.loads(mesh.cli("models", "--json").stdout)
    assert "echo" in [item["name"] for item in models["models"]]


def test_doctor_finds_what_is_needed(mesh: Mesh) -> None:
    answer = mesh.cli("doctor", "--json")
    findings = {item["name"]: item for item in json.loads(answer.stdout)}
    assert findings["nats-server"]["is_ok"]
    assert findings["reprise_executor"]["is_ok"]
    assert all(item["advice"] for item in findings.values() if not item["is_ok"])


def test_a_command_without_a_mesh_says_how_to_start_one(mesh: Mesh, tmp_path: Path) -> None:
    import subprocess

    from tests.e2e.mesh import REPRISE

    answer = subprocess.run(
        [REPRISE, "models", "--data", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert answer.returncode == 1
    assert "reprise up" in answer.stderr


def test_the_log_of_a_run_is_shown_line_by_line(mesh: Mesh, echo: str) -> None:
    answer = mesh.cli("run", "local/echo", "log=first\n half|\rsecond half|")
    lines = [line for line in answer.stderr.splitlines() if "half" in line or "first" in line]
    assert [line.strip() for line in lines] == ["first", "half|", "second half|"]
