"""The model card: what a sealed model is, how good, by what it goes, and where not to use it.

The sections are those of Mitchell et al. 2019, "Model Cards for Model Reporting" (FAT* '19), and
what training and an answer take. All figures are read from the bundle's documents, the sentences
that only people can write from the declaration (`UseCase.about`). Markdown, for people.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from mlops.usecase import Fairness, UseCase

Documents = Mapping[str, Mapping[str, Any]]

METHODS = {
    "tree_paths": "exact Shapley values along the trees' paths (path-dependent TreeSHAP)",
    "linear": "exact Shapley values of a linear model",
    "coalitions": "exact Shapley values over all sets of fields, against sealed background rows",
}


WATTS_A_CORE = 12.0
"""For the estimate of energy where it is not measured: the default of Green Algorithms
(Lannelongue, Grealey and Inouye 2021, Advanced Science 8)."""

SHARE_OF_A_CAP = 0.01
"""Of training rows at the highest target, from which on it is called a cap."""

SHOWN = {"regression": ("rmse", "mae"), "classification": ("accuracy", "f1_score")}
"""The scores of each band."""


class Interval(Protocol):
    """A score with its 95 % interval, None where there are too few rows for one."""

    @property
    def value(self) -> float: ...
    @property
    def low(self) -> float | None: ...
    @property
    def high(self) -> float | None: ...


class Band(NamedTuple):
    """What was measured of the held-out rows in a band of a slice."""

    slice: str
    band: str
    rows: int
    scores: Mapping[str, Interval]


def model_card(
    use_case: UseCase,
    documents: Documents,
    provenance: Mapping[str, Any],
    *,
    bands: Sequence[Band] = (),
    name: str = "",
) -> str:
    """Return the card of a bundle with these documents; `name` says which version it is."""
    made, signature, metrics = documents["training"], documents["signature"], documents["metrics"]
    sections = {
        "Model details": _details(use_case, made, provenance),
        "Intended use": _use(use_case, signature),
        "Factors": _factors(signature),
        "Metrics": _metrics(use_case, made, metrics),
        **({"Metrics by slice": _by_slice(use_case, bands)} if bands else {}),
        "How far off it may be": _calibration(metrics["calibration"])
        if "calibration" in metrics
        else _intervals(use_case, documents.get("intervals", {})),
        "Evaluation and training data": _data(use_case, made, provenance),
        "What it goes by": _importance(signature, documents.get("explanation", {})),
        "Ethical considerations": _ethics(use_case, bands),
        "Caveats and recommendations": _caveats(use_case, made),
        "Time, energy and size": _costs(provenance),
    }
    lines = [f"# Model card: {use_case.title}{f', {name}' if name else ''}", ""]
    for title, content in sections.items():
        lines += [f"## {title}", "", *content, ""]
    return "\n".join(lines)


def _details(
    use_case: UseCase, made: Mapping[str, Any], provenance: Mapping[str, Any]
) -> list[str]:
    libraries = ", ".join(f"{name} {number}" for name, number in made["libraries"].items())
    product = use_case.product_of(made)
    named = [("product", f"`{product}` of the profile `{made['profile']}`")] if product else []
    return _table(
        ("what", "value"),
        (
            ("registered as", use_case.model_name),
            ("task", f"{use_case.task} of `{use_case.target.name}`, in {use_case.target.unit}"),
            ("candidate", f"{made['candidate']} ({made['model_class']})"),
            *named,
            ("sealed", provenance.get("sealed_utc", "unknown")),
            ("commit", provenance.get("commit") or "unknown"),
            ("by", provenance.get("user", "unknown")),
            ("seed, folds", f"{made['seed']}, {made['folds']}"),
            ("libraries", libraries),
        ),
    )


def _use(use_case: UseCase, signature: Mapping[str, Any]) -> list[str]:
    ranges, units = signature["training_ranges"], signature["units"]
    about = use_case.about
    misuse = "whoever decides about people by it alone uses it for what it was not made for."
    return [
        use_case.description,
        "",
        *([f"For: {about.intended}", ""] if about.intended else []),
        *([f"Not for: {about.misuse}", ""] if about.misuse else []),
        f"It is meant for rows like those it learnt from; {misuse}",
        "",
        *_table(
            ("field", "meaning", "accepted", "seen in training"),
            (
                (
                    f"`{feature['name']}`",
                    feature["description"],
                    f"{feature['low']:g} to {feature['high']:g} {feature['unit']}",
                    "{:g} to {:g} {}".format(*ranges[feature["name"]], units[feature["name"]]),
                )
                for feature in signature["fields"]
            ),
        ),
    ]


def _factors(signature: Mapping[str, Any]) -> list[str]:
    derived = [item for item in signature["inputs"] if not isinstance(item, str)]
    lines = ["The model sees the fields above" + ("; some of them only as:" if derived else ".")]
    return lines + [
        f"- `{item['name']}` = {item['numerator']} / {item['denominator']} ({item['unit']})"
        for item in derived
    ]


def _metrics(use_case: UseCase, made: Mapping[str, Any], metrics: Mapping[str, Any]) -> list[str]:
    scores, baseline = metrics["scores"], metrics["baseline"]
    return [
        f"`{metrics['deciding']}` decides. Test scores are of {made['rows_test']:,} held-out rows",
        "that were looked at once; those in cross-validation are mean ± standard deviation between",
        f"{made['folds']} folds. The baseline ignores every field.",
        "",
        *_table(
            ("metric", "held-out rows", "baseline", "cross-validation"),
            (
                (
                    name,
                    f"{scores[name]:.4f}",
                    f"{baseline[name]:.4f}",
                    f"{scores[f'cv_{name}_mean']:.4f} ± {scores[f'cv_{name}_std']:.4f}",
                )
                for name in baseline
            ),
        ),
    ]


def _calibration(measured: Mapping[str, Any]) -> list[str]:
    before, after, scaled = measured["before"], measured["after"], measured["method"] != "none"
    served, other = (after, before) if scaled else (before, after)
    how = "as the model gives them; scaled by a temperature"
    if scaled:
        how = f"scaled by a temperature of {measured['temperature']:.3g}; without that"
    return [
        f"Probabilities say how sure it is. They are {how},",
        f"log loss would be {other['log_loss']:.4f} instead of {served['log_loss']:.4f}, measured",
        "in cross-validation, each fold scaled by what the others gave. The Brier score is "
        f"{served['brier']:.4f}",
        f"and the calibration error {served['calibration_error']:.1%}.",
        "",
        *_table(
            ("how sure", "rows", "sure, mean", "right"),
            (
                (
                    f"{one['low']:.0%} to {one['high']:.0%}",
                    f"{one['rows']:,}",
                    f"{one['probability']:.1%}",
                    f"{one['right']:.1%}",
                )
                for one in measured["bins"]
            ),
        ),
    ]


def _intervals(use_case: UseCase, intervals: Mapping[str, Any]) -> list[str]:
    measured, cap = intervals.get("measured"), intervals.get("cap")
    if not measured:
        return [f"No intervals: {intervals.get('why', 'sealed before there were any')}."]
    coverage, rows = intervals["coverage"], intervals["rows"]
    lines = [
        f"With `interval=true` an answer says where the truth lies in {coverage:.0%} of cases like",
        f"those of training, as learnt from {rows:,} rows, each answered by a model that had not",
        f"seen it. Of {measured['rows']:,} held-out rows {measured['coverage']:.1%} lie in their",
        f"interval; the median width is {measured['median_width']:.4g} × {use_case.target.unit}.",
    ]
    covered = [
        (f"{name}: {band}", f"{one['rows']:,}", f"{one['coverage']:.1%}")
        for name, bands in measured["bands"].items()
        for band, one in bands.items()
    ]
    if cap:
        lines.append(
            f"{cap['rows']:,} training rows ({cap['rows'] / rows:.1%}) have the greatest target, "
            f"{cap['at']:.7g}: where an interval ends there, the truth may be more."
        )
        if at := measured["cap"]:
            covered.append((f"target {cap['at']:.7g}", f"{at['rows']:,}", f"{at['coverage']:.1%}"))
    table = _table(("held-out rows", "how many", "within their interval"), covered)
    return [*lines, "", *table] if covered else lines


def _by_slice(use_case: UseCase, bands: Sequence[Band]) -> list[str]:
    names = SHOWN[use_case.task]
    return [
        "The same held-out rows, band by band, with 95 % intervals; there is none below 30 rows.",
        "",
        *_table(
            ("slice", "band", "rows", *names),
            (
                (one.slice, one.band, f"{one.rows:,}", *(_range(one.scores[n]) for n in names))
                for one in bands
            ),
        ),
        "",
        *(f"- {one.name}: {one.description}" for one in use_case.slices),
    ]


def _range(score: Interval) -> str:
    if score.low is None or score.high is None:
        return f"{score.value:.4f}"
    return f"{score.value:.4f} ({score.low:.4f} to {score.high:.4f})"


def _data(use_case: UseCase, made: Mapping[str, Any], provenance: Mapping[str, Any]) -> list[str]:
    about = use_case.about
    return [
        *([f"A row: {about.row}", ""] if about.row else []),
        *([about.data, ""] if about.data else []),
        *_rows(made, provenance),
    ]


def _rows(made: Mapping[str, Any], provenance: Mapping[str, Any]) -> list[str]:
    return _table(
        ("what", "value"),
        (
            ("origin", provenance.get("data_origin", "unknown")),
            ("fingerprint", made["data_fingerprint"]),
            ("rows to learn from", f"{made['rows_train']:,}"),
            ("held-out rows", f"{made['rows_test']:,}"),
            ("dropped for missing values", f"{made['rows_dropped']:,}"),
            ("on both sides", f"{made['rows_shared']:,}"),
        ),
    )


def _importance(signature: Mapping[str, Any], explanation: Mapping[str, Any]) -> list[str]:
    measured = explanation.get("importance")
    if not measured:
        return [f"Not measured: {explanation.get('why', 'sealed before there were explanations')}."]
    what = "the probability of a class" if signature["target"]["labels"] else "the prediction"
    total = sum(measured["fields"].values()) or 1.0
    ranked = sorted(measured["fields"].items(), key=lambda item: -item[1])
    return [
        f"By how much a field moves {what}, mean over {measured['rows']:,} held-out rows:",
        f"{METHODS[explanation['method']]}. What a derived input contributes is split equally",
        "between the fields that it is computed from.",
        "",
        *_table(
            ("field", "mean absolute contribution", "share"),
            ((f"`{name}`", f"{size:.4g}", f"{size / total:.0%}") for name, size in ranked),
        ),
    ]


def _ethics(use_case: UseCase, bands: Sequence[Band]) -> list[str]:
    lines = [
        *([use_case.about.fairness, ""] if use_case.about.fairness else []),
        "The model repeats what its training rows hold, past injustice included. It knows no",
        "causes: a contribution says by what the model went, not what would follow if a field",
        "were changed.",
    ]
    told = [says for one in use_case.fairness if (says := _gap(use_case, one, bands))]
    return [*lines, "", *told] if told else lines


def _gap(use_case: UseCase, declared: Fairness, bands: Sequence[Band]) -> str:
    """Say how far apart the bands of a slice are, beside what is declared; "" without bands."""
    losses = {
        one.band: 1 - one.scores["accuracy"].value
        if use_case.is_classification
        else one.scores["mse"].value
        for one in bands
        if one.slice == declared.slice
    }
    if len(losses) < 2:
        return ""
    worst, best = max(losses, key=losses.__getitem__), min(losses, key=losses.__getitem__)
    what = "share of wrong classes" if use_case.is_classification else "mean squared error"
    return (
        f"- Bands of `{declared.slice}`: the {what} is {losses[worst]:.4f} in *{worst}* and "
        f"{losses[best]:.4f} in *{best}*, {losses[worst] - losses[best]:.4f} apart; a gate keeps "
        f"out what exceeds {declared.largest_gap:g} beyond chance."
    )


def _costs(provenance: Mapping[str, Any]) -> list[str]:
    """Say what training took and an answer takes. True of one training, so outside the hash."""
    if "cpu_seconds" not in provenance:
        return ["Not measured: sealed before it was."]
    processor, joules = provenance["cpu_seconds"], provenance["joules"]
    serving = provenance["serving"]
    energy = (
        f"{joules / 3600:.2f} Wh, counted by the processor (RAPL), with all else that ran on it"
        if joules is not None
        else f"about {processor * WATTS_A_CORE / 3600:.2g} Wh: an estimate, processor time at "
        f"{WATTS_A_CORE:g} W a core (Green Algorithms, 2021); this machine does not measure it"
    )
    return _table(
        ("what", "value"),
        (
            ("folds and fit, by the clock", f"{provenance['seconds']:.2f} s"),
            ("folds and fit, processor time", f"{processor:.2f} s"),
            ("energy of that", energy),
            ("size of the graph that answers", f"{serving['bytes'] / 1e3:,.1f} kB"),
            ("one row in it, on one core", f"{serving['microseconds']:.1f} µs (median)"),
        ),
    )


def _caveats(use_case: UseCase, made: Mapping[str, Any]) -> list[str]:
    target, seen = use_case.target, made.get("target")
    lines = [
        "- Outside the ranges above it answers with a warning, and nobody has measured how well.",
        "- Held-out rows were drawn at random: they say nothing of another time or place.",
    ]
    if not target.labels:
        low, high = (seen["lowest"], seen["highest"]) if seen else (target.low, target.high)
        lines.append(
            f"- Targets were {low:.7g} to {high:.7g} × {target.unit}: no answer beyond is to be "
            "trusted."
        )
        share = seen["share_at_highest"] if seen else 0.0
        if share >= SHARE_OF_A_CAP:
            lines.append(
                f"- {share:.1%} of the training rows have the highest target, {high:.7g}: a cap, "
                "which means that much or more. Near it, answers are rather too low."
            )
    if made["rows_shared"]:
        lines.append(f"- {made['rows_shared']} held-out rows equal some training row.")
    return lines


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines]


def _cell(value: object) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")
