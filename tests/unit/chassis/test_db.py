"""The database: group commit, isolation of failures, migrations."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy import Connection, event, text

from services.chassis.db import Database

MIGRATION = """
import sqlalchemy as sa
from alembic import op

revision = "{number}"
down_revision = {before}


def upgrade() -> None:
    op.create_table("{table}", sa.Column("value", sa.Text, primary_key=True))
"""


def write_migration(folder: Path, number: int, table: str) -> None:
    before = f'"{number - 1:04}"' if number > 1 else None
    content = MIGRATION.format(number=f"{number:04}", before=before, table=table)
    (folder / f"{number:04}_{table}.py").write_text(content)


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    migrations = tmp_path / "migrations"
    migrations.mkdir()
    write_migration(migrations, 1, "facts")
    database = Database(f"sqlite:///{tmp_path / 'test.sqlite'}", migrations)
    database.migrate()
    yield database
    await database.close()


def insert(value: str) -> object:
    def work(connection: Connection) -> int:
        statement = text("INSERT INTO facts(value) VALUES (:value)")
        return connection.execute(statement, {"value": value}).rowcount

    return work


async def values(database: Database) -> set[str]:
    return set(
        await database.read(lambda connection: connection.scalars(text("SELECT value FROM facts")))
    )


async def test_concurrent_writes_share_commits(database: Database) -> None:
    commits = 0

    @event.listens_for(database._write_engine, "commit")
    def _count(_: Connection) -> None:
        nonlocal commits
        commits += 1

    await asyncio.gather(*(database.write(insert(str(number))) for number in range(100)))
    assert len(await values(database)) == 100
    assert commits < 100


async def test_one_failing_write_hurts_no_other(database: Database) -> None:
    def fail(connection: Connection) -> None:
        connection.execute(text("INSERT INTO facts(value) VALUES ('half')"))
        raise ValueError("no")

    results = await asyncio.gather(
        database.write(insert("a")),
        database.write(fail),
        database.write(insert("a")),
        database.write(insert("b")),
        return_exceptions=True,
    )
    assert [type(result) for result in results][0::3] == [int, int]
    assert isinstance(results[1], ValueError)
    assert "UNIQUE" in str(results[2])
    assert await values(database) == {"a", "b"}


async def test_what_was_written_is_read_at_once(database: Database) -> None:
    await database.write(insert("now"))
    assert await values(database) == {"now"}


async def test_migrations_run_once_and_in_order(tmp_path: Path, database: Database) -> None:
    await database.write(insert("kept"))
    write_migration(tmp_path / "migrations", 2, "more")
    database.migrate()
    database.migrate()
    assert await values(database) == {"kept"}
    count = await database.read(lambda c: c.scalar(text("SELECT count(*) FROM more")))
    assert count == 0


async def test_a_write_survives_the_cancellation_of_its_waiter(database: Database) -> None:
    waiter = asyncio.create_task(database.write(insert("orphan")))
    await asyncio.sleep(0)
    waiter.cancel()
    await asyncio.gather(waiter, return_exceptions=True)
    await database.write(insert("later"))
    assert await values(database) == {"orphan", "later"}
