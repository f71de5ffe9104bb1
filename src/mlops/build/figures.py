"""Figures: a diagnosis drawn, as PNG for a run's artifacts or as SVG for the report's page.

Matplotlib's objects without `pyplot`: no window, no figure kept anywhere, no setting left behind.
It is imported when something is drawn. Colours are Okabe and Ito's, which people with any of the
usual kinds of colour blindness can tell apart; shapes differ too where colours carry meaning.

The SVG takes its colours from the page (`var(--ink)` and the like), so that it is readable on a
dark page as well as on a light one.
"""

from __future__ import annotations

import io
import logging
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from mlops.usecase import UseCase

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Numbers = Mapping[str, Any]
"""A diagnosis: sections by name, as `mlops.build.diagnosis` makes them."""

WIDTH, HEIGHT = 4.3, 3.2
"""Inches; small, so that text stays readable where the page is as narrow as a telephone."""

DOTS_PER_INCH = 140
INK, FAINT, LINE, PAPER = "#1b1f24", "#667085", "#d5d9e0", "#fffffe"
BLUE, ORANGE, GREEN = "#0072b2", "#d55e00", "#009e73"
DOTS = "#3b8fc9"
"""Of clouds of dots, which stay pixels in an SVG: seen on light and on dark paper."""

SERIES = ((BLUE, "o", "-"), (ORANGE, "s", "--"), (GREEN, "^", "-."), (FAINT, "D", ":"))
OF_PAGE = {
    INK: "var(--ink)",
    FAINT: "var(--faint)",
    LINE: "var(--line)",
    PAPER: "var(--paper)",
    BLUE: "var(--blue)",
    ORANGE: "var(--orange)",
    GREEN: "var(--green)",
}
STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same everywhere
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.edgecolor": LINE,
    "axes.labelcolor": INK,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "svg.fonttype": "none",
    "lines.linewidth": 1.6,
    "lines.markersize": 5,
}


def names(numbers: Numbers) -> list[str]:
    """Return the figures that can be drawn of a diagnosis, in the order in which to show them."""
    return [name for name in DRAWN if name in numbers]


def draw(
    name: str,
    use_case: UseCase,
    numbers: Numbers,
    *,
    title: str = "",
    form: Literal["png", "svg"] = "png",
) -> bytes:
    """Draw one figure. An SVG is an element to put into a page that has the colours."""
    # It reports a folder for its cache that it cannot write, and that it lists fonts.
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    import matplotlib
    from matplotlib.figure import Figure

    style: Any = {**STYLE, "svg.hashsalt": name}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(WIDTH, HEIGHT))
        # Fixed margins: matplotlib's own search for them doubles the cost of a figure.
        figure.subplots_adjust(0.145, 0.155, 0.97, 0.91 if title else 0.97, wspace=0.06)
        DRAWN[name](figure, use_case, numbers)
        if title:
            figure.suptitle(title, x=0.015, y=0.985, ha="left", fontsize=9, fontweight="bold")
        buffer = io.BytesIO()
        if form == "png":
            figure.savefig(buffer, format="png", dpi=DOTS_PER_INCH, facecolor="white")
            return buffer.getvalue()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(buffer, format="svg", dpi=220, transparent=True, metadata=nothing)
    return _for_page(name, buffer.getvalue().decode()).encode()


