"""Painting in tiles gives what painting the whole picture gives."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

Load = Callable[[str], ModuleType]


@pytest.fixture
def network(tmp_path: Path) -> Path:
    """A convolution of 9x9, normalised over the picture: the real network in one layer."""
    kernels = np.random.default_rng(3).normal(size=(3, 3, 9, 9)).astype(np.float32)
    pads = np.array([0, 0, 4, 4, 0, 0, 4, 4], np.int64)
    constants = {"kernels": kernels, "pads": pads, "two": np.float32(2), "tiny": np.float32(1e-5)}
    nodes = [
        helper.make_node("Pad", ["image", "pads"], ["padded"], mode="reflect"),
        helper.make_node("Conv", ["padded", "kernels"], ["features"]),
        helper.make_node("ReduceMean", ["features"], ["mean"], axes=[2, 3]),
        helper.make_node("Sub", ["features", "mean"], ["centred"]),
        helper.make_node("Pow", ["centred", "two"], ["squares"]),
        helper.make_node("ReduceMean", ["squares"], ["variance"], axes=[2, 3]),
        helper.make_node("Add", ["variance", "tiny"], ["positive"]),
        helper.make_node("Sqrt", ["positive"], ["deviation"]),
        helper.make_node("Div", ["centred", "deviation"], ["normal"]),
        helper.make_node("ReduceSum", ["style_weights"], ["gain"]),
        helper.make_node("Mul", ["normal", "gain"], ["scaled"]),
        helper.make_node("Sigmoid", ["scaled"], ["stylized"]),
    ]
    picture: list[str | int | None] = [1, 3, "h", "w"]
    graph = helper.make_graph(
        nodes,
        "style",
        [
            helper.make_tensor_value_info("image", TensorProto.FLOAT, picture),
            helper.make_tensor_value_info("style_weights", TensorProto.FLOAT, [26]),
        ],
        [helper.make_tensor_value_info("stylized", TensorProto.FLOAT, picture)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "style.onnx")
    return tmp_path / "style.onnx"


@pytest.mark.parametrize("size", [(300, 509), (256, 257), (64, 40), (511, 33)])
def test_tiles_join_without_a_seam(load: Load, network: Path, size: tuple[int, int]) -> None:
    width, height = size
    noise = np.random.default_rng(5).integers(0, 256, (height, width, 3))
    # A bright half, so that a tile's own mean is far from the picture's.
    noise[:, width // 2 :] //= 8
    picture = Image.fromarray(noise.astype(np.uint8))
    styler = load("style-transfer/styler")
    painter = styler.Styler(network)
    tiles = painter.tiles(picture)
    painted = np.asarray(painter.paint(picture, style=0, tiles=iter(tiles)), np.float32)

    style = np.eye(26, dtype=np.float32)[0]
    session = ort.InferenceSession(network, providers=["CPUExecutionProvider"])
    pixels = np.asarray(picture, np.float32).transpose(2, 0, 1)[None] / 255
    extra = [(0, -side % 4) for side in pixels.shape[2:]]
    pixels = np.pad(pixels, [(0, 0), (0, 0), *extra], mode="reflect")
    (whole,) = session.run(None, {"image": pixels, "style_weights": style})
    whole = np.asarray(whole)[0, :, : picture.height, : picture.width].transpose(1, 2, 0) * 255
    assert np.abs(painted - whole).max() < 0.51


@pytest.mark.parametrize("length", [1, 4, 255, 256, 257, 1023, 4096])
def test_the_tiles_cover_every_pixel_once(load: Load, length: int) -> None:
    spans = list(load("style-transfer/styler").spans(length))
    assert [pixel for span in spans for pixel in range(span.start, span.end)] == [*range(length)]
    assert all(span.seen_start % 4 == 0 and span.seen_end % 4 == 0 for span in spans)
