"""`twinload services`: start, stop and show private servers. Errors are one line and status 2; an interrupt is status 1."""

from __future__ import annotations

import asyncio
import shlex
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, Final, TypeVar

import click
import msgspec

from reference_impl.caches.connect import URL_VARIABLE as REDIS_VARIABLE
from reference_impl.database.connect import DSN_VARIABLE
from reference_impl.database.errors import masked
from reference_impl.live.services.registry import (
    SERVICES,
    services_down,
    services_report,
    services_up,
)
from reference_impl.live.services.server_process import ServiceUnavailable
from reference_impl.live.stop_signals import stop_signals
from reference_impl.queues.connect import URL_VARIABLE as QUEUE_VARIABLE

__all__ = ["services", "settings_of"]

T = TypeVar("T")

DEFAULT_FOLDER: Final = Path(".twinload/services")

_names = click.argument("names", nargs=-1, type=click.Choice(SERVICES))
_folder = click.option(
    "--folder",
    type=click.Path(path_type=Path, file_okay=False),
    default=DEFAULT_FOLDER,
    show_default=True,
    help="Where the servers keep their data, and by which they are known.",
)
_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")


@click.group()
def services() -> None:
    """Start, stop and show private servers (Valkey, PostgreSQL, RabbitMQ) on the loopback.

    They outlive the command, and keep their ports and their data over `down` and `up`.
    """


@services.command()
@_names
@_folder
@_json
def up(names: tuple[str, ...], folder: Path, as_json: bool) -> None:
    """Start what does not run yet (all three, or NAMES), and print the settings of all that runs.

    Standard output is shell: eval "$(twinload services up)". One that cannot be had is told with how to get it and makes the
    exit status 2; the others are started all the same.
    """
    result = _run(services_up(folder, names), "what it had started is stopped again")
    settings = settings_of({name: state.url for name, state in result.running.items()})
    if as_json:
        _print_json(
            {
                "folder": str(folder),
                "services": [
                    {
                        "name": s.name,
                        "url": s.url,
                        "pid": s.pid,
                        "started": s.name in result.started,
                    }
                    for s in result.running.values()
                ],
                "unavailable": result.unavailable,
                "settings": settings,
            }
        )
    else:
        for name, state in result.running.items():
            if name in result.started:
                click.echo(f"{name}: started (process {state.pid})", err=True)
            elif not names or name in names:
                click.echo(f"{name}: runs already (process {state.pid})", err=True)
        for variable, url in settings.items():
            click.echo(f"export {variable}={shlex.quote(url)}")
    complaints = [f"{name}: {reason}" for name, reason in result.unavailable.items()]
    for complaint in complaints[:-1]:
        click.echo(f"Error: {complaint}", err=True)
    if complaints:
        raise click.ClickException(complaints[-1])


@services.command()
@_names
@_folder
@click.option("--delete-data", is_flag=True, help="Delete their data as well.")
@_json
def down(names: tuple[str, ...], folder: Path, delete_data: bool, as_json: bool) -> None:
    """Stop what runs (all, or NAMES). Data stays unless --delete-data."""
    result = _run(
        services_down(folder, names, delete_data=delete_data), "some may be running still"
    )
    if as_json:
        _print_json({"folder": str(folder), **msgspec.structs.asdict(result)})
        return
    for name in names or SERVICES:
        said = "stopped" if name in result.stopped else "was not running"
        click.echo(f"{name}: {said}{', its data is deleted' if name in result.deleted else ''}")


@services.command()
@_names
@_folder
@click.option("--show-passwords", is_flag=True, help="Print the URLs as they are.")
@_json
def status(names: tuple[str, ...], folder: Path, show_passwords: bool, as_json: bool) -> None:
    """Show what runs and whether it answers. Passwords are masked."""
    reports = _run(services_report(folder, names), "nothing is changed")
    shown = {r.name: r.url if show_passwords else masked(r.url) for r in reports}
    if as_json:
        _print_json(
            {
                "folder": str(folder),
                "services": [
                    {"name": r.name, "state": r.state, "url": shown[r.name], "pid": r.pid}
                    for r in reports
                ],
            }
        )
        return
    for report in reports:
        pid = "" if report.pid is None else f"process {report.pid}"
        click.echo(f"{report.name:<9} {report.state:<23} {pid:<15} {shown[report.name]}".rstrip())


def settings_of(urls: dict[str, str]) -> dict[str, str]:
    """The variables for servers by name. RabbitMQ holds the queue; without it Valkey does, apart from the cache."""
    settings = {}
    if "postgres" in urls:
        settings[DSN_VARIABLE] = urls["postgres"]
    if "valkey" in urls:
        settings[REDIS_VARIABLE] = urls["valkey"]
        settings[QUEUE_VARIABLE] = urls["valkey"].removesuffix("/0") + "/1"
    if "rabbitmq" in urls:
        settings[QUEUE_VARIABLE] = urls["rabbitmq"]
    return settings


def _print_json(document: dict[str, Any]) -> None:
    click.echo(msgspec.json.format(msgspec.json.encode(document)))


def _run(work: Coroutine[Any, Any, T], interrupted: str) -> T:
    try:
        return asyncio.run(_interruptible(work))
    except asyncio.CancelledError:
        click.echo(f"error: interrupted; {interrupted}", err=True)
        sys.exit(1)
    except (ServiceUnavailable, OSError) as error:
        raise click.ClickException(" ".join(str(error).split())) from error


async def _interruptible(work: Coroutine[Any, Any, T]) -> T:
    """What asks to stop cancels the work at its next wait, so that they find nothing half done."""
    loop = asyncio.get_running_loop()
    task = loop.create_task(work)
    for number in stop_signals():
        loop.add_signal_handler(number, task.cancel)
    return await task
