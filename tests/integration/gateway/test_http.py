"""HTTP as clients other than the official one send it: headers, aliases, limits, errors."""

import json
import socket
import threading

import httpx
import psutil
import pytest

from services.chassis import errors
from services.gateway.routes import NOT_SERVED
from tests.integration.gateway.process import TOKEN, GatewayProcess

VERSION = "0" * 64


def test_the_doubled_base_path_is_an_alias(http: httpx.Client) -> None:
    assert http.get("/v1/v1/account").json() == http.get("/v1/account").json()


def test_the_old_scheme_word_is_accepted(gateway: GatewayProcess) -> None:
    with gateway.http(token="") as http:
        answer = http.get("/v1/account", headers={"Authorization": f"Token {TOKEN}"})
    assert answer.status_code == 200


def test_an_answer_is_never_stored_and_a_create_says_where_it_is(
    http: httpx.Client, gateway: GatewayProcess
) -> None:
    answer = http.post("/v1/predictions", json={"version": VERSION}, headers={"Prefer": "wait=3"})
    assert answer.status_code == 201
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["preference-applied"] == "wait"
    assert answer.headers["location"] == answer.json()["urls"]["get"]
    assert gateway.doubles.scheduler.requests[0].wait.seconds == 3


def test_input_text_passes_through_untouched(http: httpx.Client, gateway: GatewayProcess) -> None:
    text = '{"z": 1.0, "a": 12345678901234567890123, "e": 1e5,"u":"\\u00e9\\/"}'
    body = f'{{"version":"{VERSION}", "input" : {text} , "stream":true}}'
    answer = http.post("/v1/predictions", content=body)
    assert gateway.doubles.scheduler.requests[0].input.text == text
    assert f'"input":{text}' in answer.text


def test_an_empty_body_with_a_json_type_is_fine(
    http: httpx.Client, gateway: GatewayProcess
) -> None:
    gateway.doubles.scheduler.output = None
    created = http.post("/v1/predictions", json={"version": VERSION}).json()
    path = f"/v1/predictions/{created['id']}/cancel"
    answer = http.post(path, headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["status"]) == (200, "canceled")


def test_a_marked_repeat_gets_the_request_id_of_the_first_try(
    http: httpx.Client, gateway: GatewayProcess
) -> None:
    for count, text in (("0", "a"), ("1", "a"), ("1", "b")):
        headers = {"X-Stainless-Retry-Count": count}
        body = {"version": VERSION, "input": {"text": text}}
        http.post("/v1/predictions", json=body, headers=headers)
    first, repeat, other = gateway.doubles.scheduler.request_ids
    assert first == repeat
    assert other not in ("", first)


def test_unknown_fields_are_refused_by_name(http: httpx.Client) -> None:
    answer = http.post("/v1/predictions", json={"version": VERSION, "model": "a/b", "input": 1})
    problem = answer.json()
    assert (answer.status_code, problem["title"]) == (422, "Input validation failed")
    assert answer.headers["content-type"] == "application/problem+json"
    (violation,) = problem["invalid_fields"]
    assert (violation["type"], violation["field"]) == ("additional_property_not_allowed", "model")


@pytest.mark.parametrize("body", [b"{", b"[]", b'"x"', b"\xff", b'{"input": NaN}'])
def test_a_body_that_is_no_json_object_is_refused(http: httpx.Client, body: bytes) -> None:
    answer = http.post("/v1/predictions", content=body)
    assert answer.status_code == 400
    assert isinstance(answer.json()["detail"], str)


def test_a_bad_deadline_is_refused(http: httpx.Client) -> None:
    headers = {"Cancel-After": "soon"}
    answer = http.post("/v1/predictions", json={"version": VERSION}, headers=headers)
    assert answer.status_code == 422
    assert answer.json()["invalid_fields"][0]["field"] == "Cancel-After"


@pytest.mark.parametrize(("method", "template"), NOT_SERVED)
def test_known_endpoints_that_are_not_served_answer_501(
    http: httpx.Client, method: str, template: str
) -> None:
    path = template.replace("{", "").replace("}", "")
    answer = http.request(method, path)
    assert (answer.status_code, answer.json()["status"]) == (501, 501)
    assert answer.json()["title"] == "Not implemented"


def test_wrong_paths_and_methods_are_told_so(http: httpx.Client) -> None:
    assert http.get("/v1/nothing").status_code == 404
    answer = http.delete("/v1/predictions")
    assert (answer.status_code, answer.headers["allow"]) == (405, "GET, POST")


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (errors.NotFound("no such version"), 404),
        (errors.AlreadyExists("taken"), 409),
        (errors.Conflict("not now"), 400),
        (errors.PermissionDenied("not yours"), 403),
        (errors.ResourceExhausted("too many", reason="BACKLOG_FULL"), 429),
        (errors.NotImplementedYet("later"), 501),
    ],
)
def test_every_meaning_has_its_status(
    http: httpx.Client, gateway: GatewayProcess, error: errors.RepriseError, status: int
) -> None:
    gateway.doubles.scheduler.error = error
    answer = http.post("/v1/predictions", json={"version": VERSION})
    assert (answer.status_code, answer.json()["detail"]) == (status, error.message)
    assert answer.json()["reason"] == error.reason


