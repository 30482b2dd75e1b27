"""Tensors of the Open Inference Protocol to those of the engine host and back."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from reprise.inference.v1 import engine_pb2
from reprise.oip import open_inference_pb2 as oip

from services.chassis.errors import InvalidInput

assert sys.byteorder == "little", "tensor bytes travel in little endian"


@dataclass(frozen=True, slots=True)
class _Datatype:
    name: str
    # Field of InferTensorContents; empty where the protocol has only raw bytes.
    field: str


_DATATYPES = {
    "bool": _Datatype("BOOL", "bool_contents"),
    "uint8": _Datatype("UINT8", "uint_contents"),
    "int8": _Datatype("INT8", "int_contents"),
    "int16": _Datatype("INT16", "int_contents"),
    "int32": _Datatype("INT32", "int_contents"),
    "int64": _Datatype("INT64", "int64_contents"),
    "float16": _Datatype("FP16", ""),
    "float32": _Datatype("FP32", "fp32_contents"),
    "float64": _Datatype("FP64", "fp64_contents"),
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
    count = 1
    for size in tensor.shape:
        count *= size
    if len(content) != count * np.dtype(dtype).itemsize:
        raise InvalidInput(
            f"input '{tensor.name}': {len(content)} bytes, but {list(tensor.shape)} of "
            f"{tensor.datatype} has {count * np.dtype(dtype).itemsize}"
        )
    return engine_pb2.Tensor(name=tensor.name, dtype=dtype, shape=tensor.shape, content=content)


def _content(tensor: oip.ModelInferRequest.InferInputTensor, dtype: str) -> bytes:
    field = _DATATYPES[dtype].field
    if not field:
        raise InvalidInput(
            f"input '{tensor.name}': {tensor.datatype} must be given in raw_input_contents"
        )
    values = np.array(getattr(tensor.contents, field))
    if values.dtype.kind in "iu" and dtype in ("uint8", "int8", "int16", "int32"):
        limits = np.iinfo(dtype)
        if values.size and (values.min() < limits.min or values.max() > limits.max):
            raise InvalidInput(
                f"input '{tensor.name}': a value does not fit into {tensor.datatype}"
            )
    return values.astype(dtype).tobytes()
