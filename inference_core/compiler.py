"""Compile a model for a target: pick the backend, use the cache, ask parity."""

import asyncio
import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from inference_core.backends import Backend, EngineExecutor, ExecutorOptions, Loadable
from inference_core.backends.onnxruntime import OnnxRuntimeBackend, ReferenceModel
from inference_core.backends.openvino import OpenVinoBackend
from inference_core.cache import MODEL_FILE, EngineCache
from inference_core.devices import find_cpu
from inference_core.engine import CompileOptions, Engine, Precision, Target
from inference_core.errors import ParityError, UnsupportedModelError
from inference_core.executor import DeviceError, ExecutorError
from inference_core.onnx_model import ImportLimits, OnnxModel, load_onnx_model
from inference_core.parity import ParityReport, compare, golden_inputs, stack
from inference_core.signature import Array, Signature, Tensors

log = logging.getLogger(__name__)

_BACKENDS: dict[str, Backend] = {
    backend.name: backend for backend in (OpenVinoBackend(), OnnxRuntimeBackend())
}
_CACHE_FORMAT = 1  # raise it when engines compiled by older code must not be used again
_TOLERANCES = {Precision.F32: 1e-4, Precision.BF16: 5e-2}
# Tried in turn for dimensions that are free and not told, until the reference accepts the inputs.
_FREE_SIZES = (8, 16, 32, 64, 128, 224, 1)
_GOLDEN_COUNT = 3


@dataclass(frozen=True, slots=True)
class _Goldens:
    """Inputs and the reference's outputs; the last pair is the others merged, if nothing is in the
    way of merging requests."""

    inputs: Sequence[Tensors]
    expected: Sequence[Tensors]
    obstacle: str = ""


async def compile_model(
    onnx_path: Path,
    *,
    cache: EngineCache,
    target: Target | None = None,
    options: CompileOptions | None = None,
    limits: ImportLimits | None = None,
    sandbox: Sequence[str] = (),
) -> Engine:
    """Imports an ONNX file and makes an engine that may serve on this device.

    Args:
        onnx_path: The untrusted file; external data may lie beside it.
        cache: Where engines are kept. Concurrent calls for one engine compile once.
        target: Device and precision; the CPU in f32 unless given.
        options: Batch size, backends to try, parity's tolerance and golden inputs.
        limits: Bounds of the import.
        sandbox: Words put before the importer's command.

    Returns:
        An engine whose outputs match the reference. `remarks` says what is not as asked.

    Raises:
        InvalidModelError: The file is broken, unsafe or too large.
        UnsupportedModelError: No backend runs the model.
        ParityError: Backends run it, but wrongly.
    """
    target, options = target or Target(), options or CompileOptions()
    if target.device != "cpu":
        raise UnsupportedModelError(f"device '{target.device}' is unknown: use 'cpu'")
    with cache.workspace() as folder:
        model = await load_onnx_model(
            onnx_path, folder / MODEL_FILE, limits=limits, sandbox=sandbox
        )
        digest = await asyncio.to_thread(_engine_digest, model, target, options)
        async with cache.locked(digest):
            engine = await asyncio.to_thread(cache.load, digest)
            if engine is None:
                engine = await _compile(model, digest=digest, target=target, options=options)
                engine = await asyncio.to_thread(cache.store, engine, folder)
                log.info("engine compiled", extra={"event": "engine_compiled", "digest": digest})
            return engine


async def open_engine(engine: Engine, options: ExecutorOptions | None = None) -> EngineExecutor:
    """Loads an engine for serving.

    Args:
        engine: What `compile_model` returned.
        options: Queue, lanes and threads.

    Raises:
        UnsupportedModelError: The backend cannot load it any more.
    """
    loadable = Loadable(
        onnx_path=engine.onnx_path,
        signature=engine.signature,
        target=engine.target,
        max_batch_size=engine.max_batch_size,
    )
    return await _BACKENDS[engine.backend].open(loadable, options or ExecutorOptions())


async def measure_parity(
    executor: EngineExecutor,
    *,
    inputs: Sequence[Tensors],
    expected: Sequence[Tensors],
    tolerance: float,
) -> ParityReport:
    """Runs golden inputs through an open engine, on the path that serves, and compares.

    Args:
        executor: The open engine.
        inputs: Arrays by input name, request by request.
        expected: The reference's arrays by output name, of the same requests.
        tolerance: Largest `TensorParity.error` that passes.

    Raises:
        ExecutorError: The engine failed on a request.
    """
    actual = [await executor.run(request) for request in inputs]
    return compare(expected, actual, tolerance=tolerance)


