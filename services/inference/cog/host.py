"""Looks up what this machine offers to models."""

import asyncio
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from services.inference.cog.config import Host
from services.inference.cog.environment import EnvironmentStore

_DEVICES = Path("/dev")
_GPU_CONTROL_DEVICE = "nvidiactl"
_QUERY_TIMEOUT_S = 10.0


async def inspect_host(store: EnvironmentStore, wanted_packages: Sequence[str] = ()) -> Host:
    """This machine; of its Debian packages, those among the wanted ones."""
    return Host(
        python_versions=await store.python_versions(),
        has_gpu=bool(gpu_devices()),
        system_packages=await _installed_packages(wanted_packages),
    )


def gpu_devices() -> tuple[Path, ...]:
    """The device nodes through which a model reaches NVIDIA's driver; none without a GPU."""
    if not (_DEVICES / _GPU_CONTROL_DEVICE).exists():
        return ()
    return tuple(sorted(_DEVICES.glob("nvidia*")))


async def _installed_packages(names: Sequence[str]) -> frozenset[str]:
    """None on hosts without dpkg: there a project that asks for a system package is refused."""
    if not names or shutil.which("dpkg-query") is None:
        return frozenset()
    process = await asyncio.create_subprocess_exec(
        "dpkg-query",
        "-W",
        "-f=${db:Status-Status} ${Package}\\n",
        "--",
        *(name.partition("=")[0] for name in names),
        env={"PATH": os.defpath},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        async with asyncio.timeout(_QUERY_TIMEOUT_S):
            output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    lines = (line.partition(" ") for line in output.decode(errors="replace").splitlines())
    found = {name for status, _, name in lines if status == "installed"}
    return frozenset(name for name in names if name.partition("=")[0] in found)
