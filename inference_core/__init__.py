"""Import, compile and run models: a library without services, usable from a notebook."""

from inference_core.backends import EngineExecutor, ExecutorOptions
from inference_core.cache import EngineCache
from inference_core.compiler import compile_model, open_engine
from inference_core.devices import CpuDevice, find_cpu
from inference_core.engine import CompileOptions, Engine, Precision, Target
from inference_core.errors import (
    EngineError,
    InvalidModelError,
    ParityError,
    UnsupportedModelError,
)
from inference_core.executor import (
    DeadlineExceededError,
    DeviceError,
    Executor,
    ExecutorError,
    InvalidInputError,
    QueueFullError,
    RequestCancelledError,
    ShutdownError,
)
from inference_core.onnx_model import ImportLimits, OnnxModel, load_onnx_model
from inference_core.parity import ParityReport, TensorParity
from inference_core.signature import Dtype, Signature, TensorSpec

__all__ = [
    "CompileOptions",
    "CpuDevice",
    "DeadlineExceededError",
    "DeviceError",
    "Dtype",
    "Engine",
    "EngineCache",
    "EngineError",
    "EngineExecutor",
    "Executor",
    "ExecutorError",
    "ExecutorOptions",
    "ImportLimits",
    "InvalidInputError",
    "InvalidModelError",
    "OnnxModel",
    "ParityError",
    "ParityReport",
    "Precision",
    "QueueFullError",
    "RequestCancelledError",
    "ShutdownError",
    "Signature",
    "Target",
    "TensorParity",
    "TensorSpec",
    "UnsupportedModelError",
    "compile_model",
    "find_cpu",
    "load_onnx_model",
    "open_engine",
]
