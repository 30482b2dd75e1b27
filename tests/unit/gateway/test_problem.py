"""Errors as HTTP answers."""

import orjson
import pytest

from services.chassis import errors
from services.gateway import problem
from services.gateway.routes import MethodNotAllowed


@pytest.mark.parametrize("meaning", errors.MEANINGS)
def test_every_meaning_is_an_object_with_text_and_status(
    meaning: type[errors.RepriseError],
) -> None:
    status, headers, body = problem.answer_of(meaning("what is wrong"))
    value = orjson.loads(body)
    assert value["status"] == status
    assert value["detail"] == "what is wrong"
    assert value["reason"] == meaning.default_reason
    assert problem.CONTENT_TYPE in headers
    assert status in problem_statuses()


def problem_statuses() -> set[int]:
    return {400, 401, 403, 404, 409, 422, 429, 500, 501, 503}


def test_field_problems_are_lines() -> None:
    fields = [
        errors.FieldViolation("input.n", "must be less than 3", "number_lte"),
        errors.FieldViolation("input", "text is required", "required"),
    ]
    value = problem.problem_of(errors.InvalidInput("no", fields=fields))
    assert value["title"] == "Input validation failed"
    assert value["detail"] == "- input.n: must be less than 3\n- input: text is required\n"
    assert value["invalid_fields"][0] == {
        "type": "number_lte",
        "field": "input.n",
        "description": "must be less than 3",
    }


@pytest.mark.parametrize(
    ("reason", "status"),
    [("INSUFFICIENT_CREDIT", 402), ("FILE_TOO_LARGE", 413), ("BACKLOG_FULL", 429)],
)
def test_reasons_say_more_than_their_meaning(reason: str, status: int) -> None:
    assert problem.status_of(errors.ResourceExhausted("no", reason=reason)) == status


def test_callers_learn_when_to_come_back() -> None:
    _, headers, body = problem.answer_of(errors.ResourceExhausted("slow down"))
    assert (b"retry-after", b"1") in headers
    assert orjson.loads(body)["retry_after"] == 1


@pytest.mark.parametrize("meaning", [errors.AlreadyExists, errors.NotImplementedYet])
def test_what_never_goes_away_is_not_to_be_repeated(meaning: type[errors.RepriseError]) -> None:
    _, headers, _ = problem.answer_of(meaning("no"))
    assert (b"x-should-retry", b"false") in headers


def test_the_text_of_a_fault_stays_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    hidden = problem.hidden(RuntimeError("password=hunter2"), "GET /")
    assert "hunter2" not in hidden.message
    assert "hunter2" in caplog.text


def test_a_wrong_method_lists_the_right_ones() -> None:
    status, headers, _ = problem.answer_of(MethodNotAllowed(["POST", "GET"]))
    assert status == 405
    assert (b"allow", b"GET, POST") in headers
