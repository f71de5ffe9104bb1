"""The report's page: one HTML file with everything in it, which asks nothing of any network.

Light or dark as the reader has it. Every value is escaped, and the page's own policy forbids
scripts and requests.
"""

from __future__ import annotations

import dataclasses
import html
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mlops.build.figures import DRAWN
from mlops.build.sheet import sheet
from mlops.usecase import UseCase

Numbers = Mapping[str, Any]
SHORT_HASH = 12


@dataclasses.dataclass(frozen=True, slots=True)
class Facts:
    """What the page says of a version apart from its diagnosis."""

    version: int
    candidate: str
    is_champion: bool
    scores: Mapping[str, float]
    """Test scores, and `cv_<name>_mean` and `cv_<name>_std`."""
    baseline: Mapping[str, float]
    rows_train: int
    rows_test: int
    written_utc: str
    provenance: Mapping[str, str]
    parameters: Mapping[str, str]
    importance: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """Mean |contribution| of each field to the answer; empty if it was not sealed."""


def page(
    use_case: UseCase,
    facts: Facts,
    *,
    standing: Sequence[Mapping[str, Any]],
    numbers: Numbers,
    drawn: Mapping[str, str],
    missing: Mapping[str, str],
) -> str:
    """Return the page as HTML text.

    `standing` is what `mlops runs` lists; `drawn` has an SVG element for each figure, and
    `missing` the reason for each that there is not.
    """
    name = f"{use_case.title}, version {facts.version}"
    order = [*(one for one in DRAWN if one in drawn or one in missing)]
    figures = "\n".join(_figure(one, use_case, numbers, drawn, missing) for one in order)
    state = "champion" if facts.is_champion else "not the champion"
    return sheet(
        name,
        f"""<header>
<p class="kind">Model report · {_text(use_case.task)} of {_text(use_case.target.name)}</p>
<h1>{_text(name)}</h1>
<p class="lead"><strong>{_text(facts.candidate)}</strong>
 <span class="badge{" on" if facts.is_champion else ""}">{state}</span></p>
<p>{_text(use_case.description)} Learnt from {facts.rows_train:,} rows; everything below is measured
 on {facts.rows_test:,} held-out rows that it has never seen, unless it says otherwise.</p>
</header>
<main>
<section aria-labelledby="scores">
<h2 id="scores">Scores</h2>
<div class="tiles">{_tiles(use_case, facts)}</div>
</section>
{_comparison(use_case, standing)}
{_importance(facts)}
<section aria-labelledby="figures">
<h2 id="figures">Where it is right and where it is wrong</h2>
<div class="figures">
{figures}
</div>
</section>
<section aria-labelledby="provenance">
<h2 id="provenance">Where it comes from</h2>
{_pairs(facts.provenance)}
<details><summary>Parameters of the estimator</summary>{_pairs(facts.parameters)}</details>
</section>
</main>
<footer>Written {_text(facts.written_utc[:19].replace("T", " "))} UTC by
 <code>mlops report {_text(use_case.name)} --version {facts.version}</code></footer>""",
    )


def _tiles(use_case: UseCase, facts: Facts) -> str:
    tested = [name for name in facts.scores if not name.startswith("cv_")]
    tested.sort(key=lambda name: name != use_case.metric)  # the one that decides comes first
    tiles = []
    for name in tested:
        mean, std = facts.scores.get(f"cv_{name}_mean"), facts.scores.get(f"cv_{name}_std")
        folds = f"<dt>in the folds</dt><dd>{mean:.4f} ± {std:.4f}</dd>" if mean is not None else ""
        ignores = facts.baseline.get(name)
        against = f"<dt>knowing nothing</dt><dd>{ignores:.4f}</dd>" if ignores is not None else ""
        decides = ' class="tile decides"' if name == use_case.metric else ' class="tile"'
        tiles.append(
            f"<div{decides}><h3>{_text(name)}</h3><p class=big>{facts.scores[name]:.4f}</p>"
            f"<dl>{folds}{against}</dl></div>"
        )
    return "".join(tiles)


