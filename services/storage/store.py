"""The tables of the catalogue: models, their versions, and which runs were counted."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import orjson
import sqlalchemy as sa
from reprise.inference.v1 import build_pb2
from reprise.storage.v1 import model_pb2
from sqlalchemy import BigInteger, Boolean, Connection, Integer, Row, Text, column, table

from services.chassis.db import Database
from services.chassis.paging import Order, Page, read_page
from services.storage.registry import ModelName, Reference, canonical_files

PUBLIC = "public"
PRIVATE = "private"
RUNTIME_VERSION_UNKNOWN = "unknown"
RUNTIME_VERSION_SIZE_MAX = 255

MODELS = table(
    "models",
    *(column(name, Text) for name in ("owner", "name", "visibility", "hardware", "description")),
    *(column(f"{name}_url", Text) for name in ("github", "paper", "license", "cover_image")),
    column("run_count", BigInteger),
    column("latest_version_id", Text),
    column("latest_version_created_at", BigInteger),
    column("request_id", Text),
    column("created_at", BigInteger),
)
VERSIONS = table(
    "versions",
    *(column(name, Text) for name in ("owner", "name", "version_id", "files", "openapi_schema")),
    column("kind", Integer),
    column("runtime_version", Text),
    column("is_iterator", Boolean),
    column("has_file_output", Boolean),
    column("created_at", BigInteger),
)
COUNTED_EVENTS = table("counted_events", column("event_id", Text), column("counted_at", BigInteger))

MODEL_ORDERS: dict[str, Order] = {
    f"{sort_by} {direction}": Order(
        columns=(MODELS.c[key], MODELS.c.owner, MODELS.c.name),
        is_descending=direction == "desc",
        label=f"models {sort_by} {direction}",
    )
    for sort_by, key in (
        ("latest_version_created_at", "latest_version_created_at"),
        ("model_created_at", "created_at"),
    )
    for direction in ("desc", "asc")
}
_VERSION_ORDER = Order(columns=(VERSIONS.c.created_at, VERSIONS.c.version_id), label="versions")


@dataclass(frozen=True, slots=True)
class NewVersion:
    """A proven version on its way into the catalogue, with its model where that is new."""

    model: ModelName
    # Of a model that is new.
    visibility: str
    description: str | None
    hardware: str
    version_id: str
    kind: model_pb2.VersionKind.ValueType
    files: tuple[model_pb2.VersionFile, ...]
    built: build_pb2.BuiltVersion


@dataclass(frozen=True, slots=True)
class ModelPage:
    """A page of models with the latest version of each."""

    page: Page
    versions: dict[ModelName, Row[Any]]


class Catalogue:
    """Queries on models and versions; every read says whose eyes it is for."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def create_model(
        self, request: model_pb2.CreateModelRequest, *, hardware: str, request_id: str, now: int
    ) -> Row[Any] | None:
        """Inserts the model; None where the name is taken, but a repeated request is answered."""
        model = ModelName(request.owner, request.name)
        is_public = request.visibility == model_pb2.VISIBILITY_PUBLIC
        values = _model_values(
            model,
            visibility=PUBLIC if is_public else PRIVATE,
            hardware=hardware,
            request_id=request_id,
            now=now,
        )
        for name in ("description", "github_url", "paper_url", "license_url", "cover_image_url"):
            values[name] = getattr(request, name) or None

        def work(connection: Connection) -> Row[Any] | None:
            found = _find_model(connection, model)
            if found is not None:
                return found if request_id and found.request_id == request_id else None
            connection.execute(sa.insert(MODELS).values(values))
            return _find_model(connection, model)

        return await self._database.write(work)

    async def find_model(self, model: ModelName, *, account_id: str) -> Row[Any] | None:
        """The model, if this account may see it."""

        def work(connection: Connection) -> Row[Any] | None:
            return _find_model(connection, model, _is_visible_to(account_id))

        return await self._database.read(work)

    async def list_models(
        self, *, account_id: str, order: Order, page_token: str, page_size: int
    ) -> ModelPage:
        """Models that this account may see, each with its latest version."""

        def work(connection: Connection) -> ModelPage:
            page = read_page(
                connection,
                sa.select(MODELS).where(_is_visible_to(account_id)),
                order=order,
                page_token=page_token,
                page_size=page_size,
            )
            return ModelPage(page=page, versions=_latest_versions(connection, page.rows))

        return await self._database.read(work)

    async def find_version(self, model: ModelName, version_id: str | None) -> Row[Any] | None:
        """The version of a model, the latest one without an id; visibility is not looked at."""

        def work(connection: Connection) -> Row[Any] | None:
            return _find_version(connection, model, version_id)

        return await self._database.read(work)

    async def list_versions(self, model: ModelName, *, page_token: str, page_size: int) -> Page:
        """A model's versions, newest first."""

        def work(connection: Connection) -> Page:
            statement = sa.select(VERSIONS).where(_is_of(VERSIONS, model))
            return read_page(
                connection,
                statement,
                order=_VERSION_ORDER,
                page_token=page_token,
                page_size=page_size,
            )

        return await self._database.read(work)

    async def find_built(self, owner: str, version_id: str) -> build_pb2.BuiltVersion | None:
        """What an earlier build of the same content found out, in any model of this owner."""

        def work(connection: Connection) -> Row[Any] | None:
            is_same = (VERSIONS.c.owner == owner) & (VERSIONS.c.version_id == version_id)
            return connection.execute(sa.select(VERSIONS).where(is_same).limit(1)).first()

        row = await self._database.read(work)
        if row is None:
            return None
        built = build_pb2.BuiltVersion(
            runtime_version=row.runtime_version,
            is_iterator=row.is_iterator,
            has_file_output=row.has_file_output,
        )
        built.openapi_schema.text = row.openapi_schema
        return built

    async def create_version(self, version: NewVersion, *, now: int) -> Row[Any]:
        """Inserts version, and model where it is new, in one transaction; a repeat is the first."""

        def work(connection: Connection) -> Row[Any]:
            found = _find_version(connection, version.model, version.version_id)
            if found is not None:
                return found
            if _find_model(connection, version.model) is None:
                connection.execute(sa.insert(MODELS).values(_new_model_of(version, now)))
            connection.execute(sa.insert(VERSIONS).values(_version_values(version, now)))
            latest = {
                "latest_version_id": version.version_id,
                "latest_version_created_at": now,
            }
            connection.execute(
                sa.update(MODELS).where(_is_of(MODELS, version.model)).values(latest)
            )
            return _must(_find_version(connection, version.model, version.version_id))

        return await self._database.write(work)

    async def resolve(self, reference: Reference, *, account_id: str) -> Row[Any] | None:
        """The visible version with its model's hardware; the caller's own one first."""
        statement = sa.select(VERSIONS, MODELS.c.hardware).join(
            MODELS, (MODELS.c.owner == VERSIONS.c.owner) & (MODELS.c.name == VERSIONS.c.name)
        )
        statement = statement.where(_is_visible_to(account_id))
        if reference.model is not None:
            statement = statement.where(_is_of(MODELS, reference.model))
        latest: Any = MODELS.c.latest_version_id
        wanted = latest if reference.version_id is None else reference.version_id
        statement = statement.where(VERSIONS.c.version_id == wanted)
        is_foreign = sa.case((VERSIONS.c.owner == account_id, 0), else_=1)
        statement = statement.order_by(
            is_foreign, VERSIONS.c.created_at, VERSIONS.c.owner, VERSIONS.c.name
        )

        def work(connection: Connection) -> Row[Any] | None:
            return connection.execute(statement.limit(1)).first()

        return await self._database.read(work)

    async def count_runs(self, event_id: str, models: Iterable[str], *, now: int) -> bool:
        """Adds one run for each name; answers False for an event that was counted before."""
        counts = Counter(models)

        def work(connection: Connection) -> bool:
            is_event = COUNTED_EVENTS.c.event_id == event_id
            if connection.execute(sa.select(COUNTED_EVENTS).where(is_event)).first():
                return False
            connection.execute(sa.insert(COUNTED_EVENTS).values(event_id=event_id, counted_at=now))
            if counts:
                _add_runs(connection, counts)
            return True

        return await self._database.write(work)

    async def forget_events(self, *, before: int) -> None:
        """Forgets ids of events that cannot come again."""
        statement = sa.delete(COUNTED_EVENTS).where(COUNTED_EVENTS.c.counted_at < before)

        def work(connection: Connection) -> None:
            connection.execute(statement)

        await self._database.write(work)


