"""The part of asyncio's loop that has no meaning in virtual time: each call raises by name."""

import asyncio
from typing import Any, NoReturn

from simulation.kernel.errors import NotInVirtualTime


def _refused(call: str) -> Any:
    def refuse(*_: object, **__: object) -> NoReturn:
        raise NotInVirtualTime(call)

    refuse.__name__ = call
    refuse.__doc__ = "Raise NotInVirtualTime."
    return refuse


class NoOutsideWorld(asyncio.AbstractEventLoop):
    """Sockets, files, threads, processes and signals of a loop, all refused."""

    # Threads (asyncio.to_thread comes through here)
    run_in_executor = _refused("run_in_executor")
    set_default_executor = _refused("set_default_executor")

    # Names and addresses
    getaddrinfo = _refused("getaddrinfo")
    getnameinfo = _refused("getnameinfo")

    # Connections and servers
    create_connection = _refused("create_connection")
    create_server = _refused("create_server")
    create_unix_connection = _refused("create_unix_connection")
    create_unix_server = _refused("create_unix_server")
    create_datagram_endpoint = _refused("create_datagram_endpoint")
    connect_accepted_socket = _refused("connect_accepted_socket")
    sendfile = _refused("sendfile")
    start_tls = _refused("start_tls")

    # Pipes and processes
    connect_read_pipe = _refused("connect_read_pipe")
    connect_write_pipe = _refused("connect_write_pipe")
    subprocess_exec = _refused("subprocess_exec")
    subprocess_shell = _refused("subprocess_shell")

    # File descriptors
    add_reader = _refused("add_reader")
    remove_reader = _refused("remove_reader")
    add_writer = _refused("add_writer")
    remove_writer = _refused("remove_writer")

    # Sockets
    sock_accept = _refused("sock_accept")
    sock_connect = _refused("sock_connect")
    sock_recv = _refused("sock_recv")
    sock_recv_into = _refused("sock_recv_into")
    sock_recvfrom = _refused("sock_recvfrom")
    sock_recvfrom_into = _refused("sock_recvfrom_into")
    sock_sendall = _refused("sock_sendall")
    sock_sendfile = _refused("sock_sendfile")
    sock_sendto = _refused("sock_sendto")

    # Signals
    add_signal_handler = _refused("add_signal_handler")
    remove_signal_handler = _refused("remove_signal_handler")
