"""Prepaid credit: 402 without, and `reprise credit add`."""

import json

import pytest
from replicate.client import Client
from replicate.exceptions import ReplicateError

from tests.e2e.conftest import PROJECTS
from tests.e2e.mesh import Mesh, start_mesh


def test_without_credit_a_create_is_402_and_makes_nothing(
    tmp_path_factory: pytest.TempPathFactory, mesh: Mesh, echo: str
) -> None:
    data = tmp_path_factory.mktemp("poor") / "data"
    with start_mesh(data, REPRISE_BILLING_STARTING_CREDIT_MICROS="1000") as poor:
        version = poor.push("local/echo", PROJECTS / "echo")
        client = Client(api_token=poor.token, base_url=poor.url)
        with pytest.raises(ReplicateError) as caught:
            client.predictions.create(version=version, input={})
        assert caught.value.status == 402
        assert "reprise credit add" in (caught.value.detail or "")
        assert client.predictions.list().results == []

        added = poor.cli("credit", "add", "5", "--json")
        assert json.loads(added.stdout)["available_micros"] == "5001000"
        prediction = poor.finish(client.predictions.create(version=version, input={}).id)
        assert prediction["status"] == "succeeded"
        shown = json.loads(poor.cli("credit", "show", "--json").stdout)
        paid = prediction["cost"]["captured_amount_micros"]
        assert int(shown["balance_micros"]) == 5_001_000 - paid


def test_only_an_operator_may_add_credit(mesh: Mesh) -> None:
    with mesh.http() as http:
        token = http.post("/v1/accounts", json={"username": "mallory"}).json()["token"]
    with mesh.http(token) as http:
        answer = http.post("/v1/credit", json={"amount_micros": 1_000_000})
        assert answer.status_code == 403
        assert http.get("/v1/credit").json()["account_id"] == "mallory"


@pytest.mark.parametrize("amount", ["0", "-1", "many", "0.0000001"])
def test_an_amount_that_makes_no_sense_is_refused(mesh: Mesh, amount: str) -> None:
    answer = mesh.cli("credit", "add", "--", amount)
    assert answer.returncode != 0
    assert amount in answer.stderr
