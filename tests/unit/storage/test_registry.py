"""Rules of names, references, file lists and version ids."""

from collections.abc import Callable

import pytest
from reprise.storage.v1 import model_pb2

from services.chassis.errors import InvalidInput, PermissionDenied
from services.storage import registry
from services.storage.registry import ModelName, Reference

COG = model_pb2.VERSION_KIND_COG
ENGINE = model_pb2.VERSION_KIND_ENGINE
DIGEST = "a" * 64
STABLE_ID = "0c536ab939c961c7bcdbd3b35347724358661ea35f176105c6ffa4866e95c61f"


def a_file(
    path: str, *, digest: str = DIGEST, size_bytes: int = 3, is_executable: bool = False
) -> model_pb2.VersionFile:
    return model_pb2.VersionFile(
        path=path, digest=digest, size_bytes=size_bytes, is_executable=is_executable
    )


def cog_files(*paths: str) -> list[model_pb2.VersionFile]:
    return [a_file("cog.yaml"), *(a_file(path) for path in paths)]


@pytest.mark.parametrize(
    "path",
    [
        "../evil",
        "weights/../../evil",
        "weights/..",
        "/etc/passwd",
        "C:/windows",
        "..\\evil",
        "weights\\a.bin",
        "a//b",
        "a/",
        "./a",
        "a/./b",
        "a\0b",
        "a\nb",
        "a\x7fb",
        "x" * 256,
        "/".join(["d" * 100] * 6),
        "",
    ],
)
def test_a_path_that_is_not_plainly_inside_the_folder_is_refused_by_name(path: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        registry.check_files(COG, cog_files(path))
    assert repr(path[:512]) in refused.value.message
    assert refused.value.fields[0].field == "files[1].path"


@pytest.mark.parametrize(
    "path", ["predict.py", "a/b/c.bin", "..hidden", "a..b", ".cogignore", "weights/ü.bin", "a b"]
)
def test_a_plain_relative_path_is_taken(path: str) -> None:
    registry.check_files(COG, cog_files(path))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("a.py", "a.py"),
        ("Model.py", "model.py"),
        ("stra\u00dfe", "STRASSE"),
        ("\u00e9.bin", "e\u0301.bin"),
        ("weights", "weights/a.bin"),
        ("Weights", "weights/deep/a.bin"),
    ],
)
def test_two_files_cannot_have_one_place(first: str, second: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        registry.check_files(COG, cog_files(first, second))
    assert repr(first) in refused.value.message
    assert repr(second) in refused.value.message


def test_a_cog_version_needs_cog_yaml_at_the_top() -> None:
    with pytest.raises(InvalidInput, match=r"cog\.yaml"):
        registry.check_files(COG, [a_file("deep/cog.yaml"), a_file("predict.py")])


@pytest.mark.parametrize("paths", [["labels.txt"], ["a.onnx", "b/c.onnx"]])
def test_an_engine_version_needs_exactly_one_onnx_file(paths: list[str]) -> None:
    with pytest.raises(InvalidInput, match=r"exactly one \.onnx"):
        registry.check_files(ENGINE, [a_file(path) for path in paths])


def test_an_engine_version_takes_configuration_but_no_second_heap_of_weights() -> None:
    onnx = a_file("model.onnx", size_bytes=10**9)
    weights = a_file("model.onnx.data", size_bytes=10**10)
    registry.check_files(ENGINE, [onnx, weights, a_file("reprise.yaml"), a_file("labels.txt")])
    with pytest.raises(InvalidInput, match=r"more\.bin"):
        registry.check_files(ENGINE, [onnx, a_file("more.bin", size_bytes=17 * 1024**2)])


def test_bounds_of_a_file_list_are_kept() -> None:
    many = cog_files(*(f"f{index}" for index in range(registry.FILE_COUNT_MAX)))
    registry.check_files(COG, many[:-1])
    with pytest.raises(InvalidInput, match="10000"):
        registry.check_files(COG, many)
    heavy = [*cog_files(), a_file("weights", size_bytes=registry.FILES_SIZE_BYTES_MAX)]
    with pytest.raises(InvalidInput, match="bytes"):
        registry.check_files(COG, heavy)
    with pytest.raises(InvalidInput, match="negative"):
        registry.check_files(COG, [*cog_files(), a_file("weights", size_bytes=-1)])


@pytest.mark.parametrize("digest", ["", "A" * 64, "a" * 63, "g" * 64, "a" * 64 + "\n"])
def test_a_digest_is_64_lower_case_hex_digits(digest: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        registry.check_files(COG, [a_file("cog.yaml", digest=digest)])
    assert refused.value.fields[0].field == "files[0].digest"


def test_a_version_id_does_not_depend_on_the_order_of_files() -> None:
    files = cog_files("predict.py", "a/b")
    forward = registry.compute_version_id(COG, files)
    assert forward == registry.compute_version_id(COG, list(reversed(files)))
    assert len(forward) == 64


CHANGES: list[Callable[[model_pb2.VersionFile], None]] = [
    lambda file: setattr(file, "path", "other.py"),
    lambda file: setattr(file, "digest", "b" * 64),
    lambda file: setattr(file, "size_bytes", 4),
    lambda file: setattr(file, "is_executable", True),
]


@pytest.mark.parametrize("change", CHANGES)
def test_any_change_of_content_changes_the_version_id(
    change: Callable[[model_pb2.VersionFile], None],
) -> None:
    files = cog_files("predict.py")
    before = registry.compute_version_id(COG, files)
    change(files[1])
    assert registry.compute_version_id(COG, files) != before


def test_the_kind_is_part_of_the_version_id() -> None:
    files = [a_file("model.onnx")]
    assert registry.compute_version_id(COG, files) != registry.compute_version_id(ENGINE, files)


def test_the_version_id_is_a_stable_format() -> None:
    """Ids live in callers' code for ever: a change of the canonical form breaks them all."""
    files = [a_file("cog.yaml"), a_file("run.sh", is_executable=True)]
    assert registry.compute_version_id(COG, files) == STABLE_ID


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        (DIGEST, Reference(model=None, version_id=DIGEST)),
        ("al/hello", Reference(model=ModelName("al", "hello"), version_id=None)),
        (f"al/v1.5_x-y:{DIGEST}", Reference(ModelName("al", "v1.5_x-y"), version_id=DIGEST)),
    ],
)
def test_a_version_is_named_in_three_ways(text: str, reference: Reference) -> None:
    assert registry.parse_reference(text) == reference


