"""Import untrusted model files in a child process with bounded memory and time.

`python -m inference_core.importers` is the child: one request on stdin, one answer on stdout.
"""

import asyncio
import json
import os
import resource
import signal
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import onnx
from onnx import ModelProto, TensorProto, ValueInfoProto

from inference_core import onnx_checks
from inference_core.errors import InvalidModelError
from inference_core.signature import Dimension, Dtype, Signature, TensorSpec

_ANSWER_BYTES_MAX = 8 << 20
_TENSOR_COUNT_MAX = 1024
# Before 4, weights had to be listed as inputs too. Versions after 11 add types that no backend
# runs; what is left reads the same under 11.
_IR_VERSION_MIN, _IR_VERSION_MAX = 4, 11
_DTYPES = {
    "FLOAT16": Dtype.FLOAT16,
    "FLOAT": Dtype.FLOAT32,
    "DOUBLE": Dtype.FLOAT64,
    "INT8": Dtype.INT8,
    "UINT8": Dtype.UINT8,
    "INT16": Dtype.INT16,
    "INT32": Dtype.INT32,
    "INT64": Dtype.INT64,
    "BOOL": Dtype.BOOL,
}


@dataclass(frozen=True, slots=True)
class ImportLimits:
    """Bounds of one import.

    Args:
        max_bytes: Size of the model with its external data; protobuf cannot hold 2 GiB.
        memory_bytes: Address space that the import may take on top of the interpreter's own.
        cpu_s: Processor seconds.
        wall_s: Seconds on the clock.
    """

    max_bytes: int = (1 << 31) - 1
    memory_bytes: int = 12 << 30
    cpu_s: int = 120
    wall_s: float = 180.0


async def import_onnx(
    source: Path, destination: Path, *, limits: ImportLimits, sandbox: Sequence[str]
) -> dict[str, Any]:
    """Writes the normalised model to `destination` and returns what the child says about it."""
    request = {"source": str(source), "destination": str(destination), "limits": asdict(limits)}
    process = await asyncio.create_subprocess_exec(
        *sandbox,
        sys.executable,
        "-P",  # the working directory must not shadow modules
        "-m",
        "inference_core.importers",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        env={"PATH": os.defpath, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )
    try:
        async with asyncio.timeout(limits.wall_s):
            text = await _exchange(process, json.dumps(request).encode())
            code = await process.wait()
    except TimeoutError as error:
        raise InvalidModelError(f"the import took longer than {limits.wall_s:g} s") from error
    finally:
        await _end(process)
    return _read_answer(text, code, limits)


async def _exchange(process: asyncio.subprocess.Process, request: bytes) -> bytes:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(request)
    process.stdin.write_eof()
    text = bytearray()
    while chunk := await process.stdout.read(1 << 16):
        text += chunk
        if len(text) > _ANSWER_BYTES_MAX:
            raise InvalidModelError("the model's signature is too long to be read")
    return bytes(text)


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.kill()
        await process.wait()


def _read_answer(text: bytes, code: int, limits: ImportLimits) -> dict[str, Any]:
    if code == -signal.SIGXCPU:
        raise InvalidModelError(f"the import took longer than {limits.cpu_s} s of processor time")
    if code != 0:
        raise InvalidModelError(
            f"the importer ended with status {code}: the file makes the parser crash, or needs "
            f"more than {limits.memory_bytes} bytes of memory"
        )
    answer: dict[str, Any] = json.loads(text)
    if "error" in answer:
        raise InvalidModelError(answer["error"])
    return answer


def main() -> None:
    request = json.load(sys.stdin)
    limits = ImportLimits(**request["limits"])
    _limit_resources(limits)
    try:
        answer = _import(Path(request["source"]), Path(request["destination"]), limits)
    except InvalidModelError as error:
        answer = {"error": str(error)}
    except MemoryError:
        answer = {"error": f"the import needs more than {limits.memory_bytes} bytes of memory"}
    json.dump(answer, sys.stdout)


def _limit_resources(limits: ImportLimits) -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    memory = pages * resource.getpagesize() + limits.memory_bytes
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CPU, (limits.cpu_s, limits.cpu_s + 1))
    resource.setrlimit(resource.RLIMIT_FSIZE, (limits.max_bytes, limits.max_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))


def _import(source: Path, destination: Path, limits: ImportLimits) -> dict[str, Any]:
    model = onnx_checks.parse(source, max_bytes=limits.max_bytes)
    onnx_checks.check(model, source.parent, max_bytes=limits.max_bytes)
    onnx_checks.load_external_data(model, source.parent)
    _normalise(model)
    onnx_checks.check_semantics(model)
    signature = _signature_of(model)
    try:
        destination.write_bytes(model.SerializeToString(deterministic=True))
    except ValueError as error:
        raise InvalidModelError(
            f"the model with its external data has more than {limits.max_bytes} bytes: export one "
            "with half-precision weights"
        ) from error
    return {
        "signature": signature.to_json(),
        "opset": max(
            (o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), default=0
        ),
        "node_count": len(model.graph.node),
    }


def _normalise(model: ModelProto) -> None:
    """Drops what does not change results, so that equal models have equal digests."""
    initializers = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in initializers]
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    model.ir_version = min(max(model.ir_version, _IR_VERSION_MIN), _IR_VERSION_MAX)
    for field in ("doc_string", "producer_name", "producer_version", "metadata_props"):
        model.ClearField(field)
    model.graph.ClearField("doc_string")
    for node in model.graph.node:
        node.ClearField("doc_string")
    if any(not _is_complete(value) for value in model.graph.output):
        try:
            inferred = onnx.shape_inference.infer_shapes(model)
        except onnx.shape_inference.InferenceError as error:
            raise InvalidModelError(
                f"the outputs' shapes cannot be inferred ({error}): declare them when exporting"
            ) from error
        del model.graph.output[:]
        model.graph.output.extend(inferred.graph.output)


def _is_complete(value: ValueInfoProto) -> bool:
    tensor = value.type.tensor_type
    return tensor.elem_type != TensorProto.UNDEFINED and tensor.HasField("shape")


def _signature_of(model: ModelProto) -> Signature:
    graph = model.graph
    if not graph.output or len(graph.input) + len(graph.output) > _TENSOR_COUNT_MAX:
        raise InvalidModelError(
            f"the graph must have 1 to {_TENSOR_COUNT_MAX} inputs and outputs, "
            f"it has {len(graph.input)} and {len(graph.output)}"
        )
    return Signature(
        inputs=tuple(_spec_of(value, "input") for value in graph.input),
        outputs=tuple(_spec_of(value, "output") for value in graph.output),
    )


def _spec_of(value: ValueInfoProto, kind: str) -> TensorSpec:
    tensor = value.type.tensor_type
    element_type = TensorProto.DataType.Name(cast(TensorProto.DataType, tensor.elem_type))
    dtype = _DTYPES.get(element_type)
    if dtype is None:
        raise InvalidModelError(
            f"{kind} '{value.name}' has type {element_type}: use one of "
            f"{', '.join(_DTYPES.values())}"
        )
    if not tensor.HasField("shape"):
        raise InvalidModelError(
            f"{kind} '{value.name}' has no shape: declare its dimensions when exporting"
        )
    dims: list[Dimension] = [
        dim.dim_value if dim.HasField("dim_value") else dim.dim_param or None
        for dim in tensor.shape.dim
    ]
    return TensorSpec(name=value.name, dtype=dtype, shape=tuple(dims))


if __name__ == "__main__":
    main()
