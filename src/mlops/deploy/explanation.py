"""Why an answer is what it is: numbers and words, for HTTP and the command line.

The numbers are the bundle's (`OpenBundle.explainer`): contributions of the request's fields that
add up to the answer. The words name the greatest of them, beside what training saw.
"""

from __future__ import annotations

import bisect
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mlops.deploy.predictor import OpenBundle
from mlops.errors import NotExplainedError
from mlops.usecase import Ratio, UseCase

PROBABILITY = "probability of "
MOST_NAMED = 4
"""Fields that the text names one by one."""
WORTH_NAMING = 0.02
"""Of all that the fields move, the least part for which one is named."""
MOSTLY = 0.5
LEVELS = ((0.05, "very low"), (0.25, "low"), (0.75, "usual"), (0.95, "high"), (1.0, "very high"))
"""Words for where a value stands among those of training, up to which part of them."""


def explain(
    use_case: UseCase, version: int, bundle: OpenBundle, row: Sequence[float]
) -> dict[str, Any]:
    """Explain the answer to one validated row of field values, in field order.

    Raises `NotExplainedError` for a bundle that holds no explanation, `BundleError` where
    contributions do not add up to the answer.
    """
    if bundle.explainer is None:
        why = bundle.explanation.get("why", "it was sealed before there were explanations")
        raise NotExplainedError(
            f"version {version} cannot be explained: {why}",
            f"train again with: mlops train {use_case.name}",
        )
    found = bundle.explainer.explain(np.array([row], dtype=float))
    labels = use_case.target.labels
    chosen = int(found.output.prediction[0]) if labels else 0
    each = [
        {
            "prediction": value,
            "base_value": base,
            "contributions": dict(zip(use_case.fields, contributions, strict=True)),
        }
        for value, base, contributions in zip(
            found.value[0].tolist(),
            found.base.tolist(),
            found.contributions[0].tolist(),
            strict=True,
        )
    ]
    derived = {}
    if found.derived is not None:
        inputs = zip(use_case.input_names, found.derived[0, chosen].tolist(), strict=True)
        derived = {name: value for name, value in inputs if name not in use_case.fields}
    values = dict(zip(use_case.input_names, found.output.inputs[0].tolist(), strict=True))
    values |= dict(zip(use_case.fields, map(float, row), strict=True))
    label = labels[chosen] if labels else ""
    return {
        "explains": f"{PROBABILITY}{label}" if label else use_case.target.name,
        "unit": "probability" if label else use_case.target.unit,
        **each[chosen],
        "derived": derived,
        **({"classes": dict(zip(labels, each, strict=True))} if labels else {}),
        "text": in_words(
            use_case, label, {**each[chosen], "derived": derived}, values, bundle.reference
        ),
        "method": bundle.explainer.method,
        "model_version": version,
        "bundle": bundle.hash,
    }


def answered(use_case: UseCase, explanation: Mapping[str, Any]) -> dict[str, Any]:
    """Return what was predicted, as `/predict` names it."""
    target = use_case.target
    if not target.labels:
        return {target.name: explanation["prediction"]}
    label = explanation["explains"].removeprefix(PROBABILITY)
    return {target.name: target.labels.index(label), "predicted_label": label}


def in_words(
    use_case: UseCase,
    label: str,
    explanation: Mapping[str, Any],
    values: Mapping[str, float],
    reference: Mapping[str, Any],
) -> str:
    """Say it in a sentence: from the mean to the answer, the greatest contributions first.

    `values` are those of the fields and of derived inputs; `label` is the predicted class, if any.
    """
    units = {feature.name: feature.unit for feature in use_case.features}
    ratios = [item for item in use_case.inputs if isinstance(item, Ratio)]
    units |= {item.name: item.unit for item in ratios}
    contributions: dict[str, float] = explanation["contributions"]
    ranked = sorted(contributions, key=lambda name: -abs(contributions[name]))
    moved = sum(map(abs, contributions.values()))
    named = [n for n in ranked[:MOST_NAMED] if abs(contributions[n]) > WORTH_NAMING * moved]

    def said(name: str) -> str:
        rank = standing(values[name], reference[name]["quantiles"])
        return f"{_amount(values[name], units[name])} ({rank})"

    parts = []
    for name in named:
        part = f"{contributions[name]:+.2f} because {name} is {said(name)}"
        for item in ratios:
            # Half of what a ratio contributes is its numerator's, half its denominator's.
            half = explanation["derived"].get(item.name, 0.0) / 2
            if name in {item.numerator, item.denominator} and half / contributions[name] > MOSTLY:
                part += f", mostly as part of {item.name}, which is {said(item.name)}"
                break
        parts.append(part)
    others = [name for name in ranked if name not in named]
    if others:
        rest = sum(contributions[name] for name in others)
        who = others[0] if len(others) == 1 else f"the other {len(others)} fields"
        parts.append(f"{rest:+.2f} from {who}")
    unit = f" for {label}" if label else f" ({use_case.target.unit})"
    answer = f"{explanation['prediction']:.2f}{unit}"
    return f"{answer} = {explanation['base_value']:.2f} on average; {'; '.join(parts)}"


def standing(value: float, quantiles: Sequence[float]) -> str:
    """Say how a value compares with training's: "high: above 91 % of training rows"."""
    if value < quantiles[0]:
        return "lower than in any training row"
    if value > quantiles[-1]:
        return "higher than in any training row"
    # A value that many rows have lies on several quantiles: it stands in the middle of them.
    ends = bisect.bisect_left(quantiles, value), bisect.bisect_right(quantiles, value)
    share = (sum(ends) - 1) / 2 / (len(quantiles) - 1)
    level = next(word for most, word in LEVELS if share <= most)
    side, part = ("below", 1 - share) if "low" in level else ("above", share)
    return f"{level}: {side} {min(int(100 * part), 99)} % of training rows"


def _amount(value: float, unit: str) -> str:
    return f"{value:.6g} × {unit}" if unit[:1].isdigit() else f"{value:.6g} {unit}"
