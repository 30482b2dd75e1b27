import io
import json
import struct
import zlib
from collections.abc import Mapping
from typing import Any

import jsonschema_rs
import numpy as np
import pytest
from PIL import Image

from inference_core import Dtype, Signature, TensorSpec
from services.chassis.errors import InvalidInput
from services.inference.adapters import Adapter, load_adapter
from services.inference.prediction_files import FileContent

IMAGE_MODEL = Signature(
    inputs=(TensorSpec("pixels", Dtype.FLOAT32, ("n", 3, 4, 4)),),
    outputs=(TensorSpec("logits", Dtype.FLOAT32, ("n", 3)),),
)
CLASSIFIER = b"""
inputs:
  image: {type: image, tensor: pixels, mean: [127, 127, 127], std: [128, 128, 128]}
  top_k: {type: integer, default: 2, minimum: 1, maximum: 3, for: scores}
outputs:
  scores: {type: labels, tensor: logits, labels: labels.txt, activation: softmax, top_k: 2}
"""
LABELS = {"labels.txt": b"cat\ndog\nfish\n"}


def picture(color: tuple[int, ...], size: tuple[int, int] = (4, 4), kind: str = "PNG") -> bytes:
    content = io.BytesIO()
    Image.new("RGB", size, color).save(content, kind)
    return content.getvalue()


def adapter_of(config: str, signature: Signature = IMAGE_MODEL, **files: bytes) -> Adapter:
    return load_adapter(config.encode(), signature, {**LABELS, **files})


def refusal_of(config: str, signature: Signature = IMAGE_MODEL) -> str:
    with pytest.raises(InvalidInput) as caught:
        adapter_of(config, signature)
    return str(caught.value)


def one_input(spec: TensorSpec, entry: str) -> Adapter:
    signature = Signature((spec,), (TensorSpec("y", Dtype.FLOAT32, (1,)),))
    return adapter_of(
        f"inputs:\n  value: {{{entry}, tensor: {spec.name}}}\noutputs:\n  y: {{type: number}}\n",
        signature,
    )


@pytest.fixture
def classifier() -> Adapter:
    return load_adapter(CLASSIFIER, IMAGE_MODEL, LABELS)


def test_an_image_becomes_a_normalised_tensor(classifier: Adapter) -> None:
    tensors = classifier.to_tensors({"image": picture((255, 127, 0), (9, 6))})
    pixels = tensors["pixels"]
    assert pixels.shape == (1, 3, 4, 4)
    assert pixels.dtype == np.float32
    assert pixels[0, :, 0, 0].tolist() == pytest.approx([1.0, 0.0, -127 / 128])
    assert classifier.image_inputs == {"image"}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("layout: NHWC, size: [2, 2]", [1, 0, 0]),
        ("layout: NHWC, size: [2, 2], color: BGR", [0, 0, 1]),
        ("layout: NHWC, size: [2, 2], mean: 0, std: 1", [255, 0, 0]),
    ],
)
def test_layout_color_and_range_are_as_declared(options: str, expected: list[float]) -> None:
    adapter = one_input(
        TensorSpec("x", Dtype.FLOAT32, (None, None, None, 3)), f"type: image, {options}"
    )
    x = adapter.to_tensors({"value": picture((255, 0, 0))})["x"]
    assert x.shape == (1, 2, 2, 3)
    assert x[0, 0, 0].tolist() == expected


def test_a_gray_uint8_image_keeps_its_pixels() -> None:
    adapter = one_input(TensorSpec("x", Dtype.UINT8, (1, 1, 2, 2)), "type: image, color: GRAY")
    assert adapter.to_tensors({"value": picture((9, 9, 9))})["x"].tolist() == [[[[9, 9], [9, 9]]]]


@pytest.mark.parametrize(
    ("resize", "corner", "center"), [("crop", 255, 255), ("stretch", 255, 255), ("fit", 0, 255)]
)
def test_resize_crops_stretches_or_pads(resize: str, corner: int, center: int) -> None:
    adapter = one_input(
        TensorSpec("x", Dtype.UINT8, (1, 8, 8, 3)), f"type: image, layout: NHWC, resize: {resize}"
    )
    x = adapter.to_tensors({"value": picture((255, 255, 255), (16, 8))})["x"]
    assert x[0, 0, 0, 0] == corner
    assert x[0, 4, 4, 0] == center


def test_labels_come_best_first_with_probabilities(classifier: Adapter) -> None:
    outputs = {"logits": np.array([[1.0, 3.0, 2.0]], np.float32)}
    scores = classifier.from_tensors(outputs)
    assert [entry["label"] for entry in scores] == ["dog", "fish"]
    assert scores[0]["score"] == pytest.approx(0.665241)
    assert len(classifier.from_tensors(outputs, {"top_k": 1})) == 1
    json.dumps(scores)


