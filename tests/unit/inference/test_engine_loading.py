"""Which file of a version is the model."""

import pytest

from services.chassis.errors import InvalidInput
from services.inference.engine_loading import find_onnx


def test_the_only_onnx_file_is_the_model() -> None:
    assert find_onnx(["reprise.yaml", "nets/classifier.onnx", "labels.txt"]) == (
        "nets/classifier.onnx"
    )


def test_among_several_model_onnx_is_the_model() -> None:
    assert find_onnx(["other.onnx", "model.onnx"]) == "model.onnx"


@pytest.mark.parametrize("paths", [[], ["a.txt"], ["a.onnx", "b.onnx"]])
def test_none_or_several_are_refused(paths: list[str]) -> None:
    with pytest.raises(InvalidInput, match="onnx file"):
        find_onnx(paths)
