"""What the load generator takes for an answer, and how it counts."""

import re

import pytest

from bench.load import SUCCEEDED, Answer, Load, http_request, parse_answer

OK = b"HTTP/1.1 200 OK\r\n"


def test_an_answer_with_a_length_is_whole_once_its_last_byte_came() -> None:
    whole = OK + b"content-type: application/json\r\ncontent-length: 5\r\n\r\nhello"
    for end in range(len(whole)):
        assert parse_answer(whole[:end]) is None
    assert parse_answer(whole) == Answer(200, b"hello")


@pytest.mark.parametrize("name", [b"Content-Length", b"content-length", b"CONTENT-LENGTH"])
def test_the_length_is_found_however_it_is_written(name: bytes) -> None:
    assert parse_answer(OK + name + b":2\r\n\r\n{}") == Answer(200, b"{}")


def test_a_length_inside_of_another_field_or_the_body_is_not_the_length() -> None:
    head = OK + b"x-note: content-length: 99\r\nx-content-length: 98\r\ncontent-length: 21\r\n\r\n"
    body = b"\r\ncontent-length: 97\r\n"
    assert parse_answer(head + body) == Answer(200, body)


def test_a_chunked_answer_is_whole_after_its_last_chunk() -> None:
    head = b"HTTP/1.1 201 Created\r\nTransfer-Encoding: chunked\r\n\r\n"
    body = b'16\r\n{"status":"succeeded"}\r\n0\r\n\r\n'
    assert parse_answer(head + body[:-5]) is None
    answer = parse_answer(head + body)
    assert answer is not None
    assert answer.status == 201
    assert SUCCEEDED.search(answer.body)


def test_an_answer_without_a_body_ends_with_its_head() -> None:
    assert parse_answer(b"HTTP/1.1 204 No Content\r\ndate: now\r\n\r\n") == Answer(204, b"")


@pytest.mark.parametrize("body", [b'{"status":"succeeded"}', b'{"status": "succeeded"}'])
def test_both_spellings_of_success_are_seen(body: bytes) -> None:
    assert SUCCEEDED.search(body)
    assert not SUCCEEDED.search(re.sub(b"succeeded", b"failed", body))


def test_a_request_states_the_length_of_its_body() -> None:
    head, _, body = http_request("POST", "/v1/predictions", {"Prefer": "wait"}, b"{}").partition(
        b"\r\n\r\n"
    )
    assert head.splitlines()[0] == b"POST /v1/predictions HTTP/1.1"
    assert b"Content-Length: 2" in head.splitlines()
    assert b"Prefer: wait" in head.splitlines()
    assert body == b"{}"


def test_quantiles_are_latencies_that_occurred() -> None:
    load = Load(concurrency=1, window_s=2.0, latencies_s=[0.004, 0.001, 0.003, 0.002])
    assert load.latency_ms(0.5) == 3.0
    assert load.latency_ms(0.99) == 4.0
    assert load.per_second == 2.0
