"""
Reprise's native executor.
"""
from __future__ import annotations
import collections.abc
import numpy
import typing
__all__: list[str] = ['Completion', 'DeadlineExceededError', 'DeviceError', 'Executor', 'ExecutorError', 'ExecutorStats', 'InvalidInputError', 'ModelLoadError', 'QueueFullError', 'RequestCancelledError', 'ShutdownError', 'TensorSpec']
class ExecutorError(Exception):
    """
    Base of everything the executor raises.
    """
class InvalidInputError(ExecutorError, ValueError):
    """
    The request or an option is wrong; the message names it.
    """
class QueueFullError(ExecutorError):
    """
    The bounded queue has no place.
    """
class DeadlineExceededError(ExecutorError):
    """
    The deadline passed while the request was queued.
    """
class RequestCancelledError(ExecutorError):
    """
    The request was cancelled while it was queued.
    """
class ShutdownError(ExecutorError):
    """
    The executor was closed.
    """
class ModelLoadError(ExecutorError):
    """
    The device cannot load the model.
    """
class DeviceError(ExecutorError):
    """
    The device failed while it ran a batch.
    """
class TensorSpec:
    """
    A tensor of the engine: numpy's name of its dtype; -1 in dims is a dynamic dimension.
    """
    @property
    def dims(self) -> list[int]:
        ...
    @property
    def dtype(self) -> str:
        ...
    @property
    def name(self) -> str:
        ...
class Completion:
    """
    A finished request: outputs, new C-contiguous arrays by output name, or an error.
    """
    @property
    def error(self) -> typing.Any:
        ...
    @property
    def outputs(self) -> dict[str, numpy.ndarray] | None:
        ...
    @property
    def request_id(self) -> int:
        ...
class ExecutorStats:
    """
    Counters of one executor: batch_count counts engine calls, item_count and largest_batch_size rows, the others requests.
    """
    def __init__(self) -> None:
        ...
    @property
    def batch_count(self) -> int:
        ...
    @batch_count.setter
    def batch_count(self, arg0: typing.SupportsInt | typing.SupportsIndex) -> None:
        ...
    @property
    def cancelled_count(self) -> int:
        ...
    @cancelled_count.setter
    def cancelled_count(self, arg0: typing.SupportsInt | typing.SupportsIndex) -> None:
        ...
    @property
    def completed_count(self) -> int:
        ...
    @completed_count.setter
    def completed_count(self, arg0: typing.SupportsInt | typing.SupportsIndex) -> None:
        ...
    @property
    def expired_count(self) -> int:
        ...
    @expired_count.setter
    def expired_count(self, arg0: typing.SupportsInt | typing.SupportsIndex) -> None:
        ...
    @property
    def failed_count(self) -> int:
        ...
    @failed_count.setter
    def failed_count(self, arg0: typing.SupportsInt | typing.SupportsIndex) -> None:
        ...
    @property
    def item_count(self) -> int:
        ...
    @item_count.setter
    def item_count(self, arg0: typing.SupportsInt | typing.SupportsIndex) -> None:
        ...
    @property
    def lane_count(self) -> int:
        ...
    @lane_count.setter
    def lane_count(self, arg0: typing.SupportsInt | typing.SupportsIndex) -> None:
        ...
    @property
    def largest_batch_size(self) -> int:
        ...
    @largest_batch_size.setter
    def largest_batch_size(self, arg0: typing.SupportsInt | typing.SupportsIndex) -> None:
        ...
    @property
    def mean_batch_size(self) -> float:
        ...
    @property
    def queued_count(self) -> int:
        ...
    @queued_count.setter
    def queued_count(self, arg0: typing.SupportsInt | typing.SupportsIndex) -> None:
        ...
    @property
    def rejected_count(self) -> int:
        ...
    @rejected_count.setter
    def rejected_count(self, arg0: typing.SupportsInt | typing.SupportsIndex) -> None:
        ...
    @property
    def running_count(self) -> int:
        ...
    @running_count.setter
    def running_count(self, arg0: typing.SupportsInt | typing.SupportsIndex) -> None:
        ...
    @property
    def wakeup_count(self) -> int:
        ...
    @wakeup_count.setter
    def wakeup_count(self, arg0: typing.SupportsInt | typing.SupportsIndex) -> None:
        ...
class Executor:
    """
    Queue, batcher and lanes of one engine. Any thread may call it; one alone may drain.
    """
    @staticmethod
    def open_openvino(model_path: str, *, input_names: collections.abc.Sequence[str], output_names: collections.abc.Sequence[str], properties: collections.abc.Mapping[str, str], max_batch_size: typing.SupportsInt | typing.SupportsIndex, max_queue_delay_us: typing.SupportsInt | typing.SupportsIndex, queue_limit: typing.SupportsInt | typing.SupportsIndex, lane_count: typing.SupportsInt | typing.SupportsIndex) -> Executor:
        """
        Read and compile a model on the CPU; blocks, without the GIL.
        
        Args:
            model_path: ONNX file or OpenVINO IR.
            input_names: Every input; their order is that of `inputs`.
            output_names: What requests get; their order is that of `outputs`.
            properties: OpenVINO properties by name.
            max_batch_size: Rows that one engine call may hold; 1 turns merging off.
            max_queue_delay_us: How long a batch that could still grow waits, in microseconds.
            queue_limit: Requests that may wait.
            lane_count: Batches in flight; 0 takes what OpenVINO calls optimal.
        
        Raises:
            ModelLoadError: OpenVINO cannot read or compile the model.
            InvalidInputError: An option cannot work with this model.
        """
    def cancel(self, request_id: typing.SupportsInt | typing.SupportsIndex) -> bool:
        """
        True if the request was still queued: it completes with RequestCancelledError.
        """
    def close(self) -> None:
        """
        Fail what is queued, wait for what runs, join. Idempotent.
        """
    def drain(self) -> list[Completion]:
        """
        Everything that completed since the last call; never blocks.
        """
    def fileno(self) -> int:
        """
        Readable when there is something to drain.
        """
    def stats(self) -> ExecutorStats:
        """
        A copy of the counters as of now.
        """
    def submit(self, inputs: dict, deadline_s: typing.SupportsFloat | typing.SupportsIndex | None = None) -> int:
        """
        Queue a request and return its id; never blocks.
        
        Args:
            inputs: Arrays by input name, in the dtypes and dims of `inputs`. With max_batch_size above 1
                the first dimension is 1 to max_batch_size, the same for all. C-contiguous arrays are lent,
                not copied: they must not change until the request completes.
            deadline_s: Seconds from now by which the request must have started.
        
        Raises:
            InvalidInputError: A name, dtype or shape does not fit; nothing was queued.
            QueueFullError: As many requests wait as may wait.
            ShutdownError: The executor was closed.
        """
    @property
    def inputs(self) -> list[TensorSpec]:
        """
        What a request must hold, in the order of input_names.
        """
    @property
    def outputs(self) -> list[TensorSpec]:
        """
        What a completion holds, in the order of output_names.
        """
