"""The way of pushed content into the catalogue: checked, built and started once, then stored."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

from reprise.inference.v1 import build_pb2
from reprise.storage.v1 import model_pb2
from sqlalchemy import Row

from services.chassis.clock import Clock
from services.chassis.errors import FieldViolation, InvalidInput
from services.chassis.server import Caller
from services.storage import registry
from services.storage.builds import BuildKey, Builds
from services.storage.file_store import BlobUploads
from services.storage.registry import ModelName
from services.storage.store import PRIVATE, PUBLIC, Catalogue, NewVersion

# A caller with more missing blobs than this has understood.
MISSING_BLOBS_NAMED_MAX = 20


class Pushes:
    """Makes versions; until the last step of a push nothing of it is in the catalogue."""

    def __init__(
        self,
        catalogue: Catalogue,
        blob_uploads: BlobUploads,
        builds: Builds,
        *,
        hardware_default: str,
        clock: Clock,
    ) -> None:
        self._catalogue = catalogue
        self._blob_uploads = blob_uploads
        self._builds = builds
        self._hardware_default = hardware_default
        self._clock = clock

    async def push(
        self, request: model_pb2.CreateVersionRequest, who: Caller
    ) -> AsyncGenerator[str | Row[Any], None]:
        """Steps for people, then the version's row."""
        model = _check(request, who)
        version_id = registry.compute_version_id(request.kind, request.files)
        row = await self._catalogue.find_version(model, version_id)
        if row is None:
            await self._check_blobs(request.files, who.account_id)
            built = await self._catalogue.find_built(model.owner, version_id)
            if built is not None:
                row = await self._create(request, version_id, built)
        if row is not None:
            yield row
            return
        # The build is shared until its row is there: who comes later finds one or the other.
        async with aclosing(self._build(request, version_id, who)) as parts:
            async for part in parts:
                yield (
                    part if isinstance(part, str) else await self._create(request, version_id, part)
                )

    async def _create(
        self,
        request: model_pb2.CreateVersionRequest,
        version_id: str,
        built: build_pb2.BuiltVersion,
    ) -> Row[Any]:
        version = self._new_version(request, version_id, built)
        return await self._catalogue.create_version(version, now=self._clock())

    def _build(
        self, request: model_pb2.CreateVersionRequest, version_id: str, who: Caller
    ) -> AsyncGenerator[str | build_pb2.BuiltVersion, None]:
        content = build_pb2.BuildVersionRequest(
            kind=request.kind, files=request.files, account_id=who.account_id
        )
        return self._builds.follow(
            BuildKey(account_id=who.account_id, version_id=version_id), content
        )

    async def _check_blobs(self, files: Sequence[model_pb2.VersionFile], account_id: str) -> None:
        digests = sorted({file.digest for file in files})
        sizes = await self._blob_uploads.sizes(digests, account_id=account_id)
        violations = []
        for index, file in enumerate(files):
            if file.digest not in sizes:
                problem = f"blob {file.digest} of {file.path!r} was not uploaded by you"
            elif file.size_bytes != sizes[file.digest]:
                problem = (
                    f"{file.path!r} is said to have {file.size_bytes} bytes, its blob has "
                    f"{sizes[file.digest]}"
                )
            else:
                continue
            violations.append(
                FieldViolation(field=f"files[{index}].digest", description=problem, kind="blob")
            )
        if violations:
            raise InvalidInput(
                f"{violations[0].description}; {len(violations)} of {len(files)} files have no "
                "bytes here: upload the blobs that ListMissingBlobs names, then push again",
                reason="BLOBS_MISSING",
                fields=violations[:MISSING_BLOBS_NAMED_MAX],
            )

    def _new_version(
        self,
        request: model_pb2.CreateVersionRequest,
        version_id: str,
        built: build_pb2.BuiltVersion,
    ) -> NewVersion:
        registry.check_openapi_schema(built.openapi_schema.text)
        is_public = request.visibility == model_pb2.VISIBILITY_PUBLIC
        return NewVersion(
            model=ModelName(request.owner, request.name),
            visibility=PUBLIC if is_public else PRIVATE,
            description=request.description or None,
            hardware=self._hardware_default,
            version_id=version_id,
            kind=request.kind,
            files=tuple(request.files),
            built=built,
        )


def _check(request: model_pb2.CreateVersionRequest, who: Caller) -> ModelName:
    model = registry.check_model_name(request.owner, request.name)
    registry.check_may_write(model, account_id=who.account_id, is_operator=who.is_operator)
    registry.check_description(request.description)
    registry.check_files(request.kind, request.files)
    return model
