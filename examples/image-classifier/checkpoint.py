"""Reads the tensors of a PyTorch checkpoint (the format before 1.6) without PyTorch.

A checkpoint is pickled, and a pickle may name any function to call. This reader knows four names,
enough for tensors and nothing else, and refuses a file that asks for more.
"""

from __future__ import annotations

import io
import math
import pickle
import struct
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001


class CheckpointError(ValueError):
    """The file is not a checkpoint of plain tensors; the text says what was found."""


@dataclass(frozen=True, slots=True)
class _StorageType:
    dtype: str


@dataclass(frozen=True, slots=True)
class _Storage:
    key: str
    dtype: np.dtype[Any]
    item_count: int


@dataclass(frozen=True, slots=True)
class _Tensor:
    """Where a tensor will be found: the bytes come after the pickles."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


def _rebuild_tensor(storage: Any, offset: Any, shape: Any, stride: Any, *_: Any) -> _Tensor:
    if not isinstance(storage, _Storage):
        raise CheckpointError("a tensor without a storage")
    return _Tensor(storage, int(offset), tuple(map(int, shape)), tuple(map(int, stride)))


_ALLOWED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch", "FloatStorage"): _StorageType("<f4"),
    ("torch", "LongStorage"): _StorageType("<i8"),
}


class _TensorUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        allowed = _ALLOWED.get((module, name))
        if allowed is None:
            raise CheckpointError(f"asks for {module}.{name}, which no tensor needs: refused")
        return allowed

    def persistent_load(self, reference: Any) -> _Storage:
        match reference:
            case ("storage", _StorageType(dtype), str(key), str(), int(item_count), None):
                return _Storage(key, np.dtype(dtype), item_count)
        raise CheckpointError(f"refers to {reference!r}, which is not a storage")


def read_checkpoint(path: Path) -> dict[str, np.ndarray]:
    """The tensors by name; raises CheckpointError."""
    file = io.BytesIO(path.read_bytes())
    try:
        if _unpickle(file) != _MAGIC or _unpickle(file) != _PROTOCOL:
            raise CheckpointError("not a PyTorch checkpoint in the format before 1.6")
        _unpickle(file)  # the writing machine's word sizes; the layout here is fixed
        entries, keys = _unpickle(file), _unpickle(file)
    except (pickle.UnpicklingError, EOFError, ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path.name}: {error}") from error
    if not isinstance(entries, dict) or not all(isinstance(t, _Tensor) for t in entries.values()):
        raise CheckpointError(f"{path.name}: holds something other than named tensors")
    sizes = {tensor.storage.key: tensor.storage for tensor in entries.values()}
    storages = {key: _read_storage(file, sizes.get(key), path=path) for key in keys}
    return {name: _materialised(t, storages[t.storage.key], name) for name, t in entries.items()}


def _unpickle(file: io.BytesIO) -> Any:
    return _TensorUnpickler(file).load()


def _read_storage(file: io.BytesIO, storage: _Storage | None, *, path: Path) -> np.ndarray:
    start = file.tell()
    header = file.read(8)
    if storage is None or len(header) < 8 or struct.unpack("<q", header)[0] != storage.item_count:
        raise CheckpointError(f"{path.name}: the storage at byte {start} is not the one announced")
    size = storage.item_count * storage.dtype.itemsize
    content = file.read(size)
    if len(content) < size:
        raise CheckpointError(f"{path.name}: cut off in the storage at byte {start}")
    return np.frombuffer(content, storage.dtype)


def _materialised(tensor: _Tensor, storage: np.ndarray, name: str) -> np.ndarray:
    """The tensor's elements in C order; as_strided trusts its arguments, so they are checked."""
    if len(tensor.shape) != len(tensor.stride) or math.prod(tensor.shape) > len(storage):
        raise CheckpointError(f"{name}: its shape {tensor.shape} does not fit its storage")
    if min((*tensor.shape, 1)) < 1 or min((*tensor.stride, tensor.offset)) < 0:
        raise CheckpointError(f"{name}: empty, or with negative strides")
    last = sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride, strict=True))
    if tensor.offset + last >= len(storage):
        raise CheckpointError(f"{name}: reaches beyond its storage")
    strides = [step * storage.itemsize for step in tensor.stride]
    view = np.lib.stride_tricks.as_strided(storage[tensor.offset :], tensor.shape, strides)
    return view.copy()
