"""The rules of models and versions: names, references, file lists, and a version's id."""

import hashlib
import json
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from reprise.storage.v1 import artifact_pb2, model_pb2

from services.chassis.errors import InvalidInput, PermissionDenied, invalid_field

NAME_SIZE_MAX = 64
FILE_COUNT_MAX = 10_000
FILES_SIZE_BYTES_MAX = 20 * 1024**3
PATH_SIZE_BYTES_MAX = 512
PATH_SEGMENT_SIZE_BYTES_MAX = 255
# Beside its weights an engine version has configuration and labels.
ENGINE_SIDE_FILE_SIZE_BYTES_MAX = 16 * 1024**2
DESCRIPTION_SIZE_MAX = 4096
URL_SIZE_MAX = 2048
SCHEMA_SIZE_BYTES_MAX = 4 * 1024**2

_OWNER = re.compile(r"[a-z0-9]+(?:-+[a-z0-9]+)*")
_NAME = re.compile(r"[a-z0-9]+(?:[._-]+[a-z0-9]+)*")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_KIND_NAMES = {
    model_pb2.VERSION_KIND_COG: "cog",
    model_pb2.VERSION_KIND_ENGINE: "engine",
}


@dataclass(frozen=True, slots=True)
class ModelName:
    """The name of a catalogue entry."""

    owner: str
    name: str

    def __str__(self) -> str:
        return f"{self.owner}/{self.name}"


@dataclass(frozen=True, slots=True)
class Reference:
    """What a caller wrote to name a version: a model, a version id, or both."""

    model: ModelName | None
    version_id: str | None


def check_model_name(owner: str, name: str) -> ModelName:
    """The model's name; refused unless both parts are slugs."""
    if not owner:
        raise invalid_field("owner", "is required", "required")
    if not name:
        raise invalid_field("name", "is required", "required")
    if len(owner) > NAME_SIZE_MAX or not _OWNER.fullmatch(owner):
        raise invalid_field("owner", f"must be {_slug_rule('dashes')}")
    if len(name) > NAME_SIZE_MAX or not _NAME.fullmatch(name):
        raise invalid_field("name", f"must be {_slug_rule('dashes, dots and underscores')}")
    return ModelName(owner=owner, name=name)


def _slug_rule(separators: str) -> str:
    return f"at most {NAME_SIZE_MAX} lower-case letters and digits, with {separators} between them"


def check_may_write(model: ModelName, *, account_id: str, is_operator: bool) -> None:
    """Only an owner changes the owner's models; an operator may change any."""
    if model.owner != account_id and not is_operator:
        raise PermissionDenied(
            f"{model} belongs to {model.owner}; use your own name as owner: {account_id}/"
            f"{model.name}"
        )


def check_model_texts(request: model_pb2.CreateModelRequest) -> None:
    """Bounds of what the owner says about a model."""
    check_description(request.description)
    for field in ("github_url", "paper_url", "license_url", "cover_image_url"):
        url = getattr(request, field)
        if url and not (url.startswith(("https://", "http://")) and len(url) <= URL_SIZE_MAX):
            raise invalid_field(
                field, f"must be an http(s) URL of at most {URL_SIZE_MAX} characters"
            )
    if len(request.hardware) > NAME_SIZE_MAX or (
        request.hardware and not _OWNER.fullmatch(request.hardware)
    ):
        raise invalid_field("hardware", "must be the SKU of a hardware, such as cpu")


def check_description(text: str) -> None:
    """The bound of a model's description."""
    if len(text) > DESCRIPTION_SIZE_MAX:
        raise invalid_field(
            "description", f"must be at most {DESCRIPTION_SIZE_MAX} characters long"
        )


def parse_reference(text: str) -> Reference:
    """Reads "<64 hex>", "owner/name:<64 hex>" or "owner/name"."""
    model_text, colon, version_id = text.rpartition(":")
    if not colon and "/" in text:
        model_text, version_id = text, ""
    if (version_id or colon) and not _DIGEST.fullmatch(version_id):
        raise _bad_reference()
    if not model_text:
        if colon or not version_id:
            raise _bad_reference()
        return Reference(model=None, version_id=version_id)
    owner, _, name = model_text.partition("/")
    if not _OWNER.fullmatch(owner) or not _NAME.fullmatch(name) or len(text) > 3 * NAME_SIZE_MAX:
        raise _bad_reference()
    return Reference(model=ModelName(owner=owner, name=name), version_id=version_id or None)


def _bad_reference() -> InvalidInput:
    return invalid_field(
        "version", 'must be "owner/name", "owner/name:<64 hex digits>" or "<64 hex digits>"'
    )


def check_digest(digest: str, *, field: str = "digest") -> str:
    """The digest, when it is the SHA-256 of something in lower-case hex."""
    if not _DIGEST.fullmatch(digest):
        raise invalid_field(field, "must be a SHA-256 in 64 lower-case hex digits")
    return digest


def check_digests(digests: Sequence[str]) -> None:
    """Bounds of a question about blobs."""
    if len(digests) > FILE_COUNT_MAX:
        raise invalid_field("digests", f"must be at most {FILE_COUNT_MAX}; got {len(digests)}")
    for index, digest in enumerate(digests):
        check_digest(digest, field=f"digests[{index}]")


def check_blob_header(header: artifact_pb2.BlobHeader) -> artifact_pb2.BlobHeader:
    """The header of an upload that may begin."""
    check_digest(header.digest)
    if not 0 <= header.size_bytes <= FILES_SIZE_BYTES_MAX:
        raise invalid_field("size_bytes", f"must be between 0 and {FILES_SIZE_BYTES_MAX}")
    return header


