"""Memory and CPU time of the mesh's processes, each with all that it started."""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import psutil

MIB = 1024 * 1024
LOAD_GENERATOR = "load generator"
# What they started are roots themselves.
_PARENTS_OF_ROOTS = {"supervisor", LOAD_GENERATOR}


@dataclass(frozen=True, slots=True)
class Memory:
    """Resident memory; in `pss_bytes` a shared page counts as a share for each of its users."""

    process_count: int
    pss_bytes: int
    rss_bytes: int


CpuTimes = Mapping[str, Mapping[int, float]]


def memory(roots: Mapping[str, int]) -> dict[str, Memory]:
    """Memory by name: the roots by their names, what they started as `root > program`."""
    found: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for name, process in _tree(roots):
        try:
            used = process.memory_full_info()
        except psutil.NoSuchProcess:
            continue
        found[name].append((used.pss, used.rss))
    return {
        name: Memory(len(rows), sum(pss for pss, _ in rows), sum(rss for _, rss in rows))
        for name, rows in found.items()
    }


def cpu_times(roots: Mapping[str, int]) -> CpuTimes:
    """User and system time in seconds, by name and pid."""
    times: dict[str, dict[int, float]] = defaultdict(dict)
    for name, process in _tree(roots):
        try:
            used = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        times[name][process.pid] = used.user + used.system
    return times


def cpu_spent(before: CpuTimes, after: CpuTimes) -> dict[str, float]:
    """Seconds by name; of a process that is new, all that it used."""
    return {
        name: sum(used - before.get(name, {}).get(pid, 0.0) for pid, used in pids.items())
        for name, pids in after.items()
    }


def _tree(roots: Mapping[str, int]) -> Iterator[tuple[str, psutil.Process]]:
    own = set(roots.values())
    for name, pid in roots.items():
        try:
            root = psutil.Process(pid)
            yield name, root
            children = [] if name in _PARENTS_OF_ROOTS else root.children(recursive=True)
        except psutil.NoSuchProcess:
            continue
        for child in children:
            if child.pid not in own and (program := _program(child)):
                yield f"{name} > {program}", child


def _program(process: psutil.Process) -> str:
    try:
        words = process.cmdline()
    except psutil.NoSuchProcess:
        return ""
    if not words:
        return ""
    text = " ".join(words)
    if "bwrap" in words[0]:
        return "bwrap"
    if found := re.search(r"\s-m\s+([\w.]+)", text):
        return found[1]
    if "coglet" in text:
        return "coglet worker"
    return words[0].rsplit("/", 1)[-1]
