"""Prices are whole micros, rounded up, and never beyond what was held."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.billing import pricing

RUN_MS = st.integers(0, pricing.RUN_MS_MAX)
PRICE = st.integers(0, pricing.PRICE_MICROS_PER_SECOND_MAX)


@pytest.mark.parametrize(
    ("run_ms", "price", "amount"),
    [
        (0, 100, 0),
        (1, 100, 1),
        (10, 100, 1),
        (11, 100, 2),
        (1000, 100, 100),
        (600_000, 975, 585_000),
    ],
)
def test_a_started_micro_is_charged_whole(run_ms: int, price: int, amount: int) -> None:
    assert pricing.run_price(run_ms, price_micros_per_second=price) == amount


@given(run_ms=RUN_MS, price=PRICE)
def test_the_price_is_less_than_one_micro_above_the_exact_one(run_ms: int, price: int) -> None:
    amount = pricing.run_price(run_ms, price_micros_per_second=price)
    assert 0 <= amount - Fraction(run_ms * price, 1000) < 1
    assert amount < 2**63


@given(run_ms=st.integers(0, 2**62), run_ms_max=RUN_MS, price=PRICE)
def test_a_charge_is_time_times_price_and_within_the_hold(
    run_ms: int, run_ms_max: int, price: int
) -> None:
    charge = pricing.charge(run_ms, run_ms_max=run_ms_max, price_micros_per_second=price)
    assert charge.charged_ms <= run_ms
    exact = pricing.run_price(charge.charged_ms, price_micros_per_second=price)
    assert charge.amount_micros == exact
    assert charge.amount_micros <= pricing.run_price(run_ms_max, price_micros_per_second=price)


@pytest.mark.parametrize(
    ("amount_micros", "text"),
    [
        (0, "0.00 USD"),
        (60_000, "0.06 USD"),
        (10_000_000, "10.00 USD"),
        (1, "0.000001 USD"),
        (1_234_500, "1.2345 USD"),
        (-2_500_000, "-2.50 USD"),
    ],
)
def test_amounts_are_shown_with_two_to_six_decimals(amount_micros: int, text: str) -> None:
    assert pricing.format_amount(amount_micros, "USD") == text
