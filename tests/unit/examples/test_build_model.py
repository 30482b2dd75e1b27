"""The image classifier's graph, built from small random weights and from the real ones."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from PIL import Image, ImageOps

Load = Callable[[str], ModuleType]
State = dict[str, np.ndarray]

# (kernel, stage width, repeats): EfficientNet-Lite0's shape with narrow layers.
# The fourth stage keeps the width of the third and halves the side: its first block must not add.
_STAGES = ((3, 4, 1), (3, 5, 2), (5, 6, 2), (3, 6, 3), (5, 8, 3), (5, 9, 4), (3, 10, 1))
_CLASS_COUNT = 11


@pytest.fixture
def state() -> State:
    random, tensors = np.random.default_rng(7), {}

    def add(name: str, *, norm: str, shape: tuple[int, ...]) -> None:
        tensors[f"{name}.weight"] = random.normal(size=shape).astype(np.float32)
        for part in ("weight", "bias", "running_mean", "running_var"):
            tensors[f"{norm}.{part}"] = random.uniform(0.5, 1.5, shape[0]).astype(np.float32)

    add("_conv_stem", norm="_bn0", shape=(3, 3, 3, 3))
    width_in, index = 3, 0
    for stage, (kernel, width, repeats) in enumerate(_STAGES):
        for _ in range(repeats):
            block, wide = f"_blocks.{index}", width_in * (6 if stage else 1)
            if stage:
                add(f"{block}._expand_conv", norm=f"{block}._bn0", shape=(wide, width_in, 1, 1))
            shape = (wide, 1, kernel, kernel)
            add(f"{block}._depthwise_conv", norm=f"{block}._bn1", shape=shape)
            add(f"{block}._project_conv", norm=f"{block}._bn2", shape=(width, wide, 1, 1))
            width_in, index = width, index + 1
    add("_conv_head", norm="_bn1", shape=(12, width_in, 1, 1))
    tensors["_fc.weight"] = random.normal(size=(_CLASS_COUNT, 12)).astype(np.float32)
    tensors["_fc.bias"] = random.normal(size=_CLASS_COUNT).astype(np.float32)
    return tensors


def _run(model: onnx.ModelProto, pictures: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (scores,) = session.run(["output"], {"input": pictures})
    return np.asarray(scores)


def test_the_graph_is_valid_and_takes_any_batch(load: Load, state: State) -> None:
    model = load("image-classifier/build_model").build_model(state)
    onnx.checker.check_model(model, full_check=True)
    assert [opset.version for opset in model.opset_import] == [17]
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    pictures = np.random.default_rng(1).normal(size=(3, 3, 224, 224)).astype(np.float32)
    together = _run(model, pictures)
    assert together.shape == (3, _CLASS_COUNT)
    apart = np.concatenate([_run(model, picture[None]) for picture in pictures])
    np.testing.assert_allclose(together, apart, rtol=1e-3, atol=1e-3)
    assert not np.allclose(together[0], together[1])


def test_a_block_adds_its_input_only_where_the_shapes_agree(load: Load, state: State) -> None:
    model = load("image-classifier/build_model").build_model(state)
    repeats = sum(repeats - 1 for _, _, repeats in _STAGES)
    assert sum(node.op_type == "Add" for node in model.graph.node) == repeats


def test_batch_normalisation_is_folded_into_the_convolution(load: Load, state: State) -> None:
    model = load("image-classifier/build_model").build_model(state)
    weights = {w.name: onnx.numpy_helper.to_array(w) for w in model.graph.initializer}
    scale = state["_bn0.weight"] / np.sqrt(state["_bn0.running_var"] + 1e-3)
    expected = state["_conv_stem.weight"] * scale[:, None, None, None]
    np.testing.assert_allclose(weights["_conv_stem.weight"], expected, rtol=1e-6)
    bias = state["_bn0.bias"] - state["_bn0.running_mean"] * scale
    np.testing.assert_allclose(weights["_conv_stem.bias"], bias, rtol=1e-5, atol=1e-6)


def test_a_missing_tensor_is_named(load: Load, state: State) -> None:
    del state["_blocks.3._bn1.running_var"]
    build_model = load("image-classifier/build_model")
    with pytest.raises(ValueError, match=r"_blocks\.3\._bn1\.running_var"):
        build_model.build_model(state)


@pytest.mark.parametrize(("photo", "label"), [("chelsea", "Egyptian cat"), ("coffee", "espresso")])
def test_the_real_weights_name_the_sample_pictures(examples: Path, photo: str, label: str) -> None:
    path = examples / "image-classifier" / "model.onnx"
    if not path.exists():
        pytest.skip("no weights here: run examples/prepare.py image-classifier")
    picture = ImageOps.fit(Image.open(examples / "images" / f"{photo}.jpg"), (224, 224))
    pixels = (np.asarray(picture, np.float32).transpose(2, 0, 1)[None] - 127) / 128
    labels = (examples / "image-classifier" / "labels.txt").read_text().splitlines()
    assert labels[int(_run(onnx.load(path), pixels).argmax())] == label