def _importance(facts: Facts) -> str:
    if not facts.importance:
        return ""
    total = sum(facts.importance.values()) or 1.0
    rows = [
        (f"<code>{_text(name)}</code>", f"{size:.4g}", f"{size / total:.0%}")
        for name, size in sorted(facts.importance.items(), key=lambda item: -item[1])
    ]
    return f"""<section aria-labelledby="importance">
<h2 id="importance">By what it goes</h2>
<p>How much each field moves an answer: its mean absolute Shapley value. One answer is explained by
 <code>mlops explain</code>.</p>
{_table(("field", "mean absolute contribution", "share"), rows)}
</section>"""


def _comparison(use_case: UseCase, standing: Sequence[Mapping[str, Any]]) -> str:
    compared = [one for one in standing if one["mean"] is not None]
    if not compared:
        return ""
    rows = []
    for one in compared:
        differs = one["verdict"] != "best"
        bounds = (
            f"{one['low']:+.4f} to {one['high']:+.4f}" if differs and one["low"] is not None else ""
        )
        spread = "" if one["std"] is None else f" ± {one['std']:.4f}"
        score = "" if one["score"] is None else f"{one['score']:.4f}"
        rows.append(
            (
                _text(one["candidate"]),
                f"{one['mean']:.4f}{spread}",
                score,
                f"{one['difference']:+.4f}" if differs else "",
                bounds,
                f'<span class="verdict {_text(one["verdict"].split()[0])}">'
                f"{_text(one['verdict'])}</span>",
            )
        )
    metric, folds = use_case.metric, len(compared[0]["fold_scores"])
    head = (
        "candidate",
        f"{_text(metric)} in {folds} folds",
        "held-out",
        "difference to best",
        "95 % interval",
        "verdict",
    )
    return f"""<section aria-labelledby="candidates">
<h2 id="candidates">Candidates beside each other</h2>
{_table(head, rows)}
<p class="note">The folds decide; held-out rows decide nothing. Differences are paired, fold by
 fold, with the corrected resampled t interval of Nadeau and Bengio (2003). Where it contains 0,
 {folds} folds cannot tell the two apart, and that is called a tie.</p>
</section>"""


def _figure(
    name: str,
    use_case: UseCase,
    numbers: Numbers,
    drawn: Mapping[str, str],
    missing: Mapping[str, str],
) -> str:
    title, how, say, tabulate = TOLD[name]
    if name not in drawn:
        return (
            f'<figure class="lacks"><h3>{_text(title)}</h3>'
            f"<figcaption>{_text(missing[name])}</figcaption></figure>"
        )
    head, rows = tabulate(use_case, numbers)
    label = f'role="img" aria-label="{_text(title)}"'
    return (
        f'<figure id="{name}"><h3>{_text(title)}</h3>'
        f"{drawn[name].replace('<svg ', f'<svg {label} ', 1)}"
        f"<figcaption><strong>{_text(say(use_case, numbers))}</strong> {_text(how)}</figcaption>"
        f"<details><summary>The numbers</summary>{_table(head, rows)}</details></figure>"
    )


Rows = list[tuple[str, ...]]
Say = Callable[[UseCase, Numbers], str]
Tabulate = Callable[[UseCase, Numbers], tuple[tuple[str, ...], Rows]]


def _say_predicted(use_case: UseCase, numbers: Numbers) -> str:
    off = numbers["residuals"]["absolute_quantiles"]
    return (
        f"Half of the rows are off by less than {off['0.5']:.3g}, 95 % by less than "
        f"{off['0.95']:.3g} ({use_case.target.unit})."
    )


def _say_residuals(use_case: UseCase, numbers: Numbers) -> str:
    found = numbers["residuals"]
    low, high = found["quantiles"]["0.05"], found["quantiles"]["0.95"]
    return f"Mean {found['mean']:+.3g}; nine in ten lie from {low:+.3g} to {high:+.3g}."