def _for_page(name: str, svg: str) -> str:
    """Cut the SVG out of its document, with the page's colours and names that are its own."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", svg)
    for colour, variable in OF_PAGE.items():
        svg = svg.replace(colour, variable)
    # Its fonts are the page's; its size in points would not let it shrink.
    svg = re.sub(r"font: ([\d.]+px|bold [\d.]+px) [^;\"]*", r"font: \1 var(--sans)", svg)
    return re.sub(r'<svg ([^>]*?)width="[^"]*"', r"<svg \1", svg, count=1).replace(
        f' height="{HEIGHT * 72:g}pt"', "", 1
    )


def _predicted_vs_actual(figure: Figure, use_case: UseCase, numbers: Numbers) -> None:
    axes = figure.subplots()
    points = numbers["predicted_vs_actual"]
    _dots(axes, points["predicted"], points["actual"])
    _diagonal(axes, points["predicted"] + points["actual"])
    axes.set_xlabel(f"predicted ({use_case.target.unit})")
    axes.set_ylabel(f"actual ({use_case.target.unit})")
    axes.legend(loc="upper left")


def _residuals(figure: Figure, use_case: UseCase, numbers: Numbers) -> None:
    points = numbers["predicted_vs_actual"]
    predicted, actual = np.array(points["predicted"]), np.array(points["actual"])
    axes, side = figure.subplots(1, 2, sharey=True, width_ratios=[4, 1])
    _dots(axes, predicted, actual - predicted)
    tenths = numbers["residuals"]["by_prediction"]
    at = [tenth["predicted"] for tenth in tenths]
    for share, style in (("0.95", "--"), ("0.5", "-"), ("0.05", "--")):
        label = {"0.95": "5 % and 95 %", "0.5": "median"}.get(share)
        quantile = [tenth["quantiles"][share] for tenth in tenths]
        axes.plot(at, quantile, style, color=ORANGE, label=label)
    axes.axhline(0, color=INK, linewidth=0.8)
    axes.set_xlabel(f"predicted ({use_case.target.unit})")
    axes.set_ylabel(f"actual − predicted ({use_case.target.unit})")
    axes.legend(loc="lower left", ncols=2)
    counts, edges = np.histogram(actual - predicted, bins=60)
    side.stairs(counts, edges, orientation="horizontal", color=BLUE, fill=True)
    side.axhline(0, color=INK, linewidth=0.8)
    side.set_xlabel("rows")
    side.locator_params(axis="x", nbins=2)


def _error_map(figure: Figure, use_case: UseCase, numbers: Numbers) -> None:
    from matplotlib.colors import LinearSegmentedColormap

    points = numbers["error_map"]
    longitude, latitude = np.array(points["longitude"]), np.array(points["latitude"])
    residual = np.array(points["residual"])
    axes = figure.subplots()
    outline = use_case.coordinates.outline if use_case.coordinates else ()
    if outline:
        axes.plot(*zip(*outline, strict=True), color=FAINT, linewidth=0.8)
    # The farthest 5 % share the strongest colours: one odd row must not make all others pale.
    limit = float(np.quantile(np.abs(residual), 0.95)) or 1.0
    order = np.argsort(np.abs(residual))  # large errors on top
    dots = axes.scatter(
        longitude[order],
        latitude[order],
        c=residual[order],
        s=9,
        linewidths=0,
        cmap=LinearSegmentedColormap.from_list("residual", [ORANGE, "#b9bec7", BLUE]),
        vmin=-limit,
        vmax=limit,
        rasterized=True,
    )
    # A degree of longitude is shorter than one of latitude by the cosine of the latitude.
    axes.set_aspect(1 / float(np.cos(np.radians(latitude.mean()))))
    axes.set_xlabel("longitude (degrees east)")
    axes.set_ylabel("latitude (degrees north)")
    bar = figure.colorbar(dots, ax=axes, shrink=0.9, aspect=24, extend="both")
    bar.outline.set_visible(False)
    if bar.solids is not None:
        bar.solids.set_rasterized(True)
    bar.set_label(f"actual − predicted ({use_case.target.unit})")


def _confusion_matrix(figure: Figure, use_case: UseCase, numbers: Numbers) -> None:
    from matplotlib.patches import Rectangle

    longest = max(len(label) for label in use_case.target.labels)
    figure.subplots_adjust(left=min(0.5, 0.09 + 0.0165 * longest))
    axes = figure.subplots()
    counts = np.array(numbers["confusion_matrix"])
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    labels = use_case.target.labels
    for row, column in np.ndindex(counts.shape):
        share = shares[row, column]
        colour = BLUE if row == column else ORANGE
        corner = (column - 0.5, row - 0.5)
        axes.add_patch(Rectangle(corner, 1, 1, facecolor=colour, alpha=share, linewidth=0))
        text = f"{counts[row, column]}\n{share:.0%}"
        ink = PAPER if share > 0.5 else INK
        axes.text(column, row, text, ha="center", va="center", color=ink)
    axes.set_xlim(-0.5, len(labels) - 0.5)
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.set_xticks(range(len(labels)), labels)
    axes.set_yticks(range(len(labels)), labels)
    axes.grid(visible=False)
    axes.set_xlabel("predicted")
    axes.set_ylabel("actual (each row is 100 %)")


def _calibration(figure: Figure, use_case: UseCase, numbers: Numbers) -> None:
    if use_case.is_classification:
        # Bins may lie anywhere within the axes: the legend goes above.
        figure.subplots_adjust(top=figure.subplotpars.top - 0.07)
    axes = figure.subplots()
    if use_case.is_classification:
        _reliability(axes, use_case.target.labels, numbers["calibration"])
        return
    tenths = numbers["calibration"]
    predicted = [tenth["predicted"] for tenth in tenths]
    actual = [tenth["actual"] for tenth in tenths]
    half = [tenth["half_width"] for tenth in tenths]
    _diagonal(axes, predicted + actual)
    label = "mean of a tenth of the rows, 95 % interval"
    axes.errorbar(predicted, actual, half, fmt="o", color=BLUE, capsize=2, label=label)
    axes.set_xlabel(f"mean predicted ({use_case.target.unit})")
    axes.set_ylabel(f"mean actual ({use_case.target.unit})")
    axes.legend(loc="upper left")


def _reliability(axes: Axes, labels: tuple[str, ...], classes: list[list[Any]]) -> None:
    _diagonal(axes, [0.0, 1.0], "as stated")
    for number, (label, bins) in enumerate(zip(labels, classes, strict=True)):
        colour, marker, style = SERIES[number % len(SERIES)]
        # A little to the side of each other: certain classes lie on the same two corners.
        at = np.array([one["stated"] for one in bins]) + 0.012 * (number - (len(labels) - 1) / 2)
        came = np.array([one["came"] for one in bins])
        low, high = (np.array([one[side] for one in bins]) for side in ("low", "high"))
        # A bound that rounding puts a hair inside its share is no negative length.
        reach = np.maximum([came - low, high - came], 0)
        axes.errorbar(
            at,
            came,
            reach,
            fmt=marker,
            linestyle=style,
            color=colour,
            capsize=2,
            linewidth=1.1,
            label=label,
        )
    axes.set_xlabel("probability stated")
    axes.set_ylabel("share that came, 95 % interval")
    axes.legend(
        loc="lower left", bbox_to_anchor=(-0.02, 0.99), ncols=4, columnspacing=1, handlelength=1.6
    )


def _learning_curve(figure: Figure, use_case: UseCase, numbers: Numbers) -> None:
    axes = figure.subplots()
    curve = numbers["learning_curve"]
    points = curve["points"]
    rows = [point["rows"] for point in points]
    colour, marker, style = SERIES[1]
    learnt = [point["learnt_from"] for point in points]
    axes.plot(rows, learnt, color=colour, marker=marker, linestyle=style, label="rows learnt from")
    colour, marker, style = SERIES[0]
    held_out = [point["held_out"] for point in points]
    axes.plot(rows, held_out, color=colour, marker=marker, linestyle=style, label="held-out rows")
    if curve["repeats"] > 1:
        low, high = ([point[side] for point in points] for side in ("low", "high"))
        axes.fill_between(
            rows,
            low,
            high,
            color=colour,
            alpha=0.18,
            linewidth=0,
            label=f"range of {curve['repeats']} draws",
        )
    axes.set_xscale("log")
    axes.set_xticks(rows, [f"{count:,}" for count in rows])
    axes.set_xticks([], minor=True)
    axes.set_xlabel("rows learnt from (logarithmic)")
    axes.set_ylabel(curve["metric"])
    axes.legend(loc="best")


def _permutation_importance(figure: Figure, use_case: UseCase, numbers: Numbers) -> None:
    measured = numbers["permutation_importance"]
    longest = max(len(name) for name in measured["fields"])
    figure.subplots_adjust(left=min(0.5, 0.03 + 0.0165 * longest))
    axes = figure.subplots()
    fields = sorted(measured["fields"].items(), key=lambda item: item[1]["mean"])
    mean = [one["mean"] for _, one in fields]
    std = [one["std"] for _, one in fields]
    axes.barh(range(len(fields)), mean, color=BLUE, height=0.62)
    axes.errorbar(mean, range(len(fields)), xerr=std, fmt="none", ecolor=INK, elinewidth=1)
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.set_yticks(range(len(fields)), [name for name, _ in fields])
    axes.grid(visible=False, axis="y")
    axes.set_xlabel(f"loss of {measured['metric']} when the field is shuffled")


DRAWN: dict[str, Callable[[Figure, UseCase, Numbers], None]] = {
    "predicted_vs_actual": _predicted_vs_actual,
    "residuals": _residuals,
    "error_map": _error_map,
    "confusion_matrix": _confusion_matrix,
    "calibration": _calibration,
    "learning_curve": _learning_curve,
    "permutation_importance": _permutation_importance,
}


def _dots(axes: Axes, x: Any, y: Any) -> None:
    """Draw a cloud that stays readable: many dots are small and faint, few are large."""
    many = len(x) > 500
    # Markers of a line: drawing them costs a third of a scatter's, whose dots may all differ.
    axes.plot(
        x, y, "o", markersize=2.2 if many else 4.2, alpha=0.35 if many else 0.8, color=DOTS,
        markeredgewidth=0, rasterized=True,
    )  # fmt: skip


def _diagonal(axes: Axes, values: list[float], label: str = "predicted = actual") -> None:
    ends = [min(values), max(values)]
    axes.plot(ends, ends, color=INK, linewidth=0.9, linestyle=(0, (4, 3)), label=label)
