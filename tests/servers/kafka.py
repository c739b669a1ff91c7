"""librdkafka's mock cluster, in this process, answering over TCP: produce, fetch, commit, one member a group.

There is no Kafka broker that a test could install. The mock is librdkafka's own, against which its clients are tested; what it
lacks (a second member, so rebalancing) is not shown here. Joining a group takes it three seconds.
"""

from __future__ import annotations

import functools
from typing import Any

from confluent_kafka import Producer

__all__ = ["shared_kafka_url"]


@functools.cache
def _shared() -> tuple[Any, str]:
    cluster = Producer({"bootstrap.servers": "mock", "test.mock.num.brokers": 1, "log_level": 0})
    (broker,) = cluster.list_topics(timeout=5).brokers.values()
    return cluster, f"{broker.host}:{broker.port}"


def shared_kafka_url() -> str:
    """host:port of this process's cluster, which lives as long as it."""
    return _shared()[1]
