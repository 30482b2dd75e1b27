"""onnxruntime on the CPU: the reference that parity compares with, and the declared fallback."""

import asyncio
import os
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path

# onnxruntime reports its use to its maker and keeps a device id in the home folder unless told
# not to, before it is loaded; a self-hosted server does neither.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from inference_core.backends import ExecutorOptions, Loadable
from inference_core.errors import UnsupportedModelError
from inference_core.executor import (
    DeadlineExceededError,
    DeviceError,
    ExecutorStats,
    InvalidInputError,
    QueueFullError,
    ShutdownError,
)
from inference_core.signature import Array, Signature, Tensors

# onnxruntime's exceptions share no base class but Exception.
_ERRORS = (
    ort_errors.EPFail,
    ort_errors.Fail,
    ort_errors.InvalidArgument,
    ort_errors.InvalidGraph,
    ort_errors.InvalidProtobuf,
    ort_errors.NoSuchFile,
    ort_errors.NotImplemented,
    ort_errors.RuntimeException,
    RuntimeError,
)


class ReferenceModel:
    """The model as it is written, without graph optimisations: what parity holds engines to.

    Args:
        onnx_path: A normalised ONNX file.

    Raises:
        UnsupportedModelError: onnxruntime cannot load it.
    """

    def __init__(self, onnx_path: Path) -> None:
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        self._inference = _load(onnx_path, options)

    def run(self, inputs: Tensors) -> dict[str, Array]:
        """Arrays by output name; blocks. Raises DeviceError when the model refuses the inputs."""
        return _run(self._inference, inputs)


class OnnxRuntimeBackend:
    """The fallback for graphs that OpenVINO cannot compile; it never merges requests."""

    name = "onnxruntime"
    merges_requests = False

    @property
    def version(self) -> str:
        return version("onnxruntime")

    async def open(self, loadable: Loadable, options: ExecutorOptions) -> "OnnxRuntimeExecutor":
        cores = options.thread_count or len(os.sched_getaffinity(0))
        lanes = options.lane_count or (1 if options.favors_latency else cores)
        session_options = ort.SessionOptions()
        session_options.intra_op_num_threads = max(1, cores // lanes)
        inference = await asyncio.to_thread(_load, loadable.onnx_path, session_options)
        return OnnxRuntimeExecutor(
            inference, loadable.signature, lane_count=lanes, queue_limit=options.queue_limit
        )


class OnnxRuntimeExecutor:
    """Runs requests on threads, under the contract of `inference_core.executor.Executor`."""

    def __init__(
        self,
        inference: ort.InferenceSession,
        signature: Signature,
        *,
        lane_count: int,
        queue_limit: int,
    ) -> None:
        self._inference = inference
        self._signature = signature
        self._queue_limit = queue_limit
        self._lanes = asyncio.Semaphore(lane_count)
        self._threads = ThreadPoolExecutor(lane_count, thread_name_prefix="onnxruntime-lane")
        self._closed = asyncio.Event()
        self._stats = ExecutorStats()
        self._stats.lane_count = lane_count

    async def run(self, inputs: Tensors, *, deadline_s: float | None = None) -> dict[str, Array]:
        check_inputs(self._signature, inputs)
        await self._take_lane(deadline_s)
        self._stats.running_count += 1
        self._stats.batch_count += 1
        self._stats.item_count += 1
        self._stats.largest_batch_size = 1
        running = asyncio.get_running_loop().run_in_executor(
            self._threads, _run, self._inference, dict(inputs)
        )
        running.add_done_callback(self._release_lane)
        return await asyncio.shield(running)

    def stats(self) -> ExecutorStats:
        return self._stats

    async def close(self) -> None:
        self._closed.set()
        await asyncio.to_thread(self._threads.shutdown)

    async def _take_lane(self, deadline_s: float | None) -> None:
        self._check_open()
        if self._stats.queued_count >= self._queue_limit and self._lanes.locked():
            self._stats.rejected_count += 1
            raise QueueFullError(
                f"the executor's queue is full: {self._stats.queued_count} requests wait"
            )
        self._stats.queued_count += 1
        try:
            async with asyncio.timeout(deadline_s):
                await self._lanes.acquire()
        except TimeoutError as error:
            self._stats.expired_count += 1
            raise DeadlineExceededError(
                "the deadline passed before the request could start"
            ) from error
        except asyncio.CancelledError:
            self._stats.cancelled_count += 1
            raise
        finally:
            self._stats.queued_count -= 1
        if self._closed.is_set():
            self._lanes.release()
            self._check_open()

    # The lane is free when the thread is, which may be long after its caller was cancelled.
    def _release_lane(self, running: asyncio.Future[dict[str, Array]]) -> None:
        self._stats.running_count -= 1
        self._lanes.release()
        if running.cancelled() or running.exception() is not None:
            self._stats.failed_count += 1
        else:
            self._stats.completed_count += 1

    def _check_open(self) -> None:
        if self._closed.is_set():
            raise ShutdownError("the executor is closed")


def check_inputs(signature: Signature, inputs: Tensors) -> None:
    """Raises InvalidInputError, naming the input, unless names, dtypes and shapes fit."""
    names = [spec.name for spec in signature.inputs]
    for name in inputs:
        if name not in names:
            known = ", ".join(f"'{known}'" for known in names)
            raise InvalidInputError(f"input '{name}' is unknown: this engine takes {known}")
    for spec in signature.inputs:
        if spec.name not in inputs:
            raise InvalidInputError(f"input '{spec.name}' is missing: expected {spec.describe()}")
        tensor = inputs[spec.name]
        if tensor.dtype != spec.dtype.numpy or not spec.fits(tensor.shape):
            raise InvalidInputError(
                f"input '{spec.name}': expected {spec.describe()}, "
                f"got {tensor.dtype} {list(tensor.shape)}"
            )


def _load(onnx_path: Path, options: ort.SessionOptions) -> ort.InferenceSession:
    options.log_severity_level = 4  # what matters is raised
    try:
        return ort.InferenceSession(
            str(onnx_path), sess_options=options, providers=["CPUExecutionProvider"]
        )
    except _ERRORS as error:
        raise UnsupportedModelError(_shortened(error, onnx_path)) from error


def _run(inference: ort.InferenceSession, inputs: Tensors) -> dict[str, Array]:
    names = [output.name for output in inference.get_outputs()]
    try:
        return dict(zip(names, inference.run(names, dict(inputs)), strict=True))
    except _ERRORS as error:
        raise DeviceError(_shortened(error)) from error


def _shortened(error: Exception, path: Path | None = None) -> str:
    text = str(error).replace(str(path), "the model") if path else str(error)
    return "onnxruntime: " + " ".join(text.split())[:500]
