"""The reference page, the contracts and the code say the same."""

import importlib

import pytest

from services.chassis import errors
from tests.house import reference


def test_the_reference_page_is_what_the_code_says() -> None:
    message = "docs/reference.md is stale: run `make reference`"
    assert reference.REFERENCE.read_text() == reference.render(), message


@pytest.mark.parametrize("service", reference.SERVICES)
def test_each_setting_is_explained(service: str) -> None:
    rows = list(reference.settings_rows(service))
    assert rows
    assert not [row for row in rows if row.endswith("|  |")]


def test_each_event_has_a_subject_that_names_its_service_and_a_past_verb() -> None:
    for message, subject in reference.events():
        package = message.full_name.rpartition(".")[0]
        assert subject.startswith(f"{package}."), subject
        assert subject.rpartition(".")[2].endswith("ed"), subject


def test_each_route_belongs_to_one_method() -> None:
    found = [route for method in reference.methods() for route in reference.routes(method)]
    assert len(found) == len(set(found))


def test_each_method_with_a_route_says_who_may_call_it() -> None:
    from reprise.wire.v1 import options_pb2

    for method in reference.methods():
        if list(reference.routes(method)):
            assert method.GetOptions().Extensions[options_pb2.access], method.full_name


def test_each_error_meaning_has_a_status_of_its_own() -> None:
    statuses = [meaning.status for meaning in errors.MEANINGS]
    assert len(statuses) == len(set(statuses))
    meanings = {
        item for item in errors.RepriseError.__subclasses__() if item.__module__ == errors.__name__
    }
    assert meanings == set(errors.MEANINGS)


def test_inference_core_exports_what_it_lists() -> None:
    module = importlib.import_module("inference_core")
    assert sorted(module.__all__) == list(module.__all__)
    assert all(hasattr(module, name) for name in module.__all__)
