"""A mesh of its own for the benchmark: started by the CLI on a temporary folder, then ended."""

import asyncio
import json
import os
import re
import signal
import sys
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from bench.command import run_command
from bench.load import SUCCEEDED, Target, http_request

READY_TIMEOUT_S = 120.0
COMMAND_TIMEOUT_S = 300.0
STOP_TIMEOUT_S = 30.0
CREDIT = "1000000"
CREATED = re.compile(rb'"status": ?"(?:starting|processing|succeeded)"')


@dataclass(frozen=True, slots=True)
class Mesh:
    """A running mesh; `start_s` is the time from the command to its ready line."""

    data: Path
    host: str
    port: int
    token: str
    pids: Mapping[str, int]
    start_s: float

    def target(
        self, version_id: str, model_input: dict[str, object], *, is_waiting: bool
    ) -> Target:
        """Creates predictions; waiting for their ends, or only for their acceptance."""
        headers = {"Authorization": f"Bearer {self.token}"}
        if is_waiting:
            headers["Prefer"] = "wait"
        body = json.dumps({"version": version_id, "input": model_input}).encode()
        return Target(
            host=self.host,
            port=self.port,
            requests=[http_request("POST", "/v1/predictions", headers, body)],
            expected_status=201,
            expected_body=SUCCEEDED if is_waiting else CREATED,
        )

    async def add_credit(self) -> None:
        await self._command("credit", "add", CREDIT)

    async def push(self, model: str, project_dir: Path) -> str:
        """Returns the version's id."""
        output = await self._command("push", model, str(project_dir), "--json")
        version: dict[str, Any] = json.loads(output)
        version_id: str = version["id"]
        return version_id

    async def _command(self, *arguments: str) -> str:
        words = _reprise(*arguments, "--data", str(self.data))
        return await run_command(*words, timeout_s=COMMAND_TIMEOUT_S)


@asynccontextmanager
async def running_mesh(data: Path) -> AsyncIterator[Mesh]:
    """`reprise up` on free ports until its ready line; ends it, also on Ctrl-C."""
    started_at = time.perf_counter()
    error_path = data.with_name(f"{data.name}.stderr")
    with error_path.open("wb") as error_file:
        process = await asyncio.create_subprocess_exec(
            *_reprise("up", "--data", str(data), "--port", "0", "--json"),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=error_file,
            # Ctrl-C reaches the mesh through this process, which ends it last.
            start_new_session=True,
        )
    try:
        assert process.stdout is not None
        line = b""
        with suppress(TimeoutError):
            async with asyncio.timeout(READY_TIMEOUT_S):
                line = await process.stdout.readline()
        start_s = time.perf_counter() - started_at
        if not line:
            sys.exit(f"the mesh did not start:\n{error_path.read_text(errors='replace')}")
        state: dict[str, Any] = json.loads(line)
        url = urlsplit(state["url"])
        assert url.hostname is not None
        assert url.port is not None
        yield Mesh(
            data=data,
            host=url.hostname,
            port=url.port,
            token=state["token"],
            pids=state["pids"],
            start_s=start_s,
        )
    finally:
        await _stop(process)


def _reprise(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "cli", *arguments]


async def _stop(process: asyncio.subprocess.Process) -> None:
    with suppress(ProcessLookupError):
        process.terminate()
    try:
        async with asyncio.timeout(STOP_TIMEOUT_S):
            await process.wait()
    except TimeoutError:
        # The kernel then ends the services, whose parent it is.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
