"""The sheet that every page of ours is written on: one HTML file that asks nothing of any network.

Light or dark as the reader has it. The page's own policy forbids scripts and requests.
"""

from __future__ import annotations

import html


def sheet(title: str, body: str, style: str = "") -> str:
    """Return a whole page. `body` is HTML; `style` adds to the house's style sheet."""
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<title>{html.escape(title)}</title>
<link rel="icon" href="data:,">
<style>{STYLE}{style}</style>
</head>
<body>
{body}
</body>
</html>
"""


STYLE = """
:root { --ink: #1b1f24; --faint: #5b6472; --line: #d9dde4; --paper: #ffffff; --ground: #f4f6f9;
  --blue: #0072b2; --orange: #d55e00; --green: #00795a;
  --sans: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "DejaVu Sans", sans-serif;
  --mono: ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8ebf0; --faint: #a3adbb; --line: #353d49;
  --paper: #171c23; --ground: #0e1217; --blue: #56b4e9; --orange: #ee8a3c; --green: #35c79b; } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--ground); color: var(--ink);
  font: 1rem/1.55 var(--sans); overflow-wrap: anywhere; }
header, main, footer { max-width: 76rem; margin: 0 auto; padding: 0 clamp(1rem, 4vw, 2.5rem); }
header { padding-top: clamp(1.5rem, 5vw, 3.5rem); }
header > p { max-width: 46rem; }
.kind { margin: 0; color: var(--faint); font-size: .9rem; }
h1 { margin: .1em 0 .2em; font-size: clamp(1.7rem, 5vw, 2.6rem); line-height: 1.15;
  letter-spacing: -.015em; }
.lead { margin: 0 0 .8rem; font-size: 1.15rem; }
h2 { margin: 2.6rem 0 .9rem; font-size: 1.25rem; }
h3 { margin: 0 0 .5rem; font-size: 1rem; }
.badge, .verdict { display: inline-block; border: 1px solid var(--line); border-radius: 99px;
  padding: .05em .7em; font-size: .82rem; color: var(--faint); white-space: nowrap; }
.badge.on, .verdict.best { border-color: var(--green); color: var(--green); font-weight: 600; }
.verdict.tie { border-color: var(--blue); color: var(--blue); }
.verdict.worse { border-color: var(--orange); color: var(--orange); }
.tiles { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(11.5rem, 1fr)); }
.tile, figure, .scrolls, .pairs { background: var(--paper); border: 1px solid var(--line);
  border-radius: .75rem; }
.tile { padding: 1rem 1.15rem; }
.tile h3 { font: .9rem var(--mono); color: var(--faint); }
.tile.decides { border-color: var(--blue); box-shadow: inset 0 3px var(--blue); }
.big { margin: 0 0 .5rem; font-size: 2rem; line-height: 1.1; font-weight: 650;
  font-variant-numeric: tabular-nums; }
.tile dl { margin: 0; display: grid; grid-template-columns: auto auto;
  justify-content: space-between; gap: .1rem .8rem; font-size: .82rem; color: var(--faint); }
.tile dd { text-align: right; }
dd { margin: 0; font-variant-numeric: tabular-nums; }
.figures { display: grid; gap: 1.25rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 27rem), 1fr)); align-items: start; }
figure { margin: 0; padding: 1.1rem 1.2rem; min-width: 0; }
figure svg { display: block; width: 100%; height: auto; margin-bottom: .6rem; }
figcaption { font-size: .9rem; color: var(--faint); }
figcaption strong { color: var(--ink); font-weight: 600; }
.lacks { border-style: dashed; }
details { margin-top: .7rem; font-size: .9rem; }
summary { cursor: pointer; color: var(--blue); }
details > * + * { margin-top: .6rem; }
.scrolls { overflow-x: auto; }
figure .scrolls { border-radius: .4rem; }
table { width: 100%; border-collapse: collapse; font-size: .9rem;
  font-variant-numeric: tabular-nums; overflow-wrap: normal; }
th, td { padding: .5rem .8rem; text-align: right; white-space: nowrap; }
th:first-child { text-align: left; }
thead th { color: var(--faint); font-weight: 500; border-bottom: 1px solid var(--line); }
tbody th { font-weight: 600; }
tbody tr + tr > * { border-top: 1px solid var(--line); }
.note, footer { font-size: .85rem; color: var(--faint); max-width: 60rem; }
.pairs { margin: 0; padding: .9rem 1.1rem; display: grid; gap: .3rem 1.4rem; font-size: .88rem;
  grid-template-columns: minmax(6rem, auto) 1fr; }
.pairs dt { color: var(--faint); }
.pairs dd { font-family: var(--mono); font-size: .95em; }
code { font-family: var(--mono); }
footer { max-width: 76rem; padding-top: 2rem; padding-bottom: 3rem; }
@media (max-width: 34rem) { .pairs { grid-template-columns: 1fr; gap: 0; }
  .pairs dd { margin-bottom: .6rem; } figure { padding: .9rem .8rem; } }
@media print { body { background: none; } figure, .tile { break-inside: avoid; } }
"""
