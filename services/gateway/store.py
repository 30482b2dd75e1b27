"""The gateway's own tables: accounts and the digests of their tokens."""

from typing import Any

from reprise.gateway.v1 import account_pb2
from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Connection,
    ForeignKey,
    Index,
    MetaData,
    Row,
    String,
    Table,
    insert,
    select,
    update,
)
from sqlalchemy.exc import IntegrityError

from services.chassis.clock import timestamp
from services.chassis.db import Database
from services.chassis.errors import AlreadyExists, FieldViolation, NotFound
from services.chassis.paging import Order, Page, read_page
from services.gateway.auth import Identity

metadata = MetaData()

accounts = Table(
    "accounts",
    metadata,
    Column("username", String(64), primary_key=True),
    Column("name", String(255), nullable=False),
    Column("type", String(16), nullable=False),
    Column("is_operator", Boolean, nullable=False),
    Column("created_us", BigInteger, nullable=False),
)
tokens = Table(
    "tokens",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("username", String(64), ForeignKey("accounts.username"), nullable=False),
    Column("name", String(255), nullable=False),
    Column("digest", String(64), nullable=False, unique=True),
    Column("created_us", BigInteger, nullable=False),
    Index("tokens_by_account", "username", "created_us", "id"),
)
_NEWEST_FIRST = Order(columns=(tokens.c.created_us, tokens.c.id), label="tokens")


class Store:
    """Queries over accounts and tokens."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def identity(self, digest: str) -> Identity | None:
        """The account that a token's digest belongs to."""
        query = (
            select(accounts.c.username, accounts.c.is_operator)
            .join(tokens, tokens.c.username == accounts.c.username)
            .where(tokens.c.digest == digest)
        )
        row = await self._database.read(lambda connection: connection.execute(query).first())
        return Identity(row.username, bool(row.is_operator)) if row else None

    async def account(self, username: str) -> account_pb2.Account:
        """One account; NotFound where it does not exist."""
        query = select(accounts).where(accounts.c.username == username)
        row = await self._database.read(lambda connection: connection.execute(query).first())
        if row is None:
            raise NotFound("Account not found")
        return _account(row)

    async def add_account(
        self, *, username: str, name: str, digest: str, token_id: str, now_us: int
    ) -> account_pb2.Account:
        """Makes an account with its first token."""
        account = dict(
            username=username, name=name, type="user", is_operator=False, created_us=now_us
        )

        def work(connection: Connection) -> None:
            connection.execute(insert(accounts), account)
            connection.execute(
                insert(tokens), _token_row(token_id, username, "default", digest, now_us)
            )

        try:
            await self._database.write(work)
        except IntegrityError:
            violation = FieldViolation(
                field="username", description="is taken; choose another", kind="unique"
            )
            raise AlreadyExists(f"username {username} is taken", fields=[violation]) from None
        return await self.account(username)

    async def ensure_operator(
        self, *, username: str, digest: str, token_id: str, now_us: int
    ) -> None:
        """Makes the first account and its token where they do not exist."""

        def work(connection: Connection) -> None:
            found = connection.scalar(
                select(accounts.c.username).where(accounts.c.username == username)
            )
            if found is None:
                connection.execute(
                    insert(accounts),
                    dict(
                        username=username,
                        name=username,
                        type="user",
                        is_operator=True,
                        created_us=now_us,
                    ),
                )
            connection.execute(
                update(accounts).where(accounts.c.username == username).values(is_operator=True)
            )
            owner = connection.scalar(select(tokens.c.username).where(tokens.c.digest == digest))
            if owner is None:
                connection.execute(
                    insert(tokens), _token_row(token_id, username, "bootstrap", digest, now_us)
                )
            elif owner != username:
                raise ValueError("the bootstrap token belongs to another account")

        await self._database.write(work)

    async def add_token(
        self, *, username: str, name: str, digest: str, token_id: str, now_us: int
    ) -> account_pb2.Token:
        """Adds a token to an account."""
        row = _token_row(token_id, username, name, digest, now_us)

        def work(connection: Connection) -> None:
            connection.execute(insert(tokens), row)

        await self._database.write(work)
        return account_pb2.Token(id=token_id, name=name, created_at=timestamp(now_us))

    async def list_tokens(self, username: str, *, page_token: str, page_size: int) -> Page:
        """An account's tokens, newest first."""
        query = select(tokens).where(tokens.c.username == username)

        def work(connection: Connection) -> Page:
            return read_page(
                connection, query, order=_NEWEST_FIRST, page_token=page_token, page_size=page_size
            )

        return await self._database.read(work)

    async def delete_token(self, username: str, token_id: str) -> str:
        """Removes one of the account's tokens and returns its digest."""
        mine = (tokens.c.id == token_id) & (tokens.c.username == username)

        def work(connection: Connection) -> str | None:
            digest = connection.scalar(select(tokens.c.digest).where(mine))
            connection.execute(tokens.delete().where(mine))
            return str(digest) if digest else None

        digest = await self._database.write(work)
        if digest is None:
            raise NotFound("Token not found")
        return digest


def _token_row(
    token_id: str, username: str, name: str, digest: str, now_us: int
) -> dict[str, str | int]:
    return dict(id=token_id, username=username, name=name, digest=digest, created_us=now_us)


def _account(row: Row[Any]) -> account_pb2.Account:
    return account_pb2.Account(
        type=account_pb2.AccountType.Value(f"ACCOUNT_TYPE_{row.type.upper()}"),
        username=row.username,
        name=row.name,
        is_operator=bool(row.is_operator),
        created_at=timestamp(row.created_us),
    )


def token_of_row(row: Row[Any]) -> account_pb2.Token:
    """A token as its account sees it."""
    return account_pb2.Token(id=row.id, name=row.name, created_at=timestamp(row.created_us))
