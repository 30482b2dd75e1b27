"""One tenant never sees another's models, predictions, files or money."""

import httpx
import pytest

from tests.e2e.mesh import Mesh


@pytest.fixture(scope="module")
def stranger(mesh: Mesh) -> str:
    with mesh.http() as http:
        answer = http.post("/v1/accounts", json={"username": "stranger", "name": "A stranger"})
    assert answer.status_code == 201, answer.text
    token: str = answer.json()["token"]
    return token


def test_a_private_model_is_not_found_by_a_stranger(mesh: Mesh, echo: str, stranger: str) -> None:
    with mesh.http(stranger) as http:
        assert http.get("/v1/models/local/echo").status_code == 404
        assert http.get(f"/v1/models/local/echo/versions/{echo}").status_code == 404
        assert http.get("/v1/models").json()["results"] == []
        for version in (echo, "local/echo", f"local/echo:{echo}"):
            answer = http.post("/v1/predictions", json={"version": version, "input": {}})
            assert answer.status_code in (404, 422), answer.text


def test_a_prediction_is_not_found_by_a_stranger(mesh: Mesh, echo: str, stranger: str) -> None:
    prediction_id = mesh.create(echo, text="mine")
    with mesh.http(stranger) as http:
        assert http.get(f"/v1/predictions/{prediction_id}").status_code == 404
        assert http.post(f"/v1/predictions/{prediction_id}/cancel").status_code == 404
        assert http.get("/v1/predictions").json()["results"] == []
        assert http.get(f"/v1/ledger?prediction_id={prediction_id}").json()["results"] == []
    assert mesh.finish(prediction_id)["output"] == "mine"


def test_a_revoked_token_is_refused_at_once(mesh: Mesh) -> None:
    with mesh.http() as http:
        made = http.post("/v1/tokens", json={"name": "short-lived"}).json()
        with mesh.http(made["secret"]) as other:
            assert other.get("/v1/account").status_code == 200
            assert http.delete(f"/v1/tokens/{made['token']['id']}").status_code == 204
            assert other.get("/v1/account").status_code == 401


def test_internal_calls_are_unknown_from_outside(mesh: Mesh) -> None:
    answer = httpx.post(f"{mesh.url}/reprise.billing.v1.LedgerService/SettleHolds")
    assert answer.status_code == 404
