"""GGUF files: decoded weights, and damaged files refused."""

import struct
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

Load = Callable[[str], ModuleType]


def _text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def _gguf(blocks: bytes, *, kind: int, shape: tuple[int, ...]) -> bytes:
    """One tensor `w` and three metadata values, in the file format's version 3."""
    metadata = _text("count") + struct.pack("<II", 4, 7)
    metadata += _text("names") + struct.pack("<IIQ", 9, 8, 2) + _text("a") + _text("é")
    metadata += _text("scores") + struct.pack("<IIQ2f", 9, 6, 2, 0.5, 1.5)
    tensor = _text("w") + struct.pack("<I", len(shape))
    tensor += struct.pack(f"<{len(shape)}Q", *reversed(shape)) + struct.pack("<IQ", kind, 0)
    head = b"GGUF" + struct.pack("<IQQ", 3, 1, 3) + metadata + tensor
    return head + bytes(-len(head) % 32) + blocks


def test_metadata_and_plain_tensors_are_read(load: Load, tmp_path: Path) -> None:
    values = np.arange(6, dtype="<f4")
    (tmp_path / "w.gguf").write_bytes(_gguf(values.tobytes(), kind=0, shape=(2, 3)))
    gguf = load("smollm2/gguf_reader").GgufFile(tmp_path / "w.gguf")
    assert gguf.metadata == {"count": 7, "names": ["a", "é"], "scores": [0.5, 1.5]}
    assert gguf.tensor("w").tolist() == [[0, 1, 2], [3, 4, 5]]


def test_q4_1_weights_are_steps_above_a_minimum(load: Load, tmp_path: Path) -> None:
    steps = np.arange(16, dtype=np.uint8) | (15 - np.arange(16, dtype=np.uint8)) << 4
    block = struct.pack("<2e", 0.5, -2.0) + steps.tobytes()
    (tmp_path / "w.gguf").write_bytes(_gguf(block, kind=3, shape=(1, 32)))
    (row,) = load("smollm2/gguf_reader").GgufFile(tmp_path / "w.gguf").tensor("w")
    rising = np.arange(16) * 0.5 - 2.0
    np.testing.assert_array_equal(row, np.concatenate([rising, rising[::-1]]))


def test_q8_0_weights_are_scaled_bytes(load: Load, tmp_path: Path) -> None:
    steps = np.arange(-16, 16, dtype=np.int8)
    block = struct.pack("<e", 0.25) + steps.tobytes()
    (tmp_path / "w.gguf").write_bytes(_gguf(block, kind=8, shape=(1, 32)))
    (row,) = load("smollm2/gguf_reader").GgufFile(tmp_path / "w.gguf").tensor("w")
    np.testing.assert_array_equal(row, steps * 0.25)


def test_a_file_cut_off_anywhere_is_refused(load: Load, tmp_path: Path) -> None:
    whole = _gguf(np.zeros(6, "<f4").tobytes(), kind=0, shape=(2, 3))
    reader = load("smollm2/gguf_reader")
    for length in range(1, len(whole)):
        (tmp_path / "w.gguf").write_bytes(whole[:length])
        with pytest.raises(reader.GgufError, match=r"w\.gguf"):
            reader.GgufFile(tmp_path / "w.gguf").tensor("w")


def test_a_tensor_type_that_is_not_supported_is_named(load: Load, tmp_path: Path) -> None:
    (tmp_path / "w.gguf").write_bytes(_gguf(bytes(64), kind=12, shape=(1, 32)))
    reader = load("smollm2/gguf_reader")
    with pytest.raises(reader.GgufError, match="w: tensor type 12 is not supported"):
        reader.GgufFile(tmp_path / "w.gguf").tensor("w")
