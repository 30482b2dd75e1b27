"""Measures the mesh beside bare cog servers of the same models: `python -m bench.bench_mesh`."""

import argparse
import asyncio
import shlex
import signal
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import orjson
import uvloop

from bench import report, sections
from bench.cog_server import cog_server, prepare_environment
from bench.machine import describe
from bench.mesh import Mesh, running_mesh
from bench.sections import Pair

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
MODELS = ("noop", "noop-async")
MODEL_INPUT: dict[str, object] = {"text": "hi"}
SECTIONS = ("idle", "predictions", "cpu", "creates", "startup")


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.bench_mesh", description=__doc__)
    parser.add_argument(
        "--seconds", type=_seconds, default=3.0, help="length of one round, 0.2 to 60"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the numbers there")
    parser.add_argument(
        "--only", choices=SECTIONS, action="append", help="one section; may be given again"
    )
    return parser.parse_args(arguments)


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0.2 <= seconds <= 60:
        raise argparse.ArgumentTypeError(f"{text} is not between 0.2 and 60")
    return seconds


async def measure(chosen: set[str], seconds: float, folder: Path) -> dict[str, Any]:
    """Runs the chosen sections and prints each when it is done."""
    results: dict[str, Any] = {}
    if chosen != {"startup"}:
        async with running_mesh(folder / "mesh") as mesh:
            await _measure_mesh(mesh, chosen, seconds, folder, results)
    if "startup" in chosen:
        results["startup"] = await sections.starts(folder)
        report.starts(results["startup"])
    return results


async def _measure_mesh(
    mesh: Mesh, chosen: set[str], seconds: float, folder: Path, results: dict[str, Any]
) -> None:
    if "idle" in chosen:
        results["idle"] = await sections.idle(mesh)
        report.idle("nothing loaded", results["idle"])
    if chosen <= {"idle", "startup"}:
        return
    await mesh.add_credit()
    versions = {name: await mesh.push(f"local/{name}", EXAMPLES / name) for name in MODELS}
    if chosen & {"predictions", "cpu"}:
        async with _pairs(mesh, versions, folder) as pairs:
            await sections.warm_up(pairs)
            if "predictions" in chosen:
                results["predictions"] = await sections.predictions(pairs, seconds)
                report.predictions(results["predictions"], seconds)
            if "cpu" in chosen:
                results["cpu"] = await sections.cpu(mesh, pairs, seconds)
                report.cpu(results["cpu"], describe().core_count)
    if "creates" in chosen:
        target = mesh.target(versions["noop"], MODEL_INPUT, is_waiting=False)
        results["creates"] = await sections.creates(mesh, target)
        report.creates(results["creates"])
    if "idle" in chosen:
        results["idle_after_load"] = await sections.idle(mesh)
        report.idle("after the load, models still loaded", results["idle_after_load"])


@asynccontextmanager
async def _pairs(mesh: Mesh, versions: dict[str, str], folder: Path) -> AsyncIterator[list[Pair]]:
    venv = await prepare_environment(EXAMPLES / MODELS[0], folder)
    async with AsyncExitStack() as stack:
        pairs = []
        for name in MODELS:
            server = await stack.enter_async_context(cog_server(EXAMPLES / name, venv, folder))
            pair = Pair(
                model=name,
                mesh=mesh.target(versions[name], MODEL_INPUT, is_waiting=True),
                cog=server.target(MODEL_INPUT),
                cog_pid=server.pid,
            )
            pairs.append(pair)
        yield pairs


async def run(arguments: argparse.Namespace) -> None:
    task = asyncio.current_task()
    assert task is not None
    # As on Ctrl-C: everything that was started is ended.
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    command = shlex.join(["python", "-m", "bench.bench_mesh", *sys.argv[1:]])
    machine = describe()
    report.machine(command, machine)
    with tempfile.TemporaryDirectory(prefix="reprise-bench-", ignore_cleanup_errors=True) as folder:
        chosen = set(arguments.only or SECTIONS)
        results = await measure(chosen, arguments.seconds, Path(folder))
    if arguments.json is not None:
        written = {"command": command, "machine": machine, "sections": results}
        arguments.json.write_bytes(orjson.dumps(written, option=orjson.OPT_INDENT_2))
    print(f"\nload     {describe().load_average:.2f} in the last minute")


def main() -> None:
    arguments = parse_arguments(sys.argv[1:])
    try:
        uvloop.run(run(arguments))
    except (KeyboardInterrupt, asyncio.CancelledError):
        sys.exit(130)


if __name__ == "__main__":
    main()
