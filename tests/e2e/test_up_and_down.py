"""`reprise up`, `down`, and what they promise about processes and folders."""

import json
import os
import signal
import socket
import subprocess
import time
from pathlib import Path

import grpc
import httpx
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from tests.e2e.mesh import REPRISE, Mesh, start_mesh
from tests.models import onnx_builders

NAMES = {"supervisor", "nats", "gateway", "scheduler", "billing", "storage", "inference"}


def wait_until_gone(pids: set[int], timeout_s: float = 20) -> None:
    _, alive = psutil.wait_procs(
        [psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)], timeout=timeout_s
    )
    assert not alive


def test_the_ready_line_names_everything(mesh: Mesh) -> None:
    state = json.loads((mesh.data / "run.json").read_text())
    assert set(state) == {"url", "grpc", "oip", "token", "data", "pids"}
    assert set(state["pids"]) == NAMES
    assert all(psutil.pid_exists(pid) for pid in state["pids"].values())
    assert httpx.get(f"{mesh.url}/healthz").status_code == 200


def test_a_second_up_says_so_and_changes_nothing(mesh: Mesh) -> None:
    before = mesh.pids()
    answer = mesh.cli("up", "--port", "0")
    assert answer.returncode == 0
    assert "already" in answer.stderr
    assert mesh.pids() == before


def test_health_and_reflection_answer_on_the_public_port(mesh: Mesh) -> None:
    with grpc.insecure_channel(mesh.grpc) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        status = health.Check(health_pb2.HealthCheckRequest()).status
        assert status == health_pb2.HealthCheckResponse.SERVING
        reflection = reflection_pb2_grpc.ServerReflectionStub(channel)
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        [answer] = reflection.ServerReflectionInfo(
            iter([request]), metadata=(("authorization", f"Bearer {mesh.token}"),)
        )
        names = {item.name for item in answer.list_services_response.service}
    assert "reprise.scheduler.v1.PredictionService" in names
    assert "reprise.inference.v1.EngineService" not in names


def test_the_mesh_keeps_its_state_over_a_restart(tmp_path: Path) -> None:
    data = tmp_path / "data"
    project = Path(__file__).parent / "projects" / "echo"
    with start_mesh(data) as first:
        version = first.push("local/echo", project)
        prediction_id = first.create(version, text="kept")
        first.finish(prediction_id)
        token = first.token
    assert not (data / "run.json").exists()
    with start_mesh(data) as second:
        assert second.token == token
        assert second.get(prediction_id)["output"] == "kept"
        assert second.finish(second.create(version, text="again"))["output"] == "again"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_everything(tmp_path: Path, number: signal.Signals) -> None:
    with start_mesh(tmp_path / "data") as mesh:
        family = set(mesh.pids().values())
        for pid in list(family):
            family |= {child.pid for child in psutil.Process(pid).children(recursive=True)}
        mesh.process.send_signal(number)
        mesh.process.wait(30)
        wait_until_gone(family)


def test_kill_9_of_the_supervisor_leaves_nothing_behind(tmp_path: Path) -> None:
    with start_mesh(tmp_path / "data") as mesh:
        family = set(mesh.pids().values())
        os.kill(mesh.process.pid, signal.SIGKILL)
        mesh.process.wait(10)
        wait_until_gone(family)
    with start_mesh(tmp_path / "data") as again:
        assert httpx.get(f"{again.url}/healthz").status_code == 200


def test_detached_goes_on_until_down(tmp_path: Path) -> None:
    data = str(tmp_path / "data")
    up = subprocess.run(
        [REPRISE, "up", "--data", data, "--port", "0", "--json", "--detach"],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    state = json.loads(up.stdout)
    try:
        assert httpx.get(f"{state['url']}/healthz").status_code == 200
        logs = [path.read_text() for path in Path(data, "logs").iterdir()]
        assert not [text for text in logs if state["token"] in text]
    finally:
        subprocess.run([REPRISE, "down", "--data", data], timeout=60, check=True)
    wait_until_gone(set(state["pids"].values()))


def test_down_finds_a_mesh_whose_run_json_was_lost(tmp_path: Path) -> None:
    data = tmp_path / "data"
    command = [REPRISE, "up", "--data", str(data), "--port", "0", "--json", "--detach"]
    up = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    (data / "run.json").unlink()
    subprocess.run([REPRISE, "down", "--data", str(data)], timeout=60, check=True)
    wait_until_gone(set(json.loads(up.stdout)["pids"].values()))


def test_a_taken_port_is_named_with_the_way_out(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        answer = subprocess.run(
            [REPRISE, "up", "--data", str(tmp_path / "data"), "--port", port],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert answer.returncode == 1
    assert port in answer.stderr
    assert "--port" in answer.stderr


@pytest.mark.parametrize("name", sorted(NAMES - {"supervisor"}))
def test_a_killed_process_is_started_again_and_serves(mesh: Mesh, echo: str, name: str) -> None:
    before = mesh.pids()[name]
    os.kill(before, signal.SIGKILL)
    deadline = time.monotonic() + 20
    while mesh.pids()[name] == before:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert psutil.pid_exists(mesh.pids()[name])
    mesh.wait_until_up()
    assert mesh.finish(mesh.create(echo, text=name))["output"] == name


def test_nothing_outside_of_the_data_folder_is_written(tmp_path: Path) -> None:
    home, temporary, work = (tmp_path / name for name in ("home", "tmp", "work"))
    for folder in (home, temporary, work):
        folder.mkdir()
    project = Path(__file__).parent / "projects" / "mirror"
    onnx = onnx_builders.row_sum(tmp_path / "sum.onnx")
    environment = {"HOME": str(home), "TMPDIR": str(temporary)}
    with start_mesh(tmp_path / "data", cwd=work, **environment) as mesh:
        version = mesh.push("local/mirror", project)
        mesh.push("local/sum", onnx)
        prediction = mesh.finish(mesh.create(version, file="data:text/plain;base64,YWJj"))
        assert prediction["status"] == "succeeded", prediction["error"]
    written = [str(path) for folder in (home, temporary, work) for path in folder.rglob("*")]
    assert written == []


def test_a_service_that_cannot_start_ends_the_start_with_its_reason(tmp_path: Path) -> None:
    answer = subprocess.run(
        [REPRISE, "up", "--data", str(tmp_path / "data"), "--port", "0"],
        env=os.environ | {"REPRISE_BILLING_STARTING_CREDIT_MICROS": "much"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert answer.returncode == 1
    assert "billing cannot start" in answer.stderr
    assert "REPRISE_BILLING_STARTING_CREDIT_MICROS" in answer.stderr
    assert not (tmp_path / "data" / "run.json").exists()
