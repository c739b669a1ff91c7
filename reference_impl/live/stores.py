"""The ledger and the queue that a live process is told of: what exists by its configuration, where by its environment."""

from __future__ import annotations

import os
import secrets

from reference_impl.batches.consumer import BatchConsumer
from reference_impl.database.connect import DSN_VARIABLE, build_accounting, ledger_of
from reference_impl.database.errors import DatabaseError
from reference_impl.database.port import LedgerStore
from reference_impl.live.wall_clock import wall_clock_s
from reference_impl.overload.jitter import hashed_uniform
from reference_impl.prices import load_prices
from reference_impl.process_config import ConfigError, ProcessConfig
from reference_impl.queues.port import MessageQueue

__all__ = ["batch_consumer", "batch_queue", "ledger_store"]


def ledger_store(config: ProcessConfig) -> LedgerStore | None:
    """The ledger that the deployment asks for; None for none. Raises ConfigError."""
    dsn = os.environ.get(DSN_VARIABLE, "")
    try:
        return ledger_of(config.deployment.database, dsn, config.ledger_dir or config.run_dir)
    except DatabaseError as error:
        raise ConfigError(str(error)) from error


def batch_queue(config: ProcessConfig) -> MessageQueue | None:
    """The queue that the deployment asks for; None for none. Raises ConfigError."""
    if config.deployment.queue.broker == "none":
        return None
    from reference_impl.queues.connect import URL_VARIABLE, BadQueueUrl, queue_of

    try:
        return queue_of(config.deployment.queue, os.environ.get(URL_VARIABLE, ""))
    except BadQueueUrl as error:
        raise ConfigError(str(error)) from error


def batch_consumer(config: ProcessConfig, instance_id: str) -> BatchConsumer | None:
    """What works on the batches of an instance, over connections of its own; None where there is no queue."""
    spec = config.deployment
    queue = batch_queue(config)
    if queue is None:
        return None
    # A task needs a connection for its claim and its result, not while it is answered.
    most = min(spec.database.max_size, spec.queue.concurrency)
    database = spec.database.model_copy(update={"min_size": 1, "max_size": most})
    narrow = config.model_copy(
        update={"deployment": spec.model_copy(update={"database": database})}
    )
    store = ledger_store(narrow)
    assert store is not None, "DeploymentSpec asks for a ledger where there is a queue"
    accounting = build_accounting(
        store,
        database,
        source=f"{instance_id}-{secrets.token_hex(6)}",
        wall_clock=wall_clock_s,
        folder=config.ledger_dir or config.run_dir,
    )
    return BatchConsumer(
        spec.queue,
        queue,
        accounting,
        load_prices(),
        uniform=hashed_uniform(config.seed),
        wall_clock=wall_clock_s,
        instance=instance_id,
        tags=config.forward_tags,
    )