def test_the_text_of_a_neighbours_fault_stays_in_the_log(
    http: httpx.Client, gateway: GatewayProcess
) -> None:
    answer = http.get("/v1/predictions?cursor=secret")  # The double cannot read it and crashes.
    assert (answer.status_code, answer.json()["title"]) == (500, "Internal error")
    assert "secret" not in answer.text
    error_id = answer.json()["detail"].split()[2].rstrip(";")
    assert error_id in gateway.log


def test_a_json_body_over_the_limit_is_refused_with_the_limit(http: httpx.Client) -> None:
    answer = http.post("/v1/predictions", content=b" " * (16 * 2**20 + 1))
    assert answer.status_code == 413
    assert "16777216" in answer.json()["detail"]


def test_a_huge_announced_body_is_refused_before_it_comes(gateway: GatewayProcess) -> None:
    head = (
        "POST /v1/predictions HTTP/1.1\r\nHost: x\r\n"
        f"Authorization: Bearer {TOKEN}\r\nContent-Length: {200 * 2**20}\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", gateway.http_port), timeout=10) as connection:
        connection.sendall(head.encode())
        assert connection.recv(4096).startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize(
    ("framing", "body"),
    [
        ("Transfer-Encoding: chunked", b"no size\r\nabc\r\n"),
        ("Content-Length: 500", b'{"input": '),
    ],
)
def test_a_body_that_breaks_off_is_the_callers_fault(
    gateway: GatewayProcess, http: httpx.Client, framing: str, body: bytes
) -> None:
    head = (
        "POST /v1/predictions HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
        f"Authorization: Bearer {TOKEN}\r\n{framing}\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", gateway.http_port), timeout=10) as connection:
        connection.sendall(head.encode() + body)
        connection.shutdown(socket.SHUT_WR)
        answer = connection.makefile("rb").read()
    assert answer.startswith(b"HTTP/1.1 400 "), answer
    assert b"application/problem+json" in answer
    assert b"Content-Length" in answer.partition(b"\r\n\r\n")[2]
    assert http.get("/v1/account").status_code == 200


def test_a_huge_body_does_not_grow_the_process(gateway: GatewayProcess, http: httpx.Client) -> None:
    assert gateway.process is not None
    memory = psutil.Process(gateway.process.pid).memory_info
    before = memory().rss

    def chunks():  # type: ignore[no-untyped-def]
        for _ in range(200):
            yield bytes(2**20)

    answer = http.post("/v1/predictions", content=chunks())
    assert answer.status_code == 413
    assert memory().rss - before < 64 * 2**20


def test_pages_follow_the_filters_and_the_public_address(http: httpx.Client) -> None:
    for _ in range(3):
        http.post("/v1/predictions", json={"version": VERSION})
    first = http.get("/v1/predictions?page_size=2&source=api").json()
    assert first["next"].startswith(str(http.base_url).rstrip("/") + "/v1/predictions?")
    second = http.get(first["next"]).json()
    assert (len(first["results"]), len(second["results"])) == (2, 1)
    assert second["next"] is None
    assert second["previous"] == first["next"].replace("cursor=2", "cursor=0")
    assert http.get("/v1/predictions?created_after=yesterday").status_code == 422


def test_a_restarting_service_fails_no_caller(http: httpx.Client, gateway: GatewayProcess) -> None:
    gateway.doubles.stop()
    try:
        with httpx.Client(timeout=20) as waiting:
            request = waiting.build_request(
                "POST",
                f"{gateway.url}/v1/predictions",
                json={"version": VERSION},
                headers={"Authorization": f"Bearer {TOKEN}"},
            )
            answers: list[httpx.Response] = []
            thread = threading.Thread(target=lambda: answers.append(waiting.send(request)))
            thread.start()
            thread.join(0.3)
            assert not answers
            gateway.doubles.start()
            thread.join(15)
    finally:
        if not answers:
            gateway.doubles.start()
    assert answers[0].status_code == 201


def test_the_page_is_served_under_a_strict_policy(http: httpx.Client) -> None:
    for path in ("/", "/p/abc"):
        answer = http.get(path)
        assert answer.headers["content-type"].startswith("text/html")
        assert "default-src 'none'" in answer.headers["content-security-policy"]
    script = http.get("/assets/app.js")
    assert script.headers["content-type"].startswith("text/javascript")
    cached = http.get("/assets/app.js", headers={"If-None-Match": script.headers["etag"]})
    assert cached.status_code == 304
    assert http.get("/healthz").text == "ok\n"


def test_json_escapes_in_answers_are_json(http: httpx.Client, gateway: GatewayProcess) -> None:
    gateway.doubles.scheduler.output = json.dumps({"quote": '"', "line": "\n"})
    answer = http.post("/v1/predictions", json={"version": VERSION})
    assert answer.json()["output"] == {"quote": '"', "line": "\n"}
