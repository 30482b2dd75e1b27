"""Builds model.onnx from EfficientNet-Lite0's PyTorch weights: `build_model.py WEIGHTS OUTPUT`."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from checkpoint import CheckpointError, read_checkpoint
from onnx import TensorProto, helper, numpy_helper

SIDE = 224
OPSET = 17
_IR_VERSION = 8  # the one that came with opset 17, so that older runtimes load the file
_BATCH_NORM_EPSILON = 1e-3
# (repeats, stride of the first) of the seven stages; widths and kernels are read off the weights.
_STAGES = ((1, 1), (2, 2), (2, 2), (3, 2), (3, 1), (4, 2), (1, 1))


class _GraphBuilder:
    """Adds layers one after another; `top` is the name of the last value."""

    def __init__(self, state: Mapping[str, np.ndarray]) -> None:
        self._state = state
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.top = "input"
        self.side, self.channels = SIDE, 3
        self._add_weight("relu6_low", np.float32(0))
        self._add_weight("relu6_high", np.float32(6))

    def conv(self, name: str, *, norm: str, stride: int = 1, relu6: bool = True) -> None:
        """A convolution with its batch normalisation folded into weight and bias."""
        weight = self._tensor(f"{name}.weight")
        scale = self._tensor(f"{norm}.weight") / np.sqrt(
            self._tensor(f"{norm}.running_var") + np.float32(_BATCH_NORM_EPSILON)
        )
        bias = self._tensor(f"{norm}.bias") - self._tensor(f"{norm}.running_mean") * scale
        inputs = [
            self.top,
            self._add_weight(f"{name}.weight", weight * scale[:, None, None, None]),
            self._add_weight(f"{name}.bias", bias),
        ]
        kernel = weight.shape[-1]
        # The only convolutions here with one input channel per filter are the depthwise ones.
        groups = len(weight) if weight.shape[1] == 1 else 1
        self._add_node(
            "Conv",
            inputs,
            name=name,
            kernel_shape=[kernel, kernel],
            strides=[stride, stride],
            pads=self._same_pads(kernel, stride),
            group=groups,
        )
        self.side, self.channels = -(-self.side // stride), len(weight)
        if relu6:
            self._add_node("Clip", [self.top, "relu6_low", "relu6_high"], name=f"{name}.relu6")

    def block(self, index: int, *, stride: int) -> None:
        """An inverted bottleneck: widen, filter each channel, narrow, add what came in."""
        prefix, entry, channels_in = f"_blocks.{index}", self.top, self.channels
        if f"{prefix}._expand_conv.weight" in self._state:
            self.conv(f"{prefix}._expand_conv", norm=f"{prefix}._bn0")
        self.conv(f"{prefix}._depthwise_conv", norm=f"{prefix}._bn1", stride=stride)
        self.conv(f"{prefix}._project_conv", norm=f"{prefix}._bn2", relu6=False)
        if stride == 1 and channels_in == self.channels:
            self._add_node("Add", [self.top, entry], name=f"{prefix}.add")

    def classify(self) -> None:
        self._add_node("GlobalAveragePool", [self.top], name="pool")
        self._add_node("Flatten", [self.top], name="flatten")
        weight = self._add_weight("_fc.weight", self._tensor("_fc.weight"))
        bias = self._add_weight("_fc.bias", self._tensor("_fc.bias"))
        self._add_node("Gemm", [self.top, weight, bias], name="output", transB=1)
        self.channels = len(self._state["_fc.bias"])

    def _same_pads(self, kernel: int, stride: int) -> list[int]:
        """TensorFlow's SAME: what is odd goes to the right and the bottom."""
        total = max((-(-self.side // stride) - 1) * stride + kernel - self.side, 0)
        return [total // 2, total // 2, total - total // 2, total - total // 2]

    def _tensor(self, name: str) -> np.ndarray:
        if name not in self._state:
            raise CheckpointError(f"no tensor {name!r}: these are not EfficientNet-Lite0's weights")
        return self._state[name]

    def _add_weight(self, name: str, value: np.ndarray | np.float32) -> str:
        self.weights.append(numpy_helper.from_array(np.asarray(value, np.float32), name))
        return name

    def _add_node(self, operator: str, inputs: list[str], *, name: str, **attributes: Any) -> None:
        self.nodes.append(helper.make_node(operator, inputs, [name], name=name, **attributes))
        self.top = name


def build_model(state: Mapping[str, np.ndarray]) -> onnx.ModelProto:
    """Pictures in, one score (logit) per class out; any batch size."""
    builder = _GraphBuilder(state)
    builder.conv("_conv_stem", norm="_bn0", stride=2)
    strides = [stride if n == 0 else 1 for repeats, stride in _STAGES for n in range(repeats)]
    for index, stride in enumerate(strides):
        builder.block(index, stride=stride)
    builder.conv("_conv_head", norm="_bn1")
    builder.classify()
    graph = helper.make_graph(
        builder.nodes,
        "efficientnet-lite0",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 3, SIDE, SIDE])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["batch", builder.channels])],
        builder.weights,
    )
    opsets = [helper.make_opsetid("", OPSET)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=_IR_VERSION)
    onnx.checker.check_model(model, full_check=True)
    return model


def main(weights: str, output: str) -> None:
    try:
        model = build_model(read_checkpoint(Path(weights)))
    except CheckpointError as error:
        sys.exit(f"cannot build the image classifier: {error}")
    onnx.save(model, output)


if __name__ == "__main__":
    main(*sys.argv[1:])
