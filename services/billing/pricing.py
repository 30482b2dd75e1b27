"""Usage times price, in integer micros."""

from dataclasses import dataclass

MICROS_PER_UNIT = 1_000_000
# Bounds that keep every amount far inside 64 bits.
RUN_MS_MAX = 30 * 24 * 3600 * 1000
PRICE_MICROS_PER_SECOND_MAX = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Charge:
    """What a run costs, and the run time that this pays for."""

    charged_ms: int
    amount_micros: int


def run_price(run_ms: int, *, price_micros_per_second: int) -> int:
    """The price of a run, rounded up to whole micros."""
    return -(-run_ms * price_micros_per_second // 1000)


def charge(run_ms: int, *, run_ms_max: int, price_micros_per_second: int) -> Charge:
    """The charge of a run for which run_ms_max was held.

    The time is capped, not the amount: time x price gives the amount of every receipt exactly.
    """
    charged_ms = min(run_ms, run_ms_max)
    amount = run_price(charged_ms, price_micros_per_second=price_micros_per_second)
    return Charge(charged_ms=charged_ms, amount_micros=amount)


def format_amount(amount_micros: int, currency: str) -> str:
    """An amount for people: two to six decimals, for instance "0.06 USD"."""
    sign = "-" if amount_micros < 0 else ""
    units, micros = divmod(abs(amount_micros), MICROS_PER_UNIT)
    decimals = f"{micros:06d}".rstrip("0").ljust(2, "0")
    return f"{sign}{units}.{decimals} {currency}"