def _is_visible_to(account_id: str) -> sa.ColumnElement[bool]:
    return (MODELS.c.visibility == PUBLIC) | (MODELS.c.owner == account_id)


def _is_of(rows: sa.TableClause, model: ModelName) -> sa.ColumnElement[bool]:
    return (rows.c.owner == model.owner) & (rows.c.name == model.name)


def _find_model(
    connection: Connection, model: ModelName, *conditions: sa.ColumnElement[bool]
) -> Row[Any] | None:
    statement = sa.select(MODELS).where(_is_of(MODELS, model), *conditions)
    return connection.execute(statement).first()


def _find_version(
    connection: Connection, model: ModelName, version_id: str | None
) -> Row[Any] | None:
    statement = sa.select(VERSIONS).where(_is_of(VERSIONS, model))
    if version_id is None:
        latest = sa.select(MODELS.c.latest_version_id).where(_is_of(MODELS, model))
        statement = statement.where(VERSIONS.c.version_id == latest.scalar_subquery())
    else:
        statement = statement.where(VERSIONS.c.version_id == version_id)
    return connection.execute(statement).first()


def _latest_versions(connection: Connection, rows: Iterable[Row[Any]]) -> dict[ModelName, Row[Any]]:
    # One look-up by key for each: SQLite answers an IN over three columns with a scan.
    is_latest = [
        _is_of(VERSIONS, ModelName(row.owner, row.name))
        & (VERSIONS.c.version_id == row.latest_version_id)
        for row in rows
        if row.latest_version_id
    ]
    if not is_latest:
        return {}
    found = connection.execute(sa.select(VERSIONS).where(sa.or_(*is_latest)))
    return {ModelName(row.owner, row.name): row for row in found}


