import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from inference_core.executor import (
    DeadlineExceededError,
    Executor,
    InvalidInputError,
    ModelLoadError,
    QueueFullError,
    ShutdownError,
)
from tests.models import onnx_builders

DTYPES = ["float16", "float32", "float64", "int8", "uint8", "int16", "int32", "int64", "bool"]


async def open_model(path: Path, **options: Any) -> Executor:
    model = onnxruntime.InferenceSession(str(path))
    return await Executor.open_openvino(
        str(path),
        input_names=[tensor.name for tensor in model.get_inputs()],
        output_names=[tensor.name for tensor in model.get_outputs()],
        properties={"NUM_STREAMS": "2", "INFERENCE_NUM_THREADS": "2"},
        **options,
    )


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0)


@pytest.fixture
async def busy(tmp_path: Path) -> AsyncIterator[tuple[Executor, asyncio.Task[Any]]]:
    """An executor whose only lane works, with room for two more requests."""
    executor = await open_model(
        onnx_builders.slow(tmp_path / "slow.onnx"), lane_count=1, queue_limit=2
    )
    running = asyncio.create_task(executor.run(SLOW_INPUT))
    await until(lambda: executor.stats().running_count == 1)
    yield executor, running
    await executor.close()
    await asyncio.wait([running])


SLOW_INPUT = {"x": np.ones((1024, 1024), np.float32)}


async def test_five_hundred_concurrent_requests_get_their_own_rows(tmp_path: Path) -> None:
    path = onnx_builders.row_sum(tmp_path / "sum.onnx")
    async with await open_model(path, max_batch_size=8) as executor:
        rows = [np.full((1 + i % 3, 16), i, np.float32) for i in range(500)]
        answers = await asyncio.gather(*[executor.run({"x": x}) for x in rows])
        for i, answer in enumerate(answers):
            assert answer["total"].shape == (1 + i % 3, 1)
            assert (answer["total"] == 16 * i).all()
        stats = executor.stats()
    assert stats.completed_count == 500
    assert stats.item_count == sum(len(x) for x in rows)
    assert 1 < stats.largest_batch_size <= 8
    assert stats.batch_count < 500


async def test_completions_that_pile_up_wake_the_loop_once(tmp_path: Path) -> None:
    path = onnx_builders.row_sum(tmp_path / "sum.onnx")
    async with await open_model(path, max_batch_size=1) as executor:
        inputs = {"x": np.ones((1, 16), np.float32)}
        runs = [asyncio.create_task(executor.run(inputs)) for _ in range(50)]
        await asyncio.sleep(0)
        # The loop is held here, so nothing is drained until every request has completed.
        while executor.stats().completed_count < 50:
            pass
        assert executor.stats().wakeup_count == 1
        await asyncio.gather(*runs)


async def test_requests_of_different_shapes_are_not_merged(tmp_path: Path) -> None:
    path = onnx_builders.row_sum(tmp_path / "sum.onnx", width="width")
    async with await open_model(path, max_batch_size=16) as executor:
        rows = [np.ones((1, 1 + i % 5), np.float32) for i in range(100)]
        answers = await asyncio.gather(*[executor.run({"x": x}) for x in rows])
    assert [int(answer["total"][0, 0]) for answer in answers] == [1 + i % 5 for i in range(100)]


async def test_several_inputs_and_outputs_keep_their_dtypes(tmp_path: Path) -> None:
    path = onnx_builders.two_tensors(tmp_path / "two.onnx")
    async with await open_model(path, max_batch_size=4) as executor:
        answers = await asyncio.gather(
            *[
                executor.run({"b": np.array([[i]]), "a": np.arange(3, dtype=np.float32)[None]})
                for i in range(12)
            ]
        )
    for i, answer in enumerate(answers):
        assert answer["sum"].dtype == np.float32
        assert answer["sum"].tolist() == [[i, i + 1, i + 2]]
        assert answer["is_big"].dtype == np.bool_
        assert answer["is_big"].tolist() == [[i > 10, i + 1 > 10, i + 2 > 10]]


@pytest.mark.parametrize("name", DTYPES)
async def test_every_dtype_goes_in_and_comes_out(tmp_path: Path, name: str) -> None:
    dtype = np.dtype(name)
    path = onnx_builders.doubled(tmp_path / "doubled.onnx", dtype)
    async with await open_model(path, max_batch_size=4) as executor:
        rows = [np.array([[i % 2, 1, 0]]).astype(dtype) for i in range(20)]
        answers = await asyncio.gather(*[executor.run({"x": x}) for x in rows])
    for row, answer in zip(rows, answers, strict=True):
        assert answer["y"].dtype == dtype
        assert np.array_equal(answer["y"], np.concatenate([row, row], axis=1))


