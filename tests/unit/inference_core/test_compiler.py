import asyncio
import logging
from pathlib import Path

import numpy as np
import pytest

import inference_core
from inference_core import (
    CompileOptions,
    EngineCache,
    ExecutorOptions,
    ParityError,
    Precision,
    Target,
    UnsupportedModelError,
    compile_model,
    find_cpu,
    open_engine,
)
from inference_core.executor import (
    DeadlineExceededError,
    InvalidInputError,
    QueueFullError,
    ShutdownError,
)
from tests.models import onnx_builders

needs_bf16 = pytest.mark.skipif(
    not {"avx512_bf16", "amx_bf16"} & set(find_cpu().flags), reason="this CPU has no bf16"
)


async def test_a_compiled_engine_answers(tmp_path: Path, cache: EngineCache) -> None:
    path = onnx_builders.row_sum(tmp_path / "sum.onnx")
    engine = await compile_model(path, cache=cache)
    assert engine.backend == "openvino"
    assert engine.max_batch_size == 32
    assert engine.remarks == ()
    assert engine.parity.has_passed
    executor = await open_engine(engine)
    rows = [{"x": np.full((1, 16), i, np.float32)} for i in range(40)]
    answers = await asyncio.gather(*[executor.run(row) for row in rows])
    await executor.close()
    assert [answer["total"].item() for answer in answers] == [16 * i for i in range(40)]


async def test_f32_engines_agree_with_the_reference_to_1e_5(
    tmp_path: Path, cache: EngineCache
) -> None:
    engine = await compile_model(
        onnx_builders.mlp(tmp_path / "mlp.onnx"),
        cache=cache,
        options=CompileOptions(tolerance=1e-5),
    )
    assert engine.backend == "openvino"
    assert max(tensor.error for tensor in engine.parity.tensors) <= 1e-5


@needs_bf16
async def test_a_backend_that_is_not_exact_enough_does_not_serve(
    tmp_path: Path, cache: EngineCache
) -> None:
    path = onnx_builders.mlp(tmp_path / "mlp.onnx", width=256)
    target = Target(precision=Precision.BF16)
    with pytest.raises(ParityError, match=r"not on openvino: output 'y' at \[\d+, \d+\]"):
        await compile_model(
            path,
            cache=cache,
            target=target,
            options=CompileOptions(tolerance=1e-6, backends=("openvino",)),
        )
    engine = await compile_model(
        path, cache=cache, target=target, options=CompileOptions(tolerance=1e-6)
    )
    assert engine.backend == "onnxruntime"
    assert "tolerance 1e-06" in engine.remarks[0]
    assert (await compile_model(path, cache=cache, target=target)).backend == "openvino"


async def test_a_graph_that_openvino_cannot_compile_falls_back_with_the_reason(
    tmp_path: Path, cache: EngineCache
) -> None:
    path = onnx_builders.determinant(tmp_path / "det.onnx")
    engine = await compile_model(path, cache=cache)
    assert engine.backend == "onnxruntime"
    assert "not on openvino" in engine.remarks[0]
    assert "Det" in engine.remarks[0]
    executor = await open_engine(engine)
    answer = await executor.run({"x": np.array([[[2, 0], [0, 3]]], np.float32)})
    await executor.close()
    assert answer["y"].tolist() == [6.0]
    with pytest.raises(UnsupportedModelError, match="Det"):
        await compile_model(path, cache=cache, options=CompileOptions(backends=("openvino",)))


async def test_a_model_whose_rows_depend_on_each_other_is_never_merged(
    tmp_path: Path, cache: EngineCache
) -> None:
    path = onnx_builders.mean_over_rows(tmp_path / "mean.onnx")
    engine = await compile_model(path, cache=cache)
    assert engine.max_batch_size == 1
    assert engine.remarks == ("requests are not merged: the model's rows are not independent",)
    executor = await open_engine(engine)
    rows = [{"x": np.full((1, 4), i, np.float32)} for i in range(10)]
    answers = await asyncio.gather(*[executor.run(row) for row in rows])
    assert all((answer["y"] == 0).all() for answer in answers)
    answer = await executor.run({"x": np.array([[0] * 4, [2] * 4], np.float32)})
    assert answer["y"].tolist() == [[-1.0] * 4, [1.0] * 4]
    await executor.close()


