"""Starts a live process: `python -m reference_impl.service gateway|instance --config FILE [--id ID]`.

It prints one line of JSON when it is ready, `{"ready": "http://127.0.0.1:PORT"}`, and ends with status 0 after draining, 2
for bad input.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from reference_impl.live.loop import run_live
from reference_impl.process_config import ConfigError, ProcessConfig

__all__ = ["main"]


def main(argv: list[str] | None = None) -> None:
    """Entry point of `python -m reference_impl.service`."""
    parser = argparse.ArgumentParser(prog="reference_impl.service", description=__doc__)
    parser.add_argument("role", choices=["gateway", "instance"])
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--id", default="instance-1", help="id of this instance")
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    # It logs every attempt to connect; what an outage means is told once, by the queue.
    logging.getLogger("aiormq").setLevel(logging.CRITICAL)
    try:
        config = ProcessConfig.read(arguments.config)
        if arguments.role == "gateway":
            from reference_impl.live.gateway import run_gateway

            run_live(run_gateway(config))
        else:
            from reference_impl.live.instance import run_instance

            run_live(run_instance(config, arguments.id))
    except ConfigError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(2)
