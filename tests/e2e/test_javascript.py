"""The official JavaScript client against a live mesh; each scenario is one Node process."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import PROJECTS
from tests.e2e.mesh import Mesh, start_mesh
from tests.e2e.playing import play

CLIENT = "replicate@1.4.0"
SCENARIOS = Path(__file__).parent / "javascript"

pytestmark = pytest.mark.skipif(shutil.which("npm") is None, reason="this host has no Node")


@pytest.fixture(scope="session")
def scenarios(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the scenarios beside the installed client, where Node looks for it."""
    folder = tmp_path_factory.mktemp("javascript") / "scenarios"
    shutil.copytree(SCENARIOS, folder)
    subprocess.run(
        ["npm", "install", "--silent", "--no-audit", "--no-fund", "--prefix", str(folder), CLIENT],
        check=True,
        timeout=120,
        capture_output=True,
    )
    return folder


@pytest.fixture(scope="module")
def models(echo: str, counter: str, mirror: str) -> dict[str, str]:
    return {"ECHO": echo, "COUNTER": counter, "MIRROR": mirror}


def play_in_node(
    scenarios: Path, name: str, mesh: Mesh, variables: dict[str, str]
) -> dict[str, Any]:
    address = {"BASE_URL": f"{mesh.url}/v1", "REPLICATE_API_TOKEN": mesh.token}
    return play(["node", str(scenarios / f"{name}.mjs")], address | variables)


@pytest.fixture(scope="module")
def runs(scenarios: Path, mesh: Mesh, models: dict[str, str]) -> dict[str, Any]:
    return play_in_node(scenarios, "run", mesh, models)


def test_run_blocks_and_returns_the_output(runs: dict[str, Any]) -> None:
    assert runs["blocked"] == "blocked"


def test_run_by_model_name_uses_the_latest_version(runs: dict[str, Any]) -> None:
    assert runs["byName"] == "latest"


def test_polling_tells_each_status_and_the_progress_bar(runs: dict[str, Any]) -> None:
    assert runs["polled"] == "polled"
    assert list(dict.fromkeys(runs["statuses"])) == ["starting", "processing", "succeeded"]
    assert runs["bars"][0] is None
    assert set(runs["bars"][1:]) >= {0.4}


def test_a_wait_that_runs_out_still_ends_with_the_whole_output(runs: dict[str, Any]) -> None:
    assert runs["slow"] == "slow"
    assert runs["ranOut"][0] == ["starting", None]


def test_an_aborted_run_is_canceled(runs: dict[str, Any]) -> None:
    assert runs["aborted"] == {"status": "canceled", "output": None}


def test_a_failing_model_throws_its_message(runs: dict[str, Any]) -> None:
    assert "Prediction failed" in runs["failure"]["message"]
    assert "too sour" in runs["failure"]["message"]


@pytest.fixture(scope="module")
def predictions(scenarios: Path, mesh: Mesh, models: dict[str, str]) -> dict[str, Any]:
    return play_in_node(scenarios, "predictions", mesh, models)


def test_create_answers_at_once_or_waits_as_asked(predictions: dict[str, Any], echo: str) -> None:
    created, waited = predictions["created"], predictions["waited"]
    assert (created["status"], created["output"]) == ("starting", None)
    assert created["version"] == echo
    assert (waited["status"], waited["output"]) == ("succeeded", "waited")


def test_get_answers_the_same_prediction_with_its_output(predictions: dict[str, Any]) -> None:
    got = predictions["got"]
    assert (got["id"], got["output"]) == (predictions["created"]["id"], "created")
    assert got["metrics"]["predict_time"] > 0


def test_cancel_answers_canceled_and_it_stays_so(predictions: dict[str, Any]) -> None:
    assert predictions["canceled"]["status"] == "canceled"
    assert predictions["canceledLater"]["status"] == "canceled"
    assert predictions["canceledLater"]["completed_at"]


def test_paginate_follows_the_next_urls_without_gap_or_repeat(predictions: dict[str, Any]) -> None:
    pages = predictions["pages"]
    assert [len(page) for page in pages] == [2, 2, 2, 2]
    seen = [prediction_id for page in pages for prediction_id in page]
    assert seen[:5] == predictions["made"][::-1]
    assert len(set(seen)) == 8
    assert predictions["listed"][:8] == seen


@pytest.fixture(scope="module")
def streams(scenarios: Path, mesh: Mesh, models: dict[str, str]) -> dict[str, Any]:
    return play_in_node(scenarios, "stream", mesh, models)


def test_stream_yields_the_text_and_an_end(streams: dict[str, Any]) -> None:
    assert streams["text"] == "0 1 2 3 "
    events = [(event["event"], event["data"]) for event in streams["byName"]]
    assert events == [("output", "0 "), ("output", "1 "), ("done", "{}")]


