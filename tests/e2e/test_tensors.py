"""An engine model by tensors over gRPC with Triton's client, and by JSON and pictures over HTTP."""

import base64
import io
from pathlib import Path
from typing import Any

import grpc
import pytest
from PIL import Image
from reprise.oip import open_inference_pb2, open_inference_pb2_grpc

from tests.e2e.mesh import Mesh, start_mesh
from tests.e2e.playing import SCENARIOS, play, python_with
from tests.models import onnx_builders

CLIENT = "tritonclient[grpc]==2.73.0"
MODEL = "local/two-tensors"
CLASSIFIER = "local/color-classifier"
CONFIG = """
inputs:
  picture:
    type: image
    tensor: image
  top_k: {type: integer, default: 2, minimum: 1, maximum: 3, for: color}
outputs:
  color:
    type: labels
    tensor: scores
    labels: colors.txt
    activation: softmax
"""


@pytest.fixture(scope="module")
def engine(mesh: Mesh, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = onnx_builders.two_tensors(tmp_path_factory.mktemp("engine") / "model.onnx")
    return mesh.push(MODEL, path)


@pytest.fixture(scope="module")
def classifier(mesh: Mesh, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Scores are the sums of the color planes, so the name of the color is known."""
    folder = tmp_path_factory.mktemp("classifier")
    (folder / "reprise.yaml").write_text(CONFIG)
    (folder / "colors.txt").write_text("red\ngreen\nblue\n")
    path = onnx_builders.image_to_scores(folder / "model.onnx")
    return mesh.push(CLASSIFIER, path, "--config", str(folder / "reprise.yaml"))


@pytest.fixture(scope="module")
def report(
    mesh: Mesh, echo: str, engine: str, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    python = python_with(tmp_path_factory.mktemp("triton") / "venv", CLIENT)
    variables = {
        "OIP": mesh.oip,
        "REPLICATE_API_TOKEN": mesh.token,
        "MODEL": MODEL,
        "VERSION": engine,
    }
    return play([python, str(SCENARIOS / "tensors.py")], variables)


def run(mesh: Mesh, version: str, **inputs: Any) -> dict[str, Any]:
    prediction = mesh.finish(mesh.create(version, **inputs))
    assert prediction["status"] == "succeeded", prediction["error"]
    return prediction


def picture(color: str, size: tuple[int, int] = (9, 7)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, color).save(buffer, "PNG")
    return buffer.getvalue()


def data_url(content: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"


def test_the_server_is_live_ready_and_named(report: dict[str, Any]) -> None:
    server = report["server"]
    assert server["is_live"]
    assert server["is_ready"]
    assert server["metadata"]["name"] == "reprise"


def test_the_model_tells_its_tensors(report: dict[str, Any], engine: str) -> None:
    metadata = report["model"]["metadata"]
    assert (metadata["name"], metadata["versions"]) == (MODEL, [engine])
    assert metadata["inputs"] == [
        {"name": "a", "datatype": "FP32", "shape": ["-1", "3"]},
        {"name": "b", "datatype": "INT64", "shape": ["-1", "1"]},
    ]
    assert {item["name"]: item["datatype"] for item in metadata["outputs"]} == {
        "sum": "FP32",
        "is_big": "BOOL",
    }
    assert report["model"]["is_ready"]


def test_inference_answers_all_tensors_with_the_request_id(
    report: dict[str, Any], engine: str
) -> None:
    whole = report["inference"]["whole"]
    assert whole["tensors"] == {
        "sum": [[1, 2, 3], [13, 14, 15]],
        "is_big": [[False] * 3, [True] * 3],
    }
    assert whole["datatypes"] == {"sum": "FP32", "is_big": "BOOL"}
    assert (whole["id"], whole["version"]) == ("mine", engine)
    assert report["inference"]["of_version"]["tensors"] == whole["tensors"]


def test_only_the_outputs_asked_for_are_sent(report: dict[str, Any]) -> None:
    assert list(report["inference"]["picked"]["tensors"]) == ["sum"]


@pytest.mark.parametrize(
    ("call", "status", "words"),
    [
        ("wrong_token", "UNAUTHENTICATED", ["token"]),
        ("no_token", "UNAUTHENTICATED", ["authorization"]),
        ("unknown_model", "NOT_FOUND", ["local/nothing"]),
        ("cog_model", "NOT_FOUND", ["local/echo", "POST /v1/predictions"]),
        ("wrong_shape", "INVALID_ARGUMENT", ["'a'", "[?, 3]", "[2, 2]"]),
        ("other_batch", "INVALID_ARGUMENT", ["'b'", "'a'"]),
        ("wrong_dtype", "INVALID_ARGUMENT", ["'a'", "float32", "float64"]),
        ("wrong_name", "INVALID_ARGUMENT", ["'q'", "'a'", "'b'"]),
        ("unknown_output", "INVALID_ARGUMENT", ["'sums'", "sum"]),
    ],
)
def test_a_wrong_call_is_refused_by_name(
    report: dict[str, Any], call: str, status: str, words: list[str]
) -> None:
    refusal = report["refusals"][call]
    assert refusal["status"] == f"StatusCode.{status}"
    assert all(word in refusal["message"] for word in words), refusal["message"]


def test_a_mesh_with_tls_has_it_on_the_tensor_port_too(tmp_path: Path) -> None:
    with start_mesh(tmp_path / "tls", "--tls") as mesh:
        authority = (mesh.data / "tls" / "ca.pem").read_bytes()
        with grpc.secure_channel(mesh.oip, grpc.ssl_channel_credentials(authority)) as channel:
            stub = open_inference_pb2_grpc.GRPCInferenceServiceStub(channel)
            assert stub.ServerLive(open_inference_pb2.ServerLiveRequest(), timeout=10).live
        with grpc.insecure_channel(mesh.oip) as channel:
            stub = open_inference_pb2_grpc.GRPCInferenceServiceStub(channel)
            with pytest.raises(grpc.RpcError):
                stub.ServerLive(open_inference_pb2.ServerLiveRequest(), timeout=10)


def test_tensors_travel_as_json_arrays(mesh: Mesh, engine: str) -> None:
    prediction = run(mesh, engine, a=[[0, 1, 2], [3, 4, 5]], b=[[1], [10]])
    assert prediction["output"] == {
        "sum": [[1, 2, 3], [13, 14, 15]],
        "is_big": [[False] * 3, [True] * 3],
    }
    assert prediction["cost"]["status"] == "captured"


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({"a": [[0, 1]], "b": [[1]]}, ["input.a.0", "3 items"]),
        ({"a": [[0, 1, 2]], "b": [[1.5]]}, ["input.b.0.0", "integer"]),
        ({"a": [[0, 1, 2]]}, ["b is required"]),
    ],
)
def test_arrays_of_a_wrong_shape_or_type_are_refused_before_they_run(
    mesh: Mesh, engine: str, inputs: dict[str, Any], words: list[str]
) -> None:
    with mesh.http() as http:
        answer = http.post("/v1/predictions", json={"version": engine, "input": inputs})
    assert answer.status_code == 422, answer.text
    assert all(word in answer.json()["detail"] for word in words), answer.text


def test_tensors_that_do_not_fit_together_fail_free_of_charge(mesh: Mesh, engine: str) -> None:
    prediction = mesh.finish(mesh.create(engine, a=[[0, 1, 2]], b=[[1], [10]]))
    assert prediction["status"] == "failed"
    assert "'b'" in prediction["error"]
    assert prediction["cost"]["status"] == "released"


@pytest.mark.parametrize(("color", "label"), [("red", "red"), ("#0f0", "green"), ("blue", "blue")])
def test_a_picture_goes_in_and_labels_come_out(
    mesh: Mesh, classifier: str, color: str, label: str
) -> None:
    output = run(mesh, classifier, picture=data_url(picture(color)))["output"]
    assert [set(item) for item in output] == [{"label", "score"}] * 2
    assert output[0]["label"] == label
    assert output[0]["score"] > 0.99


def test_an_uploaded_picture_and_a_parameter_of_the_labels(mesh: Mesh, classifier: str) -> None:
    with mesh.http() as http:
        upload = http.post("/v1/files", files={"content": ("p.png", picture("blue"), "image/png")})
    url = upload.json()["urls"]["get"]
    output = run(mesh, classifier, picture=url, top_k=3)["output"]
    assert len(output) == 3
    assert output[0]["label"] == "blue"
    assert sum(item["score"] for item in output) == pytest.approx(1, abs=1e-5)


def test_bytes_that_are_no_picture_are_refused_by_name(mesh: Mesh, classifier: str) -> None:
    prediction = mesh.finish(mesh.create(classifier, picture=data_url(b"not a picture")))
    assert prediction["status"] == "failed"
    assert "picture" in prediction["error"]
    assert prediction["cost"]["status"] == "released"


def test_the_schema_of_the_classifier_is_what_a_form_needs(mesh: Mesh, classifier: str) -> None:
    with mesh.http() as http:
        version = http.get(f"/v1/models/{CLASSIFIER}/versions/{classifier}").json()
    properties = version["openapi_schema"]["components"]["schemas"]["Input"]["properties"]
    assert properties["picture"]["format"] == "uri"
    assert (properties["top_k"]["minimum"], properties["top_k"]["maximum"]) == (1, 3)


def test_labels_that_do_not_fit_the_model_are_refused_at_push(mesh: Mesh, tmp_path: Path) -> None:
    (tmp_path / "reprise.yaml").write_text(CONFIG)
    (tmp_path / "colors.txt").write_text("red\ngreen\n")
    path = onnx_builders.image_to_scores(tmp_path / "model.onnx")
    answer = mesh.cli(
        "push", "local/two-colors", str(path), "--config", str(tmp_path / "reprise.yaml")
    )
    assert answer.returncode == 1
    assert "2 names" in answer.stderr
    assert "3 classes" in answer.stderr
