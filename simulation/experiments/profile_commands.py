"""`twinload profile`: endpoint profiles from measurements."""

from __future__ import annotations

import json
from pathlib import Path

import click
import yaml

from reference_impl.output_paths import check_output_file
from simulation.models.profile_fit import fit_profile

__all__ = ["profile"]


@click.group()
def profile() -> None:
    """Endpoint profiles: fit one to measured calls."""


@profile.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--name", default="", help="Name of the profile; default: the file's stem.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Write the profile's YAML here instead of standard output.",
)
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print one JSON object: the profile and how well it fits.",
)
def fit(file: Path, name: str, out: Path | None, as_json: bool) -> None:
    """Fit a profile to FILE (CSV or JSON Lines with input_tokens, output_tokens, ttft_s, duration_s)."""
    if out is not None:
        check_output_file(out)
    fitted = fit_profile(file, name=name)
    document = fitted.profile.model_dump(mode="json")
    text = yaml.safe_dump(document, sort_keys=False)
    if out is not None:
        partial = out.with_name(out.name + ".partial")
        partial.write_text(text)
        partial.replace(out)
    if as_json:
        fits = [
            {
                "quantity": f.quantity,
                "family": f.family,
                "distance": f.distance,
                "p50_error": f.p50_error,
                "p95_error": f.p95_error,
            }
            for f in fitted.fits
        ]
        click.echo(json.dumps({"profile": document, "rows": fitted.rows, "fits": fits}, indent=2))
        return
    click.echo(fitted.summary(), err=True)
    if out is None:
        click.echo(text, nl=False)
    else:
        click.echo(f"Profile: {out}", err=True)
