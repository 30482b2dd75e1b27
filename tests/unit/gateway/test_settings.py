"""Settings of the gateway."""

import pytest
from pydantic import ValidationError

from services.gateway.settings import GatewaySettings

NEEDED = {
    "mesh_key": "k",
    "database_url": "sqlite://",
    "scheduler_target": "h:1",
    "storage_target": "h:2",
    "billing_target": "h:3",
    "signing_key": "s" * 16,
}


def test_each_setting_says_what_it_is() -> None:
    assert [
        name for name, item in GatewaySettings.model_fields.items() if not item.description
    ] == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("listen", "127.0.0.1:0"),
        ("public_url", "example.org"),
        ("signing_key", "short"),
        ("tls_cert", "chain.pem"),
        ("fetch_allow_networks", ["10.0.0.1/8"]),
    ],
)
def test_a_setting_that_cannot_work_is_refused(name: str, value: str) -> None:
    with pytest.raises(ValidationError):
        GatewaySettings(**(NEEDED | {name: value}))  # type: ignore[arg-type]


def test_the_public_url_has_no_slash_at_its_end() -> None:
    settings = GatewaySettings(**NEEDED, public_url="https://h/")  # type: ignore[arg-type]
    assert settings.public_url == "https://h"
