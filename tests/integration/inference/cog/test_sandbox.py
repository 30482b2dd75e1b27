"""What a model can see and touch, and that nothing of it outlives the platform's process."""

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from services.inference.cog.errors import RunnerCrashed
from services.inference.cog.sandbox import ResourceLimits, Sandbox

NOT_CONFINED = Sandbox.disabled("switched off for this test")


def require(sandbox: Sandbox) -> None:
    if not sandbox.status.enabled:
        pytest.skip(f"no sandbox on this host: {sandbox.status.reason}")


async def test_the_status_names_what_is_in_force(tmp_path: Path) -> None:
    status = (await Sandbox.probe(tmp_path)).status
    assert "network: shared" in status.reason
    if status.enabled:
        assert "network: shared" in status.reason
    else:
        assert status.reason.startswith("off: ")


async def test_the_status_says_why_when_bubblewrap_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.inference.cog.sandbox._find_bwrap", lambda: None)
    status = (await Sandbox.probe(tmp_path)).status
    assert not status.enabled
    assert "not found" in status.reason


async def test_a_model_cannot_read_the_platforms_files(
    runners: Any, predict: Any, tmp_path: Path
) -> None:
    require(runners.sandbox)
    secret = tmp_path / "secret.txt"
    secret.write_text("the signing key")
    runner = await runners.start("prober")
    _, completed = await predict(runner, "a1", read=str(secret))
    assert completed.output["read"] == "FileNotFoundError"
    for path in ("/etc/shadow", "/root/.bashrc", f"/proc/{os.getpid()}/environ"):
        _, completed = await predict(runner, "a2", read=path)
        assert completed.output["read"] in ("FileNotFoundError", "PermissionError"), path


async def test_a_model_cannot_write_to_the_system_or_its_environment(
    runners: Any, predict: Any
) -> None:
    require(runners.sandbox)
    runner = await runners.start("prober")
    site = runners.environment.path / "lib" / "planted.py"
    for path in ("/usr/bin/planted", "/planted", str(site)):
        _, completed = await predict(runner, "a1", write=path)
        assert completed.output["written"] in ("OSError", "PermissionError"), path


async def test_what_a_model_writes_beside_its_source_stays_its_own(
    runners: Any, predict: Any
) -> None:
    first = await runners.start("prober")
    second = await runners.start("prober")
    _, completed = await predict(first, "a1", write="written_by_first")
    assert completed.output["written"] == 1
    _, completed = await predict(second, "a2", read="written_by_first")
    assert completed.output["read"] == "FileNotFoundError"
    project = Path(__file__).parents[3] / "models" / "cog" / "prober"
    assert not (project / "written_by_first").exists()
    assert not (project / ".cog").exists()


@pytest.mark.parametrize("is_confined", [True, False])
async def test_a_models_environment_holds_nothing_of_the_platform(
    runners: Any, predict: Any, monkeypatch: pytest.MonkeyPatch, is_confined: bool
) -> None:
    monkeypatch.setenv("REPRISE_STORAGE_DATABASE_URL", "postgres://secret")
    monkeypatch.setenv("UV_INDEX_URL", "https://user:password@example.invalid")
    runner = await runners.start("prober", sandbox=None if is_confined else NOT_CONFINED)
    _, completed = await predict(runner, "a1")
    variables = completed.output["environment"]
    own = {"PATH", "HOME", "TMPDIR", "LANG", "PYTHONUNBUFFERED", "PORT", "RUST_LOG", "PWD"}
    own |= {"GREETING", "COG_PREDICT_TYPE_STUB", "COG_MAX_CONCURRENCY", "LC_CTYPE", "SHLVL", "_"}
    extra = {name for name in variables if name not in own}
    assert not {name for name in extra if name.startswith(("REPRISE_", "UV_"))}
    assert not extra, extra
    assert variables["GREETING"] == "hello"


async def test_many_confined_runners_work_side_by_side(runners: Any, predict: Any) -> None:
    # Their servers have small pids of their own namespaces, and name shared sockets by them.
    async with asyncio.TaskGroup() as group:
        starts = [group.create_task(runners.start("text_echo")) for _ in range(5)]
    for number, start in enumerate(starts):
        _, completed = await predict(start.result(), f"a{number}", text="you")
        assert completed.output == "hello you"


