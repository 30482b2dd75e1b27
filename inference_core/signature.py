"""What an engine takes and gives: names, dtypes and shapes of its tensors."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Tensors = Mapping[str, Array]
Dimension = int | str | None


class Dtype(StrEnum):
    """Element types that every backend runs, under numpy's names."""

    FLOAT16 = "float16"
    FLOAT32 = "float32"
    FLOAT64 = "float64"
    INT8 = "int8"
    UINT8 = "uint8"
    INT16 = "int16"
    INT32 = "int32"
    INT64 = "int64"
    BOOL = "bool"

    @property
    def numpy(self) -> np.dtype[Any]:
        """The numpy dtype, in native byte order."""
        return np.dtype(self.value)

    @property
    def is_float(self) -> bool:
        return self in (Dtype.FLOAT16, Dtype.FLOAT32, Dtype.FLOAT64)


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One tensor. A dimension is a size, a symbol shared between tensors, or None (anything)."""

    name: str
    dtype: Dtype
    shape: tuple[Dimension, ...]

    def describe(self) -> str:
        """For people: `float32 [batch, 3, 224, ?]`."""
        dims = ", ".join("?" if dim is None else str(dim) for dim in self.shape)
        return f"{self.dtype} [{dims}]"

    def fits(self, shape: tuple[int, ...]) -> bool:
        """True if a tensor of this shape may be sent; symbols match any size."""
        return len(shape) == len(self.shape) and all(
            not isinstance(dim, int) or dim == size
            for dim, size in zip(self.shape, shape, strict=True)
        )


@dataclass(frozen=True, slots=True)
class Signature:
    """The inputs and outputs of an engine, in the order of its graph."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    @property
    def has_batch_dimension(self) -> bool:
        """True if the first dimension of every tensor is one and the same free size."""
        specs = self.inputs + self.outputs
        if not self.inputs or any(not spec.shape for spec in specs):
            return False
        first_dims = {spec.shape[0] for spec in self.inputs}
        # Exporters often leave an output's first dimension unnamed; parity checks what it is.
        return len(first_dims) == 1 and all(
            isinstance(spec.shape[0], str) or spec.shape[0] is None for spec in specs
        )

    def to_json(self) -> dict[str, list[dict[str, Any]]]:
        return {"inputs": _specs_to_json(self.inputs), "outputs": _specs_to_json(self.outputs)}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> "Signature":
        return cls(_specs_from_json(document["inputs"]), _specs_from_json(document["outputs"]))


def _specs_to_json(specs: tuple[TensorSpec, ...]) -> list[dict[str, Any]]:
    return [{"name": s.name, "dtype": s.dtype.value, "shape": list(s.shape)} for s in specs]


def _specs_from_json(documents: Iterable[Mapping[str, Any]]) -> tuple[TensorSpec, ...]:
    return tuple(
        TensorSpec(name=d["name"], dtype=Dtype(d["dtype"]), shape=tuple(d["shape"]))
        for d in documents
    )
