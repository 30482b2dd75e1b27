"""The native executor against the usual way to serve a model from asyncio: a pool of threads.

    python -m bench.bench_native [--seconds 1.0] [--rounds 3]

One tiny MLP (64-256-256-10, f32), requests of one row, a closed loop at each concurrency. Rounds
are interleaved and the best of each counts, so that ratios hold on a busy machine.
"""

import argparse
import asyncio
import queue
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import numpy as np
import openvino
from onnx import TensorProto, helper, numpy_helper

from inference_core.executor import Executor

CONCURRENCIES = (1, 8, 32)
CORES = 2
PROPERTIES = {
    "INFERENCE_PRECISION_HINT": "f32",
    "ENABLE_CPU_PINNING": "NO",
    "NUM_STREAMS": str(CORES),
    "INFERENCE_NUM_THREADS": str(CORES),
}
ROW = np.random.default_rng(0).standard_normal((1, 64), np.float32)

Call = Callable[[], Awaitable[object]]


def write_mlp(path: Path) -> None:
    random = np.random.default_rng(0)
    sizes = [64, 256, 256, 10]
    nodes, weights, before = [], [], "x"
    for i, (rows, columns) in enumerate(pairwise(sizes)):
        weight = random.standard_normal((rows, columns)).astype(np.float32) / 16
        weights.append(numpy_helper.from_array(weight, f"w{i}"))
        nodes.append(helper.make_node("MatMul", [before, f"w{i}"], [f"h{i}"]))
        nodes.append(helper.make_node("Relu", [f"h{i}"], [f"r{i}"]))
        before = f"r{i}"
    graph = helper.make_graph(
        nodes,
        "mlp",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 64])],
        [helper.make_tensor_value_info(before, TensorProto.FLOAT, ["n", 10])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    path.write_bytes(model.SerializeToString())


class ThreadPool:
    """`run_in_executor` over a pool of infer requests."""

    def __init__(self, path: Path) -> None:
        compiled = openvino.Core().compile_model(str(path), "CPU", PROPERTIES)
        self._requests: queue.SimpleQueue[openvino.InferRequest] = queue.SimpleQueue()
        for _ in range(4):
            self._requests.put(compiled.create_infer_request())
        self._threads = ThreadPoolExecutor(4)

    async def run(self) -> object:
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._infer)

    def _infer(self) -> object:
        request = self._requests.get()
        try:
            return request.infer({"x": ROW})
        finally:
            self._requests.put(request)


async def requests_per_second(call: Call, concurrency: int, seconds: float) -> float:
    count = 0
    start = time.perf_counter()
    end = start + seconds

    async def client() -> None:
        nonlocal count
        while time.perf_counter() < end:
            await call()
            count += 1

    await asyncio.gather(*[client() for _ in range(concurrency)])
    return count / (time.perf_counter() - start)


async def open_executor(path: Path, max_batch_size: int) -> Executor:
    return await Executor.open_openvino(
        str(path),
        input_names=["x"],
        output_names=["r2"],
        properties=PROPERTIES,
        max_batch_size=max_batch_size,
    )


async def measure(path: Path, seconds: float, rounds: int) -> dict[tuple[str, int], float]:
    pool = ThreadPool(path)
    async with await open_executor(path, 1) as single, await open_executor(path, 32) as batched:
        calls: dict[str, Call] = {
            "thread pool": pool.run,
            "executor, unbatched": lambda: single.run({"x": ROW}),
            "executor, batch 32": lambda: batched.run({"x": ROW}),
        }
        best: dict[tuple[str, int], float] = {}
        for _ in range(rounds):
            for concurrency in CONCURRENCIES:
                for name, call in calls.items():
                    rate = await requests_per_second(call, concurrency, seconds)
                    best[name, concurrency] = max(best.get((name, concurrency), 0.0), rate)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mlp.onnx"
        write_mlp(path)
        best = asyncio.run(measure(path, options.seconds, options.rounds))
    names = dict.fromkeys(name for name, _ in best)
    sys.stdout.write(f"{'requests/s':22}" + "".join(f"{c:>18}" for c in CONCURRENCIES) + "\n")
    for name in names:
        cells = [
            f"{best[name, c]:,.0f} ({best[name, c] / best['thread pool', c]:.1f}x)"
            for c in CONCURRENCIES
        ]
        sys.stdout.write(f"{name:22}" + "".join(f"{cell:>18}" for cell in cells) + "\n")


if __name__ == "__main__":
    main()