def _engine_digest(model: OnnxModel, target: Target, options: CompileOptions) -> str:
    parts = {
        "format": _CACHE_FORMAT,
        "model": model.digest,
        "target": asdict(target),
        "options": {**asdict(options), "dimensions": dict(options.dimensions)},
        "versions": {name: _backend(name).version for name in options.backends},
        "cpu_flags": find_cpu().flags,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _backend(name: str) -> Backend:
    if name not in _BACKENDS:
        known = ", ".join(f"'{known}'" for known in _BACKENDS)
        raise UnsupportedModelError(f"backend '{name}' is unknown: use {known}")
    return _BACKENDS[name]


async def _compile(
    model: OnnxModel, *, digest: str, target: Target, options: CompileOptions
) -> Engine:
    reference = await asyncio.to_thread(ReferenceModel, model.path)
    goldens = await asyncio.to_thread(_make_goldens, model.signature, reference, options)
    remarks: list[str] = []
    if goldens.obstacle and options.max_batch_size > 1:
        remarks.append(f"requests are not merged: {goldens.obstacle}")
    errors: list[Exception] = []
    for name in options.backends:
        try:
            return await _compile_with(
                _backend(name),
                model,
                goldens,
                digest=digest,
                target=target,
                options=options,
                remarks=tuple(remarks),
            )
        except (UnsupportedModelError, ParityError, ExecutorError) as error:
            log.warning(
                "backend refused",
                extra={"event": "backend_refused", "backend": name, "reason": str(error)},
            )
            errors.append(error)
            remarks.append(f"not on {name}: {error}")
    kind = ParityError if any(isinstance(e, ParityError) for e in errors) else UnsupportedModelError
    raise kind("; ".join(remarks)) from errors[-1]


async def _compile_with(
    backend: Backend,
    model: OnnxModel,
    goldens: _Goldens,
    *,
    digest: str,
    target: Target,
    options: CompileOptions,
    remarks: tuple[str, ...],
) -> Engine:
    merges = backend.merges_requests and not goldens.obstacle
    max_batch_size = options.max_batch_size if merges else 1
    loadable = Loadable(
        onnx_path=model.path,
        signature=model.signature,
        target=target,
        max_batch_size=max_batch_size,
    )
    executor = await backend.open(loadable, ExecutorOptions(lane_count=1))
    try:
        report = await measure_parity(
            executor,
            inputs=goldens.inputs,
            expected=goldens.expected,
            tolerance=_tolerance(target, options),
        )
    finally:
        await executor.close()
    report.require()
    return Engine(
        digest=digest,
        model_digest=model.digest,
        onnx_path=model.path,
        signature=model.signature,
        backend=backend.name,
        target=target,
        max_batch_size=max_batch_size,
        parity=report,
        remarks=remarks,
    )


def _tolerance(target: Target, options: CompileOptions) -> float:
    return _TOLERANCES[target.precision] if options.tolerance is None else options.tolerance


def _make_goldens(
    signature: Signature, reference: ReferenceModel, options: CompileOptions
) -> _Goldens:
    inputs, expected = _first_accepted(signature, reference, options)
    count = min(_GOLDEN_COUNT, options.max_batch_size)
    if not signature.has_batch_dimension:
        return _Goldens(inputs, expected, "the first dimension of some tensor is fixed")
    if count == 1:
        return _Goldens(inputs, expected)
    merged = stack(inputs[:count])
    try:
        together = reference.run(merged)
    except DeviceError:
        return _Goldens(inputs, expected, "the model refuses several rows")
    if not _are_rows_of(together, expected[:count]):
        return _Goldens(inputs, expected, "the model's rows are not independent")
    return _Goldens([*inputs, merged], [*expected, together])


def _are_rows_of(together: Tensors, apart: Sequence[Tensors]) -> bool:
    if any(array.ndim == 0 for array in together.values()):
        return False
    return compare([stack(apart)], [together], tolerance=_TOLERANCES[Precision.F32]).has_passed


def _first_accepted(
    signature: Signature, reference: ReferenceModel, options: CompileOptions
) -> tuple[list[dict[str, Array]], list[dict[str, Array]]]:
    failure: DeviceError | None = None
    for free_size in _FREE_SIZES:
        inputs = [
            golden_inputs(
                signature,
                seed=options.seed + i,
                dimensions=options.dimensions,
                free_size=free_size,
                item_count=1 if signature.has_batch_dimension else None,
            )
            for i in range(_GOLDEN_COUNT)
        ]
        try:
            return inputs, [reference.run(request) for request in inputs]
        except DeviceError as error:
            failure = error
    raise UnsupportedModelError(
        f"the reference refuses every golden input that was tried ({failure}); give the sizes of "
        "the free dimensions in `dimensions`"
    )
