import math
from pathlib import Path

import numpy as np
import pytest

from inference_core import Dtype, ParityError, Signature, TensorSpec, UnsupportedModelError
from inference_core.backends.onnxruntime import ReferenceModel
from inference_core.compiler import measure_parity
from inference_core.executor import Executor
from inference_core.parity import ParityReport, compare, golden_inputs
from tests.models import onnx_builders

SIGNATURE = Signature(
    inputs=(
        TensorSpec("x", Dtype.FLOAT32, ("n", 16)),
        TensorSpec("ids", Dtype.INT64, ("n", "length")),
        TensorSpec("mask", Dtype.BOOL, ("n", None)),
    ),
    outputs=(),
)


def goldens(seed: int) -> dict[str, np.ndarray]:
    return golden_inputs(SIGNATURE, seed=seed, dimensions={"n": 2}, free_size=8)


def test_golden_inputs_fit_the_signature_and_repeat_by_seed() -> None:
    tensors = goldens(1)
    assert {name: (t.dtype.name, t.shape) for name, t in tensors.items()} == {
        "x": ("float32", (2, 16)),
        "ids": ("int64", (2, 8)),
        "mask": ("bool", (2, 8)),
    }
    assert all(np.array_equal(tensors[name], goldens(1)[name]) for name in tensors)
    assert not np.array_equal(tensors["x"], goldens(2)["x"])


def test_an_input_that_would_fill_the_memory_is_refused_before_it_is_made() -> None:
    signature = Signature((TensorSpec("x", Dtype.FLOAT32, (1, 10**6, 10**6)),), ())
    with pytest.raises(UnsupportedModelError, match=r"'x' of shape \[1, 1000000, 1000000\]"):
        golden_inputs(signature, seed=0, dimensions={}, free_size=1)


async def test_an_engine_with_one_wrong_weight_column_is_refused_by_tensor_and_index(
    tmp_path: Path,
) -> None:
    reference = ReferenceModel(onnx_builders.mlp(tmp_path / "good.onnx"))
    inputs = [{"x": np.random.default_rng(i).standard_normal((1, 16), np.float32)} for i in (0, 1)]
    expected = [reference.run(request) for request in inputs]

    async def report_of(path: Path) -> ParityReport:
        async with await Executor.open_openvino(
            str(path), input_names=["x"], output_names=["y"], properties={}
        ) as executor:
            return await measure_parity(executor, inputs=inputs, expected=expected, tolerance=1e-4)

    (await report_of(tmp_path / "good.onnx")).require()
    planted = await report_of(onnx_builders.mlp(tmp_path / "wrong.onnx", perturbed=True))
    assert not planted.has_passed
    assert planted.tensors[0].index == (0, 2)
    with pytest.raises(ParityError, match=r"output 'y' at \[0, 2\] is .* the reference has"):
        planted.require()


@pytest.mark.parametrize(
    ("expected", "actual", "error"),
    [
        ([1.0, 2.0], [1.0, 2.0], 0.0),
        ([1.0, 2.0], [1.0, 2.2], 0.1),
        ([math.nan, math.inf], [math.nan, math.inf], 0.0),
        ([1.0, 2.0], [1.0, math.nan], math.inf),
        ([1.0, math.inf], [1.0, -math.inf], math.inf),
        ([0.0, 0.0], [0.0, 0.5], 0.5),
        ([1.0, 2.0], [1.0], math.inf),
    ],
)
def test_errors_are_relative_to_the_largest_magnitude(
    expected: list[float], actual: list[float], error: float
) -> None:
    report = compare([{"y": np.array(expected)}], [{"y": np.array(actual)}], tolerance=1e-6)
    assert report.tensors[0].error == pytest.approx(error)
    assert report.has_passed is (error == 0)


@pytest.mark.parametrize(("name", "passes"), [("float16", True), ("float32", False)])
def test_half_precision_is_not_held_to_more_than_it_can_say(name: str, passes: bool) -> None:
    expected = np.array([2.0], name)
    actual = np.array([2.002], name)
    assert compare([{"y": expected}], [{"y": actual}], tolerance=1e-5).has_passed is passes


def test_a_tensor_without_axes_is_compared() -> None:
    report = compare([{"y": np.array(2.0)}], [{"y": np.array(3.0)}], tolerance=1e-4)
    assert report.tensors[0].error == 0.5
    assert report.tensors[0].index == ()


def test_integers_must_be_equal() -> None:
    report = compare([{"y": np.arange(4)}], [{"y": np.array([0, 1, 9, 3])}], tolerance=1e-4)
    assert report.tensors[0].error == 0.25
    assert report.tensors[0].index == (2,)


def test_a_missing_output_fails() -> None:
    assert not compare([{"y": np.zeros(1)}], [{}], tolerance=1.0).has_passed


def test_a_report_survives_json() -> None:
    report = compare([{"y": np.ones(2)}], [{"y": np.array([1.0, 1.5])}], tolerance=1.0)
    assert ParityReport.from_json(report.to_json()) == report
