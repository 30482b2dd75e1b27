"""What the benchmark ran on."""

import os
import platform
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import psutil


@dataclass(frozen=True, slots=True)
class Machine:
    """Hardware and load at one time."""

    cpu: str
    core_count: int
    memory_bytes: int
    python: str
    kernel: str
    # Of the last minute: other work on the machine shows here.
    load_average: float
    date: str


def describe() -> Machine:
    return Machine(
        cpu=_cpu_model(),
        core_count=len(os.sched_getaffinity(0)),
        memory_bytes=psutil.virtual_memory().total,
        python=platform.python_version(),
        kernel=f"{platform.system()} {platform.release()}",
        load_average=os.getloadavg()[0],
        date=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.machine()
