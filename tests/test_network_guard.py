"""The guard of `conftest.py` itself."""

from __future__ import annotations

import asyncio
import socket

import httpx2
import pytest

from tests.conftest import NetworkForbidden


def test_a_connection_to_another_host_is_refused_before_it_is_made() -> None:
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other,
        pytest.raises(NetworkForbidden, match=r"192\.0\.2\.1"),
    ):
        other.connect(("192.0.2.1", 9))


def test_a_name_is_not_looked_up() -> None:
    with pytest.raises(NetworkForbidden, match="example"):
        socket.getaddrinfo("example.invalid", 80)


def test_a_connection_within_the_machine_passes() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname(), timeout=5) as connection,
    ):
        assert connection.getpeername() == server.getsockname()


def test_httpx_is_the_library_that_the_sdk_uses() -> None:
    import httpx

    assert httpx is httpx2


def test_the_guard_reaches_connections_of_an_event_loop() -> None:
    with pytest.raises(NetworkForbidden, match=r"192\.0\.2\.1"):
        asyncio.run(asyncio.wait_for(asyncio.open_connection("192.0.2.1", 9), 5))