async def test_outputs_are_within_1e_5_of_onnxruntime_although_bf16_is_the_default(
    tmp_path: Path,
) -> None:
    path = onnx_builders.mlp(tmp_path / "mlp.onnx")
    x = np.random.default_rng(0).standard_normal((8, 16), np.float32)
    (expected,) = onnxruntime.InferenceSession(str(path)).run(None, {"x": x})
    async with await open_model(path, max_batch_size=8) as executor:
        merged = await asyncio.gather(*[executor.run({"x": row[None]}) for row in x])
        alone = (await executor.run({"x": x}))["y"]
    np.testing.assert_allclose(alone, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(
        np.concatenate([answer["y"] for answer in merged]), expected, rtol=1e-5, atol=1e-5
    )


async def test_an_array_that_is_not_contiguous_is_understood(tmp_path: Path) -> None:
    path = onnx_builders.row_sum(tmp_path / "sum.onnx")
    x = np.arange(64, dtype=np.float32).reshape(16, 4).T[::2]
    async with await open_model(path, max_batch_size=4) as executor:
        assert np.array_equal((await executor.run({"x": x}))["total"], x.sum(1, keepdims=True))


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"y": np.zeros((1, 16), np.float32)}, "input 'y' is unknown: this engine takes 'x'"),
        ({}, r"input 'x' is missing: expected float32 \[\?, 16\]"),
        ({"x": np.zeros((1, 16))}, "input 'x': expected dtype float32, got float64"),
        ({"x": np.zeros((1, 15), np.float32)}, r"expected shape \[\?, 16\], got \[1, 15\]"),
        ({"x": np.zeros((9, 16), np.float32)}, "input 'x' has 9 items .* send 1 to 8"),
        ({"x": np.zeros((0, 16), np.float32)}, "input 'x' has 0 items"),
        ({"x": np.zeros((1, 16), ">f4")}, "input 'x' has dtype >f4"),
        ({"x": [[0.0] * 16]}, "input 'x' must be a numpy array, got list"),
        ({"x": np.array(["a"])}, "input 'x' has dtype <U1, which no engine takes"),
    ],
)
async def test_a_wrong_request_is_refused_by_input(
    tmp_path: Path, inputs: dict[str, Any], message: str
) -> None:
    path = onnx_builders.row_sum(tmp_path / "sum.onnx")
    async with await open_model(path, max_batch_size=8) as executor:
        with pytest.raises(InvalidInputError, match=message):
            await executor.run(inputs)


async def test_a_model_without_a_batch_dimension_cannot_be_merged(tmp_path: Path) -> None:
    path = onnx_builders.slow(tmp_path / "slow.onnx", steps=1)
    with pytest.raises(InvalidInputError, match="max_batch_size must be 1"):
        await open_model(path, max_batch_size=2)
    async with await open_model(path) as executor:
        assert (await executor.run(SLOW_INPUT))["y"].shape == (1024, 1024)


async def test_a_broken_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "broken.onnx"
    path.write_bytes(b"broken")
    with pytest.raises(ModelLoadError, match="OpenVINO"):
        await Executor.open_openvino(
            str(path), input_names=["x"], output_names=["y"], properties={}
        )


async def test_a_cancelled_request_leaves_the_queue(
    busy: tuple[Executor, asyncio.Task[Any]],
) -> None:
    executor, _ = busy
    queued = asyncio.create_task(executor.run(SLOW_INPUT))
    await until(lambda: executor.stats().queued_count == 1)
    queued.cancel()
    with pytest.raises(asyncio.CancelledError):
        await queued
    assert executor.stats().queued_count == 0
    assert executor.stats().cancelled_count == 1
    assert executor.stats().running_count == 1


async def test_a_request_leaves_the_queue_at_its_deadline(
    busy: tuple[Executor, asyncio.Task[Any]],
) -> None:
    executor, _ = busy
    with pytest.raises(DeadlineExceededError):
        await executor.run(SLOW_INPUT, deadline_s=0.01)
    assert executor.stats().queued_count == 0
    assert executor.stats().expired_count == 1
    assert executor.stats().running_count == 1
    with pytest.raises(InvalidInputError, match="deadline_s"):
        await executor.run(SLOW_INPUT, deadline_s=-1)


