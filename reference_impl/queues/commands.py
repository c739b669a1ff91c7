"""`twinload queue`: what an operator asks of a queue of tasks. Errors are one line and status 2."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from datetime import UTC, datetime
from typing import Any, NamedTuple, TypeVar

import click
import msgspec

from reference_impl.queues.connect import (
    URL_VARIABLE,
    BadQueueUrl,
    checked_url,
    queue_replay,
    queue_status,
)
from reference_impl.queues.errors import QueueError, QueueMismatch
from reference_impl.queues.port import DeadLetter, QueueStatistics
from reference_impl.queues.shape import find_shape
from reference_impl.queues.starting import without_password

__all__ = ["queue"]

T = TypeVar("T")

_UNKNOWN = "unknown: this broker does not tell"


class _Target(NamedTuple):
    """A queue that somebody looks at, and what is known of how it was made."""

    url: str
    name: str
    levels: int | None
    delivery_limit: int | None
    capacity: int | None

    async def options(self) -> dict[str, Any]:
        """How to connect to it as its owner does. Raises QueueError if it is not there, or otherwise than was said."""
        shape = await find_shape(self.url, self.name)
        what = f"queue {self.name!r} at {without_password(self.url)}"
        if shape is None:
            raise QueueError(f"no {what}: nobody has made it yet, or it has another name (--name)")
        if self.levels is not None and self.levels != shape.levels:
            raise QueueMismatch(
                f"{what} has {shape.levels} classes, and --levels says {self.levels}: correct it, or leave it out"
            )
        options = {
            "levels": shape.levels,
            "lease_s": shape.lease_s,
            "delivery_limit": self.delivery_limit,
            "capacity": self.capacity,
        }
        return {option: value for option, value in options.items() if value is not None}


def _target(function: Any) -> Any:
    """The options that name a queue."""
    for option in reversed(
        (
            click.option(
                "--queue",
                "url",
                envvar=URL_VARIABLE,
                metavar="URL",
                help=f"amqp://, redis:// or kafka://; better in {URL_VARIABLE}, where no process list shows its password.",
            ),
            click.option("--name", default="tasks", show_default=True, help="Of the queue."),
            click.option(
                "--levels",
                type=click.IntRange(1),
                help="Classes of priority that it must have; by default those that the broker has.",
            ),
            click.option(
                "--delivery-limit",
                type=click.IntRange(0),
                help="Where its owner has set one (RabbitMQ).",
            ),
            click.option(
                "--capacity",
                type=click.IntRange(1),
                help="Where its owner has set one (RabbitMQ).",
            ),
            click.option("--json", "as_json", is_flag=True, help="Print one JSON object."),
        )
    ):
        function = option(function)
    return function


@click.group()
def queue() -> None:
    """Show what waits in a queue of tasks, and replay its dead letters. Looking makes and changes nothing."""


@queue.command()
@_target
def status(as_json: bool, **named: Any) -> None:
    """Show how many tasks wait, by class, are delayed, held or dead, and the age of the oldest."""
    target = _checked(**named)
    statistics, _ = _run(_look(target, 0))
    if as_json:
        document = msgspec.to_builtins(statistics)
        kept = ("ready", "delayed", "held", "dead", "oldest_s")
        _print_json(target, {"depth": statistics.depth, **{key: document[key] for key in kept}})
        return
    click.echo(f"{target.name} at {without_password(target.url)}")
    for label, value in _rows(statistics):
        click.echo(f"  {label:<8} {value}")


@queue.command()
@_target
@click.option("--limit", type=click.IntRange(1), default=20, show_default=True, help="The oldest.")
def dead(limit: int, as_json: bool, **named: Any) -> None:
    """List dead letters, the oldest first: when, which task, why. They stay where they are."""
    target = _checked(**named)
    statistics, letters = _run(_look(target, limit))
    if as_json:
        rows = [{**msgspec.to_builtins(x), "died": _instant(x.died_s)} for x in letters]
        _print_json(target, {"dead": statistics.dead, "letters": rows})
        return
    for letter in letters:
        click.echo(f"{_instant(letter.died_s)}  {_title(letter)}: {_printable(letter.reason)}")
    shown = f", of which these are {len(letters)}" if len(letters) < statistics.dead else ""
    click.echo(f"dead letters in {target.name}: {statistics.dead}{shown}")


@queue.command()
@_target
@click.option("--limit", type=click.IntRange(1), help="The oldest so many; default: all.")
def replay(limit: int | None, as_json: bool, **named: Any) -> None:
    """Make dead letters ready again, the oldest first, with their counts at zero and without their deadline.

    What is no task stays among the dead letters.
    """
    target = _checked(**named)

    async def work() -> tuple[int, int]:
        options = await target.options()
        replayed = await queue_replay(target.url, name=target.name, limit=limit, **options)
        statistics, _ = await queue_status(target.url, name=target.name, limit=0, **options)
        return replayed, statistics.dead

    replayed, left = _run(work())
    if as_json:
        _print_json(target, {"replayed": replayed, "dead": left})
        return
    click.echo(f"replayed: {replayed}; dead letters left in {target.name}: {left}")


async def _look(target: _Target, limit: int) -> tuple[QueueStatistics, list[DeadLetter]]:
    options = await target.options()
    return await queue_status(target.url, name=target.name, limit=limit, **options)


def _checked(
    url: str | None,
    name: str,
    levels: int | None,
    delivery_limit: int | None,
    capacity: int | None,
) -> _Target:
    """What is wrong with the words alone."""
    if not url:
        raise click.UsageError(f"no queue is named: set {URL_VARIABLE}, or give --queue URL")
    if url.startswith("memory://"):
        raise click.UsageError(
            "memory:// is a queue within one process, which nobody else can see: name a broker"
        )
    try:
        checked_url(url)
    except BadQueueUrl as error:
        raise click.UsageError(f"--queue is {error}") from None
    except ModuleNotFoundError as error:
        raise _without_driver(error) from error
    if capacity is not None and not url.startswith("amqp"):
        raise click.UsageError("--capacity belongs to RabbitMQ (amqp://)")
    return _Target(url, name, levels, delivery_limit, capacity)


def _run(work: Coroutine[Any, Any, T]) -> T:
    for driver in ("aiormq", "aiokafka", "redis"):
        # What they log of a failure comes as an error too, and is told once, as ours.
        logging.getLogger(driver).setLevel(logging.CRITICAL)
    try:
        return asyncio.run(work)
    except QueueMismatch as error:
        hint = " (--delivery-limit and --capacity say how it was declared)"
        shown = hint if "(x-" in str(error) else ""
        raise click.ClickException(" ".join(str(error).split()) + shown) from error
    except QueueError as error:
        raise click.ClickException(" ".join(str(error).split())) from error
    except ModuleNotFoundError as error:
        raise _without_driver(error) from error


def _without_driver(error: ModuleNotFoundError) -> click.ClickException:
    return click.ClickException(
        f"this queue needs {error.name}: install the extra `queues` (pip install 'twinload[queues]')"
    )


def _rows(statistics: QueueStatistics) -> list[tuple[str, str]]:
    waiting = [
        f"class {level}: {count}"
        for level, count in reversed(list(enumerate(statistics.ready)))
        if count
    ]
    by_class = f" ({', '.join(waiting)})" if waiting else ""
    age = _UNKNOWN
    if statistics.oldest_s is not None:
        age = f"{statistics.oldest_s:.1f} s" if waiting else "-"
    return [
        ("ready", f"{sum(statistics.ready)}{by_class}"),
        ("delayed", _UNKNOWN if statistics.delayed is None else str(statistics.delayed)),
        ("held", _UNKNOWN if statistics.held is None else str(statistics.held)),
        ("oldest", age),
        ("dead", f"{statistics.dead}{' (twinload queue dead)' if statistics.dead else ''}"),
    ]


def _title(letter: DeadLetter) -> str:
    if letter.task is None:
        return f"no task ({letter.raw[:60]!r})"
    return f"{_printable(letter.task.task_id)} ({_printable(letter.task.task_type)})"


def _printable(text: str) -> str:
    """On one line, and nothing that a terminal would obey."""
    return "".join(c if c.isprintable() else " " for c in text)


def _instant(unix_s: float) -> str:
    return datetime.fromtimestamp(unix_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _print_json(target: _Target, document: dict[str, Any]) -> None:
    head = {"queue": target.name, "broker": without_password(target.url)}
    click.echo(msgspec.json.format(msgspec.json.encode({**head, **document})))
