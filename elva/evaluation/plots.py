"""The report's plots as self-contained pictures, each drawn for a light and for a dark page.

Arms are told apart by colour (Okabe and Ito's colour-blind-safe palette), marker and line style together.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from elva.evaluation.results import Results
from elva.intervals import wilson

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

History = Sequence[Mapping[str, Any]]

_BOOKKEEPING = ("step", "epoch", "total_flos")
_FIRST = ("loss", "reward", "reward_std", "kl", "frac_reward_zero_std")


@dataclass(frozen=True)
class Theme:
    """Colours of a page: ink for text, rule for axes and grid, one colour an arm."""

    ink: str
    rule: str
    arms: tuple[str, ...]


LIGHT = Theme(
    "#374151",
    "#d9dce3",
    ("#0072b2", "#d55e00", "#009e73", "#b5578c", "#b97e00", "#3a9ad0", "#6b7280", "#7a6a00"),
)
DARK = Theme(
    "#c6cbd6",
    "#3a4150",
    ("#5ab0e8", "#f0803c", "#2cc29a", "#e29cc4", "#f2b84b", "#a5dcf7", "#9aa3b2", "#d8d04a"),
)
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
_LINES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 2)), (0, (7, 2)))


@dataclass(frozen=True)
class Picture:
    """A plot as two data URIs (SVG), with the text that stands in for it."""

    light: str
    dark: str
    alt: str


def hit_rate_by_grains(rows: Mapping[str, Results]) -> Picture | None:
    """Hit@1 and hit@5 against the number of grains, one line a row, 95% Wilson bands; None without such queries."""
    measured = {name: row.multigrain.by_grains() for name, row in rows.items() if row.multigrain is not None}
    if not measured:
        return None
    counts = sorted({count for arm in measured.values() for count in arm})
    sizes = [max(arm[count]["queries"] for arm in measured.values() if count in arm) for count in counts]

    def draw(theme: Theme) -> Figure:
        figure, axes = _panels(2, 2, 3.1, theme)
        for axis, k in zip(axes, (1, 5), strict=True):
            for index, (name, arm) in enumerate(measured.items()):
                present = [count for count in counts if count in arm]
                rates = [100 * arm[count][f"hit_at_{k}"] for count in present]
                bands = [wilson(arm[count][f"hit_at_{k}"], int(arm[count]["queries"])) for count in present]
                axis.plot(present, rates, label=name, **_style(index, theme))
                low, high = ([100 * band[side] for band in bands] for side in (0, 1))
                axis.fill_between(present, low, high, color=_colour(index, theme), alpha=0.1, linewidth=0)
            axis.set_xticks(
                counts, [f"{count}\n(n={size:.0f})" for count, size in zip(counts, sizes, strict=True)]
            )
            axis.set_ylim(0, 100)
            axis.set_xlabel("number of grains in the query (n queries)")
            axis.set_ylabel(f"hit@{k} (%)")
        return _finish(figure, axes, theme)

    return _picture(draw, f"Hit rates by number of grains for {', '.join(measured)}")


def grain_distance_by_key(rows: Mapping[str, Results]) -> Picture | None:
    """Mean cosine distance after removing one grain, by the grain's key; None where it was not measured."""
    measured = {
        name: row.multigrain.grain_distance_by_key
        for name, row in rows.items()
        if row.multigrain is not None and row.multigrain.grain_distance_by_key
    }
    if not measured:
        return None
    keys = sorted({key for arm in measured.values() for key in arm})
    height = 0.8 / len(measured)

    def draw(theme: Theme) -> Figure:
        figure, axes = _panels(1, 1, 0.9 + len(keys) * (0.25 + 0.17 * len(measured)), theme)
        for index, (name, arm) in enumerate(measured.items()):
            places = [line + (index - (len(measured) - 1) / 2) * height for line in range(len(keys))]
            values = [arm.get(key, 0.0) for key in keys]
            bars = axes[0].barh(places, values, height * 0.86, label=name, color=_colour(index, theme))
            axes[0].bar_label(bars, [f"{v:.3f}" for v in values], padding=4, fontsize=8, color=theme.ink)
        axes[0].set_yticks(range(len(keys)), keys)
        axes[0].invert_yaxis()
        axes[0].margins(x=0.12)
        axes[0].set_xlabel("mean cosine distance between a query and itself without the grain")
        axes[0].grid(visible=False, axis="y")
        return _finish(figure, axes, theme)

    return _picture(draw, f"Grain distance by key for {', '.join(measured)}")


