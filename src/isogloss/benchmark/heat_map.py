"""Tables of figures as heat maps, in the page's colours."""

from __future__ import annotations

import math
from collections.abc import Sequence

import matplotlib as mpl
from matplotlib.patches import Rectangle

from isogloss.benchmark.charts import _INK, _MUTED, _SERIES, _STYLE, _TITLE, _axes, _svg

_MOST_NUMBERS = 30
_LONGEST = 32  # characters of a label


def heat_map(
    title: str,
    rows: Sequence[str],
    columns: Sequence[str],
    values: Sequence[Sequence[float]],
    *,
    x_label: str = "",
    y_label: str = "",
    reference: float = 0.0,
    digits: int = 2,
    farthest: float | None = None,
) -> str:
    """Draw a table whose cells are the darker the farther they lie from `reference`: one colour above it, another below.

    `farthest` is the distance of the darkest cell (the table's own by default): tables that are compared need the same.
    Cells say their value, so that nothing hangs on colour alone, as long as there is room (30 columns); NaN stays empty. Labels
    have the room that they need; of very long ones the end is shown.
    """
    rows, columns = [_shortened(name) for name in rows], [_shortened(name) for name in columns]
    is_long = max(map(len, columns)) > 4 or len(columns) > _MOST_NUMBERS
    beside = _inches(rows)
    above = _inches(columns) if is_long else 0.0
    finite = [abs(value - reference) for row in values for value in row if math.isfinite(value)]
    scale = farthest or max(finite, default=0.0) or 1.0
    with mpl.rc_context({**_STYLE, "axes.grid": False}):
        cell = 0.26 if len(columns) <= _MOST_NUMBERS else 0.13
        width = beside + max(3.75, 0.9 + (cell + 0.06) * len(columns))
        figure, axes = _axes(0.9 + above + cell * len(rows), width_inches=width)
        for y, row in enumerate(values):
            for x, value in enumerate(row):
                if not math.isfinite(value):
                    continue
                strength = min(abs(value - reference) / scale, 1.0)
                color = _SERIES[0] if value >= reference else _SERIES[1]
                axes.add_patch(
                    Rectangle((x - 0.48, y - 0.48), 0.96, 0.96, facecolor=color, alpha=0.75 * strength, linewidth=0)
                )
                if len(columns) <= _MOST_NUMBERS:
                    text = f"{value:.{digits}f}".replace("-0." + "0" * digits, "0." + "0" * digits)
                    axes.text(x, y, text, ha="center", va="center", fontsize=7, color=_INK)
        axes.set_xlim(-0.5, len(columns) - 0.5)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xticks(range(len(columns)), columns, rotation=90 if is_long else 0)
        axes.set_yticks(range(len(rows)), rows)
        axes.tick_params(length=0, colors=_MUTED)
        for spine in axes.spines.values():
            spine.set_visible(False)
        figure.suptitle(title, **_TITLE)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        return _svg(figure, title)


def _shortened(name: str) -> str:
    return name if len(name) <= _LONGEST else f"…{name[1 - _LONGEST :]}"


def _inches(names: Sequence[str]) -> float:
    """Return what labels need beyond the room that a short one has."""
    return 0.065 * max(0, max(map(len, names)) - 8)
