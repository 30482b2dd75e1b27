"""Tiny ONNX models built by code; each function writes one file and returns its path."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

OPSET = 17
Shape = Sequence[int | str | None]


def value(name: str, shape: Shape, dtype: int = TensorProto.FLOAT) -> ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, list(shape))


def save(
    path: Path,
    nodes: Sequence[NodeProto],
    *,
    inputs: Sequence[ValueInfoProto],
    outputs: Sequence[ValueInfoProto],
    weights: dict[str, np.ndarray] | None = None,
    opset: int = OPSET,
) -> Path:
    initializers = [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()]
    graph = helper.make_graph(list(nodes), "tiny", list(inputs), list(outputs), initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    path.write_bytes(model.SerializeToString())
    return path


def mlp(path: Path, *, seed: int = 0, perturbed: bool = False, width: int = 16) -> Path:
    """x[n, width] -> y[n, 4]; `perturbed` changes a single weight."""
    random = np.random.default_rng(seed)
    first = random.standard_normal((width, 32)).astype(np.float32)
    second = random.standard_normal((32, 4)).astype(np.float32)
    if perturbed:
        second[:, 2] *= np.float32(1.01)
    nodes = [
        helper.make_node("MatMul", ["x", "first"], ["hidden"], name="hidden"),
        helper.make_node("Relu", ["hidden"], ["active"], name="active"),
        helper.make_node("MatMul", ["active", "second"], ["y"], name="last"),
    ]
    return save(
        path,
        nodes,
        inputs=[value("x", ["n", width])],
        outputs=[value("y", ["n", 4])],
        weights={"first": first, "second": second},
    )


def row_sum(path: Path, *, width: int | str = 16) -> Path:
    """x[n, width] -> total[n, 1]: the sum of each row."""
    nodes = [helper.make_node("ReduceSum", ["x", "axes"], ["total"], name="sum", keepdims=1)]
    return save(
        path,
        nodes,
        inputs=[value("x", ["n", width])],
        outputs=[value("total", ["n", 1])],
        weights={"axes": np.array([1], np.int64)},
    )


def mean_over_rows(path: Path) -> Path:
    """x[n, 4] -> y[n, 4]: each row minus the mean of all, so rows are not independent."""
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["mean"], name="mean", axes=[0], keepdims=1),
        helper.make_node("Sub", ["x", "mean"], ["y"], name="center"),
    ]
    return save(path, nodes, inputs=[value("x", ["n", 4])], outputs=[value("y", ["n", 4])])


def doubled(path: Path, dtype: np.dtype) -> Path:
    """x[n, 3] -> y[n, 6]: each row twice, in any dtype."""
    kind = helper.np_dtype_to_tensor_dtype(dtype)
    nodes = [helper.make_node("Concat", ["x", "x"], ["y"], name="twice", axis=1)]
    return save(
        path, nodes, inputs=[value("x", ["n", 3], kind)], outputs=[value("y", ["n", 6], kind)]
    )


def two_tensors(path: Path) -> Path:
    """a[n, 3] float32, b[n, 1] int64 -> sum[n, 3] float32, is_big[n, 3] bool."""
    nodes = [
        helper.make_node("Cast", ["b"], ["b_float"], name="cast", to=TensorProto.FLOAT),
        helper.make_node("Add", ["a", "b_float"], ["sum"], name="add"),
        helper.make_node("Greater", ["sum", "limit"], ["is_big"], name="greater"),
    ]
    return save(
        path,
        nodes,
        inputs=[value("a", ["n", 3]), value("b", ["n", 1], TensorProto.INT64)],
        outputs=[value("sum", ["n", 3]), value("is_big", ["n", 3], TensorProto.BOOL)],
        weights={"limit": np.array(10, np.float32)},
    )


def slow(path: Path, *, steps: int = 24) -> Path:
    """x[1024, 1024] -> y[1024, 1024]: enough work to keep a lane busy for a while."""
    names = ["x", *(f"h{i}" for i in range(steps - 1)), "y"]
    nodes = [
        helper.make_node("MatMul", [before, "w"], [after], name=f"step{i}")
        for i, (before, after) in enumerate(pairwise(names))
    ]
    weights = {"w": np.eye(1024, dtype=np.float32)[::-1].copy()}
    shape = [1024, 1024]
    return save(
        path, nodes, inputs=[value("x", shape)], outputs=[value("y", shape)], weights=weights
    )


def determinant(path: Path) -> Path:
    """x[n, 2, 2] -> y[n]: an operator that onnxruntime runs and OpenVINO does not."""
    nodes = [helper.make_node("Det", ["x"], ["y"], name="det")]
    return save(path, nodes, inputs=[value("x", ["n", 2, 2])], outputs=[value("y", ["n"])])


def image_to_scores(path: Path, *, classes: int = 3) -> Path:
    """image[n, 3, 4, 4] -> scores[n, classes]: sums of the color planes."""
    weights = {"axes": np.array([2, 3], np.int64)}
    nodes = [
        helper.make_node("ReduceSum", ["image", "axes"], ["scores"], name="planes", keepdims=0)
    ]
    return save(
        path,
        nodes,
        inputs=[value("image", ["n", 3, 4, 4])],
        outputs=[value("scores", ["n", classes])],
        weights=weights,
    )


def with_external_data(path: Path, location: str) -> Path:
    """A model whose one weight says that it lies at `location`; writes no such file."""
    mlp(path)
    model = onnx.load_model(path)
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    path.write_bytes(model.SerializeToString())
    return path
