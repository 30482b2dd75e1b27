"""The asyncio side of the native executor; the only module that imports `reprise_executor`."""

import asyncio
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

import reprise_executor as native
from reprise_executor import (
    DeadlineExceededError,
    DeviceError,
    ExecutorError,
    ExecutorStats,
    InvalidInputError,
    ModelLoadError,
    QueueFullError,
    RequestCancelledError,
    ShutdownError,
)

from inference_core.signature import Array, Tensors

__all__ = [
    "DeadlineExceededError",
    "DeviceError",
    "Executor",
    "ExecutorError",
    "ExecutorStats",
    "InvalidInputError",
    "ModelLoadError",
    "QueueFullError",
    "RequestCancelledError",
    "ShutdownError",
]


class Executor:
    """Runs requests on one engine: bounded queue, dynamic batcher and lanes, all native.

    Belongs to the event loop that opened it. Completions arrive in one wake-up per drained batch.
    """

    def __init__(self, executor: native.Executor) -> None:
        self._native: native.Executor | None = executor  # None once closed: gives its memory back
        self._last_stats = executor.stats()
        self._futures: dict[int, asyncio.Future[dict[str, Array]]] = {}
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(executor.fileno(), self._drain)
        self._closing: asyncio.Future[None] | None = None

    @classmethod
    async def open_openvino(
        cls,
        model_path: str,
        *,
        input_names: list[str],
        output_names: list[str],
        properties: Mapping[str, str],
        max_batch_size: int = 1,
        max_queue_delay_us: int = 0,
        queue_limit: int = 1024,
        lane_count: int = 0,
    ) -> Self:
        """Compiles a model for the CPU and opens its lanes.

        Args:
            model_path: ONNX file or OpenVINO IR.
            input_names: Every input, in any order.
            output_names: The outputs that requests get.
            properties: OpenVINO properties; f32 and unpinned threads unless given.
            max_batch_size: Items (rows) that one call may hold; 1 turns merging off.
            max_queue_delay_us: How long a batch that could still grow waits, in microseconds.
            queue_limit: Requests that may wait.
            lane_count: Batches in flight; 0 takes what OpenVINO calls optimal.

        Raises:
            ModelLoadError: OpenVINO cannot read or compile the model.
            InvalidInputError: An option cannot work with this model.
        """
        opened = await asyncio.to_thread(
            native.Executor.open_openvino,
            model_path,
            input_names=input_names,
            output_names=output_names,
            properties=dict(properties),
            max_batch_size=max_batch_size,
            max_queue_delay_us=max_queue_delay_us,
            queue_limit=queue_limit,
            lane_count=lane_count,
        )
        return cls(opened)

    async def run(self, inputs: Tensors, *, deadline_s: float | None = None) -> dict[str, Array]:
        """Runs one request; it may share an engine call with others.

        Args:
            inputs: Arrays by input name, in the signature's dtypes and shapes; where requests are
                merged, the first dimension counts the items, 1 to `max_batch_size`. C-contiguous
                arrays are lent, not copied, so they must not change until this returns.
            deadline_s: Seconds from now by which the run must have started.

        Returns:
            New C-contiguous arrays by output name, with as many items as the inputs.

        Raises:
            InvalidInputError: A name, dtype or shape does not fit.
            QueueFullError: As many requests wait as may wait.
            DeadlineExceededError: It was still queued at its deadline.
            ShutdownError: The executor was closed.
            DeviceError: The engine failed on this request.
        """
        executor = self._open_native()
        request_id = executor.submit(dict(inputs), deadline_s)
        future: asyncio.Future[dict[str, Array]] = self._loop.create_future()
        self._futures[request_id] = future
        try:
            return await future
        except asyncio.CancelledError:
            # A request that runs already completes, and its outputs are dropped.
            executor.cancel(request_id)
            raise
        finally:
            self._futures.pop(request_id, None)

    def stats(self) -> ExecutorStats:
        """Counters since it was opened, as of now; after `close` the last ones."""
        if self._native is not None:
            self._last_stats = self._native.stats()
        return self._last_stats

    async def close(self) -> None:
        """Fails what is queued with ShutdownError, lets running batches finish. Idempotent."""
        if self._closing is None:
            self._closing = asyncio.ensure_future(self._close())
        await asyncio.shield(self._closing)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def _close(self) -> None:
        executor = self._open_native()
        await asyncio.to_thread(executor.close)
        self._loop.remove_reader(executor.fileno())
        self._drain()
        self.stats()
        self._native = None

    def _open_native(self) -> native.Executor:
        if self._native is None:
            raise ShutdownError("the executor is closed")
        return self._native

    def _drain(self) -> None:
        for completion in self._open_native().drain():
            future = self._futures.pop(completion.request_id, None)
            if future is None or future.done():
                continue
            if completion.error is None:
                future.set_result(_outputs_of(completion))
            else:
                future.set_exception(completion.error)


def _outputs_of(completion: Any) -> dict[str, Array]:
    outputs: dict[str, Array] = completion.outputs
    return outputs
