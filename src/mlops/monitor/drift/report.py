"""What one look at a window found: the same shape for the command, the server and the page."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from mlops.monitor.drift.assessment import (
    TRAFFIC,
    assess,
    cannot_tell,
    histogram,
    threshold,
)
from mlops.monitor.drift.budget import Budget
from mlops.monitor.drift.columns import labels
from mlops.monitor.drift.profile import Counts, Profile
from mlops.records import Finding, Verdict
from mlops.usecase import UseCase

GUARANTEE = (
    "While nothing drifts there is {budget}: each look tests {tests} things, and one is an alarm"
    " where its p is at most {limit:.2g}. The tests are exact at any number of rows, and corrected"
    " for their number and for every look (Bonferroni), so this holds however windows overlap and"
    " columns hang together."
)


@dataclasses.dataclass(frozen=True, slots=True)
class Drift:
    """A window against training. `findings` begins with that of the traffic as a whole.

    `window` says what was looked at; `columns` has, by name, shares of training and window to be
    drawn beside each other (`assessment.histogram`).
    """

    use_case: str
    version: int | None
    bundle: str | None
    window: str
    at: str
    verdict: Verdict
    says: str
    rows: int
    training_rows: int | None
    budget: str
    alpha_per_look: float
    threshold: float | None
    guarantee: str
    findings: tuple[Finding, ...]
    columns: Mapping[str, Mapping[str, Any]]

    def as_json(self) -> dict[str, Any]:
        """Return it as what JSON can hold."""
        return {**dataclasses.asdict(self), "findings": [one._asdict() for one in self.findings]}


def assessed(
    use_case: UseCase,
    version: int | None,
    bundle: str | None,
    *,
    window: str,
    at: str,
    budget: Budget,
    found: tuple[Profile, Counts] | str,
) -> Drift:
    """Assess a window; `found` is its profile and counts, or the reason why there are none."""
    told: dict[str, Any] = {
        "threshold": None,
        "training_rows": None,
        "guarantee": "",
        "columns": {},
    }
    if isinstance(found, str):
        findings = cannot_tell(found)
    else:
        profile, counts = found
        classes = labels(use_case)
        findings = assess(profile, counts, budget.alpha_per_look, classes)
        limit = threshold(profile, budget.alpha_per_look)
        told = {
            "threshold": limit,
            "training_rows": profile.columns[0].n + profile.columns[0].missing,
            "guarantee": GUARANTEE.format(budget=budget, tests=len(findings) - 1, limit=limit),
            "columns": {
                column.name: histogram(column, counts.vector[place], classes.get(column.name))
                for column, place in zip(profile.columns, profile.places, strict=True)
            },
        }
    traffic = next(one for one in findings if one.subject == TRAFFIC)
    return Drift(
        use_case=use_case.name,
        version=version,
        bundle=bundle,
        window=window,
        at=at,
        verdict=traffic.verdict,
        says=traffic.says,
        rows=int(traffic.numbers["rows"]),
        budget=str(budget),
        alpha_per_look=budget.alpha_per_look,
        findings=tuple(findings),
        **told,
    )