async def test_a_static_model_runs_unbatched(tmp_path: Path, cache: EngineCache) -> None:
    engine = await compile_model(onnx_builders.slow(tmp_path / "s.onnx", steps=1), cache=cache)
    assert engine.max_batch_size == 1
    assert engine.remarks == (
        "requests are not merged: the first dimension of some tensor is fixed",
    )


async def test_equal_requests_compile_once_and_share_the_engine(
    tmp_path: Path, cache: EngineCache, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="inference_core")
    path = onnx_builders.mlp(tmp_path / "mlp.onnx")
    engines = await asyncio.gather(*[compile_model(path, cache=cache) for _ in range(3)])
    assert engines[0] == engines[1] == engines[2]
    assert caplog.messages == ["engine compiled"]


async def test_other_options_make_another_engine(tmp_path: Path, cache: EngineCache) -> None:
    path = onnx_builders.mlp(tmp_path / "mlp.onnx")
    first = await compile_model(path, cache=cache)
    second = await compile_model(path, cache=cache, options=CompileOptions(max_batch_size=4))
    assert first.digest != second.digest
    assert (first.max_batch_size, second.max_batch_size) == (32, 4)


@pytest.mark.parametrize("name", ["model.onnx", "engine.json"])
async def test_a_corrupt_cache_entry_is_rebuilt(
    tmp_path: Path, cache: EngineCache, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    path = onnx_builders.mlp(tmp_path / "mlp.onnx")
    engine = await compile_model(path, cache=cache)
    victim = engine.onnx_path.parent / name
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 0xFF
    victim.write_bytes(content)
    assert await compile_model(path, cache=cache) == engine
    assert "corrupt engine removed from the cache" in caplog.messages
    executor = await open_engine(engine)
    await executor.run({"x": np.zeros((1, 16), np.float32)})
    await executor.close()


async def test_an_unknown_backend_or_device_is_named(tmp_path: Path, cache: EngineCache) -> None:
    path = onnx_builders.mlp(tmp_path / "mlp.onnx")
    with pytest.raises(UnsupportedModelError, match="backend 'abacus' is unknown: use 'openvino'"):
        await compile_model(path, cache=cache, options=CompileOptions(backends=("abacus",)))
    with pytest.raises(UnsupportedModelError, match="device 'tpu' is unknown"):
        await compile_model(path, cache=cache, target=Target(device="tpu"))


async def test_the_fallback_executor_keeps_the_same_contract(
    tmp_path: Path, cache: EngineCache
) -> None:
    engine = await compile_model(
        onnx_builders.slow(tmp_path / "slow.onnx"),
        cache=cache,
        options=CompileOptions(backends=("onnxruntime",)),
    )
    executor = await open_engine(engine, ExecutorOptions(lane_count=1, queue_limit=1))
    inputs = {"x": np.ones((1024, 1024), np.float32)}
    with pytest.raises(InvalidInputError, match="input 'x': expected float32"):
        await executor.run({"x": np.zeros((2, 2))})
    running = asyncio.create_task(executor.run(inputs))
    await asyncio.sleep(0)
    with pytest.raises(DeadlineExceededError):
        await executor.run(inputs, deadline_s=0.01)
    queued = asyncio.create_task(executor.run(inputs))
    await asyncio.sleep(0)
    with pytest.raises(QueueFullError):
        await executor.run(inputs)
    queued.cancel()
    await asyncio.wait([queued])
    assert executor.stats().queued_count == 0
    assert (await running)["y"].shape == (1024, 1024)
    await executor.close()
    with pytest.raises(ShutdownError):
        await executor.run(inputs)
    assert executor.stats().completed_count == 1


def test_exported_names_are_listed() -> None:
    public = {
        name
        for name, value in vars(inference_core).items()
        if not name.startswith("_") and not isinstance(value, type(inference_core))
    }
    assert public == set(inference_core.__all__)
    assert list(inference_core.__all__) == sorted(inference_core.__all__)