def test_the_schema_is_what_replicate_clients_read(classifier: Adapter) -> None:
    document = classifier.openapi_schema()
    assert document["openapi"] == "3.0.2"
    schema = document["components"]["schemas"]["Input"]
    assert schema["title"] == "Input"
    assert schema["required"] == ["image"]
    assert schema["properties"]["image"] == {
        "title": "Image",
        "x-order": 0,
        "type": "string",
        "format": "uri",
        "description": "An image",
    }
    top_k = schema["properties"]["top_k"]
    assert (top_k["type"], top_k["default"], top_k["minimum"], top_k["maximum"]) == (
        "integer",
        2,
        1,
        3,
    )
    assert (top_k["title"], top_k["x-order"]) == ("Top k", 1)
    output = document["components"]["schemas"]["Output"]
    assert output["title"] == "Output"
    answer = classifier.from_tensors({"logits": np.zeros((1, 3), np.float32)})
    jsonschema_rs.validator_for(output).validate(answer)


def test_without_a_configuration_the_graph_is_the_schema() -> None:
    signature = Signature(
        inputs=(
            TensorSpec("x", Dtype.FLOAT32, ("n", 2)),
            TensorSpec("ids", Dtype.INT64, (2,)),
            TensorSpec("flag", Dtype.BOOL, ()),
        ),
        outputs=(TensorSpec("y", Dtype.FLOAT32, ("n",)), TensorSpec("z", Dtype.INT32, ())),
    )
    adapter = load_adapter(None, signature, {})
    tensors = adapter.to_tensors({"x": [[1, 2.5]], "ids": [3, 4], "flag": True})
    assert {name: (t.dtype.name, t.tolist()) for name, t in tensors.items()} == {
        "x": ("float32", [[1.0, 2.5]]),
        "ids": ("int64", [3, 4]),
        "flag": ("bool", True),
    }
    schemas = adapter.openapi_schema()["components"]["schemas"]
    ids = schemas["Input"]["properties"]["ids"]
    assert (ids["minItems"], ids["maxItems"], ids["items"]) == (2, 2, {"type": "integer"})
    assert ids["description"] == "int64 [2]"
    outputs = {"y": np.array([1.5, np.nan], np.float32), "z": np.array(7, np.int32)}
    assert adapter.from_tensors(outputs) == {"y": [1.5, None], "z": 7}
    assert schemas["Output"]["required"] == ["y", "z"]


def test_a_text_becomes_padded_bytes() -> None:
    adapter = one_input(
        TensorSpec("ids", Dtype.INT32, (1, 6)), "type: text, encoding: bytes, length: 6, pad: 1"
    )
    assert adapter.to_tensors({"value": "hé!"})["ids"].tolist() == [[104, 195, 169, 33, 1, 1]]
    with pytest.raises(InvalidInput, match="input 'value' has 7 bytes, the model takes 6"):
        adapter.to_tensors({"value": "seven !"})


def test_a_number_fills_a_tensor_of_one_element() -> None:
    adapter = one_input(
        TensorSpec("alpha", Dtype.FLOAT32, ("n", 1)), "type: number, default: 0.5, maximum: 1"
    )
    assert adapter.to_tensors({})["alpha"].tolist() == [[0.5]]
    assert adapter.from_tensors({"y": np.array([2.0])}) == 2.0
    with pytest.raises(InvalidInput, match="input 'value' must be at most 1"):
        adapter.to_tensors({"value": 2})


def test_an_image_output_is_a_file() -> None:
    signature = Signature(
        (TensorSpec("x", Dtype.FLOAT32, (1,)),),
        (TensorSpec("rgb", Dtype.FLOAT32, (1, 3, 2, 2)),),
    )
    adapter = adapter_of(
        "inputs: {x: {type: number}}\noutputs: {picture: {type: image, tensor: rgb}}", signature
    )
    planes = np.stack([np.full((2, 2), v, np.float32) for v in (1.0, 0.5, -3.0)])[None]
    file = adapter.from_tensors({"rgb": planes})
    assert isinstance(file, FileContent)
    assert file.media_type == "image/png"
    assert Image.open(io.BytesIO(file.content)).getpixel((0, 0)) == (255, 128, 0)
    output = adapter.openapi_schema()["components"]["schemas"]["Output"]
    assert (output["type"], output["format"]) == ("string", "uri")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "input 'image' is missing"),
        ({"image": b"x", "colour": 1}, "input 'colour' is unknown; use 'image', 'top_k'"),
        ({"image": "https://example.com/a.png"}, "input 'image' must be an image file"),
        ({"image": b"not an image"}, "input 'image' is not a readable image: send PNG"),
        ({"image": picture((0, 0, 0))[:45]}, "input 'image' is not a readable image"),
        ({"image": picture((0, 0, 0)), "top_k": 9}, "input 'top_k' must be at most 3"),
        ({"image": picture((0, 0, 0)), "top_k": 1.5}, "input 'top_k' must be a whole number"),
        ({"image": picture((0, 0, 0)), "top_k": True}, "input 'top_k' must be a number"),
        ({"image": picture((0, 0, 0)), "top_k": float("nan")}, "input 'top_k' must be a number"),
    ],
)
def test_a_wrong_value_is_refused_by_field(
    classifier: Adapter, values: Mapping[str, Any], message: str
) -> None:
    with pytest.raises(InvalidInput) as caught:
        classifier.to_tensors(values)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("text", "must have shape int32 [2, 2], got []"),
        ([[1, 2, 3]], "got [1, 3]"),
        ([[1, 2], [3]], "must be a regular array without holes"),
        ([[1, 2], [3, "4"]], "must hold values of type int32"),
        ([[1, 2], [3, 4.5]], "must hold values of type int32"),
        ([[1, 2], [3, 2**40]], "has values out of range for int32"),
        ([[1, 2], [3, 2**80]], "must hold values of type int32"),
        ([[1, 2], [3, None]], "must hold values of type int32"),
    ],
)
def test_a_wrong_array_is_refused(value: object, message: str) -> None:
    adapter = one_input(TensorSpec("x", Dtype.INT32, (2, 2)), "type: tensor")
    with pytest.raises(InvalidInput) as caught:
        adapter.to_tensors({"value": value})
    assert message in str(caught.value)


