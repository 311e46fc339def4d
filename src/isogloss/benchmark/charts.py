"""Charts as inline SVG that follow the page's colours, light or dark.

matplotlib draws with placeholder colours; they are replaced by CSS variables, so one drawing serves both themes. Charts are
small (about 340 px wide): a report lays them out side by side where there is room, one above the other where there is not.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

# Placeholder in the drawing → variable in the page.
_INK = "#010101"
_MUTED = "#020202"
_GRID = "#030303"
_SERIES = ("#040404", "#050505", "#060606", "#070707", "#080808", "#090909")
_VARIABLES = {
    _INK: "var(--ink)",
    _MUTED: "var(--muted)",
    _GRID: "var(--grid)",
    **{color: f"var(--series-{i})" for i, color in enumerate(_SERIES)},
}
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "isogloss",
    "font.family": "sans-serif",
    "font.size": 8.5,
    "axes.edgecolor": _MUTED,
    "axes.labelcolor": _MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": _GRID,
    "grid.linewidth": 0.6,
    "xtick.color": _MUTED,
    "ytick.color": _MUTED,
    "text.color": _INK,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
}

# At the left edge of the figure, above the labels too: a long title then fits.
_TITLE: dict[str, Any] = {"x": 0.01, "ha": "left", "fontsize": 9.5, "fontweight": "bold", "color": _INK}


@dataclass(frozen=True)
class Interval:
    """A value with its confidence limits, under a label; `emphasis` marks the systems that the chart is about."""

    label: str
    value: float
    low: float
    high: float
    emphasis: bool = False


def line_chart(
    title: str,
    x_label: str,
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    reference: float | None = None,
) -> str:
    """Draw curves (name → (x, y)); `reference` is a dashed horizontal line, for instance chance."""
    with mpl.rc_context(_STYLE):
        # A few names find room among the curves; more of them go below.
        crowded = len(series) > 4
        figure, axes = _axes(2.3 + 0.2 * math.ceil(len(series) / 2) * crowded)
        for color, (name, (x, y)) in zip(_SERIES, series.items(), strict=False):
            axes.plot(x, y, color=color, label=name, marker="o" if len(x) < 20 else None, markersize=3.5)
        if reference is not None:
            axes.axhline(reference, color=_MUTED, linewidth=1, linestyle=(0, (4, 3)))
        figure.suptitle(title, **_TITLE)
        axes.set_xlabel(x_label)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if crowded:
            figure.legend(loc="outside lower left", ncols=2, fontsize=8, handlelength=1.2, columnspacing=1.2)
        elif len(series) > 1:
            axes.legend(fontsize=8)
        return _svg(figure, title)


def band_chart(
    title: str,
    x_label: str,
    series: Mapping[str, Sequence[tuple[float, float, float, float]]],
    *,
    log_x: bool = False,
    reference: float | None = None,
) -> str:
    """Draw curves with intervals: name → (x, value, low, high) at each point; `reference` is a dashed line, for instance chance.

    Two curves have bands; more of them would hide each other, and have bars side by side.
    """
    with mpl.rc_context(_STYLE):
        figure, axes = _axes(2.5 + 0.2 * math.ceil(len(series) / 3))
        for number, (color, (name, points)) in enumerate(zip(_SERIES, series.items(), strict=False)):
            x, y, low, high = zip(*points, strict=True)
            if len(series) > 2:
                shift = number - (len(series) - 1) / 2
                x = tuple(value * 1.05**shift if log_x else value + 0.04 * shift for value in x)
                axes.vlines(x, low, high, color=color, linewidth=1.4, alpha=0.45)
            else:
                axes.fill_between(x, low, high, color=color, alpha=0.18, linewidth=0)
            axes.plot(
                x, y, color=color, label=name, marker="o", markersize=3.5, linewidth=1.2 if len(series) > 2 else 1.6
            )
        if reference is not None:
            axes.axhline(reference, color=_MUTED, linewidth=1, linestyle=(0, (4, 3)))
        if log_x:
            ticks = sorted({point[0] for points in series.values() for point in points})
            axes.set_xscale("log")
            axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
            axes.minorticks_off()
        figure.suptitle(title, **_TITLE)
        axes.set_xlabel(x_label)
        figure.legend(loc="outside lower left", ncols=3, fontsize=8, handlelength=1.2, columnspacing=1.2)
        return _svg(figure, title)


def panels(title: str, x_label: str, series: Mapping[str, tuple[Sequence[float], Sequence[float]]]) -> str:
    """Draw each curve (name → (x, y)) in a panel of its own, side by side."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(2.6 * len(series), 2.1), layout="constrained")
        for number, (name, (x, y)) in enumerate(series.items(), 1):
            axes = figure.add_subplot(1, len(series), number)
            axes.plot(x, y, color=_SERIES[0])
            axes.set_title(name, fontsize=8.5, loc="left", color=_MUTED)
            axes.set_xlabel(x_label)
            axes.xaxis.set_major_locator(MaxNLocator(3, integer=True))
        figure.suptitle(title, **_TITLE)
        return _svg(figure, title)


