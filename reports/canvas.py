"""One look for all figures: size, type, colours. matplotlib is loaded here, by the first figure, and without pyplot.

A figure is drawn at the width of a phone's screen, so that its text stays legible there and two fit beside each other on
a desk.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

__all__ = ["GREY", "INK", "PALETTE", "RUN_COLOURS", "RUN_STYLES", "Canvas"]

# Okabe and Ito (2008): told apart by readers with any of the common colour deficiencies.
PALETTE: Final = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#882255",
    "#999933",
)
RUN_COLOURS: Final = ("#0072B2", "#D55E00")
# Two runs differ by line style too: they often lie on top of each other, and some readers print in grey.
RUN_STYLES: Final = ("-", (0, (4, 1.5)))
INK: Final = "#222222"
GREY: Final = "#8A8F98"
# Warm, since areas of data are grey.
_SHADE: Final = "#E69F00"
_DPI: Final = 200
_SIZE_PT: Final = 9.0


class Canvas:
    """One figure with one pair of axes; `png()` ends it."""

    def __init__(
        self, title: str, x: str, y: str, *, width_in: float = 5.2, height_in: float = 3.1
    ) -> None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        self.figure = Figure(figsize=(width_in, height_in), dpi=_DPI, layout="constrained")
        FigureCanvasAgg(self.figure)
        axes: Any = self.figure.add_subplot()
        self.axes = axes
        axes.set_title(title, fontsize=_SIZE_PT + 1, loc="left", color=INK, fontweight="bold")
        axes.set_xlabel(x, fontsize=_SIZE_PT, color=INK)
        axes.set_ylabel(y, fontsize=_SIZE_PT, color=INK)
        axes.tick_params(labelsize=_SIZE_PT - 0.5, colors=INK)
        axes.grid(visible=True, color="#E3E6EA", linewidth=0.7)
        axes.set_axisbelow(True)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        for side in ("left", "bottom"):
            axes.spines[side].set_color("#B5BAC1")

    def line(self, x: npt.ArrayLike, y: npt.ArrayLike, label: str, **how: Any) -> None:
        """A line; of fewer than 40 points, each is marked, so that a lone one can be seen."""
        marker = "o" if np.size(x) < 40 else None
        self.axes.plot(
            x,
            y,
            label=label,
            marker=marker,
            markersize=3,
            linewidth=how.pop("linewidth", 1.6),
            **how,
        )

    def from_start(self) -> None:
        """The x axis starts at the run's start."""
        self.axes.set_xlim(left=0)

    def shade(self, spans: Sequence[tuple[float, float]], label: str) -> None:
        """Stretches of the x axis behind what is drawn, to where that ends. After the lines, before the legend."""
        low, right = self.axes.get_xlim()
        shown = [(a, min(b, right)) for a, b in spans if a < right]
        for i, (a, b) in enumerate(shown):
            self.axes.axvspan(
                a, b, color=_SHADE, alpha=0.2, linewidth=0, zorder=0, label="" if i else label
            )
        self.axes.set_xlim(low, right)

    def threshold(self, y: float, label: str) -> None:
        self.axes.axhline(y, color=INK, linewidth=1.1, linestyle=(0, (1, 1.5)), label=label)

    def from_zero(self, *, headroom: float = 1.08) -> None:
        """The y axis starts at 0: areas and rates are compared by eye."""
        top = self.axes.get_ylim()[1]
        self.axes.set_ylim(0, top * headroom if top > 0 else 1)

    def logarithmic_if_wide(self, low: float, high: float) -> None:
        """A logarithmic y axis when the values span more than a factor of 50, labelled in plain numbers."""
        from matplotlib.ticker import FuncFormatter, NullFormatter

        if low <= 0 or high / low <= 50:
            self.from_zero()
            return
        self.axes.set_yscale("log")
        self.axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
        self.axes.yaxis.set_minor_formatter(NullFormatter())

    def legend(self, *, columns: int = 2) -> None:
        """Below the axes, where it hides no data."""
        handles, labels = self.axes.get_legend_handles_labels()
        if handles:
            self.figure.legend(
                handles, labels, loc="outside lower center", ncols=columns, fontsize=_SIZE_PT - 0.5, frameon=False,
                handlelength=2.2, columnspacing=1.2,
            )  # fmt: skip

    def png(self) -> bytes:
        """The finished figure; the same data give the same bytes."""
        buffer = io.BytesIO()
        self.figure.savefig(buffer, format="png", dpi=_DPI, metadata={"Software": None})
        return buffer.getvalue()
