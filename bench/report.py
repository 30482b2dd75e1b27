"""The tables that a benchmark prints."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby

from bench.machine import Machine
from bench.sections import CpuRow, CreateRow, IdleRow, PredictionRow, StartRow

OVERHEAD_TARGET_MS = 8.0
FINISHED_TARGET = 500.0


def table(title: str, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """The first column is text, the others are numbers."""
    lines = [list(header), *map(list, rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    print(f"\n{title}")
    for line in lines:
        first, *others = zip(line, widths, strict=True)
        cells = [first[0].ljust(first[1]), *(text.rjust(width) for text, width in others)]
        print("  " + "  ".join(cells).rstrip())


def machine(command: str, described: Machine) -> None:
    print(f"command  {command}")
    print(f"date     {described.date}")
    memory_gib = described.memory_bytes / 2**30
    print(f"machine  {described.core_count} cores, {described.cpu}, {memory_gib:.0f} GiB")
    print(f"system   {described.kernel}, Python {described.python}")
    print(f"load     {described.load_average:.2f} in the minute before", flush=True)


def predictions(rows: Sequence[PredictionRow], seconds: float) -> None:
    cog = {(row.model, row.concurrency): row for row in rows if row.server == "cog"}
    table(
        f"No-op predictions, mesh (Prefer: wait) and bare cog in turn: medians of "
        f"{len(rows[0].rounds_per_second)} rounds of {seconds:g} s",
        ("model, clients, on", "runs/s", "rounds", "p50 ms", "p99 ms", "errors", "409", "of cog"),
        (_prediction_cells(row, cog[row.model, row.concurrency]) for row in rows),
    )  # fmt: skip
    _show_errors({f"{row.model} {row.server} {row.concurrency}": row.errors for row in rows})
    for row in rows:
        if row.server == "mesh" and row.concurrency == 1:
            overhead_ms = row.p50_ms - cog[row.model, 1].p50_ms
            text = f"{row.model}: p50 over bare cog at 1 client {overhead_ms:.1f} ms"
            _verdict(text, overhead_ms < OVERHEAD_TARGET_MS, f"< {OVERHEAD_TARGET_MS:g} ms")
        if row.server == "mesh" and row.concurrency == 32:
            text = f"{row.model}: finished at 32 clients {row.per_second:.0f} runs/s"
            _verdict(text, row.per_second >= FINISHED_TARGET, f"≥ {FINISHED_TARGET:g} runs/s")


def _prediction_cells(row: PredictionRow, cog: PredictionRow) -> tuple[str, ...]:
    ratio = row.per_second / cog.per_second if cog.per_second else float("nan")
    return (
        f"{row.model}, {row.concurrency}, {row.server}",
        f"{row.per_second:.0f}",
        "/".join(f"{item:.0f}" for item in row.rounds_per_second),
        f"{row.p50_ms:.1f}",
        f"{row.p99_ms:.1f}",
        str(sum(row.errors.values())),
        str(row.retry_count) if row.server == "cog" else "",
        f"{100 * ratio:.0f} %" if row.server == "mesh" else "",
    )


def _verdict(text: str, is_met: bool, target: str) -> None:
    print(f"  {text} (target {target}: {'met' if is_met else 'NOT met'})")


def _show_errors(errors: Mapping[str, Mapping[str, int]]) -> None:
    for name, kinds in errors.items():
        for reason, count in kinds.items():
            print(f"  {name}: {count} x {reason}")


def creates(row: CreateRow) -> None:
    table(
        "Predictions created without waiting",
        ("", "creates/s", "p50 ms", "p99 ms", "errors", "finished/s"),
        [
            (
                f"{row.count} by {row.concurrency} clients",
                f"{row.per_second:.0f}",
                f"{row.p50_ms:.1f}",
                f"{row.p99_ms:.1f}",
                str(sum(row.errors.values())),
                f"{row.finished_per_second:.0f}",
            )
        ],
    )
    print("  then: " + ", ".join(f"{count} {status}" for status, count in row.statuses.items()))
    _show_errors({"creates": row.errors})


def starts(rows: Sequence[StartRow]) -> None:
    table(
        "From `reprise up` to ready, seconds",
        ("", "new folder", "CPU", "same again", "CPU"),
        (
            (
                f"{number}",
                f"{row.new_folder_s:.2f}",
                f"{row.new_folder_cpu_s:.2f}",
                f"{row.same_folder_s:.2f}",
                f"{row.same_folder_cpu_s:.2f}",
            )
            for number, row in enumerate(rows, 1)
        ),
    )


def idle(title: str, rows: Sequence[IdleRow]) -> None:
    total = IdleRow(
        process="total",
        process_count=sum(row.process_count for row in rows),
        pss_mib=sum(row.pss_mib for row in rows),
        rss_mib=sum(row.rss_mib for row in rows),
        cpu_percent=sum(row.cpu_percent for row in rows),
    )
    table(
        f"Idle mesh, {title}",
        ("process", "count", "PSS MiB", "RSS MiB", "CPU % of a core"),
        (
            (
                row.process,
                str(row.process_count),
                f"{row.pss_mib:.1f}",
                f"{row.rss_mib:.1f}",
                f"{row.cpu_percent:.2f}",
            )
            for row in (*rows, total)
        ),
    )


def cpu(rows: Sequence[CpuRow], core_count: int) -> None:
    for name, group in groupby(rows, key=lambda row: row.load):
        members = sorted(group, key=lambda row: -row.ms)
        total_ms = sum(row.ms for row in members)
        table(
            f"CPU of one prediction: {name}, {members[0].per_second:.0f} runs/s",
            ("process", "ms"),
            [*((row.process, f"{row.ms:.3f}") for row in members), ("total", f"{total_ms:.3f}")],
        )
        if total_ms:
            ceiling = 1000 * core_count / total_ms
            print(f"  {core_count} cores with nothing else to do would allow {ceiling:.0f} runs/s")
