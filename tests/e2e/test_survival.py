"""kill -9 of any process in the middle of 50 runs loses nothing and charges nothing twice."""

import os
import shutil
import signal
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from tests.e2e.mesh import Mesh

RUN_COUNT = 50
RECOVERY_S = 90.0


def create_until_accepted(mesh: Mesh, version: str, number: int) -> str:
    """As a client does whose connection broke: tries again until it has an answer."""
    body = {"version": version, "input": {"text": str(number), "sleep_s": 0.1}}
    for _ in range(200):
        try:
            with mesh.http() as http:
                answer = http.post("/v1/predictions", json=body)
        except httpx.TransportError:
            continue
        if answer.status_code == 201:
            prediction_id: str = answer.json()["id"]
            return prediction_id
        assert answer.status_code >= 500, answer.text
    raise AssertionError("never accepted")


def kill(mesh: Mesh, name: str) -> None:
    os.kill(mesh.pids()[name], signal.SIGKILL)
    if name == "nats":
        shutil.rmtree(mesh.data / "nats", ignore_errors=True)


def assert_settled_once(mesh: Mesh, prediction: dict[str, Any]) -> None:
    kinds = Counter(entry["kind"] for entry in mesh.ledger(prediction["id"]))
    assert kinds["hold"] == 1, kinds
    assert kinds["capture"] + kinds["release"] == 1, kinds


@pytest.mark.parametrize(
    "victim", ["gateway", "scheduler", "billing", "storage", "inference", "nats"]
)
def test_kill_9_in_the_middle_of_50_runs(mesh: Mesh, echo: str, victim: str) -> None:
    mesh.finish(mesh.create(echo))
    with ThreadPoolExecutor(10) as pool:
        half = [pool.submit(create_until_accepted, mesh, echo, n) for n in range(RUN_COUNT // 2)]
        first = half[0].result()
        mesh.wait_for(first, lambda item: item["status"] != "starting")
        kill(mesh, victim)
        rest = [
            pool.submit(create_until_accepted, mesh, echo, n)
            for n in range(RUN_COUNT // 2, RUN_COUNT)
        ]
        ids = [future.result() for future in [*half, *rest]]
    assert len(set(ids)) == RUN_COUNT
    for number, prediction_id in enumerate(ids):
        prediction = mesh.finish(prediction_id, RECOVERY_S)
        assert prediction["status"] == "succeeded", prediction
        assert prediction["output"] == str(number)
        assert_settled_once(mesh, prediction)
        assert mesh.get(prediction_id) == prediction
    with mesh.http() as http:
        assert http.get("/v1/credit").json()["held_micros"] == 0