def test_an_image_bomb_is_refused_before_it_is_unpacked(classifier: Adapter) -> None:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", 10_000, 10_000, 8, 2, 0, 0, 0)
    rows = zlib.compress(b"\0" * 1000)
    bomb = (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    )
    with pytest.raises(InvalidInput, match="10000 x 10000 pixels"):
        classifier.to_tensors({"image": bomb})
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    bomb = (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    )
    with pytest.raises(InvalidInput, match="pixels"):
        classifier.to_tensors({"image": bomb})


def test_an_image_of_too_many_bytes_is_refused(classifier: Adapter) -> None:
    with pytest.raises(InvalidInput, match="input 'image' has more than"):
        classifier.to_tensors({"image": b"\0" * ((32 << 20) + 1)})


OUTPUTS = "outputs: {scores: {type: labels, tensor: logits, labels: labels.txt}}\n"
INPUTS = "inputs: {image: {type: image, tensor: pixels}}\n"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("inputs: [", "reprise.yaml is not valid YAML"),
        ("just a text", "reprise.yaml must be a mapping"),
        (INPUTS, "reprise.yaml.outputs must declare at least one output"),
        (INPUTS + OUTPUTS + "extra: 1", "reprise.yaml.extra is unknown; use one of: inputs"),
        (OUTPUTS, "tensor 'pixels' (float32 [n, 3, 4, 4]) must be filled by exactly one input"),
        (
            "inputs: {image: {type: image, tensor: pixel}}\n" + OUTPUTS,
            "reprise.yaml.inputs.image.tensor names 'pixel'; the model has 'pixels'",
        ),
        (
            "inputs: {image: {type: video, tensor: pixels}}\n" + OUTPUTS,
            "reprise.yaml.inputs.image.type must be one of image, tensor, text",
        ),
        (
            "inputs: {image: {type: image, tensor: pixels, colour: RGB}}\n" + OUTPUTS,
            "reprise.yaml.inputs.image.colour is unknown; use one of: color",
        ),
        (
            "inputs: {image: {type: image, tensor: pixels, size: [8, 8]}}\n" + OUTPUTS,
            "'pixels' is float32 [n, 3, 4, 4], the image gives [1, 3, 8, 8]",
        ),
        (
            "inputs: {image: {type: image, tensor: pixels, std: [0.229, 0.224, 0.225]}}\n"
            + OUTPUTS,
            "count in pixel values 0..255: multiply by 255",
        ),
        (
            "inputs: {image: {type: image, tensor: pixels, mean: [1, 2]}}\n" + OUTPUTS,
            "reprise.yaml.inputs.image.mean must hold 3 numbers",
        ),
        (
            INPUTS + "outputs: {s: {type: labels, tensor: logits, labels: names.txt}}",
            "reprise.yaml.outputs.s.labels names 'names.txt', which is not among 'labels.txt'",
        ),
        (
            INPUTS + "outputs: {s: {type: labels, tensor: logits, labels: labels.txt, top_k: 4}}",
            "reprise.yaml.outputs.s.top_k must lie between 1 and 3",
        ),
        (
            "inputs: {image: {type: image, tensor: pixels}, k: {type: integer, for: scores}}\n"
            + OUTPUTS,
            "reprise.yaml.inputs.k.for 'scores' takes no integer parameter 'k'",
        ),
        (
            "inputs: {image: {type: image, tensor: pixels},"
            " top_k: {type: integer, for: scores, default: 9, maximum: 3}}\n" + OUTPUTS,
            "top_k.default' must be at most 3",
        ),
    ],
)
def test_a_wrong_configuration_is_refused_by_key(config: str, message: str) -> None:
    assert message in refusal_of(config)


def test_labels_must_be_as_many_as_classes() -> None:
    with pytest.raises(InvalidInput, match="holds 2 names, tensor 'logits' has 3 classes"):
        load_adapter(CLASSIFIER, IMAGE_MODEL, {"labels.txt": b"cat\ndog"})
