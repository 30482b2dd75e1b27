"""Settings that only make sense together."""

from pathlib import Path

import pytest

from services.inference.settings import InferenceSettings

REQUIRED = {
    "mesh_key": "k" * 32,
    "data_dir": Path("data"),
    "storage_target": "127.0.0.1:1",
    "gateway_target": "127.0.0.1:2",
}


@pytest.mark.parametrize("name", ["oip_tls_cert", "oip_tls_key"])
def test_half_a_certificate_is_refused_instead_of_serving_unencrypted(name: str) -> None:
    with pytest.raises(ValueError, match="go together"):
        InferenceSettings(**REQUIRED, **{name: Path("half.pem")})


def test_a_whole_certificate_is_taken() -> None:
    InferenceSettings(**REQUIRED, oip_tls_cert=Path("chain.pem"), oip_tls_key=Path("key.pem"))
