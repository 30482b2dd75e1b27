"""HTTP requests to messages, messages to answers."""

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reprise.billing.v1 import ledger_pb2
from reprise.scheduler.v1 import hardware_pb2, prediction_pb2
from reprise.storage.v1 import model_pb2

from services.chassis.errors import InvalidInput
from services.gateway.routes import build_routes
from services.gateway.transcode import Binding, JsonFinder, member_texts

TABLE = build_routes()


def _binding(http_method: str, path: str) -> Binding:
    return Binding(TABLE.match(http_method, path).route)


def _request(line: str, *, query: str = "", body: bytes = b"", **headers: str) -> Any:
    match = TABLE.match(*line.split())
    sent = {name.replace("_", "-").encode(): value.encode() for name, value in headers.items()}
    return Binding(match.route).request(
        variables=match.variables, query=query, headers=sent, body=body
    )


def test_path_body_and_headers_meet_in_one_message() -> None:
    request = _request(
        "POST /v1/models/acme/echo/predictions",
        body=b'{"input": {"x": 1.0}}',
        prefer="wait=7",
        cancel_after="1m",
    )
    assert (request.model_owner, request.model_name) == ("acme", "echo")
    assert request.input.text == '{"x": 1.0}'
    assert (request.wait.seconds, request.cancel_after.seconds) == (7, 60)


def test_the_path_wins_over_the_body() -> None:
    body = b'{"model_owner": "other"}'
    request = _request("POST /v1/models/acme/echo/predictions", body=body)
    assert request.model_owner == "acme"


def test_a_wait_in_the_body_is_bounded_too() -> None:
    assert _request("POST /v1/predictions", body=b'{"wait": 600}').wait.seconds == 55


def test_headers_of_other_methods_are_ignored() -> None:
    request = _request("GET /v1/predictions", prefer="wait", cancel_after="nonsense")
    assert request == prediction_pb2.ListPredictionsRequest()


def test_the_last_event_id_comes_from_its_header() -> None:
    request = _request("GET /v1/streams/t", last_event_id="17:3")
    assert (request.stream_token, request.last_event_id) == ("t", "17:3")


def test_query_parameters_become_fields_and_strange_ones_are_ignored() -> None:
    request = _request("GET /v1/predictions", query="cursor=abc&page_size=5&utm=1&source=web")
    assert (request.page_token, request.page_size, request.source) == ("abc", 5, "web")


@pytest.mark.parametrize("query", ["page_size=many", "page_size=1e3", "created_after=noon"])
def test_a_wrong_query_parameter_is_named(query: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        _request("GET /v1/predictions", query=query)
    assert caught.value.fields[0].field == query.partition("=")[0]


def test_a_flood_of_query_parameters_is_refused() -> None:
    with pytest.raises(InvalidInput):
        _request("GET /v1/predictions", query="&".join(f"a{i}=1" for i in range(60)))


def test_a_body_where_none_belongs_is_ignored() -> None:
    assert _request("POST /v1/predictions/p/cancel", body=b"garbage").prediction_id == "p"


def test_deep_nesting_is_refused_not_crashed() -> None:
    body = b'{"input": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    with pytest.raises(InvalidInput):
        _request("POST /v1/predictions", body=body)


def test_a_list_becomes_a_page_with_absolute_links() -> None:
    binding = _binding("GET", "/v1/ledger")
    message = ledger_pb2.ListLedgerEntriesResponse(
        entries=[ledger_pb2.LedgerEntry(id="e")], next_page_token="a+b", previous_page_token="p"
    )
    page = binding.answer(
        message, base_url="https://h", path="/v1/ledger", query="cursor=x&prediction_id=q"
    )
    assert page["next"] == "https://h/v1/ledger?prediction_id=q&cursor=a%2Bb"
    assert page["previous"] == "https://h/v1/ledger?prediction_id=q&cursor=p"
    assert [entry["id"] for entry in page["results"]] == ["e"]


def test_the_last_page_has_no_next() -> None:
    binding = _binding("GET", "/v1/tokens")
    from reprise.gateway.v1 import account_pb2

    page = binding.answer(account_pb2.ListTokensResponse(), base_url="", path="", query="")
    assert page == {"next": None, "previous": None, "results": []}


def test_a_repeated_response_body_is_a_bare_array() -> None:
    message = hardware_pb2.ListHardwareResponse(hardware=[hardware_pb2.Hardware(sku="cpu")])
    answer = _binding("GET", "/v1/hardware").answer(message, base_url="", path="", query="")
    assert answer == [{"sku": "cpu", "name": ""}]


_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**60), 2**60)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@given(st.dictionaries(st.text(), _JSON, max_size=5), st.booleans())
def test_the_text_of_each_member_is_found(value: dict[str, Any], is_spaced: bool) -> None:
    try:
        text = orjson.dumps(value, option=orjson.OPT_INDENT_2 if is_spaced else None).decode()
    except (orjson.JSONEncodeError, UnicodeEncodeError):
        return
    texts = member_texts(text, frozenset(value))
    assert {name: orjson.loads(item) for name, item in texts.items()} == orjson.loads(text)


def test_json_with_a_marker_is_found_at_any_depth() -> None:
    message = model_pb2.ListModelsResponse()
    message.models.add().default_example.text = '"reprise-file:x"'
    message.models.add().latest_version.openapi_schema.text = "{}"
    message.models.add().latest_version.openapi_schema.text = '"reprise-file:y"'
    found = JsonFinder(message.DESCRIPTOR).find(message, "reprise-file:")
    assert [(field.name, item.text) for field, item in found] == [
        ("default_example", '"reprise-file:x"'),
        ("openapi_schema", '"reprise-file:y"'),
    ]