def check_files(
    kind: model_pb2.VersionKind.ValueType, files: Sequence[model_pb2.VersionFile]
) -> None:
    """Refuses a file list that is no version of this kind, or that would leave its folder."""
    if kind not in _KIND_NAMES:
        raise invalid_field("kind", "must be cog or engine", "enum")
    if not files:
        raise invalid_field("files", "must name at least one file", "required")
    if len(files) > FILE_COUNT_MAX:
        raise invalid_field("files", f"must be at most {FILE_COUNT_MAX} files; got {len(files)}")
    for index, file in enumerate(files):
        _check_file(file, field=f"files[{index}]")
    total = sum(file.size_bytes for file in files)
    if total > FILES_SIZE_BYTES_MAX:
        raise invalid_field("files", f"hold {total} bytes; {FILES_SIZE_BYTES_MAX} are allowed")
    _check_places([file.path for file in files])
    if kind == model_pb2.VERSION_KIND_COG:
        _check_cog_files(files)
    else:
        _check_engine_files(files)


def _check_file(file: model_pb2.VersionFile, *, field: str) -> None:
    if problem := _path_problem(file.path):
        raise invalid_field(f"{field}.path", f"{file.path[:PATH_SIZE_BYTES_MAX]!r} {problem}")
    if not _DIGEST.fullmatch(file.digest):
        raise invalid_field(
            f"{field}.digest", f"of {file.path!r} must be a SHA-256 in 64 lower-case hex digits"
        )
    if file.size_bytes < 0:
        raise invalid_field(f"{field}.size_bytes", f"of {file.path!r} must not be negative")


def _path_problem(path: str) -> str:
    if not path:
        return "is empty; give the path in the model's folder"
    if len(path.encode()) > PATH_SIZE_BYTES_MAX:
        return f"is longer than {PATH_SIZE_BYTES_MAX} bytes"
    if path.startswith("/") or re.match(r"[A-Za-z]:", path):
        return "is absolute; give the path in the model's folder"
    if "\\" in path:
        return "has a backslash; separate folders with /"
    if any(unicodedata.category(character) == "Cc" for character in path):
        return "has a control character"
    segments = path.split("/")
    if ".." in segments:
        return "leaves the model's folder by '..'"
    if "" in segments or "." in segments:
        return "has an empty or '.' segment"
    if any(len(segment.encode()) > PATH_SEGMENT_SIZE_BYTES_MAX for segment in segments):
        return f"has a segment longer than {PATH_SEGMENT_SIZE_BYTES_MAX} bytes"
    return ""


def _check_places(paths: Iterable[str]) -> None:
    """Each file has a place of its own, on disks that ignore case or Unicode form as well."""
    places: dict[str, str] = {}
    for path in paths:
        place = _place(path)
        if place in places:
            raise invalid_field(
                "files", f"name {path!r} and {places[place]!r}: the same place twice"
            )
        places[place] = path
    for path in places.values():
        folder = path
        while "/" in folder:
            folder = folder.rpartition("/")[0]
            if other := places.get(_place(folder)):
                raise invalid_field(
                    "files", f"name {other!r} as a file and as the folder of {path!r}"
                )


def _place(path: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", path).casefold())


def _check_cog_files(files: Sequence[model_pb2.VersionFile]) -> None:
    if not any(file.path == "cog.yaml" for file in files):
        raise invalid_field(
            "files", "lack cog.yaml at the top; push the folder that holds it", "required"
        )


def _check_engine_files(files: Sequence[model_pb2.VersionFile]) -> None:
    onnx_paths = [file.path for file in files if file.path.endswith(".onnx")]
    if len(onnx_paths) != 1:
        named = ", ".join(sorted(onnx_paths)[:5]) or "none"
        raise invalid_field(
            "files", f"of an engine must hold exactly one .onnx file; found: {named}"
        )
    for file in files:
        # Large models keep their weights beside the graph, as model.onnx.data.
        is_weights = file.path.startswith(onnx_paths[0])
        if not is_weights and file.size_bytes > ENGINE_SIDE_FILE_SIZE_BYTES_MAX:
            raise invalid_field(
                "files",
                f"hold {file.path!r} of {file.size_bytes} bytes; beside {onnx_paths[0]} and "
                f"{onnx_paths[0]}.data an engine may have files of at most "
                f"{ENGINE_SIDE_FILE_SIZE_BYTES_MAX} bytes, such as reprise.yaml and labels",
            )


def canonical_files(files: Iterable[model_pb2.VersionFile]) -> list[dict[str, str | int | bool]]:
    """The files as they are hashed and stored: by path, no matter in which order they came."""
    return [
        {
            "digest": file.digest,
            "is_executable": file.is_executable,
            "path": file.path,
            "size_bytes": file.size_bytes,
        }
        for file in sorted(files, key=lambda file: file.path)
    ]


def compute_version_id(
    kind: model_pb2.VersionKind.ValueType, files: Iterable[model_pb2.VersionFile]
) -> str:
    """SHA-256 over the canonical content: what and where, never when or by whom."""
    content = {"files": canonical_files(files), "kind": _KIND_NAMES[kind]}
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def check_openapi_schema(text: str) -> str:
    """The schema of a built version; clients need its components.schemas.Output."""
    if len(text.encode()) > SCHEMA_SIZE_BYTES_MAX:
        raise invalid_field("openapi_schema", f"is larger than {SCHEMA_SIZE_BYTES_MAX} bytes")
    try:
        schemas = json.loads(text)["components"]["schemas"]
        has_output = "Output" in schemas
    except (ValueError, KeyError, TypeError, RecursionError):
        has_output = False
    if not has_output:
        raise invalid_field(
            "openapi_schema",
            "of the built model lacks components.schemas.Output; give the predict function a "
            "return type and push again",
        )
    return text
