"""A prediction by the official Replicate Python client, from call to receipt."""

import json
import math
import time

import pytest
import replicate
from replicate.client import Client
from replicate.exceptions import ModelError, ReplicateError

from tests.e2e.mesh import Mesh


@pytest.fixture
def client(mesh: Mesh) -> Client:
    return Client(api_token=mesh.token, base_url=mesh.url)


def test_run_blocks_and_returns_the_output(client: Client, echo: str) -> None:
    assert client.run(f"local/echo:{echo}", input={"text": "hello"}) == "hello"


def test_run_by_model_name_uses_the_latest_version(client: Client, echo: str) -> None:
    assert client.run("local/echo", input={"text": "latest"}) == "latest"


def test_run_by_polling_returns_the_output(client: Client, echo: str) -> None:
    output = client.run(f"local/echo:{echo}", input={"text": "polled"}, wait=False)
    assert output == "polled"


def test_a_wait_that_runs_out_still_ends_with_the_whole_output(client: Client, echo: str) -> None:
    output = client.run(f"local/echo:{echo}", input={"text": "slow", "sleep_s": 2.0}, wait=1)
    assert output == "slow"


def test_a_wait_that_runs_out_is_answered_starting_without_output(mesh: Mesh, echo: str) -> None:
    body = {"version": echo, "input": {"sleep_s": 3.0}}
    with mesh.http() as http:
        answer = http.post("/v1/predictions", json=body, headers={"Prefer": "wait=1"})
    assert answer.status_code == 201
    assert (answer.json()["status"], answer.json()["output"]) == ("starting", None)
    assert mesh.finish(answer.json()["id"])["status"] == "succeeded"


def test_a_failing_model_raises_its_message_and_is_billed_by_run_time(
    mesh: Mesh, client: Client, echo: str
) -> None:
    with pytest.raises(ModelError, match="too sour") as caught:
        client.run(f"local/echo:{echo}", input={"fail": "too sour"})
    prediction = mesh.finish(caught.value.prediction.id)
    assert prediction["status"] == "failed"
    assert prediction["cost"]["status"] == "captured"


def test_logs_are_there_while_it_runs(mesh: Mesh, echo: str) -> None:
    prediction_id = mesh.create(echo, log="half way", sleep_s=20.0)
    running = mesh.wait_for(prediction_id, lambda item: "half way" in item["logs"])
    assert running["status"] == "processing"
    with mesh.http() as http:
        http.post(f"/v1/predictions/{prediction_id}/cancel")


def test_the_receipt_adds_up_to_the_ledger(mesh: Mesh, echo: str) -> None:
    prediction = mesh.finish(mesh.create(echo, sleep_s=0.2))
    cost = prediction["cost"]
    assert cost["status"] == "captured"
    assert cost["hardware"] == "cpu"
    assert cost["charged_ms"] >= 200
    expected = math.ceil(cost["charged_ms"] * cost["price_micros_per_second"] / 1000)
    assert cost["captured_amount_micros"] == expected <= cost["held_amount_micros"]
    entries = {entry["kind"]: entry for entry in mesh.ledger(prediction["id"])}
    assert set(entries) == {"hold", "capture"}
    assert entries["capture"]["id"] == cost["ledger_entry_id"]
    # The hold took the maximum; the capture gave back what was not used.
    paid = -sum(entry["amount_micros"] for entry in entries.values())
    assert paid == cost["captured_amount_micros"]


def test_cancel_while_running_ends_it_at_once_and_frees_the_slot(mesh: Mesh, echo: str) -> None:
    prediction_id = mesh.create(echo, sleep_s=50.0)
    mesh.wait_for(prediction_id, lambda item: item["status"] == "processing")
    with mesh.http() as http:
        answer = http.post(
            f"/v1/predictions/{prediction_id}/cancel", headers={"Content-Type": "application/json"}
        )
    assert (answer.status_code, answer.json()["status"]) == (200, "canceled")
    canceled_at = time.monotonic()
    assert mesh.finish(mesh.create(echo, text="next"))["output"] == "next"
    assert time.monotonic() - canceled_at < 10
    assert mesh.finish(prediction_id)["cost"]["charged_ms"] < 20_000