def _say_map(use_case: UseCase, numbers: Numbers) -> str:
    return f"{len(numbers['error_map']['residual']):,} held-out rows where they lie."


def _say_confusion(use_case: UseCase, numbers: Numbers) -> str:
    counts, labels = numbers["confusion_matrix"], use_case.target.labels
    rows = sum(map(sum, counts))
    right = sum(counts[number][number] for number in range(len(counts)))
    wrong = [
        (count, row, column)
        for row, line in enumerate(counts)
        for column, count in enumerate(line)
        if count and row != column
    ]
    if not wrong:
        return f"All {rows} are right."
    count, row, column = max(wrong)
    most = f"{labels[row]} is taken for {labels[column]} ({count})"
    return f"{right} of {rows} are right; most often {most}."


def _say_calibration(use_case: UseCase, numbers: Numbers) -> str:
    if use_case.is_classification:
        bins = [one for per_class in numbers["calibration"] for one in per_class]
        within = sum(one["low"] <= one["stated"] <= one["high"] for one in bins)
        return f"In {within} of {len(bins)} bins what was stated lies in the interval of what came."
    tenths = numbers["calibration"]
    within = sum(abs(one["actual"] - one["predicted"]) <= one["half_width"] for one in tenths)
    return (
        f"In {within} of {len(tenths)} tenths the mean predicted lies in the interval of the mean"
        " actual."
    )


def _say_curve(use_case: UseCase, numbers: Numbers) -> str:
    curve = numbers["learning_curve"]
    last = curve["points"][-1]
    if len(curve["points"]) < 2:
        return f"{last['held_out']:.4f} from {last['rows']:,} rows."
    before = curve["points"][-2]
    return (
        f"From {before['rows']:,} to {last['rows']:,} rows, {curve['metric']} on held-out rows went"
        f" from {before['held_out']:.3f} to {last['held_out']:.3f}."
    )


def _say_importance(use_case: UseCase, numbers: Numbers) -> str:
    measured = numbers["permutation_importance"]
    field, loss = max(measured["fields"].items(), key=lambda item: float(item[1]["mean"]))
    return (
        f"Most depends on {field}: {measured['metric']} loses {loss['mean']:.3g} ± "
        f"{loss['std']:.2g} without it."
    )


def _quantile_rows(use_case: UseCase, numbers: Numbers) -> tuple[tuple[str, ...], Rows]:
    found = numbers["residuals"]
    head = ("quantile", "actual − predicted", "absolute")
    return head, [
        (f"{float(share):.0%}", f"{value:+.4f}", f"{found['absolute_quantiles'][share]:.4f}")
        for share, value in found["quantiles"].items()
    ]


def _spread_rows(use_case: UseCase, numbers: Numbers) -> tuple[tuple[str, ...], Rows]:
    tenths = numbers["residuals"]["by_prediction"]
    head = ("mean predicted", "5 %", "median", "95 %")
    return head, [
        (
            f"{tenth['predicted']:.3f}",
            *(f"{tenth['quantiles'][share]:+.3f}" for share in ("0.05", "0.5", "0.95")),
        )
        for tenth in tenths
    ]


def _map_rows(use_case: UseCase, numbers: Numbers) -> tuple[tuple[str, ...], Rows]:
    points = numbers["error_map"]
    far = sorted(
        zip(points["residual"], points["longitude"], points["latitude"], strict=True),
        key=lambda point: -abs(point[0]),
    )[:10]
    head = ("longitude", "latitude", "actual − predicted")
    return head, [
        (f"{east:.2f}", f"{north:.2f}", f"{residual:+.3f}") for residual, east, north in far
    ]


def _confusion_rows(use_case: UseCase, numbers: Numbers) -> tuple[tuple[str, ...], Rows]:
    labels = use_case.target.labels
    head = ("actual", *(f"predicted {_text(label)}" for label in labels))
    counts = numbers["confusion_matrix"]
    return head, [
        (_text(label), *map(str, line)) for label, line in zip(labels, counts, strict=True)
    ]


