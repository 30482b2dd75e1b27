"""ModelService: the catalogue over gRPC."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import grpc
import orjson
from reprise.storage.v1 import model_pb2, model_pb2_grpc
from reprise.wire.v1.json_pb2 import Json
from sqlalchemy import Row

from services.chassis.clock import Clock, timestamp
from services.chassis.errors import AlreadyExists, InvalidInput, NotFound, invalid_field
from services.chassis.paging import bounded_page_size
from services.chassis.server import caller
from services.storage import registry
from services.storage.pushes import Pushes
from services.storage.registry import ModelName, Reference
from services.storage.store import MODEL_ORDERS, PUBLIC, Catalogue

PAGE_SIZE_DEFAULT = 25
PAGE_SIZE_MAX = 100

Context = grpc.aio.ServicerContext[Any, Any]


class ModelServicer(model_pb2_grpc.ModelServiceServicer):
    """Models and versions, each as its caller may see it."""

    def __init__(
        self, catalogue: Catalogue, pushes: Pushes, *, hardware_default: str, clock: Clock
    ) -> None:
        self._catalogue = catalogue
        self._pushes = pushes
        self._hardware_default = hardware_default
        self._clock = clock

    async def CreateModel(
        self, request: model_pb2.CreateModelRequest, context: Context
    ) -> model_pb2.CreateModelResponse:
        who = caller(context)
        model = registry.check_model_name(request.owner, request.name)
        registry.check_may_write(model, account_id=who.account_id, is_operator=who.is_operator)
        registry.check_model_texts(request)
        row = await self._catalogue.create_model(
            request,
            hardware=request.hardware or self._hardware_default,
            request_id=who.request_id,
            now=self._clock(),
        )
        if row is None:
            raise AlreadyExists(f"{model} exists already; push to it, or take another name")
        return model_pb2.CreateModelResponse(model=_pack_model(row, None))

    async def GetModel(
        self, request: model_pb2.GetModelRequest, context: Context
    ) -> model_pb2.GetModelResponse:
        model = ModelName(request.owner, request.name)
        row = await self._visible_model(model, caller(context).account_id)
        latest = await self._catalogue.find_version(model, None)
        return model_pb2.GetModelResponse(model=_pack_model(row, latest))

    async def ListModels(
        self, request: model_pb2.ListModelsRequest, context: Context
    ) -> model_pb2.ListModelsResponse:
        sort_by = request.sort_by or "latest_version_created_at"
        order = MODEL_ORDERS.get(f"{sort_by} {request.sort_direction or 'desc'}")
        if order is None:
            raise invalid_field(
                "sort_by",
                "must be latest_version_created_at or model_created_at, with the sort_direction "
                "desc or asc",
                "enum",
            )
        found = await self._catalogue.list_models(
            account_id=caller(context).account_id,
            order=order,
            page_token=request.page_token,
            page_size=_page_size(request.page_size),
        )
        return model_pb2.ListModelsResponse(
            models=[
                _pack_model(row, found.versions.get(ModelName(row.owner, row.name)))
                for row in found.page.rows
            ],
            next_page_token=found.page.next_page_token,
            previous_page_token=found.page.previous_page_token,
        )

    async def CreateVersion(
        self, request: model_pb2.CreateVersionRequest, context: Context
    ) -> AsyncIterator[model_pb2.CreateVersionResponse]:
        async with aclosing(self._pushes.push(request, caller(context))) as parts:
            async for part in parts:
                if isinstance(part, str):
                    yield model_pb2.CreateVersionResponse(step=part)
                else:
                    yield model_pb2.CreateVersionResponse(version=_pack_version(part))

    async def GetVersion(
        self, request: model_pb2.GetVersionRequest, context: Context
    ) -> model_pb2.GetVersionResponse:
        account_id = caller(context).account_id
        reference = Reference(ModelName(request.owner, request.name), request.version_id)
        row = await self._catalogue.resolve(reference, account_id=account_id)
        if row is None:
            model = ModelName(request.owner, request.name)
            await self._visible_model(model, account_id)
            raise _no_version(model, request.version_id)
        return model_pb2.GetVersionResponse(version=_pack_version(row))

    async def ListVersions(
        self, request: model_pb2.ListVersionsRequest, context: Context
    ) -> model_pb2.ListVersionsResponse:
        model = ModelName(request.owner, request.name)
        await self._visible_model(model, caller(context).account_id)
        page = await self._catalogue.list_versions(
            model, page_token=request.page_token, page_size=_page_size(request.page_size)
        )
        return model_pb2.ListVersionsResponse(
            versions=[_pack_version(row) for row in page.rows],
            next_page_token=page.next_page_token,
            previous_page_token=page.previous_page_token,
        )

    async def ResolveVersion(
        self, request: model_pb2.ResolveVersionRequest, context: Context
    ) -> model_pb2.ResolveVersionResponse:
        reference = registry.parse_reference(request.reference)
        row = await self._catalogue.resolve(reference, account_id=request.account_id)
        if row is None:
            raise await self._unresolved(reference, request.account_id)
        return model_pb2.ResolveVersionResponse(spec=_pack_spec(row))

    async def _visible_model(self, model: ModelName, account_id: str) -> Row[Any]:
        row = await self._catalogue.find_model(model, account_id=account_id)
        if row is None:
            raise NotFound(
                f"model {model} does not exist, or it is private: check the name, or ask its "
                "owner to make it public"
            )
        return row

    async def _unresolved(self, reference: Reference, account_id: str) -> NotFound | InvalidInput:
        """Why nothing was found; raises where the model itself is not to be seen."""
        model, version_id = reference.model, reference.version_id
        if model is None:
            return NotFound(
                f"version {version_id} does not exist, or it is private: copy the id from the "
                "model's list of versions"
            )
        await self._visible_model(model, account_id)
        if version_id is None:
            return NotFound(f"model {model} has no version yet: its owner must push one first")
        other = await self._catalogue.resolve(
            Reference(model=None, version_id=version_id), account_id=account_id
        )
        owner = f"; it is a version of {other.owner}/{other.name}" if other is not None else ""
        return invalid_field(
            "version",
            f"{version_id} is not a version of {model}{owner}: copy an id from "
            f"GET /v1/models/{model}/versions",
        )


def _page_size(page_size: int) -> int:
    return bounded_page_size(page_size, default=PAGE_SIZE_DEFAULT, maximum=PAGE_SIZE_MAX)


def _no_version(model: ModelName, version_id: str) -> NotFound:
    return NotFound(
        f"model {model} has no version {version_id[:80]}: copy an id from "
        f"GET /v1/models/{model}/versions"
    )


def _pack_model(row: Row[Any], latest: Row[Any] | None) -> model_pb2.Model:
    is_public = row.visibility == PUBLIC
    return model_pb2.Model(
        url=f"/{row.owner}/{row.name}",
        owner=row.owner,
        name=row.name,
        description=row.description,
        visibility=model_pb2.VISIBILITY_PUBLIC if is_public else model_pb2.VISIBILITY_PRIVATE,
        github_url=row.github_url,
        paper_url=row.paper_url,
        license_url=row.license_url,
        cover_image_url=row.cover_image_url,
        run_count=row.run_count,
        latest_version=_pack_version(latest) if latest is not None else None,
        created_at=timestamp(row.created_at),
    )


def _pack_version(row: Row[Any]) -> model_pb2.Version:
    return model_pb2.Version(
        id=row.version_id,
        created_at=timestamp(row.created_at),
        cog_version=row.runtime_version,
        openapi_schema=Json(text=row.openapi_schema),
        kind=row.kind,
        model=f"{row.owner}/{row.name}",
    )


def _pack_spec(row: Row[Any]) -> model_pb2.VersionSpec:
    return model_pb2.VersionSpec(
        version_id=row.version_id,
        model=f"{row.owner}/{row.name}",
        kind=row.kind,
        openapi_schema=Json(text=row.openapi_schema),
        files=[model_pb2.VersionFile(**file) for file in orjson.loads(row.files)],
        hardware=row.hardware,
        is_iterator=row.is_iterator,
        has_file_output=row.has_file_output,
        owner=row.owner,
    )
