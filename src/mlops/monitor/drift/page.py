"""The drift report as one page of HTML, which asks nothing of any network."""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mlops.monitor.drift.assessment import TRAFFIC
from mlops.monitor.drift.report import Drift
from mlops.records import Finding
from mlops.usecase import UseCase

WIDTH, HEIGHT, FOOT = 320, 92, 16
HEAD = (
    *("column", "verdict", "rows", "p", "alarm at"),
    *("PSI", "by chance", "Wasserstein / std", "Jensen-Shannon"),
)
MORE_STYLE = """
.badge.alarm, .verdict.alarm { border-color: var(--orange); color: var(--orange);
  font-weight: 600; }
.badge.ok, .verdict.ok { border-color: var(--green); color: var(--green); }
.badge.cannot, .verdict.cannot { border-style: dashed; }
th:nth-child(2), td:nth-child(2) { text-align: left; }
svg .before { fill: var(--faint); opacity: .32; } svg .now { fill: none; stroke: var(--blue);
  stroke-width: 1.6; stroke-linejoin: round; }
svg text { fill: var(--faint); font: 9px var(--sans); }
svg .alarm { stroke: var(--orange); } svg line { stroke: var(--line); }
"""
HOW = (
    "Each column is asked exact yes-or-no questions (Fisher 1934): is a value at most the 2nd, 5th,"
    " 10th … 98th percentile of training, outside its range, missing, a new category? p is the"
    " smallest of them times their number. Pairs of columns are asked whether they are high, or far"
    " out, together (Blomqvist 1950). PSI, Wasserstein and Jensen-Shannon are shown because people"
    " know them; they decide nothing. “By chance” is what PSI is on average with so few rows when"
    " nothing has changed."
)


def page(use_case: UseCase, drift: Drift, *, sheet: Callable[[str, str, str], str]) -> str:
    """Return the page as HTML text; `sheet` makes one of title, body and more style."""
    name = f"{use_case.title}: drift of {drift.window}"
    of = f"version {drift.version}" if drift.version is not None else "no version"
    trained = f", trained on {drift.training_rows:,} rows" if drift.training_rows else ""
    shown = [one for one in drift.findings if one.subject != TRAFFIC]
    shown.sort(key=lambda one: one.verdict != "alarm")
    figures = "".join(
        _figure(one, drift.columns[one.subject]) for one in shown if one.subject in drift.columns
    )
    sections = f"""<section aria-labelledby="findings"><h2 id="findings">Column by column</h2>
{_alarms(shown)}{_table(shown)}</section>
<section aria-labelledby="shapes"><h2 id="shapes">Training (grey) and window (line)</h2>
<div class="figures">{figures}</div></section>""" * bool(shown)
    body = f"""<header>
<p class="kind">Drift report · {_text(of)}{_text(trained)}</p>
<h1>{_text(name)}</h1>
<p class="lead"><span class="badge {_class(drift.verdict)}">{drift.verdict}</span>
 {_text(drift.says)}</p>
<p>{_text(drift.guarantee)}</p>
</header>
<main>
{sections}
<section aria-labelledby="how"><h2 id="how">How it is told</h2>
<p class="note">{HOW}</p></section>
</main>
<footer>Looked {_text(drift.at[:19].replace("T", " "))} UTC at {drift.rows:,} rows, with
 {_text(drift.budget)}; bundle <code>{_text(drift.bundle or "none")}</code></footer>"""
    return sheet(name, body, MORE_STYLE)


def _alarms(findings: Sequence[Finding]) -> str:
    said = "".join(
        f"<li><strong>{_text(one.subject)}</strong>: {_text(one.says)}</li>"
        for one in findings
        if one.verdict == "alarm"
    )
    return f"<ul>{said}</ul>" if said else ""


def _table(findings: Sequence[Finding]) -> str:
    head = "".join(f"<th scope=col>{_text(one)}</th>" for one in HEAD)
    rows = "".join(
        f'<tr><th scope="row">{_text(one.subject)}</th>'
        f'<td><span class="verdict {_class(one.verdict)}">{one.verdict}</span></td>'
        + "".join(f"<td>{_text(cell)}</td>" for cell in cells(one)[2:])
        + "</tr>"
        for one in findings
    )
    return (
        f'<div class="scrolls" tabindex="0"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def cells(finding: Finding) -> tuple[str, ...]:
    """Return a finding's line under `HEAD`; what a column does not have is empty."""
    numbers = finding.numbers
    known = (
        ("p", ".2g"),
        ("threshold", ".2g"),
        ("psi", ".3f"),
        ("psi_by_chance", ".3f"),
        ("wasserstein", ".3f"),
        ("jensen_shannon", ".3f"),
    )
    return (
        finding.subject,
        finding.verdict,
        f"{numbers['rows']:,}",
        *("" if numbers.get(key) is None else f"{numbers[key]:{form}}" for key, form in known),
    )


def _figure(finding: Finding, drawn: Mapping[str, Any]) -> str:
    label = f"{finding.subject}: shares of training and of the window"
    return (
        f"<figure><h3>{_text(finding.subject)}</h3>"
        f'<svg role="img" aria-label="{_text(label)}" viewBox="0 0 {WIDTH} {HEIGHT}">'
        f"{_bars(drawn, finding.verdict)}</svg>"
        f'<figcaption><span class="verdict {_class(finding.verdict)}">{finding.verdict}</span>'
        f" {_text(finding.says)}</figcaption></figure>"
    )


def _bars(drawn: Mapping[str, Any], verdict: str) -> str:
    """Return training as grey bars and the window as a line of steps over them."""
    before, now = drawn["reference"], drawn["window"]
    top = max(*before, *now, 1e-9)
    wide, room = WIDTH / len(before), HEIGHT - FOOT
    heights = [room * (1 - share / top) + 1 for share in now]
    bars = "".join(
        f'<rect class="before" x="{place * wide:.1f}" width="{max(1.0, wide - 1):.1f}"'
        f' y="{room * (1 - share / top) + 1:.1f}" height="{room * share / top:.1f}"/>'
        for place, share in enumerate(before)
    )
    steps = "".join(
        f"{'L' if place else 'M'}{place * wide:.1f},{y:.1f}H{(place + 1) * wide:.1f}"
        for place, y in enumerate(heights)
    )
    return (
        f'{bars}<path class="now {_class(verdict)}" d="{steps}"/>'
        f'<line x1="0" x2="{WIDTH}" y1="{room + 1}" y2="{room + 1}"/>{_ticks(drawn, wide)}'
    )


def _ticks(drawn: Mapping[str, Any], wide: float) -> str:
    if "values" in drawn:
        places = enumerate(drawn["values"])
        if wide < 12:
            places = enumerate(["" for _ in drawn["values"]])
        return "".join(
            f'<text x="{(place + 0.5) * wide:.1f}" y="{HEIGHT - 4}" text-anchor="middle">'
            f"{_text(value)}</text>"
            for place, value in places
        )
    bounds = drawn["bounds"]
    ends = ((wide, "start", bounds[0]), (WIDTH - wide, "end", bounds[-1]))
    return "".join(
        f'<text x="{x:.1f}" y="{HEIGHT - 4}" text-anchor="{anchor}">{bound:.4g}</text>'
        for x, anchor, bound in ends
    )


def _class(verdict: str) -> str:
    return verdict.partition(" ")[0]


def _text(value: object) -> str:
    return html.escape(str(value))
