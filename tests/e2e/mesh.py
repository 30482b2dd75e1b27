"""A mesh in a child process, and the few things that every journey does with it."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

REPRISE = str(Path(sys.executable).with_name("reprise"))
FINAL = ("succeeded", "failed", "canceled")
START_TIMEOUT_S = 60
WAIT_S = 60.0


@dataclass(slots=True)
class Mesh:
    """A running mesh as its ready line told it."""

    data: Path
    url: str
    grpc: str
    oip: str
    token: str
    process: subprocess.Popen[str]

    def pids(self) -> dict[str, int]:
        """Pids now: a restarted service has a new one."""
        pids: dict[str, int] = json.loads((self.data / "run.json").read_text())["pids"]
        return pids

    def http(self, token: str | None = None) -> httpx.Client:
        headers = {"Authorization": f"Bearer {self.token if token is None else token}"}
        return httpx.Client(base_url=self.url, headers=headers, timeout=WAIT_S)

    def cli(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """One `reprise` command on this mesh."""
        return subprocess.run(
            [REPRISE, *arguments],
            capture_output=True,
            text=True,
            env=os.environ | {"REPRISE_DATA": str(self.data)},
            timeout=300,
            check=False,
        )

    def push(self, model: str, path: Path, *options: str) -> str:
        """Pushes a model; returns its version id."""
        answer = self.cli("push", model, str(path), "--json", *options)
        assert answer.returncode == 0, answer.stderr
        version: str = json.loads(answer.stdout)["id"]
        return version

    def create(self, version: str, **inputs: Any) -> str:
        """Creates a prediction; returns its id."""
        with self.http() as http:
            answer = http.post("/v1/predictions", json={"version": version, "input": inputs})
        assert answer.status_code == 201, answer.text
        prediction_id: str = answer.json()["id"]
        return prediction_id

    def get(self, prediction_id: str) -> dict[str, Any]:
        with self.http() as http:
            answer = http.get(f"/v1/predictions/{prediction_id}")
        assert answer.status_code == 200, answer.text
        prediction: dict[str, Any] = answer.json()
        return prediction

    def wait_for(
        self,
        prediction_id: str,
        is_reached: Callable[[dict[str, Any]], bool],
        timeout_s: float = WAIT_S,
    ) -> dict[str, Any]:
        """Polls as the official clients do until the prediction is as wanted."""
        deadline = time.monotonic() + timeout_s
        while True:
            with contextlib.suppress(httpx.TransportError, AssertionError):
                prediction = self.get(prediction_id)
                if is_reached(prediction):
                    return prediction
            if time.monotonic() > deadline:
                raise AssertionError(f"not reached: {self.get(prediction_id)}")
            time.sleep(0.02)

    def wait_until_up(self) -> None:
        """Returns once the mesh answers a whole prediction call chain again."""
        deadline = time.monotonic() + WAIT_S
        while True:
            with contextlib.suppress(httpx.TransportError), self.http() as http:
                if http.get("/v1/predictions").is_success and http.get("/v1/credit").is_success:
                    return
            assert time.monotonic() < deadline, "the mesh did not come back"
            time.sleep(0.05)

    def finish(self, prediction_id: str, timeout_s: float = WAIT_S) -> dict[str, Any]:
        """The prediction once it has ended and its money is settled."""
        return self.wait_for(
            prediction_id,
            lambda item: item["status"] in FINAL and item["cost"]["status"] != "held",
            timeout_s,
        )

    def ledger(self, prediction_id: str) -> list[dict[str, Any]]:
        """The ledger entries of one prediction."""
        with self.http() as http:
            answer = http.get("/v1/ledger", params={"prediction_id": prediction_id})
        assert answer.status_code == 200, answer.text
        entries: list[dict[str, Any]] = answer.json()["results"]
        return entries


@contextlib.contextmanager
def start_mesh(
    data: Path, *options: str, cwd: Path | None = None, **environment: str
) -> Iterator[Mesh]:
    """`reprise up` on free ports; at the end nothing of it is left."""
    process = subprocess.Popen(
        [REPRISE, "up", "--data", str(data), "--port", "0", "--json", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd,
        env=os.environ | environment,
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        process.wait(START_TIMEOUT_S)
        assert process.stderr is not None
        logs = {path.name: path.read_text()[-2000:] for path in (data / "logs").glob("*.log")}
        raise AssertionError(f"up failed: {process.stderr.read()}\n{logs}")
    state = json.loads(line)
    mesh = Mesh(
        data=data,
        url=state["url"],
        grpc=state["grpc"],
        oip=state["oip"],
        token=state["token"],
        process=process,
    )
    family = set(state["pids"].values())
    try:
        yield mesh
    finally:
        with contextlib.suppress(FileNotFoundError):
            family |= set(mesh.pids().values())
        process.send_signal(signal.SIGTERM)
        process.wait(START_TIMEOUT_S)
        assert process.stderr is not None
        process.stdout.close()
        process.stderr.close()
        left = [pid for pid in family if psutil.pid_exists(pid)]
        assert not left, f"processes left behind: {left}"
