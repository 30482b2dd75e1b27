import asyncio
import os
from pathlib import Path

from inference_core import Engine, EngineCache, ParityReport, Signature, Target
from inference_core.cache import MODEL_FILE


def engine(digest: str) -> Engine:
    return Engine(
        digest=digest,
        model_digest="m",
        onnx_path=Path("elsewhere"),
        signature=Signature((), ()),
        backend="openvino",
        target=Target(),
        max_batch_size=1,
        parity=ParityReport(()),
    )


def store(cache: EngineCache, digest: str, size_bytes: int) -> Engine:
    with cache.workspace() as folder:
        (folder / MODEL_FILE).write_bytes(b"x" * size_bytes)
        return cache.store(engine(digest), folder)


def test_an_entry_comes_back_as_it_was_stored(cache: EngineCache) -> None:
    assert cache.load("a1") is None
    stored = store(cache, "a1", 10)
    assert cache.load("a1") == stored
    assert stored.onnx_path.read_bytes() == b"x" * 10


def test_a_corrupt_entry_is_removed(cache: EngineCache) -> None:
    stored = store(cache, "a1", 10)
    stored.onnx_path.write_bytes(b"y" * 10)
    assert cache.load("a1") is None
    assert not stored.onnx_path.parent.exists()


def test_the_least_recently_used_entries_make_room(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path, max_bytes=10_000)
    for age, digest in enumerate(["aaa", "bbb"]):
        folder = store(cache, digest, 4_000).onnx_path.parent
        os.utime(folder, (1_000 + age, 1_000 + age))
    assert cache.load("aaa") is not None  # now the younger one
    store(cache, "ccc", 4_000)
    assert cache.load("bbb") is None
    assert cache.load("aaa") is not None
    assert cache.load("ccc") is not None


async def test_an_entry_that_somebody_holds_is_not_evicted(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path, max_bytes=5_000)
    store(cache, "aaa", 4_000)
    async with cache.locked("aaa"):
        store(cache, "bbb", 4_000)
        assert cache.load("aaa") is not None
    store(cache, "ccc", 4_000)
    assert cache.load("aaa") is None


async def test_a_lock_lets_one_in_at_a_time(cache: EngineCache) -> None:
    inside = 0
    most = 0

    async def hold() -> None:
        nonlocal inside, most
        async with cache.locked("abc"):
            inside += 1
            most = max(most, inside)
            await asyncio.sleep(0)
            inside -= 1

    async with asyncio.timeout(30):
        await asyncio.gather(*[hold() for _ in range(4)])
    assert most == 1


def test_workspaces_disappear(cache: EngineCache, tmp_path: Path) -> None:
    with cache.workspace() as folder:
        (folder / "file").write_text("left over")
    assert not folder.exists()
    stale = tmp_path / "cache/work/stale"
    stale.mkdir()
    os.utime(stale, (0, 0))
    with cache.workspace():
        assert not stale.exists()
