"""Tensors of the Open Inference Protocol to those of the engine host and back."""

import math
import sys
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

from reprise.inference.v1 import engine_pb2
from reprise.oip import open_inference_pb2 as oip

from services.chassis.errors import InvalidInput

assert sys.byteorder == "little", "tensor bytes travel in little endian"


@dataclass(frozen=True, slots=True)
class _Datatype:
    name: str
    size_bytes: int
    # Field of InferTensorContents and code of Python's array; empty where only raw bytes exist.
    field: str = ""
    typecode: str = ""


_DATATYPES = {
    "bool": _Datatype("BOOL", 1, "bool_contents", "b"),
    "uint8": _Datatype("UINT8", 1, "uint_contents", "B"),
    "int8": _Datatype("INT8", 1, "int_contents", "b"),
    "int16": _Datatype("INT16", 2, "int_contents", "h"),
    "int32": _Datatype("INT32", 4, "int_contents", "i"),
    "int64": _Datatype("INT64", 8, "int64_contents", "q"),
    "float16": _Datatype("FP16", 2),
    "float32": _Datatype("FP32", 4, "fp32_contents", "f"),
    "float64": _Datatype("FP64", 8, "fp64_contents", "d"),
}
_DTYPES = {datatype.name: dtype for dtype, datatype in _DATATYPES.items()}
_RANK_MAX = 16


def datatype(dtype: str) -> str:
    """The protocol's name for numpy's."""
    return _DATATYPES[dtype].name


def read_inputs(request: oip.ModelInferRequest) -> list[engine_pb2.Tensor]:
    """Raises InvalidInput, naming the tensor."""
    raw = request.raw_input_contents
    if raw and len(raw) != len(request.inputs):
        raise InvalidInput(
            f"raw_input_contents: {len(raw)} buffers for {len(request.inputs)} inputs; "
            "give one for each, or none"
        )
    names: set[str] = set()
    for tensor in request.inputs:
        if tensor.name in names:
            raise InvalidInput(f"input '{tensor.name}' is given twice")
        names.add(tensor.name)
    return [
        _read_input(tensor, raw[index] if raw else None)
        for index, tensor in enumerate(request.inputs)
    ]


def write_outputs(response: oip.ModelInferResponse, outputs: Sequence[engine_pb2.Tensor]) -> None:
    """Outputs leave as raw bytes, as the specification prefers."""
    for tensor in outputs:
        response.outputs.add(name=tensor.name, datatype=datatype(tensor.dtype), shape=tensor.shape)
        response.raw_output_contents.append(tensor.content)


def pick_outputs(
    request: oip.ModelInferRequest, outputs: Sequence[engine_pb2.Tensor]
) -> list[engine_pb2.Tensor]:
    """Those that were asked for, in that order; all when none were named."""
    if not request.outputs:
        return list(outputs)
    by_name = {tensor.name: tensor for tensor in outputs}
    unknown = [wanted.name for wanted in request.outputs if wanted.name not in by_name]
    if unknown:
        raise InvalidInput(
            f"outputs: '{unknown[0]}' is unknown; the model has {', '.join(sorted(by_name))}"
        )
    return [by_name[wanted.name] for wanted in request.outputs]


def _read_input(
    tensor: oip.ModelInferRequest.InferInputTensor, raw: bytes | None
) -> engine_pb2.Tensor:
    dtype = _DTYPES.get(tensor.datatype)
    if dtype is None:
        raise InvalidInput(
            f"input '{tensor.name}': datatype '{tensor.datatype}' is not served; "
            f"use one of {', '.join(_DTYPES)}"
        )
    if len(tensor.shape) > _RANK_MAX or any(size < 0 for size in tensor.shape):
        raise InvalidInput(f"input '{tensor.name}': the shape {list(tensor.shape)} is impossible")
    content = raw if raw is not None else _content(tensor, dtype)
    size = math.prod(tensor.shape) * _DATATYPES[dtype].size_bytes
    if len(content) != size:
        raise InvalidInput(
            f"input '{tensor.name}': {len(content)} bytes, but {list(tensor.shape)} of "
            f"{tensor.datatype} has {size}"
        )
    return engine_pb2.Tensor(name=tensor.name, dtype=dtype, shape=tensor.shape, content=content)


def _content(tensor: oip.ModelInferRequest.InferInputTensor, dtype: str) -> bytes:
    datatype = _DATATYPES[dtype]
    if not datatype.field:
        raise InvalidInput(
            f"input '{tensor.name}': {tensor.datatype} must be given in raw_input_contents"
        )
    try:
        return array(datatype.typecode, getattr(tensor.contents, datatype.field)).tobytes()
    except OverflowError:
        raise InvalidInput(
            f"input '{tensor.name}': a value does not fit into {tensor.datatype}"
        ) from None
