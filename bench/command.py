"""Programs that a benchmark runs to their end."""

import asyncio
import sys
from collections.abc import Mapping


async def run_command(
    *words: str, timeout_s: float, environment: Mapping[str, str] | None = None
) -> str:
    """Its standard output; ends the benchmark with the errors of a program that fails."""
    process = await asyncio.create_subprocess_exec(
        *words,
        env=environment,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(timeout_s):
            output, errors = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode != 0:
        sys.exit(f"{' '.join(words)} failed:\n{errors.decode(errors='replace')}")
    return output.decode()
