"""The second half: the model that the world has left behind is replaced, with care."""

from __future__ import annotations

from mlops.improve.gates import not_worse_than_champion
from mlops.improve.ledger import Ledger
from mlops.loop.story.noticed import DEARER
from mlops.loop.story.tale import CANDIDATE, Story
from mlops.loop.story.traffic import Change, Row

OLDER, OLDEST = 1.0, 52.0
"""Years that pass for houses, so that what is asked was in no table; and where the census stops."""
DAYS_TO_LEARN_FROM = 21


def new_world(story: Story) -> Change:
    """Return what has become of the world: houses are older, and prices stay as high."""
    highest = story.use_case.target.high

    def change(row: Row, actual: float) -> tuple[Row, float]:
        age = min(row["housing_median_age"] + OLDER, OLDEST)
        return {**row, "housing_median_age": age}, min(actual * DEARER, highest)

    return change


def retrained(story: Story) -> str:
    """Enough has become known of the new world: a model is trained again, and it is said why."""
    name = story.use_case.name
    story.live(DAYS_TO_LEARN_FROM, new_world(story))
    words = ("--if-needed", "--no-promote", "--only", CANDIDATE)
    code, found = story.world.run("retrain", name, *words)
    outcome, trigger = found["outcome"], (found["reason"] or {}).get("trigger")
    story.require(
        (code, outcome, trigger) == (0, "registered", "quality"),
        f"retraining ended as {outcome}, for the reason {trigger}: {found['says']}",
    )
    with Ledger(story.settings.state_database) as ledger:
        actions = [one.action for one in ledger.decisions(name)]
    story.require(
        actions[-3:] == ["retrain", "train", "retrained"],
        f"the ledger ends with {actions[-3:]}: the reason must come before the work",
    )
    story.challenger = found["version"]
    return (
        f"The reason was {trigger}. {found['difference']}, each counting for twenty: version "
        f"{found['version']} is registered, and version {found['champion']} answers on."
    )


def gated(story: Story) -> str:
    """Every gate is asked, on rows that neither model has learnt from."""
    code, found = story.world.run("gates", story.use_case.name, str(story.challenger))
    outcomes = {one["gate"]: one["outcome"] for one in found["verdicts"]}
    refused = [gate for gate, outcome in outcomes.items() if outcome == "fail"]
    story.require(code == 0 and not refused, f"refused by {', '.join(refused)}")
    [paired] = [one for one in found["verdicts"] if one["gate"] == not_worse_than_champion.NAME]
    story.require(paired["numbers"]["high"] < 0, f"it is no better: {paired['says']}")
    passed = sum(outcome == "pass" for outcome in outcomes.values())
    return f"{passed} of {len(outcomes)} gates say pass, none fail; {paired['says']}."