async def test_a_full_queue_refuses_at_once(busy: tuple[Executor, asyncio.Task[Any]]) -> None:
    executor, _ = busy
    waiting = [asyncio.create_task(executor.run(SLOW_INPUT)) for _ in range(2)]
    await until(lambda: executor.stats().queued_count == 2)
    with pytest.raises(QueueFullError, match="2 requests wait, the limit is 2"):
        await executor.run(SLOW_INPUT)
    for task in waiting:
        task.cancel()
    await asyncio.wait(waiting)


async def test_closing_fails_what_waits_and_delivers_what_runs(
    busy: tuple[Executor, asyncio.Task[Any]],
) -> None:
    executor, running = busy
    queued = asyncio.create_task(executor.run(SLOW_INPUT))
    await until(lambda: executor.stats().queued_count == 1)
    await executor.close()
    with pytest.raises(ShutdownError):
        await queued
    assert (await running)["y"].shape == (1024, 1024)
    with pytest.raises(ShutdownError):
        await executor.run(SLOW_INPUT)


async def test_closing_leaks_no_threads(tmp_path: Path) -> None:
    path = onnx_builders.mlp(tmp_path / "mlp.onnx")

    def thread_count() -> int:
        return len(os.listdir("/proc/self/task"))

    async def open_and_close() -> None:
        async with await open_model(path, max_batch_size=4) as executor:
            await executor.run({"x": np.zeros((1, 16), np.float32)})

    # asyncio's own pool grows while it is used; with one thread it does not.
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
    await open_and_close()
    first = thread_count()
    for _ in range(4):
        await open_and_close()
    # A thread that was joined may stand in /proc for a moment longer.
    await until(lambda: thread_count() <= first)


async def test_an_executor_dropped_with_requests_in_flight_does_not_hang(tmp_path: Path) -> None:
    script = (
        "import asyncio, sys, numpy as np\n"
        "from inference_core.executor import Executor\n"
        "async def main():\n"
        "    e = await Executor.open_openvino(sys.argv[1], input_names=['x'],"
        " output_names=['y'], properties={}, lane_count=1)\n"
        "    for _ in range(3): asyncio.ensure_future(e.run({'x': np.ones((1, 16), np.float32)}))\n"
        "    await asyncio.sleep(0)\n"
        "asyncio.run(main())\n"
    )
    path = onnx_builders.mlp(tmp_path / "mlp.onnx")
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", script, str(path))
    async with asyncio.timeout(60):
        assert await process.wait() == 0


def test_the_extension_loads_without_the_openvino_module() -> None:
    check = "import sys, reprise_executor; assert 'openvino' not in sys.modules"
    subprocess.run([sys.executable, "-c", check], check=True, timeout=60)


def test_the_stub_of_the_extension_is_current(tmp_path: Path) -> None:
    spec = find_spec("reprise_executor")
    assert spec is not None
    assert spec.origin is not None
    subprocess.run(
        [sys.executable, "-m", "pybind11_stubgen", "reprise_executor._executor", "-o", tmp_path],
        check=True,
        capture_output=True,
        timeout=60,
    )
    generated = (tmp_path / "reprise_executor/_executor.pyi").read_text()
    assert generated == (Path(spec.origin).parent / "_executor.pyi").read_text()


async def test_each_request_ends_once_however_callers_give_up(tmp_path: Path) -> None:
    path = onnx_builders.row_sum(tmp_path / "sum.onnx")
    random = np.random.default_rng(0)
    async with await open_model(path, max_batch_size=8, queue_limit=200) as executor:

        async def ask(i: int) -> str:
            deadline_s = 0.0 if i % 11 == 0 else 30.0
            try:
                answer = await executor.run(
                    {"x": np.full((1, 16), i, np.float32)}, deadline_s=deadline_s
                )
            except (DeadlineExceededError, QueueFullError) as error:
                return type(error).__name__
            assert answer["total"].item() == 16 * i
            return "answered"

        for _ in range(10):
            tasks = [asyncio.create_task(ask(i)) for i in range(250)]
            for _ in range(int(random.integers(1, 4))):
                await asyncio.sleep(0)
            for i in random.integers(0, 250, 50):
                tasks[i].cancel()
            await asyncio.wait(tasks)
            assert all(task.cancelled() or task.exception() is None for task in tasks)
        await until(lambda: executor.stats().running_count == 0)
        stats = executor.stats()
        ended = stats.completed_count + stats.cancelled_count + stats.expired_count
        assert ended + stats.rejected_count == 2500
        assert stats.expired_count > 0
        assert stats.queued_count == 0
