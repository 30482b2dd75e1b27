"""Parity: an engine's outputs against the reference, within tolerance, or it never serves."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from inference_core.errors import ParityError, UnsupportedModelError
from inference_core.signature import Array, Dtype, Signature, Tensors, TensorSpec

# Two right answers in half precision may differ by this many of its smallest steps.
_EPSILONS_MIN = 4
# Integers are often indices into something; 0 and 1 exist in every table worth having.
# A model that wants more than this in one tensor is refused instead of filling the host's memory.
_INPUT_BYTES_MAX = 1 << 30
_INTEGER_HIGH = {Dtype.UINT8: 256, Dtype.INT8: 128}


@dataclass(frozen=True, slots=True)
class TensorParity:
    """How far one output is from the reference, where it is worst.

    Args:
        name: The output.
        error: Floats: largest difference, relative to the reference's largest magnitude. Integers
            and booleans: share of differing elements. Infinite if shape, dtype or a NaN differs.
        tolerance: The largest error that passes; never finer than the dtype itself.
        index: Where the largest difference is.
        expected: The reference's value there.
        actual: The engine's value there.
    """

    name: str
    error: float
    tolerance: float
    index: tuple[int, ...]
    expected: float
    actual: float

    def describe(self) -> str:
        return (
            f"output '{self.name}' at {list(self.index)} is {self.actual:g}, the reference has "
            f"{self.expected:g} (error {self.error:.3g}, tolerance {self.tolerance:g})"
        )

    @property
    def has_passed(self) -> bool:
        return self.error <= self.tolerance


@dataclass(frozen=True, slots=True)
class ParityReport:
    """The worst of each output over all golden inputs."""

    tensors: tuple[TensorParity, ...]

    @property
    def has_passed(self) -> bool:
        return all(tensor.has_passed for tensor in self.tensors)

    def require(self) -> None:
        """Raises ParityError, naming tensor, index and error, unless the engine may serve."""
        wrong = [tensor.describe() for tensor in self.tensors if not tensor.has_passed]
        if wrong:
            raise ParityError(f"{'; '.join(wrong)}: the engine must not serve")

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> "ParityReport":
        tensors = tuple(
            TensorParity(**{**tensor, "index": tuple(tensor["index"])})
            for tensor in document["tensors"]
        )
        return cls(tensors)


def golden_inputs(
    signature: Signature,
    *,
    seed: int,
    dimensions: Mapping[str, int],
    free_size: int,
    item_count: int | None = None,
) -> dict[str, Array]:
    """Seeded inputs that fit a signature.

    Args:
        signature: What the inputs must fit.
        seed: Equal seeds give equal inputs.
        dimensions: Sizes by symbol.
        free_size: Size of every other dimension that is not fixed.
        item_count: Size of every first dimension, for models with a batch dimension.

    Returns:
        Arrays by input name: normal floats, small integers, random booleans.
    """
    random = np.random.default_rng(seed)
    return {
        spec.name: _golden(spec, _shape(spec, dimensions, free_size, item_count), random)
        for spec in signature.inputs
    }


def stack(requests: Sequence[Tensors]) -> dict[str, Array]:
    """Merges requests along the first dimension, as the batcher does."""
    return {name: np.concatenate([request[name] for request in requests]) for name in requests[0]}


def compare(
    expected: Sequence[Tensors], actual: Sequence[Tensors], *, tolerance: float
) -> ParityReport:
    """Compares the outputs of several runs.

    Args:
        expected: The reference's outputs, run by run.
        actual: The engine's outputs of the same runs.
        tolerance: Largest `TensorParity.error` that passes; coarser for half-precision tensors.

    Returns:
        A report with the worst run of each output.
    """
    worst: dict[str, TensorParity] = {}
    for wanted, given in zip(expected, actual, strict=True):
        for name, reference in wanted.items():
            parity = _compare_tensor(name, reference, given.get(name), tolerance)
            if name not in worst or parity.error > worst[name].error:
                worst[name] = parity
    return ParityReport(tuple(worst.values()))


def _shape(
    spec: TensorSpec, dimensions: Mapping[str, int], free_size: int, item_count: int | None
) -> tuple[int, ...]:
    shape = [
        dim if isinstance(dim, int) else dimensions.get(dim or "", free_size) for dim in spec.shape
    ]
    if item_count is not None:
        shape[0] = item_count
    return tuple(shape)


def _golden(spec: TensorSpec, shape: tuple[int, ...], random: np.random.Generator) -> Array:
    size_bytes = math.prod(shape) * np.dtype(spec.dtype.numpy).itemsize
    if size_bytes > _INPUT_BYTES_MAX:
        raise UnsupportedModelError(
            f"input {spec.name!r} of shape {list(shape)} has {size_bytes} bytes, and "
            f"{_INPUT_BYTES_MAX} are allowed: export the model with smaller dimensions"
        )
    if spec.dtype.is_float:
        return random.standard_normal(shape).astype(spec.dtype.numpy)
    high = 2 if spec.dtype is Dtype.BOOL else _INTEGER_HIGH.get(spec.dtype, 2)
    return random.integers(0, high, shape).astype(spec.dtype.numpy)


def _compare_tensor(
    name: str, expected: Array, actual: Array | None, tolerance: float
) -> TensorParity:
    is_float = expected.dtype.kind == "f"
    if is_float:
        tolerance = max(tolerance, _EPSILONS_MIN * float(np.finfo(expected.dtype).eps))
    if actual is None or actual.shape != expected.shape or actual.dtype != expected.dtype:
        return TensorParity(name, math.inf, tolerance, (), float(expected.size), math.nan)
    if expected.size == 0:
        return TensorParity(name, 0.0, tolerance, (), 0.0, 0.0)
    errors = _float_errors(expected, actual) if is_float else np.asarray(expected != actual)
    index = np.unravel_index(int(np.argmax(errors)), errors.shape)
    return TensorParity(
        name=name,
        tolerance=tolerance,
        error=float(errors[index] if is_float else errors.mean()),
        index=tuple(int(i) for i in index),
        expected=float(expected[index]),
        actual=float(actual[index]),
    )


def _float_errors(expected: Array, actual: Array) -> Array:
    wanted, given = expected.astype(np.float64), actual.astype(np.float64)
    finite = np.isfinite(wanted)
    scale = float(np.abs(wanted[finite]).max(initial=0.0)) or 1.0
    with np.errstate(invalid="ignore"):
        errors: Array = np.array(np.abs(wanted - given) / scale)  # an array even without axes
    errors[~np.isfinite(errors)] = math.inf
    # The same infinity, or NaN in the same place, is no difference.
    errors[(wanted == given) | (np.isnan(wanted) & np.isnan(given))] = 0.0
    return errors