@pytest.mark.parametrize(
    "text",
    [
        *("", "hello", ":", "al/hello:", f":{DIGEST}", "al/hello:latest", "a/b/c", "/b", "al/"),
        *("Al/b", DIGEST.upper(), f"al/hello:{DIGEST}0", f"al/hello:x:{DIGEST}", "al/hello\n"),
        "al/" + "n" * 500,
    ],
)
def test_any_other_reference_is_refused_with_the_forms_that_work(text: str) -> None:
    with pytest.raises(InvalidInput, match="owner/name"):
        registry.parse_reference(text)


@pytest.mark.parametrize("name", ["a", "stable-diffusion-v1.5", "a_b", "0", "n" * 64])
def test_a_slug_is_a_model_name(name: str) -> None:
    assert str(registry.check_model_name("alice", name)) == f"alice/{name}"


@pytest.mark.parametrize("name", ["A", "-a", "a-", "a b", "a/b", "..", "ü", "n" * 65, "a\n", "a:b"])
def test_other_model_names_are_refused(name: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        registry.check_model_name("alice", name)
    assert refused.value.fields[0].field == "name"


def test_a_missing_name_is_a_required_field() -> None:
    with pytest.raises(InvalidInput) as refused:
        registry.check_model_name("alice", "")
    assert refused.value.fields[0].kind == "required"


def test_only_the_owner_or_an_operator_writes_a_model() -> None:
    model = ModelName("alice", "hello")
    registry.check_may_write(model, account_id="alice", is_operator=False)
    registry.check_may_write(model, account_id="root", is_operator=True)
    with pytest.raises(PermissionDenied, match="mallory/hello"):
        registry.check_may_write(model, account_id="mallory", is_operator=False)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", "{}", '{"components": {"schemas": {"Input": {}}}}', "[" * 10_000],
)
def test_a_schema_without_output_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match=r"components\.schemas\.Output"):
        registry.check_openapi_schema(text)
