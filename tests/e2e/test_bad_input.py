"""Bad input gets a clear answer that names the field and the fix; nothing half-made is left."""

import io
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from reprise.storage.v1 import model_pb2, model_pb2_grpc

from tests.e2e.mesh import Mesh

UNKNOWN_VERSION = "0" * 64


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({"version": UNKNOWN_VERSION, "input": {}}, 422, ["version"]),
        ({"version": "local/nothing", "input": {}}, 422, ["local/nothing"]),
        ({"version": "not a version", "input": {}}, 422, ["version"]),
        ({"input": {}}, 422, ["version"]),
        ({"version": "ECHO", "input": {"text": 5}}, 422, ["input.text", "string"]),
        ({"version": "ECHO", "input": {"txet": "a"}}, 422, ["txet"]),
        ({"version": "ECHO", "input": {"sleep_s": -1}}, 422, ["input.sleep_s", "0"]),
        ({"version": "ECHO", "input": "text"}, 422, ["input"]),
        ({"version": "ECHO", "inputs": {}}, 422, ["inputs"]),
        ({"version": "ECHO", "input": {}, "webhook": "ftp://x"}, 422, ["webhook"]),
    ],
)
def test_a_bad_create_names_its_field(
    mesh: Mesh, echo: str, body: dict[str, Any], status: int, words: list[str]
) -> None:
    body = body | ({"version": echo} if body.get("version") == "ECHO" else {})
    with mesh.http() as http:
        answer = http.post("/v1/predictions", json=body)
    assert answer.status_code == status, answer.text
    problem = answer.json()
    assert problem["status"] == status
    text = problem["detail"] + str(problem.get("invalid_fields"))
    assert all(word in text for word in words), text


def test_text_that_is_no_json_is_refused(mesh: Mesh) -> None:
    with mesh.http() as http:
        headers = {"Content-Type": "application/json"}
        answer = http.post("/v1/predictions", content=b'{"version": ', headers=headers)
    assert answer.status_code == 400
    assert "JSON" in answer.json()["detail"]


def test_a_body_of_200_mb_is_refused_before_it_was_sent(mesh: Mesh) -> None:
    url = httpx.URL(mesh.url)
    head = (
        f"POST /v1/predictions HTTP/1.1\r\nHost: {url.host}\r\n"
        f"Authorization: Bearer {mesh.token}\r\nContent-Type: application/json\r\n"
        "Content-Length: 200000000\r\n\r\n"
    )
    with socket.create_connection((url.host, url.port or 80), timeout=30) as connection:
        connection.sendall(head.encode() + b'{"input": "' + b"x" * 100_000)
        answer = connection.makefile("rb").readline()
    assert b" 413 " in answer


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/predictions/nothing"),
        ("GET", "/v1/models/local/nothing"),
        ("GET", f"/v1/models/local/echo/versions/{UNKNOWN_VERSION}"),
        ("GET", "/v1/nothing"),
    ],
)
def test_what_does_not_exist_is_404_with_a_problem_body(
    mesh: Mesh, echo: str, method: str, path: str
) -> None:
    with mesh.http() as http:
        answer = http.request(method, path)
    assert answer.status_code == 404
    assert answer.json()["detail"]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/trainings"),
        ("GET", "/v1/collections"),
        ("GET", "/v1/deployments"),
        ("GET", "/v1/search?query=cat"),
        ("QUERY", "/v1/models"),
        ("GET", "/v1/webhooks/default/secret"),
    ],
)
def test_what_is_not_built_yet_says_so(mesh: Mesh, method: str, path: str) -> None:
    with mesh.http() as http:
        answer = http.request(method, path)
    assert answer.status_code == 501
    assert "not" in answer.json()["detail"]


def cog_project(folder: Path, *, config: str = "", code: str = "") -> Path:
    folder.mkdir()
    default = 'build:\n  python_version: "3.11"\nrun: predict.py:Predictor\n'
    (folder / "cog.yaml").write_text(config or default)
    model = "class Predictor:\n    def run(self, text: str) -> str:\n        return text\n"
    (folder / "predict.py").write_text(code or model)
    return folder


def truncated_onnx(folder: Path) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(b"\x08\x0a\x12\x07pytorch" + struct.pack("<I", 2**31 - 1) + b"\x3a\xff\xff")
    return path


BAD_PROJECTS: dict[str, tuple[Callable[[Path], Path], list[str]]] = {
    "unknown key": (
        lambda tmp: cog_project(
            tmp / "p", config='build:\n  python_versoin: "3.11"\nrun: predict.py:Predictor\n'
        ),
        ["python_versoin", "python_version"],
    ),
    "missing target": (
        lambda tmp: cog_project(tmp / "p", config="run: predict.py:Nobody\n"),
        ["Nobody", "predict.py"],
    ),
    "does not import": (
        lambda tmp: cog_project(
            tmp / "p",
            code="import not_there_at_all\n\n\nclass Predictor:\n"
            "    def run(self, text: str) -> str:\n        return text\n",
        ),
        ["not_there_at_all"],
    ),
    "syntax error": (
        lambda tmp: cog_project(tmp / "p", code="class Predictor:\n    def run(self\n"),
        ["predict.py", "line"],
    ),
    "no annotation": (
        lambda tmp: cog_project(
            tmp / "p",
            code="class Predictor:\n    def run(self, text) -> str:\n        return text\n",
        ),
        ["text"],
    ),
    "truncated onnx": (truncated_onnx, ["model.onnx", "ONNX"]),
}


@pytest.mark.parametrize("name", BAD_PROJECTS)
def test_a_bad_project_is_refused_and_leaves_nothing(mesh: Mesh, name: str, tmp_path: Path) -> None:
    make, words = BAD_PROJECTS[name]
    model = f"local/bad-{name.replace(' ', '-')}"
    answer = mesh.cli("push", model, str(make(tmp_path)))
    assert answer.returncode == 1
    assert all(word in answer.stderr for word in words), answer.stderr
    assert "Traceback" not in answer.stderr.partition("error:")[2]
    with mesh.http() as http:
        assert http.get(f"/v1/models/{model}").status_code == 404


def test_a_path_that_leaves_the_project_is_refused(mesh: Mesh) -> None:
    request = model_pb2.CreateVersionRequest(
        owner="local",
        name="slip",
        kind=model_pb2.VERSION_KIND_COG,
        files=[model_pb2.VersionFile(path="../../etc/cron.d/x", digest="a" * 64, size_bytes=1)],
    )
    with grpc.insecure_channel(mesh.grpc) as channel:
        stub = model_pb2_grpc.ModelServiceStub(channel)
        metadata = (("authorization", f"Bearer {mesh.token}"),)
        with pytest.raises(grpc.RpcError) as caught:
            list(stub.CreateVersion(request, metadata=metadata))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "../../etc/cron.d/x" in caught.value.details()


def test_a_file_input_that_is_no_file_names_the_field(mesh: Mesh, mirror: str) -> None:
    prediction = mesh.finish(mesh.create(mirror, file="just words"))
    assert prediction["status"] == "failed"
    assert "file" in prediction["error"]
    assert prediction["cost"]["status"] == "released"


def test_a_form_without_content_is_refused(mesh: Mesh) -> None:
    with mesh.http() as http:
        answer = http.post("/v1/files", files={"other": io.BytesIO(b"x")})
    assert answer.status_code in (400, 422)
    assert "content" in answer.text
