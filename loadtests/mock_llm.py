"""The mock LLM server: `python -m loadtests.mock_llm --port 0 --profile fast --seed 1`.

It serves `simulation.models.llm_endpoint` over HTTP as the Messages API (docs/mock.md). It prints one line of JSON when it
is ready, `{"ready": "http://127.0.0.1:PORT"}`, and ends with status 0 on SIGTERM, 2 for bad input.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

import msgspec
import yaml
from pydantic import ValidationError

from loadtests.mock.attempt_log import AttemptLog
from loadtests.mock.build import build_mock_app
from loadtests.mock.keys import KeyFileError, Keys, load_keys
from loadtests.mock.protocol import MockProtocol
from reference_impl.live.loop import run_live
from reference_impl.live.serving import announce, serving, stop_on_signals
from reference_impl.prices import PriceError, PriceTable, load_prices
from reference_impl.process_config import ConfigError
from simulation.scenario.diagnosis import is_name
from simulation.scenario.endpoint import (
    LIMIT_TIERS,
    EndpointProfile,
    LimitsSpec,
    ProfileError,
    load_profile,
)

__all__ = ["MockOptions", "main", "serve"]

logger = logging.getLogger(__name__)


class MockOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How the server is started."""

    profile: EndpointProfile
    seed: int = 0
    port: int = 0
    prices: PriceTable
    keys: Keys
    log: Path | None = None
    allow_fault_header: bool = False
    batch_concurrency: int = 64


async def serve(options: MockOptions) -> None:
    """Serve until SIGTERM or SIGINT. Raises ConfigError when the port or the log cannot be used."""
    stop = stop_on_signals()
    log = None if options.log is None else _attempt_log(options.log)
    mock = build_mock_app(
        options.profile,
        options.seed,
        wall_clock=time.time,
        prices=options.prices,
        keys=options.keys,
        log=None if log is None else log.write,
        allow_faults=options.allow_fault_header,
        batch_concurrency=options.batch_concurrency,
    )
    watching = asyncio.create_task(mock.lag.watch(), name="background:lag")
    # What exists now lives as long as the process: the collector need not look at it again.
    gc.collect()
    gc.freeze()
    try:
        async with serving(mock.app, options.port, http=MockProtocol, keep_alive_s=600.0) as url:
            announce(url)
            await stop.wait()
            mock.app.stop()
            await mock.batches.aclose()
    finally:
        watching.cancel()
        for verdict in mock.verdicts().values():
            if not verdict.valid:
                logger.warning("%s", verdict.reason)
        if log is not None:
            log.close()


def _attempt_log(path: Path) -> AttemptLog:
    try:
        return AttemptLog(path)
    except OSError as error:
        raise ConfigError(f"--log {path}: {error.strerror}; name another file") from None


def main(argv: list[str] | None = None, prog: str | None = None) -> None:
    """Entry point of `python -m loadtests.mock_llm` and of `twinload mock`."""
    arguments = _parser(prog).parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    try:
        options = _options(arguments)
        run_live(serve(options))
    except (ConfigError, ProfileError, PriceError, KeyFileError) as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(2)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line, as of every command."""
        self.exit(2, f"error: {message}; see {self.prog} --help\n")


def _parser(prog: str | None) -> argparse.ArgumentParser:
    parser = _Parser(
        prog=prog, description="A mock of the Messages API with realistic latency and limits."
    )
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--profile", default="fast", help="name of a shipped profile, or a file")
    parser.add_argument("--seed", type=int, default=0, help="of all luck")
    parser.add_argument(
        "--limits", help=f"a tier ({', '.join(LIMIT_TIERS)}), none, or a YAML file of limits"
    )
    parser.add_argument("--speedup", type=float, help="plays the profile so many times as fast")
    parser.add_argument("--prices", type=Path, help="a price file in place of the shipped one")
    parser.add_argument("--keys", type=Path, help="YAML file `key: account`; other keys get 401")
    parser.add_argument("--log", type=Path, help="one line of JSON per attempt goes here")
    parser.add_argument("--batch-concurrency", type=int, default=64)
    parser.add_argument(
        "--allow-fault-header", action="store_true", help="honour the header x-mock-fault"
    )
    return parser


def _options(arguments: argparse.Namespace) -> MockOptions:
    profile = load_profile(arguments.profile)
    changes: dict[str, Any] = {}
    if arguments.limits is not None:
        changes["limits"] = _limits(arguments.limits)
    if arguments.speedup is not None:
        if not arguments.speedup > 0:
            raise ConfigError(f"--speedup {arguments.speedup:g}: must be greater than 0")
        changes["speedup"] = arguments.speedup
    if not 0 <= arguments.port <= 65535:
        raise ConfigError(f"--port {arguments.port}: must be 0 to 65535")
    if arguments.batch_concurrency < 1:
        raise ConfigError(f"--batch-concurrency {arguments.batch_concurrency}: must be at least 1")
    return MockOptions(
        profile=profile.model_copy(update=changes),
        seed=arguments.seed,
        port=arguments.port,
        prices=load_prices(arguments.prices),
        keys=Keys(None if arguments.keys is None else load_keys(arguments.keys)),
        log=arguments.log,
        allow_fault_header=arguments.allow_fault_header,
        batch_concurrency=arguments.batch_concurrency,
    )


def _limits(name: str) -> LimitsSpec:
    """A tier by name, or the limits in a YAML file."""
    if name == "none":
        return LimitsSpec()
    if name in LIMIT_TIERS:
        return LIMIT_TIERS[name]
    try:
        return LimitsSpec.model_validate(yaml.safe_load(Path(name).read_text("utf-8")))
    except OSError as error:
        raise ConfigError(
            f"--limits {name}: neither a file nor one of none, {', '.join(LIMIT_TIERS)}"
        ) from error
    except yaml.YAMLError as error:
        raise ConfigError(f"--limits {name}: not YAML") from error
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        field = (field if is_name(field) else "a field (not shown)") if field else "the document"
        raise ConfigError(f"--limits {name}: {field}: {first['msg']}") from error


if __name__ == "__main__":
    main()
