"""What the ledger holds, as Prometheus metrics that are read from the books when asked for."""

from collections.abc import Callable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from services.billing.ledger import FUNDING, REVENUE, Books


class LedgerCollector(Collector):
    """Open holds, held and captured money."""

    def __init__(self, books: Callable[[], Books]) -> None:
        self._books = books

    def collect(self) -> Iterator[Metric]:
        books = self._books()
        # Called on a thread of the metrics page: a list of the holds is one step, the sum is not.
        holds = list(books.open_holds.values())
        yield GaugeMetricFamily(
            "reprise_billing_open_holds", "Holds that are not settled", value=len(holds)
        )
        yield GaugeMetricFamily(
            "reprise_billing_held_micros",
            "Money held for predictions that have not ended",
            value=sum(hold.amount_micros for hold in holds),
        )
        yield CounterMetricFamily(
            "reprise_billing_captured_micros",
            "Everything that predictions have cost",
            value=books.balance(REVENUE),
        )
        yield CounterMetricFamily(
            "reprise_billing_credit_micros",
            "Everything that was paid in",
            value=-books.balance(FUNDING),
        )
