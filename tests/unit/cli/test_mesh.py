"""Where a mesh listens."""

import socket
from pathlib import Path

import pytest

from cli.mesh import Address, choose_address, free_ports


@pytest.mark.parametrize(
    ("host", "reachable", "is_wildcard"),
    [
        ("127.0.0.1", "127.0.0.1", False),
        ("0.0.0.0", "127.0.0.1", True),
        ("::", "[::1]", True),
        ("::1", "[::1]", False),
    ],
)
def test_a_program_on_the_host_is_told_an_address_that_it_can_reach(
    host: str, reachable: str, is_wildcard: bool
) -> None:
    address = Address(host=host, http_port=1, grpc_port=2, oip_port=3)
    assert (address.reachable_host, address.is_wildcard) == (reachable, is_wildcard)


def test_free_ports_differ_and_are_not_those_of_outgoing_connections() -> None:
    ports = free_ports("127.0.0.1", 20)
    first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    assert len(set(ports)) == 20
    assert all(port < first for port in ports)


def test_a_taken_port_is_named_with_the_way_out() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(SystemExit, match=f"port {port} .*--port"):
            choose_address("127.0.0.1", port)


def test_the_next_two_ports_are_for_grpc_and_tensors() -> None:
    [port] = free_ports("127.0.0.1", 1)
    address = choose_address("127.0.0.1", port)
    assert (address.grpc_port, address.oip_port) == (port + 1, port + 2)


def test_a_promised_port_is_not_given_out_again() -> None:
    promised = set(free_ports("127.0.0.1", 400))
    assert not promised & set(free_ports("127.0.0.1", 20, without=promised))