def standalone(svg: str) -> str:
    """Return a chart as a file of its own, with the report's colours for light and dark pages inside."""
    style = files("isogloss.benchmark").joinpath("report.css").read_text(encoding="utf-8")
    colours = " ".join(re.findall(r"--(?:ink|muted|grid|series-\d): [^;]+;", style))
    rules = f":root {{ color-scheme: light dark; {colours} }}"
    return re.sub(r"(<svg[^>]*>)", rf"\1<style>{rules}</style>", svg, count=1) + "\n"


def interval_chart(title: str, x_label: str, intervals: Sequence[Interval], *, reference: float | None = None) -> str:
    """Draw one row per system: a dot with its interval; `reference` is a dashed vertical line, for instance chance."""
    longest = max((len(item.label) for item in intervals), default=0)
    with mpl.rc_context({**_STYLE, "axes.grid.axis": "x"}):
        figure, axes = _axes(0.75 + 0.27 * len(intervals), 3.75 + 0.065 * max(0, longest - 24))
        for row, item in enumerate(reversed(intervals)):
            color = _SERIES[0] if item.emphasis else _MUTED
            axes.plot([item.low, item.high], [row, row], color=color, linewidth=2.2, solid_capstyle="round")
            axes.plot([item.value], [row], "o", color=color, markersize=5.5)
        if reference is not None:
            axes.axvline(reference, color=_MUTED, linewidth=1, linestyle=(0, (4, 3)))
        axes.set_yticks(range(len(intervals)), [item.label for item in reversed(intervals)])
        axes.set_ylim(-0.6, len(intervals) - 0.4)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        figure.suptitle(title, **_TITLE)
        axes.set_xlabel(x_label)
        return _svg(figure, title)


def scatter_chart(
    title: str,
    x_label: str,
    y_label: str,
    points: Sequence[tuple[str, float, float, float, float]],
    *,
    reference: float = 0.0,
) -> str:
    """Draw labelled points with intervals, (name, x, value, low, high), over a logarithmic x on which zero has a place of its own."""
    with mpl.rc_context(_STYLE):
        figure, axes = _axes(3.2)
        positive = [x for _, x, *_ in points if x > 0]
        has_zero = len(positive) < len(points)
        zero = min(positive, default=1.0) / 4
        axes.set_xscale("log")
        axes.axhline(reference, color=_MUTED, linewidth=1, linestyle=(0, (4, 3)))
        for _, x, value, low, high in points:
            place = x if x > 0 else zero
            axes.plot([place, place], [low, high], color=_SERIES[0], linewidth=1.6, alpha=0.45, solid_capstyle="round")
            axes.plot([place], [value], "o", color=_SERIES[0], markersize=4.5)
        low, high = (zero if has_zero else min(positive)), max(positive, default=1.0)
        span = max(point[4] for point in points) - min(point[3] for point in points) or 1.0
        placed: list[tuple[float, float, int]] = []
        for name, x, value, *_ in sorted(points, key=lambda point: (point[1], point[2])):
            across = math.log((x or zero) / low) / math.log(high / low * 3.5)
            # A name that would lie on another stands on the left of its mark.
            crowd = [side for a, v, side in placed if abs(across - a) < 0.05 and abs(value - v) < 0.04 * span]
            side = -1 if 1 in crowd else 1
            placed.append((across, value, side))
            axes.annotate(
                name,
                (x or zero, value),
                (4 * side, 0),
                textcoords="offset points",
                fontsize=7.5,
                va="center",
                ha="left" if side > 0 else "right",
                color=_INK,
            )
        axes.set_xlim(low / 1.6, high * 2.2)  # room for names
        marks = _log_marks(min(positive, default=1.0), high)
        ticks = ([zero] if has_zero else []) + marks
        axes.set_xticks(ticks, (["0"] if has_zero else []) + [f"{mark:g}" for mark in marks])
        axes.minorticks_off()
        figure.suptitle(title, **_TITLE)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        return _svg(figure, title)


def _log_marks(low: float, high: float) -> list[float]:
    """Return marks of a logarithmic axis: decades, and twice and five times them where there are few."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = (1.0, 2.0, 5.0) if high / low < 100 else (1.0,)
    marks = [step * 10.0**decade for decade in decades for step in steps]
    return [mark for mark in marks if low / 1.2 <= mark <= high * 1.2] or [low, high]


def _axes(height_inches: float, width_inches: float = 3.75) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width_inches, height_inches), layout="constrained")
    return figure, figure.add_subplot()


def _svg(figure: Figure, title: str) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r'font-family: [^;"]*', "font-family: system-ui, sans-serif", text)
    text = re.sub(r"(font: (?:bold )?[\d.]+px) [^;\"]*", r"\1 system-ui, sans-serif", text)
    for placeholder, variable in _VARIABLES.items():
        text = text.replace(placeholder, variable)
    # An SVG without fixed size fills its column; its id-s must not clash with the next chart's.
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    prefix = re.sub(r"\W+", "-", title.lower()).strip("-")
    text = re.sub(r'(id="|href="#|url\(#)', rf"\g<1>{prefix}-", text)
    return text.replace("<svg", f'<svg role="img" aria-label="{title}"', 1).strip()
