"""A service's own database: one writer thread with group commit, a few readers, migrations."""

import asyncio
import queue
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine, create_engine, event, inspect, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError

T = TypeVar("T")

# Writes that share one commit; bounds how long the first of them waits for the last.
GROUP_SIZE_MAX = 128
READER_COUNT = 2
_ENVIRONMENT = Path(__file__).parent / "alembic"


@dataclass(slots=True)
class _Write:
    work: Callable[[Connection], Any]
    future: asyncio.Future[Any]
    result: Any = None
    error: BaseException | None = None


class Database:
    """SQLite (the default) or PostgreSQL behind plain SQLAlchemy Core on threads."""

    def __init__(self, url: str, migrations_dir: Path) -> None:
        self._url = url
        self._migrations_dir = migrations_dir
        self._writes: queue.SimpleQueue[_Write | None] = queue.SimpleQueue()
        self._write_engine = _open_engine(url, begin="BEGIN IMMEDIATE", pool_size=1)
        self._read_engine = _open_engine(url, begin="BEGIN", pool_size=READER_COUNT)
        self._readers = ThreadPoolExecutor(READER_COUNT, thread_name_prefix="db-reader")
        self._writer = threading.Thread(target=self._write_loop, name="db-writer", daemon=True)
        self._writer.start()

    def migrate(self) -> None:
        """Brings the schema to the newest migration; cheap when it is there already."""
        head = max(path.name[:4] for path in self._migrations_dir.glob("[0-9]*.py"))
        with self._write_engine.connect() as connection:
            if inspect(connection).has_table("alembic_version"):
                current = connection.scalar(text("SELECT version_num FROM alembic_version"))
                if current == head:
                    return
        # Imported here: at head, which is the usual case, a start need not pay for it.
        from alembic import command
        from alembic.config import Config

        config = Config()
        config.set_main_option("script_location", str(_ENVIRONMENT))
        config.set_main_option("version_locations", str(self._migrations_dir))
        config.set_main_option("path_separator", "os")
        config.attributes["engine"] = self._write_engine
        command.upgrade(config, "head")

    async def write(self, work: Callable[[Connection], T]) -> T:
        """Runs work in a transaction on the writer thread; returns once it is committed.

        Concurrent writes share one commit, each inside a savepoint: one's error hurts no other.
        """
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._writes.put(_Write(work, future))
        return await future

    async def read(self, work: Callable[[Connection], T]) -> T:
        """Runs work on a reader thread; it sees everything committed before."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._readers, self._read, work)

    async def close(self) -> None:
        """Waits for the writes under way, then closes all connections."""
        self._writes.put(None)
        await asyncio.to_thread(self._writer.join)
        self._readers.shutdown()
        self._write_engine.dispose()
        self._read_engine.dispose()

    def _read(self, work: Callable[[Connection], T]) -> T:
        with self._read_engine.begin() as connection:
            return work(connection)

    def _write_loop(self) -> None:
        is_open = True
        while is_open:
            group: list[_Write] = []
            item = self._writes.get()
            while item is not None:
                group.append(item)
                if len(group) == GROUP_SIZE_MAX or self._writes.empty():
                    break
                item = self._writes.get()
            is_open = item is not None
            if group:
                self._commit(group)

    def _commit(self, group: list[_Write]) -> None:
        try:
            with self._write_engine.begin() as connection:
                if len(group) == 1:
                    group[0].result = group[0].work(connection)
                else:
                    for write in group:
                        _run_in_savepoint(connection, write)
        except BaseException as error:  # noqa: BLE001 - handed to whoever waits
            for write in group:
                write.error = write.error or error
        # All waiters belong to the service's one loop: one wake-up for the whole group.
        loop = group[0].future.get_loop()
        try:
            loop.call_soon_threadsafe(_resolve, group)
        except RuntimeError:
            # The loop has been closed: nobody waits any more.
            return


def _run_in_savepoint(connection: Connection, write: _Write) -> None:
    try:
        with connection.begin_nested():
            write.result = write.work(connection)
    except DBAPIError as error:
        if error.connection_invalidated:
            raise
        write.error = error
    except Exception as error:  # noqa: BLE001 - handed to whoever waits
        write.error = error


def _resolve(group: list[_Write]) -> None:
    for write in group:
        if write.future.cancelled():
            continue
        if write.error is not None:
            write.future.set_exception(write.error)
        else:
            write.future.set_result(write.result)


def _open_engine(url: str, *, begin: str, pool_size: int) -> Engine:
    if make_url(url).get_backend_name() != "sqlite":
        return _open_server_engine(url, pool_size)
    # isolation_level None: SQLAlchemy, not the driver, decides when a transaction begins.
    engine = create_engine(
        url,
        pool_size=pool_size,
        connect_args={"isolation_level": None, "check_same_thread": False, "timeout": 30},
    )

    @event.listens_for(engine, "connect")
    def _configure(connection: Any, _record: Any) -> None:
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        connection.exec_driver_sql(begin)

    return engine


def _open_server_engine(url: str, pool_size: int) -> Engine:
    try:
        return create_engine(url, pool_size=pool_size, pool_pre_ping=True)
    except ModuleNotFoundError as error:
        message = f"{error}; install PostgreSQL support with: pip install 'reprise[postgres]'"
        raise SystemExit(message) from None
