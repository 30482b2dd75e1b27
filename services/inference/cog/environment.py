"""Builds the Python environment of a version with uv: once per host and content, shared by
every version that needs the same one. Cache and environments live below one root, so that uv
can hard-link.
"""

import asyncio
import contextlib
import fcntl
import json
import os
import re
import shutil
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import uv

from services.inference.cog.errors import EnvironmentBuildFailed
from services.inference.cog.requirements import Requirements

_LAST_LINE_COUNT = 30
_LINE_LIMIT_BYTES = 16 * 1024
_LOCK_POLL_S = 0.05
_PASSED_PREFIXES = ("UV_", "SSL_CERT_", "PIP_CERT")
_PASSED_NAMES = frozenset({"HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"})
# What uv says in every build and what tells the author of a model nothing.
_NOISE = re.compile(
    r"Using C?Python |Creating virtual environment at|Activate with:|Resolved \d|Audited \d"
    r"|warning: Requirements file .* does not contain any dependencies"
)
_NO_SOURCE_BUILDS = re.compile(r"[Bb]uilding (?:from source|source distributions).*disabled")

OnLine = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Environment:
    """A finished environment; `base_dir` is the installation of the interpreter behind it."""

    key: str
    path: Path
    base_dir: Path

    @property
    def bin_dir(self) -> Path:
        return self.path / "bin"

    @property
    def python(self) -> Path:
        return self.bin_dir / "python"


class EnvironmentStore:
    """Environments below `root/environments`, uv's cache in `root/cache`."""

    def __init__(
        self,
        root: Path,
        *,
        interpreters: Sequence[Path] = (),
        build_timeout_s: float = 1800.0,
        allow_source_builds: bool = False,
    ) -> None:
        self._root = root
        self._interpreters = tuple(interpreters)
        self._build_timeout_s = build_timeout_s
        self._allow_source_builds = allow_source_builds

    async def python_versions(self) -> tuple[str, ...]:
        """Full versions (3.11.7) of the interpreters that uv finds on this host, newest first."""
        output: list[str] = []
        arguments = ["python", "list", "--only-installed", "--output-format", "json"]
        await self._uv(arguments, cwd=Path("/"), on_line=output.append, merge_stderr=False)
        listed = [entry["version"] for entry in json.loads("".join(output) or "[]")]
        return tuple(dict.fromkeys(listed))

    async def ensure(self, requirements: Requirements, on_line: OnLine) -> Environment:
        """Raises EnvironmentBuildFailed, and then leaves nothing behind."""
        key = requirements.key
        path = self._root / "environments" / key
        if not (path / "pyvenv.cfg").exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            async with _lock(path.parent / f"{key}.lock"):
                if not (path / "pyvenv.cfg").exists():
                    await self._build(requirements, path, on_line)
        return Environment(key=key, path=path, base_dir=_base_dir(path))

    async def _build(self, requirements: Requirements, path: Path, on_line: OnLine) -> None:
        building = path.with_name(f"{path.name}.building")
        await asyncio.to_thread(shutil.rmtree, building, ignore_errors=True)
        last_lines: deque[str] = deque(maxlen=_LAST_LINE_COUNT)

        def keep(line: str) -> None:
            # The author of a model has no use for the host's own paths.
            line = line.replace(f"{self._root}/", "")
            last_lines.append(line)
            if not _NOISE.match(line):
                on_line(line)

        try:
            async with asyncio.timeout(self._build_timeout_s):
                await self._install(requirements, building, keep)
            building.rename(path)
        except TimeoutError:
            reason = f"not finished after {self._build_timeout_s:.0f} s"
            raise EnvironmentBuildFailed(reason, tuple(last_lines)) from None
        except _UvFailed as failure:
            raise EnvironmentBuildFailed(
                _explained(failure, last_lines), tuple(last_lines)
            ) from None
        finally:
            await asyncio.to_thread(shutil.rmtree, building, ignore_errors=True)

    async def _install(self, requirements: Requirements, building: Path, keep: OnLine) -> None:
        venv = ["venv", "--relocatable", "--no-project", "--python"]
        venv += [self._interpreter(requirements.python_version), str(building)]
        await self._uv(venv, cwd=building.parent, on_line=keep)
        listed = building / "requirements.txt"
        listed.write_text("\n".join(requirements.lines) + "\n")
        install = ["pip", "install", "--compile-bytecode", "--python", str(building / "bin/python")]
        if not self._allow_source_builds:
            # A source build runs the package's own code on the host, outside of any sandbox.
            install.append("--no-build")
        install += ["-r", str(listed), *requirements.pinned]
        await self._uv(install, cwd=requirements.project_dir, on_line=keep)

    def _interpreter(self, version: str) -> str:
        minor = ".".join(version.split(".")[:2])
        for path in self._interpreters:
            if path.name == f"python{minor}":
                return str(path)
        return minor

    async def _uv(
        self, arguments: Sequence[str], *, cwd: Path, on_line: OnLine, merge_stderr: bool = True
    ) -> None:
        process = await asyncio.create_subprocess_exec(
            uv.find_uv_bin(),
            *arguments,
            cwd=cwd,
            env=_uv_environment(os.environ, self._root / "cache"),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT if merge_stderr else asyncio.subprocess.DEVNULL,
            limit=_LINE_LIMIT_BYTES,
        )
        assert process.stdout is not None
        try:
            async for line in _lines(process.stdout):
                on_line(line)
            status = await process.wait()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if status != 0:
            raise _UvFailed(arguments[0], status)


class _UvFailed(Exception):
    def __init__(self, command: str, status: int) -> None:
        super().__init__(f"uv {command} failed with exit status {status}")


def _explained(failure: _UvFailed, last_lines: Sequence[str]) -> str:
    if any(_NO_SOURCE_BUILDS.search(line) for line in last_lines):
        return (
            f"{failure}: a package has no wheel, and building from source is off here. "
            "Pin a version that has a wheel, or ask the operator to allow source builds"
        )
    return str(failure)


def _uv_environment(own: Mapping[str, str], cache_dir: Path) -> dict[str, str]:
    passed = {
        name: value
        for name, value in own.items()
        if name.startswith(_PASSED_PREFIXES) or name.upper() in _PASSED_NAMES
    }
    return {
        **passed,
        "PATH": own.get("PATH", "/usr/local/bin:/usr/bin:/bin"),
        "HOME": own.get("HOME", "/tmp"),
        "UV_CACHE_DIR": str(cache_dir),
        "UV_PYTHON_DOWNLOADS": "never",
        "UV_NO_PROGRESS": "1",
    }


async def _lines(stream: asyncio.StreamReader) -> AsyncIterator[str]:
    while True:
        try:
            line = await stream.readuntil(b"\n")
        except asyncio.IncompleteReadError as end:
            if end.partial:
                yield end.partial.decode(errors="replace")
            return
        except asyncio.LimitOverrunError as overrun:
            line = await stream.readexactly(overrun.consumed)
        yield line.decode(errors="replace").rstrip("\r\n")


@contextlib.asynccontextmanager
async def _lock(path: Path) -> AsyncIterator[None]:
    """Held by one process of the host at a time; polled, so that a waiting build can be
    cancelled.
    """
    with path.open("a") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                await asyncio.sleep(_LOCK_POLL_S)
        yield


def _base_dir(path: Path) -> Path:
    for line in (path / "pyvenv.cfg").read_text().splitlines():
        name, _, value = line.partition(" = ")
        if name == "home":
            return Path(value).resolve().parent
    raise EnvironmentBuildFailed(f"{path / 'pyvenv.cfg'} names no interpreter", ())
