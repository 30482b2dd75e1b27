"""Engines: a model compiled by one backend for one target, and the choices that made it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from inference_core.parity import ParityReport
from inference_core.signature import Signature


class Precision(StrEnum):
    """The arithmetic an engine may use for floats. BF16 is an opt-in with a wider tolerance."""

    F32 = "f32"
    BF16 = "bf16"


@dataclass(frozen=True, slots=True)
class Target:
    """Where an engine runs and how exact it is."""

    device: str = "cpu"
    precision: Precision = Precision.F32


@dataclass(frozen=True, slots=True)
class CompileOptions:
    """What a compilation may choose; part of an engine's cache key.

    Args:
        max_batch_size: Items (rows) that one engine call may hold; lowered to 1 for models whose
            requests cannot be merged.
        backends: Backends to try, in this order; the first whose engine passes parity serves.
        tolerance: Largest error allowed by parity, relative to a tensor's largest magnitude. None:
            1e-4 for f32, 5e-2 for bf16.
        seed: Seeds the golden inputs.
        dimensions: Sizes for symbolic dimensions of the golden inputs, by symbol.
    """

    max_batch_size: int = 32
    backends: tuple[str, ...] = ("openvino", "onnxruntime")
    tolerance: float | None = None
    seed: int = 0
    dimensions: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 1 <= self.max_batch_size <= 4096:
            raise ValueError("max_batch_size must lie between 1 and 4096")
        if not self.backends:
            raise ValueError("backends must name at least one backend")


@dataclass(frozen=True, slots=True)
class Engine:
    """A model that passed parity on this device and may serve.

    Args:
        digest: sha256 in hex of everything that decides the engine's behaviour; its cache key.
        model_digest: sha256 in hex of the normalised ONNX file.
        onnx_path: The normalised ONNX file inside the cache.
        signature: Names, dtypes and shapes of inputs and outputs.
        backend: Name of the backend that runs it.
        target: Device and precision.
        max_batch_size: Items that may be merged into one call; 1 means that requests run alone.
        parity: How far its outputs are from the reference.
        remarks: Why it is not what was asked for first: a fallback backend, no batching.
    """

    digest: str
    model_digest: str
    onnx_path: Path
    signature: Signature
    backend: str
    target: Target
    max_batch_size: int
    parity: ParityReport
    remarks: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Everything but the path, which belongs to the host."""
        return {
            "digest": self.digest,
            "model_digest": self.model_digest,
            "signature": self.signature.to_json(),
            "backend": self.backend,
            "target": asdict(self.target),
            "max_batch_size": self.max_batch_size,
            "parity": self.parity.to_json(),
            "remarks": list(self.remarks),
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any], *, onnx_path: Path) -> "Engine":
        """Raises KeyError, TypeError or ValueError for a document that `to_json` did not make."""
        target = document["target"]
        return cls(
            digest=document["digest"],
            model_digest=document["model_digest"],
            onnx_path=onnx_path,
            signature=Signature.from_json(document["signature"]),
            backend=document["backend"],
            target=Target(device=target["device"], precision=Precision(target["precision"])),
            max_batch_size=document["max_batch_size"],
            parity=ParityReport.from_json(document["parity"]),
            remarks=tuple(document["remarks"]),
        )
