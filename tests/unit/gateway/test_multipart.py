"""The upload form, cut into chunks anywhere."""

import itertools
from collections.abc import AsyncIterator

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.chassis.errors import InvalidInput, RepriseError
from services.gateway import multipart, problem
from services.gateway.multipart import FormReader, UploadedForm

TYPE = "multipart/form-data; boundary=xYz"


def _form(*parts: tuple[str, bytes]) -> bytes:
    pieces = [
        f"--xYz\r\nContent-Disposition: form-data; {head}\r\n\r\n".encode() + body + b"\r\n"
        for head, body in parts
    ]
    return b"".join(pieces) + b"--xYz--\r\n"


async def _read(body: bytes, cuts: list[int] | None = None, size_max: int = 10_000) -> UploadedForm:
    async def chunks() -> AsyncIterator[bytes]:
        edges = sorted({0, len(body), *(cut % (len(body) + 1) for cut in cuts or [])})
        for start, end in itertools.pairwise(edges):
            yield body[start:end]

    return await FormReader(TYPE, size_max).read(chunks())


@given(content=st.binary(max_size=300), cuts=st.lists(st.integers(0, 2000), max_size=20))
async def test_any_content_survives_any_chunks(content: bytes, cuts: list[int]) -> None:
    body = _form(
        ('name="content"; filename="é.bin"\r\nContent-Type: a/b', content),
        ('name="metadata"; filename="blob"', b'{"k": 1}'),
    )
    form = await _read(body, cuts)
    with form.content:
        assert form.content.read() == content
    assert (form.size_bytes, form.name, form.content_type) == (len(content), "é.bin", "a/b")
    assert orjson.loads(form.metadata) == {"k": 1}


@pytest.mark.parametrize(
    ("file_name", "name"),
    [("a.png", "a.png"), ("/etc/passwd", "passwd"), (r"C:\\dir\\a.png", "a.png"), ("dir/", "file")],
)
async def test_a_file_name_loses_its_folders(file_name: str, name: str) -> None:
    form = await _read(_form((f'name="content"; filename="{file_name}"', b"")))
    form.content.close()
    assert form.name == name


async def test_a_large_file_goes_to_disk_and_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(multipart, "SPOOL_SIZE_MAX", 100)
    content = bytes(range(256)) * 30
    form = await _read(_form(('name="content"', content)), list(range(0, 8000, 500)))
    with form.content:
        assert form.content.read() == content


@pytest.mark.parametrize(
    ("parts", "status"),
    [
        ([('name="content"', b"x" * 10_001)], 413),
        ([('name="content"', b"x"), ('name="other"', b"x" * (2**20 + 1))], 413),
        ([('name="content"', b"x")] + [('name="f"', b"")] * 128, 413),
        (
            [
                ('name="content"', b"x"),
                ('name="metadata[a]"', b"1"),
                ('name="metadata[a][b]"', b"2"),
            ],
            422,
        ),
        ([('name="content"', b"x"), ('name="metadata' + "[a]" * 9 + '"', b"1")], 422),
    ],
)
async def test_every_part_of_a_form_is_bounded(parts: list[tuple[str, bytes]], status: int) -> None:
    with pytest.raises(RepriseError) as caught:
        await _read(_form(*parts))
    assert problem.status_of(caught.value) == status


async def test_long_part_headers_are_refused() -> None:
    with pytest.raises(RepriseError) as caught:
        await _read(_form(('name="content"; x="' + "y" * 9000 + '"', b"x")))
    assert problem.status_of(caught.value) in (400, 413)


@pytest.mark.parametrize("content_type", ["", "text/plain", "multipart/form-data"])
def test_what_is_no_form_is_refused(content_type: str) -> None:
    with pytest.raises(InvalidInput):
        FormReader(content_type, 10)
