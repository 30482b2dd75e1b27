"""Proves the ledger in the database: every rule that must hold, checked over all entries."""

from dataclasses import dataclass

from sqlalchemy import Connection, text

# Each query answers one row per violation: what, and by how much.
_QUERIES = {
    "the postings of each entry sum to zero": """
        SELECT e.kind || ':' || e.operation_id, sum(p.amount_micros) FROM ledger_entries e
        JOIN ledger_postings p ON p.entry_sequence = e.sequence
        GROUP BY e.sequence, e.kind, e.operation_id HAVING sum(p.amount_micros) <> 0
    """,
    "each posting belongs to an entry": """
        SELECT p.ledger_account, p.entry_sequence FROM ledger_postings p
        LEFT JOIN ledger_entries e ON e.sequence = p.entry_sequence WHERE e.sequence IS NULL
    """,
    "an entry touches only its own account and the platform": """
        SELECT e.kind || ':' || e.operation_id, p.ledger_account FROM ledger_entries e
        JOIN ledger_postings p ON p.entry_sequence = e.sequence
        WHERE p.ledger_account NOT IN ('platform:revenue', 'platform:funding',
            'available:' || e.account_id, 'held:' || e.account_id)
    """,
    "no balance but the platform's funding was ever below zero": """
        SELECT ledger_account, min(balance) FROM (
            SELECT ledger_account, sum(amount_micros) OVER (
                PARTITION BY ledger_account ORDER BY entry_sequence) AS balance
            FROM ledger_postings WHERE ledger_account <> 'platform:funding') AS history
        GROUP BY ledger_account HAVING min(balance) < 0
    """,
    "each hold is settled at most once": """
        SELECT operation_id, count(*) FROM ledger_entries WHERE is_settlement
        GROUP BY operation_id HAVING count(*) > 1
    """,
    "each settlement has an earlier hold of the same account": """
        SELECT s.kind || ':' || s.operation_id, s.sequence FROM ledger_entries s
        LEFT JOIN ledger_entries h ON h.operation_id = s.operation_id AND h.kind = 'hold'
        WHERE s.is_settlement AND (h.sequence IS NULL OR h.account_id <> s.account_id
            OR h.sequence > s.sequence)
    """,
    "a settlement takes back exactly what was held": """
        SELECT s.kind || ':' || s.operation_id,
            coalesce(taken.amount_micros, 0) + coalesce(held.amount_micros, 0)
        FROM ledger_entries s
        JOIN ledger_entries h ON h.operation_id = s.operation_id AND h.kind = 'hold'
        LEFT JOIN ledger_postings taken ON taken.entry_sequence = s.sequence
            AND taken.ledger_account = 'held:' || s.account_id
        LEFT JOIN ledger_postings held ON held.entry_sequence = h.sequence
            AND held.ledger_account = 'held:' || h.account_id
        WHERE s.is_settlement
            AND coalesce(taken.amount_micros, 0) + coalesce(held.amount_micros, 0) <> 0
    """,
    "a capture is at most its hold": """
        SELECT s.kind || ':' || s.operation_id, captured.amount_micros FROM ledger_entries s
        JOIN ledger_entries h ON h.operation_id = s.operation_id AND h.kind = 'hold'
        JOIN ledger_postings captured ON captured.entry_sequence = s.sequence
            AND captured.ledger_account = 'platform:revenue'
        LEFT JOIN ledger_postings held ON held.entry_sequence = h.sequence
            AND held.ledger_account = 'held:' || h.account_id
        WHERE s.is_settlement AND captured.amount_micros > coalesce(held.amount_micros, 0)
    """,
    "a capture is run time times price, rounded up; nothing else earns": """
        SELECT s.kind || ':' || s.operation_id, coalesce(captured.amount_micros, 0)
        FROM ledger_entries s
        LEFT JOIN ledger_postings captured ON captured.entry_sequence = s.sequence
            AND captured.ledger_account = 'platform:revenue'
        WHERE coalesce(captured.amount_micros, 0) <> CASE WHEN s.kind = 'capture'
            THEN (s.run_ms * s.price_micros_per_second + 999) / 1000 ELSE 0 END
    """,
    "each held balance is the sum of the account's open holds": """
        SELECT total.ledger_account, total.balance FROM (
            SELECT ledger_account, sum(amount_micros) AS balance FROM ledger_postings
            WHERE ledger_account LIKE 'held:%' GROUP BY ledger_account) AS total
        LEFT JOIN (
            SELECT 'held:' || h.account_id AS ledger_account, sum(p.amount_micros) AS open_micros
            FROM ledger_entries h
            JOIN ledger_postings p ON p.entry_sequence = h.sequence
                AND p.ledger_account = 'held:' || h.account_id
            WHERE h.kind = 'hold' AND NOT EXISTS (
                SELECT 1 FROM ledger_entries s
                WHERE s.operation_id = h.operation_id AND s.is_settlement)
            GROUP BY h.account_id) AS held ON held.ledger_account = total.ledger_account
        WHERE total.balance <> coalesce(held.open_micros, 0)
    """,
    "the entries are numbered without gaps": """
        SELECT 'ledger_entries', max(sequence) - count(*) FROM ledger_entries
        HAVING count(*) > 0 AND (max(sequence) <> count(*) OR min(sequence) <> 1)
    """,
    "all balances sum to zero": """
        SELECT 'ledger_postings', sum(amount_micros) FROM ledger_postings
        HAVING sum(amount_micros) <> 0
    """,
}


@dataclass(frozen=True, slots=True)
class Violation:
    """One broken rule."""

    rule: str
    # The entry or ledger account that breaks it, and the number that shows it.
    where: str
    value: str

    def __str__(self) -> str:
        return f"broken: {self.rule}; {self.where}: {self.value}"


def audit(connection: Connection) -> list[Violation]:
    """Every violation in the ledger; empty for one that is sound."""
    return [
        Violation(rule, str(where), str(value))
        for rule, query in _QUERIES.items()
        for where, value in connection.execute(text(query))
    ]
