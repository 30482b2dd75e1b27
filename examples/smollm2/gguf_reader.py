"""Reads a GGUF file: its metadata, and its tensors as float32 arrays."""

from __future__ import annotations

import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

_MAGIC = b"GGUF"
_VERSION = 3
_SCALARS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
_STRING, _ARRAY = 8, 9
_F32, _Q4_1, _Q8_0 = 0, 3, 8
_BLOCK = 32
_BLOCK_BYTES = {_Q4_1: 20, _Q8_0: 34}


class GgufError(ValueError):
    """The file is not a GGUF file this reader can read; the text says where and why."""


@dataclass(frozen=True, slots=True)
class _TensorEntry:
    shape: tuple[int, ...]
    kind: int
    offset: int


class GgufFile:
    """An open GGUF file; `metadata` is plain Python values, tensors are decoded on demand."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("rb") as file:
            self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._at = 0
        if self._take(4) != _MAGIC:
            raise GgufError(f"{path.name}: not a GGUF file (the first four bytes are not 'GGUF')")
        version = self._scalar("I")
        if version != _VERSION:
            raise GgufError(f"{path.name}: GGUF version {version}; this reader knows {_VERSION}")
        tensor_count, metadata_count = self._count(), self._count()
        self.metadata: dict[str, Any] = {}
        for _ in range(metadata_count):
            key = self._string().decode()
            self.metadata[key] = self._value(self._scalar("I"))
        self._entries = dict(self._tensor_entry() for _ in range(tensor_count))
        alignment = self.metadata.get("general.alignment", 32)
        self._tensors_at = math.ceil(self._at / alignment) * alignment

    def tensor(self, name: str) -> np.ndarray:
        """The tensor in float32, rows first (GGUF stores the dimensions the other way round)."""
        entry = self._entries.get(name)
        if entry is None:
            raise GgufError(f"{self.path.name}: there is no tensor {name!r}")
        row, rows = entry.shape[-1], math.prod(entry.shape[:-1])
        if entry.kind == _F32:
            return self._raw(entry, 4 * row * rows).view("<f4").reshape(entry.shape)
        if entry.kind not in _BLOCK_BYTES or row % _BLOCK:
            raise GgufError(f"{self.path.name}: {name}: tensor type {entry.kind} is not supported")
        width = _BLOCK_BYTES[entry.kind]
        blocks = self._raw(entry, rows * row // _BLOCK * width).reshape(-1, width)
        decode = decode_q4_1 if entry.kind == _Q4_1 else decode_q8_0
        return decode(blocks).reshape(entry.shape)

    def _raw(self, entry: _TensorEntry, size: int) -> np.ndarray:
        start = self._tensors_at + entry.offset
        if start + size > len(self._bytes):
            raise GgufError(f"{self.path.name}: cut off at byte {len(self._bytes)}")
        return np.frombuffer(self._bytes, np.uint8, size, start)

    def _take(self, size: int) -> bytes:
        end = self._at + size
        if end > len(self._bytes):
            raise GgufError(f"{self.path.name}: cut off at byte {len(self._bytes)}")
        taken = self._bytes[self._at : end]
        self._at = end
        return taken

    def _scalar(self, code: str) -> Any:
        return struct.unpack(f"<{code}", self._take(struct.calcsize(f"<{code}")))[0]

    def _count(self) -> int:
        count = self._scalar("Q")
        # Everything counted takes at least a byte, so a larger count is a damaged file.
        if count > len(self._bytes) - self._at:
            raise GgufError(
                f"{self.path.name}: a count of {count} at byte {self._at - 8} is impossible"
            )
        return count

    def _string(self) -> bytes:
        return self._take(self._count())

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._string().decode()
        if kind == _ARRAY:
            item_kind, count = self._scalar("I"), self._count()
            if item_kind in _SCALARS:
                code = f"<{count}{_SCALARS[item_kind]}"
                return list(struct.unpack(code, self._take(struct.calcsize(code))))
            return [self._value(item_kind) for _ in range(count)]
        if kind not in _SCALARS:
            raise GgufError(f"{self.path.name}: unknown value type {kind} at byte {self._at - 4}")
        return self._scalar(_SCALARS[kind])

    def _tensor_entry(self) -> tuple[str, _TensorEntry]:
        name = self._string().decode()
        shape = tuple(self._scalar("Q") for _ in range(self._scalar("I")))
        kind, offset = self._scalar("I"), self._scalar("Q")
        return name, _TensorEntry(shape[::-1], kind, offset)


def decode_q4_1(blocks: np.ndarray) -> np.ndarray:
    """32 weights in 20 bytes: a float16 scale and minimum, then the 4-bit steps above it."""
    scale = blocks[:, 0:2].copy().view("<f2").astype(np.float32)
    minimum = blocks[:, 2:4].copy().view("<f2").astype(np.float32)
    steps = blocks[:, 4:]
    weights = np.empty((len(blocks), _BLOCK), np.float32)
    np.multiply(steps & 0x0F, scale, out=weights[:, :16])
    np.multiply(steps >> 4, scale, out=weights[:, 16:])
    weights += minimum
    return weights


def decode_q8_0(blocks: np.ndarray) -> np.ndarray:
    """32 weights in 34 bytes: a float16 scale, then signed bytes."""
    scale = blocks[:, 0:2].copy().view("<f2").astype(np.float32)
    return np.multiply(blocks[:, 2:].view(np.int8), scale, dtype=np.float32)
