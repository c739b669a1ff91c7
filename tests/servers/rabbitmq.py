"""A private RabbitMQ for the tests of one process, started once; see `reference_impl/live/services/rabbitmq.py`.

It takes some five seconds to start, so tests that use it carry `xdist_group("rabbitmq")` and share one process and one node.
Tests keep apart by the names of their queues. A test that kills its broker starts one for itself.
"""

from __future__ import annotations

import asyncio
import atexit
import functools
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from reference_impl.live.services.rabbitmq import RabbitMQNode, find_rabbitmq_server
from tests.servers.availability import require

__all__ = ["RabbitMQNode", "private_rabbitmq", "require_rabbitmq", "shared_rabbitmq_url"]


def require_rabbitmq() -> None:
    """Skip the test with its reason where no server can run; fail in CI, where one must."""
    require(find_rabbitmq_server)


@functools.cache
def _shared() -> RabbitMQNode:
    folder = Path(tempfile.mkdtemp(prefix="rabbitmq-"))
    node = RabbitMQNode(folder)
    atexit.register(_end, node, folder)
    asyncio.run(node.start())
    return node


def shared_rabbitmq_url() -> str:
    """The URL of this test process's node; starts it at the first call."""
    require_rabbitmq()
    return _shared().url


@contextmanager
def private_rabbitmq() -> Iterator[RabbitMQNode]:
    """A node of the test's own, running."""
    require_rabbitmq()
    folder = Path(tempfile.mkdtemp(prefix="rabbitmq-"))
    node = RabbitMQNode(folder)
    try:
        asyncio.run(node.start())
        yield node
    finally:
        _end(node, folder)


def _end(node: RabbitMQNode, folder: Path) -> None:
    """Without a farewell: nobody needs its data any more."""
    node.end()
    shutil.rmtree(folder, ignore_errors=True)