def test_pieces_arrive_while_the_model_runs(streams: dict[str, Any]) -> None:
    assert streams["firstPiece"]["data"] == "0 "
    assert streams["statusAtFirstPiece"] == "processing"


def test_a_canceled_stream_says_so_at_its_end(streams: dict[str, Any]) -> None:
    last = streams["lastOfCanceled"]
    assert (last["event"], json.loads(last["data"])) == ("done", {"reason": "canceled"})


def test_a_failure_in_a_stream_throws_its_message(streams: dict[str, Any]) -> None:
    assert "stopped at 2" in streams["failure"]["message"]


def test_a_model_that_cannot_stream_is_refused_in_words(streams: dict[str, Any]) -> None:
    assert streams["unsupported"]["message"] == "Prediction does not support streaming"


@pytest.fixture(scope="module")
def files(scenarios: Path, mesh: Mesh, models: dict[str, str]) -> dict[str, Any]:
    return play_in_node(scenarios, "files", mesh, models)


def test_a_blob_a_buffer_and_an_upload_go_in(files: dict[str, Any]) -> None:
    assert files["blob"]["text"] == "bolb a morf"
    assert files["buffer"]["text"] == "reffub a morf"
    assert files["byUrl"]["text"] == "rebmemer"


def test_files_of_a_plain_http_mesh_come_out_as_data_urls(files: dict[str, Any]) -> None:
    assert files["blob"]["protocol"] == "data:"


def test_an_upload_keeps_its_name_type_and_metadata(files: dict[str, Any]) -> None:
    uploaded = files["uploaded"]
    assert (uploaded["name"], uploaded["content_type"]) == ("note.txt", "text/plain")
    assert uploaded["metadata"] == {"subject": "memory"}
    assert files["isListed"]
    assert files["got"] == uploaded


def test_a_deleted_file_is_gone(files: dict[str, Any]) -> None:
    assert files["deleted"] is True
    assert files["uploaded"]["id"] not in files["listedAfter"]


def test_over_tls_a_file_output_is_read_without_a_token(scenarios: Path, tmp_path: Path) -> None:
    with start_mesh(tmp_path / "tls", "--tls") as mesh:
        variables = {
            "MIRROR": mesh.push("local/mirror", PROJECTS / "mirror"),
            "NODE_EXTRA_CA_CERTS": str(mesh.data / "tls" / "ca.pem"),
        }
        output = play_in_node(scenarios, "file_output", mesh, variables)
    assert output["name"] == "FileOutput"
    assert output["protocol"] == "https:"
    assert output["text"] == output["plain"] == "slt revo"
    assert output["type"] == "application/octet-stream"


@pytest.fixture(scope="module")
def catalogue(scenarios: Path, mesh: Mesh, models: dict[str, str]) -> dict[str, Any]:
    return play_in_node(scenarios, "catalogue", mesh, models)


def test_account_and_hardware_are_told(catalogue: dict[str, Any]) -> None:
    assert (catalogue["account"]["type"], catalogue["account"]["username"]) == ("user", "local")
    assert {"sku": "cpu", "name": "CPU"} in catalogue["hardware"]


def test_models_are_created_listed_and_told(catalogue: dict[str, Any], echo: str) -> None:
    created = catalogue["created"]
    assert (created["owner"], created["name"]) == ("local", "made-by-node")
    assert created["visibility"] == "private"
    assert {"local/echo", "local/made-by-node"} <= set(catalogue["models"])
    assert catalogue["model"]["latest_version"]["id"] == echo


def test_versions_are_listed_and_told_with_their_schema(
    catalogue: dict[str, Any], echo: str
) -> None:
    assert echo in catalogue["versions"]
    assert catalogue["version"]["id"] == echo
    schemas = catalogue["version"]["openapi_schema"]["components"]["schemas"]
    assert "text" in schemas["Input"]["properties"]


@pytest.fixture(scope="module")
def errors(scenarios: Path, mesh: Mesh, models: dict[str, str]) -> dict[str, Any]:
    return play_in_node(scenarios, "errors", mesh, models)


@pytest.mark.parametrize(
    ("call", "status", "words"),
    [
        ("unauthenticated", 401, "valid authentication token"),
        ("noPrediction", 404, "prediction"),
        ("noModel", 404, "local/nothing"),
        ("modelWithoutVersion", 404, "local/nothing"),
        ("wrongType", 422, "input.text"),
        ("wrongName", 422, "input.txet"),
        ("noVersion", 422, "version"),
        ("training", 501, "trainings"),
        ("trainings", 501, "trainings"),
    ],
)
def test_an_error_is_thrown_with_its_status_and_what_to_do(
    errors: dict[str, Any], call: str, status: int, words: str
) -> None:
    error = errors[call]
    assert (error["name"], error["status"]) == ("ApiError", status)
    assert error["problem"]["status"] == status
    assert words in error["problem"]["detail"]
