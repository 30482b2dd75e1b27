"""Streams by server-sent events: live, replayable, resumable."""

from collections.abc import Iterator
from dataclasses import dataclass

import httpx
import pytest
from replicate.client import Client

from tests.e2e.mesh import Mesh


@dataclass(frozen=True, slots=True)
class Event:
    id: str
    name: str
    data: str


def read_events(url: str, last_event_id: str = "") -> Iterator[Event]:
    """Events of a stream without a token, as a browser reads them."""
    headers = {"Accept": "text/event-stream"}
    if last_event_id:
        headers["Last-Event-ID"] = last_event_id
    with httpx.stream("GET", url, headers=headers, timeout=30) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        fields: dict[str, list[str]] = {}
        for line in answer.iter_lines():
            if line.startswith(":"):
                continue
            if line:
                key, _, value = line.partition(":")
                fields.setdefault(key, []).append(value.removeprefix(" "))
            elif fields:
                yield Event(fields["id"][0], fields["event"][0], "\n".join(fields["data"]))
                fields = {}


def start(mesh: Mesh, version: str, **inputs: object) -> tuple[str, str]:
    prediction_id = mesh.create(version, **inputs)
    return prediction_id, mesh.get(prediction_id)["urls"]["stream"]


def test_the_official_client_streams_the_text(mesh: Mesh, counter: str) -> None:
    client = Client(api_token=mesh.token, base_url=mesh.url)
    events = list(client.stream(f"local/counter:{counter}", input={"count": 4}))
    assert "".join(str(event) for event in events) == "0 1 2 3 "


def test_pieces_arrive_before_the_end(mesh: Mesh, counter: str) -> None:
    prediction_id, url = start(mesh, counter, count=200, pause_s=0.1)
    events = read_events(url)
    assert next(events).data == "0 "
    assert mesh.get(prediction_id)["status"] == "processing"
    with mesh.http() as http:
        http.post(f"/v1/predictions/{prediction_id}/cancel")
    last = list(events)[-1]
    assert (last.name, last.data) == ("done", '{"reason":"canceled"}')


@pytest.mark.parametrize("resume_after", [0, 3, 9])
def test_a_cut_stream_resumes_without_gap_or_repeat(
    mesh: Mesh, counter: str, resume_after: int
) -> None:
    _, url = start(mesh, counter, count=10, pause_s=0.02)
    events = read_events(url)
    seen = [next(events) for _ in range(resume_after + 1)]
    events.close()  # type: ignore[attr-defined]  # a generator
    rest = list(read_events(url, seen[-1].id))
    text = "".join(event.data for event in [*seen, *rest] if event.name == "output")
    assert text == "".join(f"{number} " for number in range(10))
    assert rest[-1].name == "done"


def test_a_finished_stream_is_replayed_whole(mesh: Mesh, counter: str) -> None:
    prediction_id, url = start(mesh, counter, count=3)
    mesh.finish(prediction_id)
    assert [event.name for event in read_events(url)] == ["output", "output", "output", "done"]


def test_a_failure_ends_the_stream_with_its_reason(mesh: Mesh, counter: str) -> None:
    _, url = start(mesh, counter, count=5, fail_at=2)
    events = list(read_events(url))
    assert [event.name for event in events] == ["output", "output", "error", "done"]
    assert "stopped at 2" in events[2].data


def test_a_model_that_cannot_stream_has_no_stream_url(mesh: Mesh, echo: str) -> None:
    assert "stream" not in mesh.get(mesh.create(echo))["urls"]


def test_an_unknown_stream_is_not_found(mesh: Mesh) -> None:
    assert httpx.get(f"{mesh.url}/v1/streams/nobody-knows-this").status_code == 404
