"""The story as one page of HTML that opens offline: what happened, and two drawings of it."""

from __future__ import annotations

import datetime
import html
from collections.abc import Iterable, Sequence
from typing import Any

from mlops import clock
from mlops.build.sheet import sheet
from mlops.loop.story.tale import DAY, Day, Story, Told

WIDTH, HEIGHT, LEFT, FOOT = 760, 190, 44, 22
MORE_STYLE = """
ol.chapters { list-style: none; margin: 0; padding: 0; display: grid; gap: .8rem; }
ol.chapters li { background: var(--paper); border: 1px solid var(--line); border-radius: .75rem;
  padding: .9rem 1.1rem; border-left: .35rem solid var(--green); }
ol.chapters li.failed { border-left-color: var(--orange); }
ol.chapters li.untold { border-left-color: var(--line); color: var(--faint); }
ol.chapters p { margin: .25rem 0 0; }
svg text { fill: var(--faint); font: 11px var(--sans); }
svg .axis { stroke: var(--line); }
svg .bar { fill: var(--blue); opacity: .55; }
svg .bar.v1 { fill: var(--green); }
svg .bar.v2 { fill: var(--orange); }
svg .alarm { fill: var(--orange); opacity: .9; }
svg .line { fill: none; stroke: var(--blue); stroke-width: 2; }
svg .band { fill: var(--blue); opacity: .18; }
"""


def page(told: Told, story: Story, names: Sequence[str]) -> str:
    """Return the page as HTML text."""
    state = f"ended at “{told.failed}”" if told.failed else "came true from beginning to end"
    body = f"""<header>
<p class="kind">Story · {_text(story.use_case.title)}</p>
<h1>{told.simulated_days:.0f} days in {told.seconds:.0f} seconds</h1>
<p class="lead">The story {_text(state)}.</p>
<p>A real server answered {told.predictions:,} predictions over HTTP, by a clock that the story set.
 What each chapter says was seen, and would have ended the story otherwise.</p>
</header>
<main>
<section aria-labelledby="chapters"><h2 id="chapters">Chapters</h2>
<ol class="chapters">{"".join(_chapters(told, names))}</ol></section>
<section aria-labelledby="drawn"><h2 id="drawn">Day by day</h2>
<div class="figures">{_traffic(story.days)}{_quality(story)}</div></section>
</main>
<footer>Written by <code>mlops story</code>, seed {story.seed}</footer>"""
    return sheet(f"The story of {story.use_case.name}", body, MORE_STYLE)


def _chapters(told: Told, names: Sequence[str]) -> Iterable[str]:
    known = {one.name: one for one in told.chapters}
    for name in names:
        if name in known:
            one = known[name]
            yield (
                f"<li><h3>✓ {_text(name)}</h3><p>{_text(one.title)}</p>"
                f"<p><strong>{_text(one.says)}</strong> ({one.seconds:.1f} s)</p></li>"
            )
        elif name == told.failed:
            yield f'<li class="failed"><h3>✗ {_text(name)}</h3><p>{_text(told.why or "")}</p></li>'
        else:
            yield f'<li class="untold"><h3>{_text(name)}</h3><p>not told</p></li>'


def _traffic(days: Sequence[Day]) -> str:
    """Draw who answered how much a day; a mark above a day on which drift was alarmed of."""
    if not days:
        return ""
    top = max(sum(day.by.values()) for day in days) * 1.15
    step = (WIDTH - LEFT) / len(days)
    versions = sorted({version for day in days for version in day.by})
    parts = []
    for number, day in enumerate(days):
        x, below = LEFT + number * step, 0
        for place, version in enumerate(versions):
            count = day.by.get(version, 0)
            y, height = _y(below + count, 0, top), _y(below, 0, top) - _y(below + count, 0, top)
            below += count
            if count:
                parts.append(
                    f'<rect class="bar v{place}" x="{x:.1f}" y="{y:.1f}" '
                    f'width="{step * 0.8:.1f}" height="{height:.1f}">'
                    f"<title>version {version}: {count}</title></rect>"
                )
        y = _y(below, 0, top)
        if day.drifted:
            parts.append(
                f'<circle class="alarm" cx="{x + step * 0.4:.1f}" cy="{y - 7:.1f}" r="3">'
                f"<title>drift: {_text(', '.join(day.drifted))}</title></circle>"
            )
    drifted = sum(bool(one.drifted) for one in days)
    return _figure(
        "Predictions a day, by the version that answered",
        f"{_legend(versions)}A dot marks each of the {drifted} days on which drift was alarmed of.",
        "".join(parts),
        0,
        top,
        days[0].at - DAY,
        days[-1].at,
    )


def _legend(versions: Sequence[int]) -> str:
    if len(versions) < 2:
        return ""
    colours = ("Blue", "Green", "Orange")
    named = zip(colours, versions, strict=False)
    return ", ".join(f"{colour}: version {version}" for colour, version in named) + ". "


def _quality(story: Story) -> str:
    """Draw the score of each day's predictions whose truth has come, with its interval."""
    metric = story.use_case.metric
    points = [
        (clock.seconds_of(one["start"]), one["scores"][metric])
        for one in story.series
        if metric in one["scores"] and one["scores"][metric]["low"] is not None
    ]
    if len(points) < 2:
        return ""
    low = min(0.0, *(score["low"] for _, score in points))
    begins, ends = points[0][0], points[-1][0]

    def place(at: float, value: float) -> str:
        x = LEFT + (WIDTH - LEFT) * (at - begins) / (ends - begins)
        return f"{x:.1f},{_y(max(value, low), low, 1.0):.1f}"

    line = " ".join(place(at, score["value"]) for at, score in points)
    band = [place(at, score["high"]) for at, score in points]
    band += [place(at, score["low"]) for at, score in reversed(points)]
    return _figure(
        f"{metric} of each day's predictions",
        "As known once their truths had come, with its 95 % interval.",
        f'<polygon class="band" points="{" ".join(band)}"/>'
        f'<polyline class="line" points="{line}"/>',
        low,
        1.0,
        begins,
        ends,
    )


def _figure(
    title: str, says: str, drawn: str, low: float, high: float, begins: float, ends: float
) -> str:
    marks = "".join(
        f'<text x="{LEFT - 6}" y="{_y(value, low, high) + 4:.1f}" text-anchor="end">'
        f"{value:.3g}</text>"
        for value in (low, (low + high) / 2, high)
    )
    dates = (
        f'<text x="{LEFT}" y="{HEIGHT + 16}">{_date(begins)}</text>'
        f'<text x="{WIDTH}" y="{HEIGHT + 16}" text-anchor="end">{_date(ends)}</text>'
    )
    return (
        f'<figure><h3>{_text(title)}</h3><svg viewBox="0 0 {WIDTH} {HEIGHT + FOOT}" role="img" '
        f'aria-label="{_text(title)}"><line class="axis" x1="{LEFT}" x2="{WIDTH}" y1="{HEIGHT}" '
        f'y2="{HEIGHT}"/>{drawn}{marks}{dates}</svg><figcaption>{_text(says)}</figcaption></figure>'
    )


def _y(value: float, low: float, high: float) -> float:
    return HEIGHT - (HEIGHT - 14) * (value - low) / (high - low)


def _date(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%d %b %Y")


def _text(value: Any) -> str:
    return html.escape(str(value))
