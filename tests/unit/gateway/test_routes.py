"""The route table."""

import pytest

from services.chassis.errors import NotFound
from services.gateway.routes import (
    PUBLIC_SERVICES,
    MethodNotAllowed,
    Route,
    RouteTable,
    access_of,
    build_routes,
    owner_of,
    rpc_path,
)

TABLE = build_routes()
ID = "0" * 64


@pytest.mark.parametrize(
    ("request_line", "rpc", "variables"),
    [
        ("POST /v1/predictions", "CreatePrediction", {}),
        (
            "POST /v1/models/acme/echo/predictions",
            "CreatePrediction",
            {"model_owner": "acme", "model_name": "echo"},
        ),
        ("GET /v1/predictions/abc", "GetPrediction", {"prediction_id": "abc"}),
        ("POST /v1/predictions/abc/cancel", "CancelPrediction", {"prediction_id": "abc"}),
        ("GET /v1/models/acme/echo", "GetModel", {"owner": "acme", "name": "echo"}),
        (
            f"GET /v1/models/acme/echo/versions/{ID}",
            "GetVersion",
            {"owner": "acme", "name": "echo", "version_id": ID},
        ),
        ("GET /v1/files/abc", "GetFile", {"file_id": "abc"}),
        ("GET /v1/files/abc/download", "DownloadFile", {"file_id": "abc"}),
        ("GET /v1/streams/tok", "StreamPrediction", {"stream_token": "tok"}),
        ("GET /v1/files/streams/tok", "StreamPrediction", {"stream_token": "tok"}),
        ("DELETE /v1/tokens/t1", "DeleteToken", {"token_id": "t1"}),
    ],
)
def test_a_request_finds_its_rpc(request_line: str, rpc: str, variables: dict[str, str]) -> None:
    match = TABLE.match(*request_line.split())
    assert match.route.method is not None
    assert match.route.method.name == rpc
    assert dict(match.variables) == variables


@pytest.mark.parametrize(
    "path",
    ["", "/", "/v1", "/v2/predictions", "/v1/predictions/", "/v1/predictions/a/b", "/v1//account"],
)
def test_other_paths_are_not_found(path: str) -> None:
    with pytest.raises(NotFound):
        TABLE.match("GET", path)


def test_a_wrong_method_is_told_the_right_ones() -> None:
    with pytest.raises(MethodNotAllowed) as caught:
        TABLE.match("PUT", "/v1/models")
    assert caught.value.allow == "GET, POST, QUERY"


def test_a_variable_is_tried_where_the_literal_leads_nowhere() -> None:
    table = RouteTable([Route("GET", "/a/b/c"), Route("GET", "/a/{x}/d")])
    assert table.match("GET", "/a/b/d").variables == {"x": "b"}


def test_every_public_rpc_has_an_owner_behind_the_gateway() -> None:
    owners = {owner_of(method) for service in PUBLIC_SERVICES for method in service.methods}
    assert owners == {"gateway", "scheduler", "storage", "billing"}


def test_every_route_states_who_may_call_it() -> None:
    assert all(access_of(route.method) for route in TABLE.routes if route.method is not None)


def test_an_rpc_is_named_as_on_the_wire() -> None:
    method = PUBLIC_SERVICES[0].methods_by_name["GetAccount"]
    assert rpc_path(method) == "/reprise.gateway.v1.AccountService/GetAccount"
