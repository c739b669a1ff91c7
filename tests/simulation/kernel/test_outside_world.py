"""What reaches outside the process raises, and the error names the call."""

import asyncio
import inspect
import signal
import socket
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from simulation.kernel import NotInVirtualTime, SimulationLoop, run


async def through(call: Callable[[asyncio.AbstractEventLoop], Any]) -> None:
    result = call(asyncio.get_running_loop())
    if isinstance(result, Awaitable):
        await result


@pytest.mark.parametrize(
    ("named", "call"),
    [
        ("run_in_executor", lambda _: asyncio.to_thread(print)),
        ("run_in_executor", lambda loop: loop.run_in_executor(None, print)),
        ("create_connection", lambda _: asyncio.open_connection("127.0.0.1", 1)),
        ("create_server", lambda _: asyncio.start_server(print, "127.0.0.1")),
        ("create_unix_connection", lambda _: asyncio.open_unix_connection("/nowhere")),
        ("subprocess_exec", lambda _: asyncio.create_subprocess_exec("true")),
        ("subprocess_shell", lambda _: asyncio.create_subprocess_shell("true")),
        ("add_signal_handler", lambda loop: loop.add_signal_handler(signal.SIGTERM, print)),
        ("getaddrinfo", lambda loop: loop.getaddrinfo("localhost", 80)),
        ("create_datagram_endpoint", lambda loop: loop.create_datagram_endpoint(print)),
        ("add_reader", lambda loop: loop.add_reader(0, print)),
        ("sock_recv", lambda loop: loop.sock_recv(socket.socket, 1)),
        ("connect_read_pipe", lambda loop: loop.connect_read_pipe(print, None)),
    ],
)
def test_a_call_that_takes_real_time_is_refused_by_name(
    named: str, call: Callable[[asyncio.AbstractEventLoop], Any]
) -> None:
    with pytest.raises(NotInVirtualTime, match=rf"loop\.{named} ") as raised:
        run(through(call))
    assert raised.value.call == named


def test_another_thread_is_refused() -> None:
    async def main() -> str:
        loop = asyncio.get_running_loop()
        refused: list[str] = []

        def from_outside() -> None:
            try:
                loop.call_soon_threadsafe(print)
            except NotInVirtualTime as error:
                refused.append(error.call)

        thread = threading.Thread(target=from_outside)
        thread.start()
        thread.join()
        loop.call_soon_threadsafe(refused.append, "own thread")
        await asyncio.sleep(0)
        return " ".join(refused)

    assert run(main()) == "call_soon_threadsafe own thread"


def test_no_method_of_an_event_loop_is_left_unanswered() -> None:
    unanswered = [
        name
        for name, method in inspect.getmembers(asyncio.AbstractEventLoop, inspect.isfunction)
        if not name.startswith("_") and getattr(SimulationLoop, name) is method
    ]
    assert unanswered == []
