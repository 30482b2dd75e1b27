import os

from inference_core import find_cpu


def test_the_cpu_tells_its_cores_flags_and_memory() -> None:
    cpu = find_cpu()
    assert cpu.name
    assert cpu.core_count == len(os.sched_getaffinity(0))
    assert list(cpu.flags) == sorted(set(cpu.flags))
    assert 0 < cpu.free_memory_bytes <= cpu.total_memory_bytes
