"""Confinement of the child that reads untrusted model files: no network, one writable folder."""

from pathlib import Path

from services.inference.cog.sandbox import Sandbox


def importer_words(sandbox: Sandbox, *, writable: Path) -> tuple[str, ...]:
    """Words to put before the child's command; none where the host cannot confine."""
    if sandbox.bwrap is None:
        return ()
    words = [str(sandbox.bwrap), "--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc"]
    words += ["--bind", str(writable), str(writable), "--unshare-all", "--die-with-parent"]
    return (*words, "--cap-drop", "ALL", "--")
