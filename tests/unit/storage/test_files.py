"""Rules of file headers and ids."""

import pytest
from reprise.storage.v1 import file_pb2
from reprise.wire.v1.json_pb2 import Json

from services.chassis.errors import InvalidInput, NotFound
from services.storage import files


def test_an_empty_header_gets_defaults_that_clients_can_read() -> None:
    header = files.check_header(file_pb2.FileHeader())
    assert header.name == "file"
    assert header.content_type == "application/octet-stream"
    assert header.metadata.text == "{}"


def test_a_name_may_have_255_bytes_of_utf8_and_no_more() -> None:
    longest = "ü" * 127 + "x"
    assert files.check_header(file_pb2.FileHeader(name=longest)).name == longest
    with pytest.raises(InvalidInput, match="255"):
        files.check_header(file_pb2.FileHeader(name="ü" * 128))


@pytest.mark.parametrize("name", ["a/b", "..", "a\\b", "a\nb", "a\0"])
def test_a_name_that_could_leave_a_folder_is_refused(name: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        files.check_header(file_pb2.FileHeader(name=name))
    assert refused.value.fields[0].field == "filename"


@pytest.mark.parametrize(
    "content_type", ["image", "a/b\r\nSet-Cookie: x", "a/b; x\n", "/", "a/" + "b" * 300]
)
def test_a_content_type_that_could_split_a_header_is_refused(content_type: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        files.check_header(file_pb2.FileHeader(content_type=content_type))
    assert refused.value.fields[0].field == "type"


@pytest.mark.parametrize(
    "content_type", ["image/png", "text/plain; charset=utf-8", "application/vnd.x+json"]
)
def test_usual_content_types_are_taken(content_type: str) -> None:
    header = files.check_header(file_pb2.FileHeader(content_type=content_type))
    assert header.content_type == content_type


@pytest.mark.parametrize("text", ["[]", "null", "{", '"x"', '{"a": "' + "x" * 20_000 + '"}'])
def test_metadata_is_a_small_object(text: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        files.check_header(file_pb2.FileHeader(metadata=Json(text=text)))
    assert refused.value.fields[0].field == "metadata"


def test_ids_are_long_and_never_repeat() -> None:
    ids = {files.new_file_id() for _ in range(100)}
    assert len(ids) == 100
    assert all(len(files.check_file_id(file_id)) >= 26 for file_id in ids)


@pytest.mark.parametrize("file_id", ["", "short", "../" + "x" * 30, "x" * 65, "x" * 26 + "\n"])
def test_an_id_that_was_never_made_is_not_found(file_id: str) -> None:
    with pytest.raises(NotFound, match="File not found"):
        files.check_file_id(file_id)
