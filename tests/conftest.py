"""What every test stands on: httpx under its two names, a network that ends at this machine, and an end that leaves nothing."""

from __future__ import annotations

import ipaddress
import signal
import sys

import httpx2

# Before anything imports httpx or httpcore: the SDK is built on httpx2, and respx would patch an httpx that it never uses,
# match nothing, and let requests out without a word.
httpx2.alias_httpx()

_LOCAL_NAMES = {None, "", "localhost", "localhost.localdomain"}


class NetworkForbidden(BaseException):
    """A test tried to leave the machine. Not an Exception: code that tolerates failing peers must not swallow it."""


def _is_local(host: object) -> bool:
    if isinstance(host, bytes):
        host = host.decode()
    if host in _LOCAL_NAMES:
        return True
    try:
        return ipaddress.ip_address(str(host).partition("%")[0]).is_loopback
    except ValueError:
        return False


def _refuse_other_hosts(event: str, arguments: tuple[object, ...]) -> None:
    """An audit hook: sees every connection made through Python's sockets, whichever library makes it.

    uvloop connects below them; its users in the tests get loopback addresses from the servers that they start.
    """
    if event == "socket.connect":
        address = arguments[1]
        if isinstance(address, tuple) and not _is_local(address[0]):
            raise NetworkForbidden(f"a test tried to connect to {address[0]}")
    elif event == "socket.getaddrinfo" and not _is_local(arguments[0]):
        raise NetworkForbidden(f"a test tried to look up {arguments[0]!r}")


sys.addaudithook(_refuse_other_hosts)

# As Ctrl-C does it: fixtures and `atexit` end the servers that tests have started, which would outlive a plain death.
signal.signal(signal.SIGTERM, signal.default_int_handler)
