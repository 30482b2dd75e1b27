"""What is measured: one function for each section, which returns plain rows."""

import asyncio
import os
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import orjson

from bench import load, processes
from bench.drain import drain
from bench.load import Load, Target
from bench.mesh import Mesh, running_mesh

CONCURRENCIES = (1, 8, 32)
ROUND_COUNT = 3
CREATE_COUNT = 2000
CREATE_CONCURRENCY = 8
CREATE_TIMEOUT_S = 60.0
DRAIN_TIMEOUT_S = 120.0
IDLE_S = 10.0
IDLE_SETTLE_S = 3.0
START_COUNT = 3
# Settling of accounts goes on for a moment after the last answer.
SETTLE_S = 1.0


@dataclass(frozen=True, slots=True)
class Pair:
    """The same model behind the mesh and as a bare cog server."""

    model: str
    mesh: Target
    cog: Target
    cog_pid: int


@dataclass(frozen=True, slots=True)
class PredictionRow:
    """Medians over the rounds; errors of all rounds."""

    model: str
    server: str
    concurrency: int
    per_second: float
    p50_ms: float
    p99_ms: float
    retry_count: int
    errors: dict[str, int]
    rounds_per_second: list[float]


@dataclass(frozen=True, slots=True)
class CreateRow:
    """Predictions created without waiting, and how they ended."""

    concurrency: int
    count: int
    per_second: float
    p50_ms: float
    p99_ms: float
    errors: dict[str, int]
    finished_per_second: float
    statuses: dict[str, int]


@dataclass(frozen=True, slots=True)
class StartRow:
    """Seconds from the command to its ready line, and the CPU seconds of all processes by then."""

    new_folder_s: float
    new_folder_cpu_s: float
    same_folder_s: float
    same_folder_cpu_s: float


@dataclass(frozen=True, slots=True)
class IdleRow:
    """One process of an idle mesh, or all of one name."""

    process: str
    process_count: int
    pss_mib: float
    rss_mib: float
    cpu_percent: float


@dataclass(frozen=True, slots=True)
class CpuRow:
    """CPU milliseconds for each finished prediction."""

    load: str
    process: str
    ms: float
    per_second: float


async def warm_up(pairs: Sequence[Pair]) -> None:
    """Replicas are loaded and every path has run before anything is measured."""
    for pair in pairs:
        for target in (pair.cog, pair.mesh):
            await load.run_for(target, concurrency=1, seconds=0.5)
            await load.run_for(target, concurrency=max(CONCURRENCIES), seconds=1.0)


async def predictions(pairs: Sequence[Pair], seconds: float) -> list[PredictionRow]:
    """Rounds of mesh and cog in turn, so that a change of the machine's mood meets both."""
    loads: dict[tuple[str, str, int], list[Load]] = {}
    for _ in range(ROUND_COUNT):
        for pair in pairs:
            for concurrency in CONCURRENCIES:
                for server, target in (("cog", pair.cog), ("mesh", pair.mesh)):
                    measured = await load.run_for(target, concurrency=concurrency, seconds=seconds)
                    loads.setdefault((pair.model, server, concurrency), []).append(measured)
    return [
        _prediction_row(model, server, concurrency, rounds)
        for (model, server, concurrency), rounds in loads.items()
    ]


def _prediction_row(
    model: str, server: str, concurrency: int, rounds: Sequence[Load]
) -> PredictionRow:
    return PredictionRow(
        model=model,
        server=server,
        concurrency=concurrency,
        per_second=median(item.per_second for item in rounds),
        p50_ms=median(item.latency_ms(0.5) for item in rounds),
        p99_ms=median(item.latency_ms(0.99) for item in rounds),
        retry_count=sum(item.retry_count for item in rounds),
        errors=_errors(rounds),
        rounds_per_second=[item.per_second for item in rounds],
    )


def _errors(loads: Iterable[Load]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for item in loads:
        total += item.errors
    return dict(total)


async def creates(mesh: Mesh, target: Target) -> CreateRow:
    """A burst of predictions that nobody waits for; then until all have ended."""
    measured = await load.run_count(
        target, concurrency=CREATE_CONCURRENCY, count=CREATE_COUNT, timeout_s=CREATE_TIMEOUT_S
    )
    ids = {orjson.loads(body)["id"] for body in measured.bodies}
    drained = await drain(mesh, ids, DRAIN_TIMEOUT_S)
    return CreateRow(
        concurrency=CREATE_CONCURRENCY,
        count=len(ids),
        per_second=measured.per_second,
        p50_ms=measured.latency_ms(0.5),
        p99_ms=measured.latency_ms(0.99),
        errors=_errors([measured]),
        finished_per_second=drained.per_second,
        statuses=drained.statuses,
    )


async def starts(folder: Path) -> list[StartRow]:
    """Each on a folder of its own, then once more on the same; the first start does not count."""
    await _start(folder / "unmeasured")
    rows = []
    for _ in range(START_COUNT):
        data = Path(tempfile.mkdtemp(dir=folder, prefix="start-"))
        first, second = await _start(data), await _start(data)
        rows.append(StartRow(first.wall_s, first.cpu_s, second.wall_s, second.cpu_s))
    return rows


@dataclass(frozen=True, slots=True)
class _Start:
    wall_s: float
    cpu_s: float


async def _start(data: Path) -> _Start:
    async with running_mesh(data) as mesh:
        spent = processes.cpu_spent({}, processes.cpu_times(mesh.pids))
        return _Start(mesh.start_s, sum(spent.values()))


async def idle(mesh: Mesh) -> list[IdleRow]:
    """Memory now, and CPU use while nobody asks for anything."""
    await asyncio.sleep(IDLE_SETTLE_S)
    before, started_at = processes.cpu_times(mesh.pids), time.perf_counter()
    await asyncio.sleep(IDLE_S)
    spent = processes.cpu_spent(before, processes.cpu_times(mesh.pids))
    elapsed_s = time.perf_counter() - started_at
    return [
        IdleRow(
            process=name,
            process_count=used.process_count,
            pss_mib=used.pss_bytes / processes.MIB,
            rss_mib=used.rss_bytes / processes.MIB,
            cpu_percent=100 * spent.get(name, 0.0) / elapsed_s,
        )
        for name, used in processes.memory(mesh.pids).items()
    ]


async def cpu(mesh: Mesh, pairs: Sequence[Pair], seconds: float) -> list[CpuRow]:
    """Where the time of a prediction goes, by process, at full load; cog alone as the floor."""
    rows = []
    for pair in pairs:
        roots = dict(mesh.pids)
        rows += await _cpu_rows(
            f"{pair.model}, mesh", pair.mesh, roots=roots, concurrency=32, seconds=seconds
        )
        # One client: more of them would mostly pay for retries.
        roots = {"cog": pair.cog_pid}
        rows += await _cpu_rows(
            f"{pair.model}, cog", pair.cog, roots=roots, concurrency=1, seconds=seconds
        )
    return rows


async def _cpu_rows(
    name: str, target: Target, *, roots: dict[str, int], concurrency: int, seconds: float
) -> list[CpuRow]:
    roots[processes.LOAD_GENERATOR] = os.getpid()
    before = processes.cpu_times(roots)
    measured = await load.run_for(target, concurrency=concurrency, seconds=seconds, warmup_s=0)
    await asyncio.sleep(SETTLE_S)
    spent = processes.cpu_spent(before, processes.cpu_times(roots))
    count = max(1, measured.answer_count)
    return [
        CpuRow(f"{name}, {concurrency} clients", process, 1000 * used / count, measured.per_second)
        for process, used in spent.items()
    ]
