"""Files on their way to and from models, through a real gRPC server."""

import base64
from collections.abc import AsyncIterator
from dataclasses import dataclass

import grpc
import pytest
from reprise.gateway.v1 import fetch_pb2, fetch_pb2_grpc

from services.chassis.channels import Peer, open_channel
from services.inference.file_shapes import FileShape
from services.inference.prediction_files import (
    InputFileRefused,
    PredictionFiles,
    file_name,
    parse_data_uri,
)
from tests.doubles.storage import FakeStorage

FILE = FileShape(is_file=True)
PNG = "data:image/png;base64," + base64.b64encode(b"png bytes").decode()


class FakeFetcher(fetch_pb2_grpc.FetchServiceServicer):
    async def FetchUrl(
        self, request: fetch_pb2.FetchUrlRequest, context: object
    ) -> AsyncIterator[fetch_pb2.FetchUrlResponse]:
        yield fetch_pb2.FetchUrlResponse(chunk=b"a", content_type="text/html; charset=utf-8")
        yield fetch_pb2.FetchUrlResponse(chunk=b"b")


@dataclass
class Desk:
    files: PredictionFiles
    storage: FakeStorage


@pytest.fixture
async def desk() -> AsyncIterator[Desk]:
    storage = FakeStorage()
    server = grpc.aio.server()
    storage.add_to(server)
    fetch_pb2_grpc.add_FetchServiceServicer_to_server(FakeFetcher(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    peer = Peer(open_channel(f"127.0.0.1:{port}"), "mesh")
    files = PredictionFiles(storage=peer, gateway=peer, timeout_s=5, input_max_bytes=1000)
    yield Desk(files, storage)
    await peer.channel.close()
    await server.stop(0)


async def test_stored_files_and_urls_become_data_urls_and_the_rest_stays(desk: Desk) -> None:
    stored = desk.storage.files.put(b"bytes", content_type="image/png")
    brought = await desk.files.bring(
        {
            "text": f"reprise-file:{stored.id}",
            "image": f"reprise-file:{stored.id}",
            "images": [f"reprise-file:{stored.id}", "https://example.org/x", PNG],
            "nothing": None,
        },
        {"image": FILE, "images": FileShape(items=FILE), "nothing": FILE},
        "alice",
    )
    png = "data:image/png;base64," + base64.b64encode(b"bytes").decode()
    html = "data:text/html;base64," + base64.b64encode(b"ab").decode()
    assert brought == {
        "text": f"reprise-file:{stored.id}",
        "image": png,
        "images": [png, html, PNG],
        "nothing": None,
    }


async def test_a_missing_file_names_its_field_and_position(desk: Desk) -> None:
    with pytest.raises(InputFileRefused, match=r"images/1: .*not found"):
        await desk.files.bring(
            {"images": [PNG, "reprise-file:none"]}, {"images": FileShape(items=FILE)}, "alice"
        )


async def test_a_file_over_the_limit_is_refused_with_the_limit(desk: Desk) -> None:
    stored = desk.storage.files.put(b"x" * 1001)
    with pytest.raises(InputFileRefused, match="image: the file has more than 1000 bytes"):
        await desk.files.bring({"image": f"reprise-file:{stored.id}"}, {"image": FILE}, "alice")


async def test_only_what_the_schema_calls_a_file_is_stored(desk: Desk) -> None:
    shape = FileShape(properties={"image": FILE, "more": FileShape(items=FILE)})
    stored = await desk.files.store(
        {"image": PNG, "more": [PNG, None], "note": PNG, "broken": 1}, shape, "alice"
    )
    assert stored["note"] == PNG
    assert stored["more"][1] is None
    for reference in (stored["image"], stored["more"][0]):
        file_id = reference.removeprefix("reprise-file:")
        assert desk.storage.files.contents[file_id] == b"png bytes"
        assert desk.storage.files.files[file_id].name == "output.png"
        assert desk.storage.files.files[file_id].content_type == "image/png"


async def test_a_large_file_is_stored_in_chunks(desk: Desk) -> None:
    content = b"0123456789" * 300_000
    text = "data:application/octet-stream;base64," + base64.b64encode(content).decode()
    stored = await desk.files.store(text, FILE, "alice")
    assert desk.storage.files.contents[stored.removeprefix("reprise-file:")] == content


async def test_a_broken_data_url_of_a_model_stays_text(desk: Desk) -> None:
    assert await desk.files.store("data:image/png;base64,***", FILE, "alice") == (
        "data:image/png;base64,***"
    )


@pytest.mark.parametrize(
    ("text", "content", "media_type"),
    [
        ("data:text/plain;base64,aGk=", b"hi", "text/plain"),
        ("data:,a%20b", b"a b", "text/plain"),
        ("data:text/html;charset=utf-8;base64,aGk=", b"hi", "text/html"),
        ("data:<script>;base64,aGk=", b"hi", "application/octet-stream"),
    ],
)
def test_data_urls_are_read(text: str, content: bytes, media_type: str) -> None:
    parsed = parse_data_uri(text)
    assert (parsed.content, parsed.media_type) == (content, media_type)


@pytest.mark.parametrize("text", ["data:text/plain", "data:text/plain;base64,a"])
def test_broken_data_urls_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"comma|base64"):
        parse_data_uri(text)


def test_files_are_named_by_their_type() -> None:
    assert file_name("image/jpeg") == "output.jpg"
    assert file_name("audio/mpeg") == "output.mp3"
    assert file_name("application/x-never-heard-of") == "output"
