"""Which devices exist here, what they can do and how much memory is free."""

import os
import platform
from dataclasses import dataclass
from pathlib import Path

import psutil

# The instruction sets that change which kernels a compiler picks, and so an engine's results.
_RELEVANT_FLAGS = frozenset(
    {
        "sse4_2",
        "avx",
        "avx2",
        "fma",
        "f16c",
        "avx512f",
        "avx512bw",
        "avx512_vnni",
        "avx512_bf16",
        "avx512_fp16",
        "avx_vnni",
        "amx_tile",
        "amx_bf16",
        "amx_int8",
        "asimd",
        "sve",
    }
)


@dataclass(frozen=True, slots=True)
class CpuDevice:
    """The CPU as this process may use it.

    Args:
        name: Its marketing name.
        core_count: Cores in this process's affinity.
        flags: Instruction sets that matter to compilers, sorted.
        total_memory_bytes: Memory of the host or of this process's limit, whichever is less.
        free_memory_bytes: What can be allocated without swapping, at the time of the call.
    """

    name: str
    core_count: int
    flags: tuple[str, ...]
    total_memory_bytes: int
    free_memory_bytes: int


def find_cpu() -> CpuDevice:
    """The CPU of this host; memory in bytes, bounded by this process's cgroup."""
    fields = _read_cpuinfo()
    flags = set(fields.get("flags", fields.get("Features", "")).split())
    memory = psutil.virtual_memory()
    limit = _cgroup_bytes("memory.max")
    free = memory.available
    if limit is not None:
        free = min(free, max(0, limit - (_cgroup_bytes("memory.current") or 0)))
    return CpuDevice(
        name=fields.get("model name", platform.processor() or platform.machine()),
        core_count=len(os.sched_getaffinity(0)),
        flags=tuple(sorted(flags & _RELEVANT_FLAGS)),
        total_memory_bytes=min(memory.total, limit or memory.total),
        free_memory_bytes=free,
    )


def _read_cpuinfo() -> dict[str, str]:
    """The fields of the first processor."""
    fields: dict[str, str] = {}
    for line in Path("/proc/cpuinfo").read_text().split("\n\n", 1)[0].splitlines():
        key, _, value = line.partition(":")
        fields[key.strip()] = value.strip()
    return fields


def _cgroup_bytes(name: str) -> int | None:
    try:
        text = (Path("/sys/fs/cgroup") / name).read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None
