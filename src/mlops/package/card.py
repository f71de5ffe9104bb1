"""The model card: what a sealed model is, how good, by what it goes, and where not to use it.

The sections are those of Mitchell et al. 2019, "Model Cards for Model Reporting" (FAT* '19). All
figures are read from the bundle's documents; Markdown, for people.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mlops.usecase import UseCase

Documents = Mapping[str, Mapping[str, Any]]

METHODS = {
    "tree_paths": "exact Shapley values along the trees' paths (path-dependent TreeSHAP)",
    "linear": "exact Shapley values of a linear model",
    "coalitions": "exact Shapley values over all sets of fields, against sealed background rows",
}


def model_card(
    use_case: UseCase, documents: Documents, provenance: Mapping[str, Any], *, name: str = ""
) -> str:
    """Return the card of a bundle with these documents; `name` says which version it is."""
    made, signature, metrics = documents["training"], documents["signature"], documents["metrics"]
    sections = {
        "Model details": _details(use_case, made, provenance),
        "Intended use": _use(use_case, signature),
        "Factors": _factors(signature),
        "Metrics": _metrics(use_case, made, metrics),
        "How far off it may be": _calibration(metrics["calibration"])
        if "calibration" in metrics
        else _intervals(use_case, documents.get("intervals", {})),
        "Evaluation and training data": _data(made, provenance),
        "What it goes by": _importance(signature, documents.get("explanation", {})),
        "Ethical considerations": [
            "The model repeats what its training rows hold, past injustice included. It knows no",
            "causes: a contribution says by what the model went, not what would follow if a field",
            "were changed.",
        ],
        "Caveats and recommendations": _caveats(use_case, signature, made),
    }
    lines = [f"# Model card: {use_case.title}{f', {name}' if name else ''}", ""]
    for title, content in sections.items():
        lines += [f"## {title}", "", *content, ""]
    return "\n".join(lines)


def _details(
    use_case: UseCase, made: Mapping[str, Any], provenance: Mapping[str, Any]
) -> list[str]:
    libraries = ", ".join(f"{name} {number}" for name, number in made["libraries"].items())
    return _table(
        ("what", "value"),
        (
            ("registered as", use_case.model_name),
            ("task", f"{use_case.task} of `{use_case.target.name}`, in {use_case.target.unit}"),
            ("candidate", f"{made['candidate']} ({made['model_class']})"),
            ("sealed", provenance.get("sealed_utc", "unknown")),
            ("commit", provenance.get("commit") or "unknown"),
            ("by", provenance.get("user", "unknown")),
            ("seed, folds", f"{made['seed']}, {made['folds']}"),
            ("libraries", libraries),
        ),
    )


def _use(use_case: UseCase, signature: Mapping[str, Any]) -> list[str]:
    ranges, units = signature["training_ranges"], signature["units"]
    return [
        use_case.description,
        "It is meant for rows like those it learnt from; whoever decides about people by it alone",
        "uses it for what it was not made for.",
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


def _data(made: Mapping[str, Any], provenance: Mapping[str, Any]) -> list[str]:
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


def _caveats(use_case: UseCase, signature: Mapping[str, Any], made: Mapping[str, Any]) -> list[str]:
    target = use_case.target
    lines = [
        "- Outside the ranges above it answers with a warning, and nobody has measured how well.",
        "- Held-out rows were drawn at random: they say nothing of another time or place.",
    ]
    if not target.labels:
        lines.append(
            f"- Targets were {target.low:g} to {target.high:g} {target.unit}; it cannot be trusted "
            "beyond."
        )
    if made["rows_shared"]:
        lines.append(f"- {made['rows_shared']} held-out rows equal some training row.")
    return lines


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines]


def _cell(value: object) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")