def test_cancel_while_waiting_costs_nothing(mesh: Mesh, echo: str) -> None:
    blocker = mesh.create(echo, sleep_s=50.0)
    mesh.wait_for(blocker, lambda item: item["status"] == "processing")
    waiting = mesh.create(echo)
    card = mesh.get(waiting)["queue"]
    assert card["position"] >= 1
    assert card["reason"] == "no_capacity"
    assert card["detail"]
    with mesh.http() as http:
        for prediction_id in (waiting, blocker):
            http.post(f"/v1/predictions/{prediction_id}/cancel")
    ended = mesh.finish(waiting)
    assert (ended["status"], ended["cost"]["status"]) == ("canceled", "released")
    assert [entry["kind"] for entry in mesh.ledger(waiting)] == ["release", "hold"]


def test_cancel_after_its_end_changes_nothing(client: Client, mesh: Mesh, echo: str) -> None:
    prediction_id = mesh.create(echo, text="done")
    mesh.finish(prediction_id)
    canceled = client.predictions.cancel(prediction_id)
    assert (canceled.status, canceled.output) == ("succeeded", "done")


def test_cancel_after_a_time_limit_ends_the_run(mesh: Mesh, echo: str) -> None:
    body = {"version": echo, "input": {"sleep_s": 50.0}}
    with mesh.http() as http:
        answer = http.post("/v1/predictions", json=body, headers={"Cancel-After": "5s"})
    assert answer.json()["deadline"] > answer.json()["created_at"]
    ended = mesh.finish(answer.json()["id"])
    assert ended["status"] == "canceled"


def test_the_list_is_newest_first_and_pages_without_gap_or_repeat(
    mesh: Mesh, client: Client, echo: str
) -> None:
    made = [mesh.create(echo, text=str(number)) for number in range(5)]
    listed: list[str] = []
    url: str | None = "/v1/predictions?page_size=2"
    with mesh.http() as http:
        while url and not set(made) <= set(listed):
            page = http.get(url).json()
            listed += [item["id"] for item in page["results"]]
            url = page["next"]
            assert url is None or url.startswith(mesh.url)
    assert [item for item in listed if item in made] == made[::-1]
    assert len(listed) == len(set(listed))
    assert client.predictions.list().results[0].id in listed


def test_account_hardware_models_and_versions_parse_in_the_client(
    client: Client, echo: str
) -> None:
    assert client.accounts.current().username == "local"
    assert "cpu" in [item.sku for item in client.hardware.list()]
    model = client.models.get("local/echo")
    assert (model.owner, model.name) == ("local", "echo")
    assert model.latest_version is not None
    version = model.versions.get(echo)
    assert version.id == echo
    assert version.openapi_schema["components"]["schemas"]["Output"]["type"] == "string"
    assert echo in [item.id for item in model.versions.list()]
    assert any(item.name == "echo" for item in client.models.list())


def test_a_wrong_token_is_refused_in_the_words_that_clients_know(mesh: Mesh) -> None:
    with pytest.raises(ReplicateError) as caught:
        Client(api_token="rp_wrong", base_url=mesh.url).accounts.current()
    assert caught.value.status == 401
    assert caught.value.detail == "You did not pass a valid authentication token"


def test_one_base_url_with_v1_serves_all_clients(mesh: Mesh) -> None:
    client = Client(api_token=mesh.token, base_url=f"{mesh.url}/v1")
    assert client.accounts.current().username == "local"


def test_a_repeated_create_is_one_prediction_for_each_call(mesh: Mesh, echo: str) -> None:
    body = json.dumps({"version": echo, "input": {"text": "twin"}})
    with mesh.http() as http:
        ids = {
            http.post(
                "/v1/predictions", content=body, headers={"Content-Type": "application/json"}
            ).json()["id"]
            for _ in range(2)
        }
    assert len(ids) == 2


def test_the_module_level_client_needs_only_two_variables(
    mesh: Mesh, echo: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REPLICATE_API_TOKEN", mesh.token)
    monkeypatch.setenv("REPLICATE_BASE_URL", mesh.url)
    monkeypatch.setattr(replicate, "default_client", Client())
    assert replicate.default_client.run(f"local/echo:{echo}", input={"text": "two"}) == "two"


def test_the_client_reads_the_progress_bar_of_a_running_model(
    mesh: Mesh, client: Client, echo: str
) -> None:
    bar = "\r  0%|          | 0/4 [00:00<?]\r 50%|#####     | 2/4 [00:01<00:01]"
    prediction_id = mesh.create(echo, log=bar, sleep_s=20.0)
    mesh.wait_for(prediction_id, lambda item: "50%" in item["logs"])
    progress = client.predictions.get(prediction_id).progress
    assert progress is not None
    assert (progress.percentage, progress.current, progress.total) == (0.5, 2, 4)
    client.predictions.cancel(prediction_id)
