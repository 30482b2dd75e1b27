"""The bare cog server of a model: what the mesh is compared with."""

import asyncio
import json
import os
import re
import shutil
import signal
import sys
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import uv

from bench.command import run_command
from bench.load import SUCCEEDED, Target, http_request
from services.inference.cog.config import CogConfig, read_config
from services.inference.cog.schema import extract_schema

BUILD_TIMEOUT_S = 180.0
START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 5.0
CLIENT_COUNT_MAX = 256
# Fixed in coglet; it never removes what it puts there.
_LEFTOVERS = Path("/tmp/coglet/predictions")
_PORT = re.compile(rb"Starting coglet server on 127\.0\.0\.1:(\d+)")
_LOG_FILTER = "warn,coglet::transport::http::server=info"
_PASSED = ("HOME", "LANG", "LC_ALL", "TMPDIR")


@dataclass(frozen=True, slots=True)
class CogServer:
    """A running cog server."""

    pid: int
    port: int
    # Cog makes a folder for each id: with ids of our own, one for each client, they are few.
    id_prefix: str

    def target(self, model_input: dict[str, object]) -> Target:
        requests = []
        for number in range(CLIENT_COUNT_MAX):
            body = {"id": f"{self.id_prefix}{number}", "input": model_input}
            requests.append(http_request("POST", "/predictions", {}, json.dumps(body).encode()))
        return Target(
            host="127.0.0.1",
            port=self.port,
            requests=requests,
            expected_status=200,
            expected_body=SUCCEEDED,
            # The slot is freed a moment after the answer: a prompt client meets "at capacity".
            retried_status=409,
        )


async def prepare_environment(project_dir: Path, folder: Path) -> Path:
    """A venv with the project's cog, as the mesh makes it for a model; for no-op models only."""
    config = read_config(project_dir)
    venv = folder / "venv"
    await _run_uv("venv", "--quiet", "--python", config.python_minor, str(venv))
    packages = [f"cog=={config.cog_version}", f"coglet=={config.cog_version}"]
    await _run_uv(
        "pip", "install", "--quiet", "--compile-bytecode", "--python", f"{venv}/bin/python",
        *packages,
    )  # fmt: skip
    return venv


async def _run_uv(*arguments: str) -> None:
    environment = {**os.environ, "UV_PYTHON_DOWNLOADS": "never"}
    await run_command(
        uv.find_uv_bin(), *arguments, timeout_s=BUILD_TIMEOUT_S, environment=environment
    )


@asynccontextmanager
async def cog_server(project_dir: Path, venv: Path, folder: Path) -> AsyncIterator[CogServer]:
    """Starts the server on a copy of the project and ends it with all its processes."""
    config = read_config(project_dir)
    assert config.predict is not None
    copy = folder / project_dir.name
    shutil.copytree(project_dir, copy)
    schema = extract_schema(project_dir, config.predict, cog_version=config.cog_version)
    (copy / ".cog").mkdir()
    (copy / ".cog" / "openapi_schema.json").write_text(json.dumps(schema.document))
    id_prefix = f"bench{os.urandom(6).hex()}x"
    process = await asyncio.create_subprocess_exec(
        str(venv / "bin" / "python"), "-m", "cog.server.http", "--host", "127.0.0.1",
        cwd=copy,
        env=_environment(config, venv, schema.concurrency),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )  # fmt: skip
    draining: asyncio.Task[None] | None = None
    try:
        assert process.stderr is not None
        async with asyncio.timeout(START_TIMEOUT_S):
            port = await _read_port(process.stderr)
            draining = asyncio.create_task(_drain(process.stderr))
            await _until_ready(port)
        yield CogServer(pid=process.pid, port=port, id_prefix=id_prefix)
    finally:
        await _stop(process)
        if draining is not None:
            await draining
        for leftover in _LEFTOVERS.glob(f"{id_prefix}*"):
            shutil.rmtree(leftover, ignore_errors=True)


def _environment(config: CogConfig, venv: Path, concurrency: int) -> dict[str, str]:
    assert config.predict is not None
    passed = {name: os.environ[name] for name in _PASSED if name in os.environ}
    return passed | {
        # The server starts its worker as `python`, found on PATH.
        "PATH": f"{venv}/bin:{os.environ.get('PATH', '/usr/bin:/bin')}",
        "PORT": "0",
        "COG_PREDICT_TYPE_STUB": config.predict,
        "COG_MAX_CONCURRENCY": str(config.concurrency_max or concurrency),
        "RUST_LOG": _LOG_FILTER,
    }


async def _read_port(stderr: asyncio.StreamReader) -> int:
    lines = []
    while line := await stderr.readline():
        lines.append(line)
        if found := _PORT.search(line):
            return int(found[1])
    sys.exit(f"the cog server did not start:\n{b''.join(lines).decode(errors='replace')}")


async def _drain(stderr: asyncio.StreamReader) -> None:
    # A full pipe would stop the model.
    while await stderr.read(65536):
        pass


async def _until_ready(port: int) -> None:
    url = f"http://127.0.0.1:{port}/health-check"
    while True:
        health = json.loads(await asyncio.to_thread(_get, url))
        if health["status"] == "READY":
            return
        if health["status"] == "SETUP_FAILED":
            sys.exit(f"the model's setup failed: {health['setup']['logs']}")
        await asyncio.sleep(0.05)


def _get(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=START_TIMEOUT_S) as answer:
        body: bytes = answer.read()
        return body


async def _stop(process: asyncio.subprocess.Process) -> None:
    with suppress(ProcessLookupError):
        process.terminate()
    try:
        async with asyncio.timeout(STOP_TIMEOUT_S):
            await process.wait()
    except TimeoutError:
        pass
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
