"""Plots, drawn by matplotlib where it is installed (the extra ``bench``)."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ._findings import Chart
from ._timing import Spread

_COLOURS = ("#7f8c9b", "#b8c0c8", "#d8b365", "#1f6fb4", "#35a07f", "#c2557a")


def draw(charts: Sequence[Chart], folder: Path) -> list[str]:
    """Draw each chart as an SVG file, and return the names of those that there are now."""
    if importlib.util.find_spec("matplotlib") is None:
        print("no plots: pip install 'asyncsession-kit[bench]'", file=sys.stderr)
        return []
    matplotlib = importlib.import_module("matplotlib")
    matplotlib.use("svg")
    # The same figures give the same file, and text stays text.
    matplotlib.rcParams.update({"svg.hashsalt": "asyncsession-kit", "svg.fonttype": "none"})
    plots = importlib.import_module("matplotlib.pyplot")
    for chart in charts:
        figure = _figure(plots, chart)
        figure.savefig(folder / f"{chart.name}.svg", metadata={"Date": None})
        plots.close(figure)
    return [chart.name for chart in charts]


def _figure(plots: Any, chart: Chart) -> Any:
    figure, axes = plots.subplots(figsize=(9, 4.2), layout="constrained")
    width = 0.8 / len(chart.series)
    for number, (name, values) in enumerate(chart.series.items()):
        shift = (number - (len(chart.series) - 1) / 2) * width
        _draw_series(axes, name, values, shift, width, _COLOURS[number % len(_COLOURS)])
    if chart.line is not None:
        axes.axhline(chart.line, color="black", linewidth=1)
    axes.set_xticks(range(len(chart.labels)), chart.labels)
    axes.set_ylabel(chart.axis)
    axes.set_title(chart.title, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, ncols=2)
    return figure


def _draw_series(
    axes: Any, name: str, values: Sequence[Spread | None], shift: float, width: float, colour: str
) -> None:
    found = [(at, value) for at, value in enumerate(values) if value is not None]
    middles = [value.median for _, value in found]
    below = [value.median - value.low for _, value in found]
    above = [value.high - value.median for _, value in found]
    axes.bar(
        [at + shift for at, _ in found],
        middles,
        width,
        yerr=(below, above),
        label=name,
        color=colour,
        error_kw={"elinewidth": 0.8},
    )