def _calibration_rows(use_case: UseCase, numbers: Numbers) -> tuple[tuple[str, ...], Rows]:
    if use_case.is_classification:
        return ("class", "stated", "came", "95 % interval", "rows"), [
            (
                _text(label),
                f"{one['stated']:.3f}",
                f"{one['came']:.3f}",
                f"{one['low']:.3f} to {one['high']:.3f}",
                str(one["rows"]),
            )
            for label, bins in zip(use_case.target.labels, numbers["calibration"], strict=True)
            for one in bins
        ]
    return ("mean predicted", "mean actual", "± 95 %", "rows"), [
        (
            f"{one['predicted']:.4f}",
            f"{one['actual']:.4f}",
            f"{one['half_width']:.4f}",
            f"{one['rows']:,}",
        )
        for one in numbers["calibration"]
    ]


def _curve_rows(use_case: UseCase, numbers: Numbers) -> tuple[tuple[str, ...], Rows]:
    return ("rows", "learnt from", "held-out", "range"), [
        (
            f"{point['rows']:,}",
            f"{point['learnt_from']:.4f}",
            f"{point['held_out']:.4f}",
            f"{point['low']:.4f} to {point['high']:.4f}" if point["low"] < point["high"] else "",
        )
        for point in numbers["learning_curve"]["points"]
    ]


def _importance_rows(use_case: UseCase, numbers: Numbers) -> tuple[tuple[str, ...], Rows]:
    fields = numbers["permutation_importance"]["fields"].items()
    ordered = sorted(fields, key=lambda item: -float(item[1]["mean"]))
    return ("field", "mean loss", "± std"), [
        (_text(name), f"{one['mean']:.4f}", f"{one['std']:.4f}") for name, one in ordered
    ]


TOLD: dict[str, tuple[str, str, Say, Tabulate]] = {
    "predicted_vs_actual": (
        "Predicted against actual",
        "A model that is right puts every dot on the line.",
        _say_predicted,
        _quantile_rows,
    ),
    "residuals": (
        "Residuals",
        "Lines: median and 90 % band in each tenth of the rows by prediction. A median away from 0"
        " is a bias; a band that widens, an error that grows with the prediction.",
        _say_residuals,
        _spread_rows,
    ),
    "error_map": (
        "Errors on the map",
        "Blue: predicted too low. Orange: too high. Grey: right. The farthest 5 % share the"
        " strongest colours; the table has the ten farthest.",
        _say_map,
        _map_rows,
    ),
    "confusion_matrix": (
        "Confusion matrix",
        "Blue is right, orange is wrong; the shares are of each actual class.",
        _say_confusion,
        _confusion_rows,
    ),
    "calibration": (
        "Calibration",
        "On the line, the model means what it says: the tenths, or bins of stated probability, are"
        " formed by what it said and compared with what came.",
        _say_calibration,
        _calibration_rows,
    ),
    "learning_curve": (
        "Learning curve",
        "Where the held-out line still rises, more rows may help; a wide gap to the rows learnt"
        " from is what the model learnt by heart.",
        _say_curve,
        _curve_rows,
    ),
    "permutation_importance": (
        "Permutation importance",
        "One field at a time is shuffled over held-out rows, five times (Breiman 2001). Fields that"
        " say the same share their importance.",
        _say_importance,
        _importance_rows,
    ),
}


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table of cells that are HTML already; a narrow page scrolls it by itself."""
    top = "".join(f"<th scope=col>{cell}</th>" for cell in head)
    body = "".join(
        f"<tr><th scope=row>{row[0]}</th>{''.join(f'<td>{cell}</td>' for cell in row[1:])}</tr>"
        for row in rows
    )
    return (
        '<div class="scrolls" tabindex="0"><table>'
        f"<thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _pairs(values: Mapping[str, str]) -> str:
    items = "".join(f"<dt>{_text(k)}</dt><dd>{_text(v)}</dd>" for k, v in values.items())
    return f'<dl class="pairs">{items}</dl>'


def _text(value: str) -> str:
    return html.escape(str(value))
