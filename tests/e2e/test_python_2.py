"""The pre-release 2.x of the official Python client against a live mesh, responses checked."""

from typing import Any

import pytest

from tests.e2e.mesh import Mesh
from tests.e2e.playing import SCENARIOS, play, python_with

CLIENT = "replicate==2.0.0b4"


@pytest.fixture(scope="module")
def report(
    mesh: Mesh, echo: str, counter: str, mirror: str, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    python = python_with(tmp_path_factory.mktemp("python_2") / "venv", CLIENT)
    variables = {
        "REPLICATE_BASE_URL": f"{mesh.url}/v1",
        "REPLICATE_API_TOKEN": mesh.token,
        "ECHO": echo,
        "COUNTER": counter,
    }
    return play([python, str(SCENARIOS / "python_2.py")], variables)


def test_account_and_hardware_parse_strictly(report: dict[str, Any]) -> None:
    catalogue = report["catalogue"]
    assert (catalogue["account"]["type"], catalogue["account"]["username"]) == ("user", "local")
    assert {"sku": "cpu", "name": "CPU"} in catalogue["hardware"]


def test_models_and_versions_parse_strictly(report: dict[str, Any], echo: str) -> None:
    catalogue = report["catalogue"]
    assert {"local/echo", "local/counter"} <= set(catalogue["models"])
    assert catalogue["model"]["latest_version"]["id"] == echo
    assert echo in catalogue["versions"]
    assert catalogue["version"]["openapi_schema"]["components"]["schemas"]["Output"]
    assert (catalogue["made"]["name"], catalogue["made"]["run_count"]) == ("made-by-python-2", 0)


def test_a_prediction_parses_strictly_from_create_to_list(
    report: dict[str, Any], echo: str
) -> None:
    predictions = report["predictions"]
    waited, got = predictions["waited"], predictions["got"]
    assert (waited["status"], waited["output"]) == ("succeeded", "waited")
    assert (got["id"], got["output"], got["version"]) == (waited["id"], "waited", echo)
    assert predictions["by_model"]["output"] == "by model"
    assert {waited["id"], predictions["running"]["id"]} <= set(predictions["listed"])


def test_cancel_answers_canceled_before_the_deadline(report: dict[str, Any]) -> None:
    running, canceled = report["predictions"]["running"], report["predictions"]["canceled"]
    assert running["deadline"] > running["created_at"]
    assert (canceled["id"], canceled["status"]) == (running["id"], "canceled")


def test_run_returns_text_pieces_and_files(report: dict[str, Any]) -> None:
    calls = report["calls"]
    assert calls["run"] == "run"
    assert calls["run_pieces"] == ["0 ", "1 ", "2 "]
    assert calls["run_file"] == "cba"


def test_a_model_is_used_as_a_function(report: dict[str, Any]) -> None:
    calls = report["calls"]
    assert calls["use"] == "used"
    assert calls["use_version"] == "0 1 2 "
    assert calls["use_pieces"] == ["0 ", "1 ", "2 "]


def test_a_failing_model_raises_its_message(report: dict[str, Any]) -> None:
    failure = report["calls"]["failure"]
    assert failure["name"] == "ModelError"
    assert "too sour" in failure["message"]


@pytest.mark.parametrize(
    ("call", "name", "status", "words"),
    [
        ("wrong_input", "UnprocessableEntityError", 422, "input.text"),
        ("no_model", "NotFoundError", 404, "local/nothing"),
        ("no_trainings", "InternalServerError", 501, "trainings"),
    ],
)
def test_an_error_is_raised_with_its_problem_body(
    report: dict[str, Any], call: str, name: str, status: int, words: str
) -> None:
    error = report["calls"][call]
    assert (error["name"], error["status"], error["body"]["status"]) == (name, status, status)
    assert words in error["body"]["detail"]


def test_a_file_is_made_listed_told_and_removed(report: dict[str, Any]) -> None:
    files = report["files"]
    made = files["made"]
    assert (made["size"], made["content_type"]) == (5, "text/plain")
    assert made["metadata"] == {"subject": {"of": "memory"}}
    assert files["is_listed"]
    assert files["got"] == made
    assert files["gone"]["status"] == 404
