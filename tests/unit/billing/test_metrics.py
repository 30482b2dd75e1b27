"""The metrics page shows the books."""

from prometheus_client import CollectorRegistry

from services.billing import ledger
from services.billing.ledger import Books
from services.billing.metrics import LedgerCollector


def test_the_metrics_are_the_books() -> None:
    books = Books()
    registry = CollectorRegistry()
    registry.register(LedgerCollector(lambda: books))
    credit = ledger.credit_entry("c:1", account_id="alice", amount_micros=1000, note="", now_us=1)
    books.begin(credit)
    books.confirm(credit)
    for hold_id in ("p1", "p2"):
        entry = ledger.hold_entry(
            hold_id,
            account_id="alice",
            hardware="cpu",
            price_micros_per_second=100,
            run_ms_max=1000,
            now_us=1,
        )
        books.begin(entry)
        books.confirm(entry)
    capture = ledger.capture_entry(books.open_holds["p1"], run_ms=250, now_us=2)
    books.begin(capture)
    books.confirm(capture)
    assert registry.get_sample_value("reprise_billing_open_holds") == 1
    assert registry.get_sample_value("reprise_billing_held_micros") == 100
    assert registry.get_sample_value("reprise_billing_captured_micros_total") == 25
    assert registry.get_sample_value("reprise_billing_credit_micros_total") == 1000