def learning_curves(histories: Mapping[str, History], order: Sequence[str] = ()) -> Picture | None:
    """Every numeric metric of the histories against the optimizer step; None where there is none.

    ``order`` lists names in the order of other plots, so that an arm has one colour on the whole page.
    """
    metrics = _metric_names(histories)
    if not metrics:
        return None
    columns = min(3, len(metrics))
    places = {name: index for index, name in enumerate(dict.fromkeys([*order, *histories]))}

    def draw(theme: Theme) -> Figure:
        figure, axes = _panels(len(metrics), columns, 2.4, theme)
        for axis, metric in zip(axes, metrics, strict=False):
            for name, history in histories.items():
                points = [(entry["step"], entry[metric]) for entry in history if _has(entry, metric)]
                if points:
                    steps, values = zip(*points, strict=True)
                    style = {**_style(places[name], theme), "markersize": 0 if len(points) > 1 else 4}
                    axis.plot(steps, values, label=name, **style)
            axis.set_xlabel("optimizer step")
            axis.set_title(metric, loc="left", fontsize=9, color=theme.ink)
        return _finish(figure, axes, theme)

    return _picture(draw, f"Learning curves ({', '.join(metrics)}) for {', '.join(histories)}")


def _metric_names(histories: Mapping[str, History]) -> list[str]:
    found = {
        key
        for history in histories.values()
        for entry in history
        for key in entry
        if key not in _BOOKKEEPING and not key.startswith("train_") and _has(entry, key)
    }
    return sorted(found, key=lambda key: (_FIRST.index(key) if key in _FIRST else len(_FIRST), key))


def _has(entry: Mapping[str, Any], metric: str) -> bool:
    value = entry.get(metric)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return "step" in entry and number and math.isfinite(float(value))  # type: ignore[arg-type]


def _colour(index: int, theme: Theme) -> str:
    return theme.arms[index % len(theme.arms)]


def _style(index: int, theme: Theme) -> dict[str, Any]:
    return {
        "color": _colour(index, theme),
        "marker": _MARKERS[index % len(_MARKERS)],
        "linestyle": _LINES[index % len(_LINES)],
        "linewidth": 1.8,
        "markersize": 5,
    }


def _panels(count: int, columns: int, height: float, theme: Theme) -> tuple[Figure, list[Axes]]:
    """A figure with ``count`` axes in ``columns`` columns, ``height`` inches a line, without boxes."""
    from matplotlib.figure import Figure as NewFigure

    lines = math.ceil(count / columns)
    figure = NewFigure(figsize=(9.2, height * lines + 0.4), layout="constrained")
    axes = list(figure.subplots(lines, columns, squeeze=False).flat)
    for axis in axes[count:]:
        axis.remove()
    for axis in axes[:count]:
        axis.set_facecolor("none")
        axis.spines[["top", "right"]].set_visible(False)
        axis.spines[["left", "bottom"]].set_color(theme.rule)
        axis.tick_params(colors=theme.ink, length=0, labelsize=9)
        axis.grid(visible=True, color=theme.rule, linewidth=0.6)
        axis.set_axisbelow(True)
    return figure, axes[:count]


def _finish(figure: Figure, axes: Sequence[Axes], theme: Theme) -> Figure:
    """One legend above all panels, in the order of the arms; quiet axis labels."""
    handles: dict[str, Any] = {}
    for axis in axes:
        axis.xaxis.label.set(color=theme.ink, fontsize=9)
        axis.yaxis.label.set(color=theme.ink, fontsize=9)
        for handle, name in zip(*axis.get_legend_handles_labels(), strict=True):
            handles.setdefault(name, handle)
    figure.legend(
        handles.values(),
        handles.keys(),
        loc="outside upper left",
        ncols=min(len(handles), 4),
        frameon=False,
        labelcolor=theme.ink,
        fontsize=9,
        handlelength=2.6,
    )
    return figure


def _picture(draw: Any, alt: str) -> Picture:
    return Picture(_data_uri(draw(LIGHT)), _data_uri(draw(DARK)), alt)


def _data_uri(figure: Figure) -> str:
    import matplotlib

    buffer = io.BytesIO()
    # A fixed salt and no date: the same results give the same file. No "$": names are text, not formulas.
    with matplotlib.rc_context({"svg.hashsalt": "elva", "svg.fonttype": "path", "text.parse_math": False}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
