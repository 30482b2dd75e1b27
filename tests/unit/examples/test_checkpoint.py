"""The checkpoint reader takes tensors and refuses everything else."""

import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

Load = Callable[[str], ModuleType]


def _value(value: object) -> bytes:
    """The opcodes that push a plain value, without the pickle's frame."""
    return pickle.dumps(value, 2)[2:-1]


def _tensor(*, offset: int, shape: tuple[int, ...], stride: tuple[int, ...], items: int) -> bytes:
    storage = b"(" + _value("storage") + b"ctorch\nFloatStorage\n" + _value("1")
    storage += _value("cpu") + _value(items) + _value(None) + b"tQ"
    arguments = storage + _value(offset) + _value(shape) + _value(stride) + _value(False)
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + arguments + b"tR"


def _checkpoint(tensor: bytes, items: np.ndarray) -> bytes:
    preamble: tuple[object, ...] = (0x1950A86A20F9469CFC6C, 1001, {})
    header = [pickle.dumps(value, 2) for value in preamble]
    entries = b"\x80\x02ccollections\nOrderedDict\n)R(" + _value("weight") + tensor + b"u."
    storage = struct.pack("<q", len(items)) + items.tobytes()
    return b"".join([*header, entries, pickle.dumps(["1"], 2), storage])


@pytest.fixture
def items() -> np.ndarray:
    return np.arange(6, dtype=np.float32)


def test_a_tensor_is_read_in_the_order_of_its_strides(
    load: Load, tmp_path: Path, items: np.ndarray
) -> None:
    tensor = _tensor(offset=0, shape=(2, 3), stride=(1, 2), items=6)
    (tmp_path / "w.pth").write_bytes(_checkpoint(tensor, items))
    state = load("image-classifier/checkpoint").read_checkpoint(tmp_path / "w.pth")
    assert state["weight"].tolist() == [[0, 2, 4], [1, 3, 5]]


class _Command:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.marker}",)


def test_a_pickle_that_runs_a_command_is_refused_and_nothing_runs(
    load: Load, tmp_path: Path, items: np.ndarray
) -> None:
    marker = tmp_path / "ran"
    (tmp_path / "w.pth").write_bytes(_checkpoint(_value(_Command(marker)), items))
    checkpoint = load("image-classifier/checkpoint")
    with pytest.raises(checkpoint.CheckpointError, match=r"w\.pth: asks for posix\.system"):
        checkpoint.read_checkpoint(tmp_path / "w.pth")
    assert not marker.exists()


@pytest.mark.parametrize(
    ("name", "argument"),
    [("builtins\neval", "1"), ("torch\nload", "x"), ("collections\nCounter", "x")],
)
def test_only_the_names_that_tensors_need_are_allowed(
    load: Load, tmp_path: Path, items: np.ndarray, name: str, argument: str
) -> None:
    call = b"c" + name.encode() + b"\n(" + _value(argument) + b"tR"
    (tmp_path / "w.pth").write_bytes(_checkpoint(call, items))
    checkpoint = load("image-classifier/checkpoint")
    with pytest.raises(checkpoint.CheckpointError, match="refused"):
        checkpoint.read_checkpoint(tmp_path / "w.pth")


@pytest.mark.parametrize(
    ("offset", "shape", "stride"),
    [
        (1, (6,), (1,)),
        (0, (2, 3), (6, 1)),
        (0, (10**9,), (0,)),
        (-1, (2,), (1,)),
        (3, (2,), (-1,)),
        (0, (2, 3), (1,)),
    ],
)
def test_a_tensor_that_leaves_its_storage_is_refused(
    load: Load,
    tmp_path: Path,
    items: np.ndarray,
    offset: int,
    shape: tuple[int, ...],
    stride: tuple[int, ...],
) -> None:
    tensor = _tensor(offset=offset, shape=shape, stride=stride, items=6)
    (tmp_path / "w.pth").write_bytes(_checkpoint(tensor, items))
    checkpoint = load("image-classifier/checkpoint")
    with pytest.raises(checkpoint.CheckpointError, match="weight"):
        checkpoint.read_checkpoint(tmp_path / "w.pth")


def test_a_file_cut_off_anywhere_is_refused(load: Load, tmp_path: Path, items: np.ndarray) -> None:
    whole = _checkpoint(_tensor(offset=0, shape=(6,), stride=(1,), items=6), items)
    checkpoint = load("image-classifier/checkpoint")
    for length in range(len(whole)):
        (tmp_path / "w.pth").write_bytes(whole[:length])
        with pytest.raises(checkpoint.CheckpointError):
            checkpoint.read_checkpoint(tmp_path / "w.pth")
