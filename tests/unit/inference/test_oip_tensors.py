"""Tensors of the Open Inference Protocol: typed and raw, in and out."""

import struct

import pytest
from reprise.inference.v1 import engine_pb2
from reprise.oip import open_inference_pb2 as oip

from services.chassis.errors import InvalidInput
from services.inference.oip_tensors import pick_outputs, read_inputs, write_outputs


def request(datatype: str, shape: list[int], **contents: object) -> oip.ModelInferRequest:
    made = oip.ModelInferRequest()
    tensor = made.inputs.add(name="x", datatype=datatype, shape=shape)
    for field, values in contents.items():
        getattr(tensor.contents, field).extend(values)
    return made


@pytest.mark.parametrize(
    ("datatype", "field", "values", "content", "dtype"),
    [
        ("BOOL", "bool_contents", [True, False], b"\x01\x00", "bool"),
        ("UINT8", "uint_contents", [0, 255], b"\x00\xff", "uint8"),
        ("INT8", "int_contents", [-1, 1], b"\xff\x01", "int8"),
        ("INT16", "int_contents", [-1, 2], struct.pack("<2h", -1, 2), "int16"),
        ("INT32", "int_contents", [-1, 2], struct.pack("<2i", -1, 2), "int32"),
        ("INT64", "int64_contents", [-1, 2], struct.pack("<2q", -1, 2), "int64"),
        ("FP32", "fp32_contents", [0.5, 2], struct.pack("<2f", 0.5, 2), "float32"),
        ("FP64", "fp64_contents", [0.5, 2], struct.pack("<2d", 0.5, 2), "float64"),
    ],
)
def test_typed_contents_become_bytes(
    datatype: str, field: str, values: list[object], content: bytes, dtype: str
) -> None:
    (tensor,) = read_inputs(request(datatype, [2], **{field: values}))
    assert (tensor.dtype, tensor.content) == (dtype, content)


def test_raw_contents_pass_through() -> None:
    made = request("FP16", [2])
    made.raw_input_contents.append(b"abcd")
    (tensor,) = read_inputs(made)
    assert (tensor.dtype, tensor.content, list(tensor.shape)) == ("float16", b"abcd", [2])


@pytest.mark.parametrize(
    ("made", "problem"),
    [
        (request("BYTES", [1]), "datatype 'BYTES' is not served"),
        (request("FP16", [1]), "raw_input_contents"),
        (request("FP32", [3], fp32_contents=[1.0]), "4 bytes, but"),
        (request("FP32", [-1], fp32_contents=[1.0]), "impossible"),
        (request("INT8", [1], int_contents=[300]), "does not fit into INT8"),
        (request("FP32", [1] * 20, fp32_contents=[1.0]), "impossible"),
    ],
)
def test_impossible_inputs_are_refused_by_name(made: oip.ModelInferRequest, problem: str) -> None:
    with pytest.raises(InvalidInput, match=problem):
        read_inputs(made)


def test_a_huge_shape_is_refused_without_arithmetic_trouble() -> None:
    with pytest.raises(InvalidInput, match="4 bytes, but"):
        read_inputs(request("FP32", [2**62, 2**62], fp32_contents=[1.0]))


def test_buffers_must_match_the_inputs_in_number() -> None:
    made = request("FP32", [1])
    made.raw_input_contents.extend([b"1234", b"1234"])
    with pytest.raises(InvalidInput, match="2 buffers for 1 inputs"):
        read_inputs(made)


def test_an_input_given_twice_is_refused_instead_of_one_being_dropped() -> None:
    made = request("FP32", [1], fp32_contents=[1.0])
    made.inputs.append(made.inputs[0])
    with pytest.raises(InvalidInput, match="'x' is given twice"):
        read_inputs(made)


def test_outputs_leave_in_the_order_that_was_asked_for() -> None:
    outputs = [
        engine_pb2.Tensor(name="a", dtype="int64", shape=[1], content=b"12345678"),
        engine_pb2.Tensor(name="b", dtype="bool", shape=[1], content=b"1"),
    ]
    asked = oip.ModelInferRequest()
    asked.outputs.add(name="b")
    asked.outputs.add(name="a")
    response = oip.ModelInferResponse()
    write_outputs(response, pick_outputs(asked, outputs))
    assert [(out.name, out.datatype) for out in response.outputs] == [("b", "BOOL"), ("a", "INT64")]
    assert list(response.raw_output_contents) == [b"1", b"12345678"]


def test_an_unknown_output_is_refused_with_those_that_there_are() -> None:
    asked = oip.ModelInferRequest()
    asked.outputs.add(name="z")
    with pytest.raises(InvalidInput, match="'z' is unknown; the model has a"):
        pick_outputs(asked, [engine_pb2.Tensor(name="a")])
