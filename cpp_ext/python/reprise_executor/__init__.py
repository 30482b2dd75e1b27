"""The native executor: a bounded queue, a dynamic batcher and lanes over OpenVINO."""

import ctypes
import importlib.util
from pathlib import Path


def _preload_openvino() -> None:
    """Find OpenVINO where the relative RPATH cannot: packages in different site directories."""
    spec = importlib.util.find_spec("openvino")
    if spec is None or spec.origin is None:
        raise ImportError("reprise_executor needs the openvino package: pip install openvino")
    for library in sorted((Path(spec.origin).parent / "libs").glob("libopenvino.so.*")):
        ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)


try:
    from reprise_executor import _executor
except ImportError:
    _preload_openvino()
    from reprise_executor import _executor

Completion = _executor.Completion
DeadlineExceededError = _executor.DeadlineExceededError
DeviceError = _executor.DeviceError
Executor = _executor.Executor
ExecutorError = _executor.ExecutorError
ExecutorStats = _executor.ExecutorStats
InvalidInputError = _executor.InvalidInputError
ModelLoadError = _executor.ModelLoadError
QueueFullError = _executor.QueueFullError
RequestCancelledError = _executor.RequestCancelledError
ShutdownError = _executor.ShutdownError
TensorSpec = _executor.TensorSpec

__all__ = [
    "Completion",
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
    "TensorSpec",
]
