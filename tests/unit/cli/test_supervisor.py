"""What the supervisor does with processes, on ones that do nothing."""

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest

from cli import mesh
from cli.data_dir import DataDir, RunState
from cli.mesh import Address, Process
from cli.supervisor import Restart, Supervisor

WAIT_S = 20.0


async def test_a_process_that_dies_is_started_again_and_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [sys.executable, "-c", "import signal; signal.pause()"]
    idle = Process("idle", command, {}, health_target=None)
    monkeypatch.setattr(mesh, "processes", lambda *_: [idle])
    data_dir = DataDir(tmp_path)
    data_dir.make()
    ready: asyncio.Queue[RunState] = asyncio.Queue()
    restarts: asyncio.Queue[Restart] = asyncio.Queue()
    supervisor = Supervisor(
        data_dir,
        Address("127.0.0.1", 1, 2, 3),
        is_tls=False,
        on_ready=ready.put_nowait,
        on_restart=restarts.put_nowait,
    )
    running = asyncio.create_task(supervisor.run())
    try:
        async with asyncio.timeout(WAIT_S):
            first_pid = (await ready.get()).pids["idle"]
            os.kill(first_pid, signal.SIGKILL)
            restart = await restarts.get()
    finally:
        running.cancel()
        await asyncio.wait({running})
    assert (restart.name, restart.exit_status) == ("idle", -signal.SIGKILL)
    assert restart.pid != first_pid
    assert restart.describe().startswith("idle died (signal 9) and was started again as process")
    with pytest.raises(ProcessLookupError):
        os.kill(restart.pid, 0)
    assert data_dir.read_state() is None


async def test_a_process_that_cannot_be_started_again_ends_the_mesh_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "program"
    program.write_text(
        f"#!{sys.executable}\nimport pathlib\npathlib.Path({str(program)!r}).unlink()"
    )
    program.chmod(0o755)
    monkeypatch.setattr(mesh, "processes", lambda *_: [Process("gone", [str(program)], {}, None)])
    data_dir = DataDir(tmp_path)
    data_dir.make()
    supervisor = Supervisor(
        data_dir,
        Address("127.0.0.1", 1, 2, 3),
        is_tls=False,
        on_ready=lambda state: None,
        on_restart=lambda restart: None,
    )
    with pytest.raises(FileNotFoundError, match="program"):
        async with asyncio.timeout(WAIT_S):
            await supervisor.run()
