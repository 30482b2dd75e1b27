"""Settings of the billing service."""

from typing import Annotated

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from services.billing.pricing import PRICE_MICROS_PER_SECOND_MAX
from services.chassis.settings import ServiceSettings

Price = Annotated[int, Field(ge=0, le=PRICE_MICROS_PER_SECOND_MAX)]


class BillingSettings(ServiceSettings):
    """Prices, starting credit, and where the ledger is kept."""

    model_config = SettingsConfigDict(env_prefix="REPRISE_BILLING_")

    database_url: str
    """SQLAlchemy URL of the ledger's database, for instance sqlite:////var/lib/reprise/billing.db."""
    starting_credit_micros: int = Field(default=10_000_000, ge=0, le=10**15)
    """Credit of an account when billing first sees it, in millionths of the currency unit."""
    prices: dict[str, Price] = Field(
        default={
            "cpu": 100,
            "gpu": 975,
            "gpu-t4": 225,
            "gpu-l40s": 975,
            "gpu-a100": 1400,
            "gpu-h100": 1525,
        },
        min_length=1,
        max_length=1000,
    )
    """Micros per second of run time for each hardware SKU, as a JSON object."""
    currency: str = Field(default="USD", pattern="^[A-Z]{3}$")
    """ISO 4217 code of the one currency of all amounts."""
    batch_size_max: int = Field(default=1000, ge=1, le=10_000)
    """Holds or settlements in one call."""
