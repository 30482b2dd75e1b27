"""Looks up what this machine offers to models."""

import asyncio
import shutil
from pathlib import Path

from services.inference.cog.config import Host
from services.inference.cog.environment import EnvironmentStore

_GPU_CONTROL_DEVICE = Path("/dev/nvidiactl")


async def inspect_host(store: EnvironmentStore) -> Host:
    return Host(
        python_versions=await store.python_versions(),
        has_gpu=await asyncio.to_thread(_GPU_CONTROL_DEVICE.exists),
        system_packages=await _installed_packages(),
    )


async def _installed_packages() -> frozenset[str]:
    """Empty on hosts without dpkg: there a project that asks for a system package is refused."""
    program = shutil.which("dpkg-query")
    if program is None:
        return frozenset()
    process = await asyncio.create_subprocess_exec(
        program,
        "--show",
        "--showformat",
        "${db:Status-Abbrev} ${Package}\n",
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    output, _ = await process.communicate()
    lines = (line.split() for line in output.decode(errors="replace").splitlines())
    return frozenset(words[1] for words in lines if len(words) == 2 and words[0] == "ii")
