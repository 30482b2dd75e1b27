"""Backends: one module per compiler, one Protocol between them and the compiler's driver."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from inference_core.engine import Target
from inference_core.executor import ExecutorStats
from inference_core.signature import Array, Signature, Tensors

__all__ = ["Backend", "EngineExecutor", "ExecutorOptions", "ExecutorStats", "Loadable"]


@dataclass(frozen=True, slots=True)
class ExecutorOptions:
    """How requests share an engine.

    Args:
        max_queue_delay_us: How long a batch that could still grow waits, in microseconds.
        queue_limit: Requests that may wait.
        lane_count: Batches in flight; 0 lets the backend choose.
        thread_count: CPU threads for all lanes together; 0 takes every core.
        favors_latency: One batch at a time on all threads, instead of a batch per core.
    """

    max_queue_delay_us: int = 0
    queue_limit: int = 1024
    lane_count: int = 0
    thread_count: int = 0
    favors_latency: bool = False


@dataclass(frozen=True, slots=True)
class Loadable:
    """What a backend needs to open a model."""

    onnx_path: Path
    signature: Signature
    target: Target
    max_batch_size: int


class EngineExecutor(Protocol):
    """Runs requests on one engine; `inference_core.executor.Executor` documents the contract."""

    async def run(self, inputs: Tensors, *, deadline_s: float | None = None) -> dict[str, Array]:
        """Arrays by output name. Raises ExecutorError."""
        ...

    def stats(self) -> ExecutorStats: ...

    async def close(self) -> None:
        """Fails what waits, lets what runs finish."""
        ...


class Backend(Protocol):
    """A compiler and its runtime."""

    @property
    def name(self) -> str: ...

    @property
    def merges_requests(self) -> bool:
        """Whether its executors run several requests as one engine call."""
        ...

    @property
    def version(self) -> str:
        """Decides, with everything else in the cache key, whether an engine can be used again."""
        ...

    async def open(self, loadable: Loadable, options: ExecutorOptions) -> EngineExecutor:
        """Raises UnsupportedModelError if this backend cannot run the model."""
        ...
