"""From what a report says to bytes on disk: the templates, what each format needs escaped, and whole files or none."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final

import jinja2
from markupsafe import Markup, escape

__all__ = ["FIGURES", "render", "write"]

# The folder of the figures, beside the Markdown file that shows them.
FIGURES: Final = "figures"


def render(template: str, report: object) -> bytes:
    """The file that `template` (`report.html.j2`, `report.md.j2`) makes of a report; HTML is escaped throughout."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=jinja2.select_autoescape(enabled_extensions=("html.j2",), default=False),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"code": _code, "cell": _cell, "prose": _prose}
    text = environment.get_template(template).render(report=report, figures_folder=FIGURES)
    return text.encode()


def _code(text: str) -> Markup:
    """Escaped, with `words in backticks` as code."""
    return Markup(re.sub(r"`([^`]*)`", r"<code>\1</code>", str(escape(text))))  # noqa: S704 - escaped first


def _prose(text: str) -> str:
    """For Markdown: no markup but code in backticks, whatever names a scenario carries."""
    pieces = re.split(r"(`[^`]*`)", " ".join(text.split()))
    return "".join(
        p if p.startswith("`") else re.sub(r"([\\*_<>\[\]#|])", r"\\\1", p) for p in pieces
    )


def _cell(text: str) -> str:
    """For a cell of a Markdown table."""
    return re.sub(r"([\\*_<>\[\]`|])", r"\\\1", " ".join(text.split()))


def write(path: Path, content: bytes) -> None:
    """Write the file whole or not at all; whatever was there is replaced. Raises OSError."""
    partial_ = path.with_name(path.name + ".partial")
    try:
        partial_.write_bytes(content)
        os.replace(partial_, path)  # noqa: PTH105 - the call that is atomic
    finally:
        partial_.unlink(missing_ok=True)