async def test_a_model_sees_only_its_own_processes(runners: Any, predict: Any) -> None:
    require(runners.sandbox)
    runner = await runners.start("prober")
    _, completed = await predict(runner, "a1")
    assert completed.output["working_dir"] == "/src"
    assert len(completed.output["processes"]) < 10


@pytest.mark.parametrize("is_confined", [True, False])
async def test_stopping_a_runner_ends_what_the_model_started(
    runners: Any, predict: Any, is_confined: bool
) -> None:
    if is_confined:
        require(runners.sandbox)
    runner = await runners.start("prober", sandbox=None if is_confined else NOT_CONFINED)
    processes = psutil.Process(runner.pid).children(recursive=True)
    daemons = [process for process in processes if "time.sleep(600)" in process.cmdline()[-1]]
    assert len(daemons) == 1
    await runner.stop(grace_s=0)
    _, alive = await asyncio.to_thread(psutil.wait_procs, processes, timeout=5)
    assert not alive


async def test_a_runner_without_a_sandbox_still_predicts(runners: Any, predict: Any) -> None:
    runner = await runners.start("text_echo", sandbox=NOT_CONFINED)
    _, completed = await predict(runner, "plain1", text="you")
    assert completed.output == "hello you"
    await runner.stop()
    assert not Path("/tmp/coglet/predictions/plain1").exists()


async def test_an_open_file_limit_reaches_the_model(runners: Any, predict: Any) -> None:
    limits = ResourceLimits(open_file_count=256)
    runner = await runners.start("prober", processes=limits)
    _, completed = await predict(runner, "a1", read="/proc/self/limits")
    line = next(x for x in completed.output["read"].splitlines() if "open files" in x)
    assert line.split()[3:5] == ["256", "256"]


async def test_a_model_is_what_the_kernel_ends_when_memory_is_short(
    runners: Any, predict: Any
) -> None:
    runner = await runners.start("prober")
    _, completed = await predict(runner, "a1", read="/proc/self/oom_score_adj")
    assert int(completed.output["read"]) == 800


HOST_PROGRAM = """
import asyncio, sys
from pathlib import Path
sys.path.insert(0, {conftest!r})
from conftest import Runners
from services.inference.cog.environment import Environment
from services.inference.cog.sandbox import Sandbox

async def main():
    data_dir = Path({data_dir!r})
    sandbox = await Sandbox.probe(data_dir) if {is_confined} else Sandbox.disabled("test")
    runners = Runners(data_dir, Environment({key!r}, Path({path!r}), Path({base!r})), sandbox)
    runner = await runners.start({project!r})
    stream = runner.predict("a1", {{"seconds": 600}}) if {project!r} == "stuck_in_c" else None
    if stream is not None:
        async for event in stream:
            if "stuck" in getattr(event, "text", ""):
                break
    print("ready", flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""


@pytest.mark.parametrize("is_confined", [True, False])
async def test_killing_the_platforms_process_ends_a_busy_model(
    runners: Any, tmp_path: Path, is_confined: bool
) -> None:
    if is_confined:
        require(runners.sandbox)
    environment = runners.environment
    program = HOST_PROGRAM.format(
        conftest=str(Path(__file__).parent),
        data_dir=str(tmp_path),
        is_confined=is_confined,
        key=environment.key,
        path=str(environment.path),
        base=str(environment.base_dir),
        project="stuck_in_c",
    )
    host = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, stdout=asyncio.subprocess.PIPE
    )
    assert host.stdout is not None
    try:
        async with asyncio.timeout(20):
            assert await host.stdout.readline() == b"ready\n"
        processes = psutil.Process(host.pid).children(recursive=True)
        assert len(processes) >= 3
    finally:
        host.send_signal(signal.SIGKILL)
        await host.wait()
    _, alive = await asyncio.to_thread(psutil.wait_procs, processes, timeout=5)
    for process in alive:
        process.kill()
    assert not alive


async def test_a_killed_server_is_reported_as_a_crash(runners: Any, predict: Any) -> None:
    runner = await runners.start("text_echo")
    os.killpg(runner.pid, signal.SIGKILL)
    with pytest.raises(RunnerCrashed):
        await predict(runner, "a1", text="x")
    assert runner.crash is not None
