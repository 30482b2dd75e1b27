"""The audit finds each kind of damage, and the database refuses to be changed."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy import Connection, Engine, create_engine, text
from sqlalchemy.exc import IntegrityError

from services.billing.__main__ import MIGRATIONS
from services.billing.audit import audit
from services.chassis.db import Database

ENTRIES = {
    "c": "1, 'credit', 'c:1', 'alice', false, NULL, 0, 0, '', 1",
    "h": "2, 'hold', 'p1', 'alice', false, 'cpu', 100, 1000, '', 1",
    "s": "3, 'capture', 'p1', 'alice', true, 'cpu', 100, 600, '', 1",
    "open": "4, 'hold', 'p2', 'alice', false, 'cpu', 100, 1000, '', 1",
}
POSTINGS = (
    "(1, 'platform:funding', -500), (1, 'available:alice', 500), (2, 'available:alice', -100), "
    "(2, 'held:alice', 100), (3, 'held:alice', -100), (3, 'platform:revenue', 60), "
    "(3, 'available:alice', 40), (4, 'available:alice', -100), (4, 'held:alice', 100)"
)


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[Engine]:
    url = f"sqlite:///{tmp_path / 'billing.db'}"
    database = Database(url, MIGRATIONS)
    database.migrate()
    await database.close()
    engine = create_engine(url)
    with engine.begin() as connection:
        for values in ENTRIES.values():
            connection.execute(text(f"INSERT INTO ledger_entries VALUES ({values})"))
        connection.execute(text(f"INSERT INTO ledger_postings VALUES {POSTINGS}"))
    yield engine
    engine.dispose()


def _drop_guards(connection: Connection) -> None:
    for table in ("ledger_entries", "ledger_postings"):
        for verb in ("update", "delete"):
            connection.execute(text(f"DROP TRIGGER {table}_no_{verb}"))


def test_a_sound_ledger_has_no_violation(engine: Engine) -> None:
    with engine.connect() as connection:
        assert audit(connection) == []


@pytest.mark.parametrize(
    ("damage", "rule"),
    [
        (
            "UPDATE ledger_postings SET amount_micros = 501 WHERE entry_sequence = 1 "
            "AND ledger_account = 'available:alice'",
            "the postings of each entry sum to zero",
        ),
        ("DELETE FROM ledger_entries WHERE sequence = 3", "each posting belongs to an entry"),
        (
            "UPDATE ledger_postings SET ledger_account = 'available:bob' WHERE entry_sequence = 1 "
            "AND ledger_account = 'available:alice'",
            "an entry touches only its own account and the platform",
        ),
        (
            "UPDATE ledger_postings SET amount_micros = amount_micros / 10 "
            "WHERE entry_sequence = 1",
            "no balance but the platform's funding was ever below zero",
        ),
        (
            "UPDATE ledger_entries SET operation_id = 'p404' WHERE sequence = 3",
            "each settlement has an earlier hold of the same account",
        ),
        (
            "UPDATE ledger_postings SET amount_micros = amount_micros * 2 WHERE entry_sequence = 3",
            "a settlement takes back exactly what was held",
        ),
        (
            "UPDATE ledger_postings SET amount_micros = amount_micros * 2 WHERE entry_sequence = 3",
            "a capture is at most its hold",
        ),
        (
            "UPDATE ledger_entries SET run_ms = 601 WHERE sequence = 3",
            "a capture is run time times price, rounded up; nothing else earns",
        ),
        (
            "DELETE FROM ledger_postings WHERE entry_sequence = 3 "
            "AND ledger_account = 'held:alice'",
            "each held balance is the sum of the account's open holds",
        ),
        (
            "UPDATE ledger_entries SET sequence = 9 WHERE sequence = 4",
            "the entries are numbered without gaps",
        ),
        (
            "DELETE FROM ledger_postings WHERE ledger_account = 'platform:revenue'",
            "all balances sum to zero",
        ),
    ],
)
def test_damage_is_found_by_its_rule(engine: Engine, damage: str, rule: str) -> None:
    with engine.connect() as connection:
        _drop_guards(connection)
        connection.execute(text(damage))
        assert rule in {violation.rule for violation in audit(connection)}


@pytest.mark.parametrize(
    "change",
    [
        "DELETE FROM ledger_entries",
        "DELETE FROM ledger_postings",
        "UPDATE ledger_entries SET note = 'x'",
        "UPDATE ledger_postings SET amount_micros = 1",
    ],
)
def test_the_database_refuses_to_change_an_entry(engine: Engine, change: str) -> None:
    with engine.connect() as connection, pytest.raises(IntegrityError, match="append-only"):
        connection.execute(text(change))


def test_the_database_refuses_a_second_settlement_of_a_hold(engine: Engine) -> None:
    values = "5, 'release', 'p1', 'alice', true, 'cpu', 0, 0, '', 1"
    second = f"INSERT INTO ledger_entries VALUES ({values})"
    with engine.connect() as connection, pytest.raises(IntegrityError, match="UNIQUE"):
        connection.execute(text(second))
