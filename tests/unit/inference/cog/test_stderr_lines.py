"""What is kept of a server's stderr, and how much."""

import asyncio
import json

from services.inference.cog.stderr_lines import BoundedLog, ServerLog


def line(target: str, message: str) -> bytes:
    return json.dumps({"target": target, "fields": {"message": message}}).encode() + b"\n"


async def drained(*parts: bytes, limit_bytes: int = 1000) -> ServerLog:
    stream = asyncio.StreamReader()
    for part in parts:
        stream.feed_data(part)
    stream.feed_eof()
    log = ServerLog(limit_bytes)
    await log.drain(stream)
    return log


async def test_the_port_and_the_models_own_lines_are_kept() -> None:
    log = await drained(
        line("coglet::transport::http::server", "Starting coglet server on 127.0.0.1:4711"),
        line("coglet::setup", "loading"),
        line("coglet::predictor", "predict() is deprecated"),
        line("coglet::user", "loaded"),
        b"not json\n",
    )
    assert log.port.result() == 4711
    assert log.setup_logs == "loading\nloaded\nnot json\n"


async def test_a_line_without_an_end_is_cut_and_the_next_one_kept() -> None:
    log = await drained(b"x" * 300_000 + b"\n", line("coglet::user", "after"), limit_bytes=10**6)
    assert log.setup_logs.endswith("after\n")
    assert len(log.setup_logs) < 140_000


def test_a_log_ends_with_one_notice_when_it_is_full() -> None:
    log = BoundedLog(10)
    assert log.add("12345678\n") == "12345678\n"
    assert log.add("abc\n") == "a\n[truncated: more than 10 bytes of logs]\n"
    assert log.add("more\n") == ""
    assert log.text == "12345678\na\n[truncated: more than 10 bytes of logs]\n"


def test_a_cut_never_splits_a_character() -> None:
    log = BoundedLog(3)
    assert log.add("aéé").startswith("aé\n[truncated")