def _add_runs(connection: Connection, counts: Counter[str]) -> None:
    statement = (
        sa.update(MODELS)
        .where(MODELS.c.owner == sa.bindparam("of_owner"), MODELS.c.name == sa.bindparam("of_name"))
        .values(run_count=MODELS.c.run_count + sa.bindparam("added"))
    )
    parameters = []
    for model, added in counts.items():
        owner, _, name = model.partition("/")
        parameters.append({"of_owner": owner, "of_name": name, "added": added})
    connection.execute(statement, parameters)


def _model_values(
    model: ModelName, *, visibility: str, hardware: str, request_id: str, now: int
) -> dict[str, Any]:
    return {
        "owner": model.owner,
        "name": model.name,
        "visibility": visibility,
        "hardware": hardware,
        "request_id": request_id,
        "created_at": now,
    }


def _new_model_of(version: NewVersion, now: int) -> dict[str, Any]:
    values = _model_values(
        version.model,
        visibility=version.visibility,
        hardware=version.hardware,
        request_id="",
        now=now,
    )
    return values | {"description": version.description}


def _version_values(version: NewVersion, now: int) -> dict[str, Any]:
    runtime_version = version.built.runtime_version or RUNTIME_VERSION_UNKNOWN
    return {
        "owner": version.model.owner,
        "name": version.model.name,
        "version_id": version.version_id,
        "kind": version.kind,
        "files": orjson.dumps(canonical_files(version.files)).decode(),
        "openapi_schema": version.built.openapi_schema.text,
        "runtime_version": runtime_version[:RUNTIME_VERSION_SIZE_MAX],
        "is_iterator": version.built.is_iterator,
        "has_file_output": version.built.has_file_output,
        "created_at": now,
    }


def _must(row: Row[Any] | None) -> Row[Any]:
    assert row is not None, "a row just written is gone"
    return row
