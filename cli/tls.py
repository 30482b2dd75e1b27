"""A local certificate authority, made on demand in the data folder."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Certificate:
    """Files of a server certificate and of the authority that clients must trust."""

    authority: Path
    chain: Path
    key: Path


def ensure_certificate(folder: Path, host: str) -> Certificate:
    """The certificate for loopback and the host; an existing one for the same host is kept."""
    certificate = Certificate(
        authority=folder / "ca.pem", chain=folder / f"{host}.pem", key=folder / f"{host}.key"
    )
    if not certificate.key.exists():
        _issue(certificate, folder, host)
    return certificate


def _issue(certificate: Certificate, folder: Path, host: str) -> None:
    # Imported here: cryptography costs start-up time that a start without TLS need not pay.
    import trustme

    folder.mkdir(mode=0o700, exist_ok=True)
    authority_key = folder / "ca.key"
    if authority_key.exists():
        authority = trustme.CA.from_pem(
            certificate.authority.read_bytes(), authority_key.read_bytes()
        )
    else:
        authority = trustme.CA(organization_name="Reprise local authority")
        authority.cert_pem.write_to_path(certificate.authority)
        authority_key.touch(mode=0o600)
        authority.private_key_pem.write_to_path(authority_key)
    names = dict.fromkeys(["localhost", "127.0.0.1", "::1", host])
    issued = authority.issue_cert(*names)
    for index, pem in enumerate(issued.cert_chain_pems):
        pem.write_to_path(certificate.chain, append=index > 0)
    certificate.key.touch(mode=0o600)
    issued.private_key_pem.write_to_path(certificate.key)
