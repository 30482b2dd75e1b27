"""Load and check an ONNX file; read its signature."""

import asyncio
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inference_core.errors import InvalidModelError
from inference_core.importers import ImportLimits, import_onnx
from inference_core.signature import Signature

__all__ = ["ImportLimits", "OnnxModel", "load_onnx_model"]


@dataclass(frozen=True, slots=True)
class OnnxModel:
    """A checked model in one file.

    Args:
        path: The normalised file: no external data, no comments, weights not listed as inputs.
        digest: sha256 in hex of that file.
        signature: Names, dtypes and shapes of inputs and outputs.
        opset: Version of the standard operator set; 0 if the model uses none of it.
        node_count: Nodes of the main graph.
        size_bytes: Size of the normalised file.
    """

    path: Path
    digest: str
    signature: Signature
    opset: int
    node_count: int
    size_bytes: int


async def load_onnx_model(
    source: Path,
    destination: Path,
    *,
    limits: ImportLimits | None = None,
    sandbox: Sequence[str] = (),
) -> OnnxModel:
    """Checks an untrusted ONNX file in a child process and writes a normalised copy.

    Args:
        source: The file; its external data may lie beside or below it, nowhere else.
        destination: Where the normalised file goes.
        limits: Bounds on size, memory and time.
        sandbox: Words put before the child's command, such as bubblewrap and its options.

    Raises:
        InvalidModelError: The file is broken, unsafe or too large. The message names the node and
            operator where there is one, and the fix.
    """
    source, destination = await asyncio.to_thread(_checked_paths, source, destination)
    answer = await import_onnx(
        source, destination, limits=limits or ImportLimits(), sandbox=sandbox
    )
    return await asyncio.to_thread(_read_answer, answer, destination)


def _checked_paths(source: Path, destination: Path) -> tuple[Path, Path]:
    if not source.is_file():
        raise InvalidModelError(f"'{source.name}' is not a file")
    return source.absolute(), destination.absolute()


def _read_answer(answer: Mapping[str, Any], path: Path) -> OnnxModel:
    return OnnxModel(
        path=path,
        digest=_digest_of(path),
        signature=Signature.from_json(answer["signature"]),
        opset=int(answer["opset"]),
        node_count=int(answer["node_count"]),
        size_bytes=path.stat().st_size,
    )


def _digest_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
