"""Settings come from the environment and are checked at the start."""

import pytest

from services.billing.settings import BillingSettings
from services.chassis.settings import load


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REPRISE_BILLING_MESH_KEY", "key")
    monkeypatch.setenv("REPRISE_BILLING_DATABASE_URL", "sqlite:///billing.db")


def test_prices_are_a_json_object_of_micros_per_second(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REPRISE_BILLING_PRICES", '{"cpu": 7}')
    assert load(BillingSettings).prices == {"cpu": 7}


def test_a_cpu_second_costs_a_hundred_micros_by_default() -> None:
    settings = load(BillingSettings)
    assert settings.prices["cpu"] == 100
    assert settings.starting_credit_micros == 10_000_000
    assert settings.currency == "USD"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("PRICES", "{}"),
        ("PRICES", '{"cpu": -1}'),
        ("PRICES", '{"cpu": 0.5}'),
        ("STARTING_CREDIT_MICROS", "-1"),
        ("CURRENCY", "dollars"),
    ],
)
def test_a_bad_setting_is_named(monkeypatch: pytest.MonkeyPatch, key: str, value: str) -> None:
    monkeypatch.setenv(f"REPRISE_BILLING_{key}", value)
    with pytest.raises(SystemExit, match=f"REPRISE_BILLING_{key}"):
        load(BillingSettings)


def test_a_ledger_without_a_database_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REPRISE_BILLING_DATABASE_URL")
    with pytest.raises(SystemExit, match="REPRISE_BILLING_DATABASE_URL"):
        load(BillingSettings)
