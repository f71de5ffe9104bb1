"""The second half: the model that the world has left behind is replaced, with care."""

from __future__ import annotations

import time
from typing import Any

from mlops.improve.gates import not_worse_than_champion
from mlops.improve.ledger import Ledger
from mlops.loop.story.noticed import DEARER
from mlops.loop.story.tale import CANDIDATE, DAY, Story
from mlops.loop.story.traffic import Change, Row

OLDER, OLDEST = 1.0, 52.0
"""Years that pass for houses, so that what is asked was in no table; and where the census stops."""
DAYS_TO_LEARN_FROM = 21
MOST_DAYS = 60
POISONED_ROWS = 3_000
DAYS_OF_A_SHARE = 5
DAYS_TO_GO_BACK = 14
SECONDS_OF_THE_GUARD = 0.3
"""Of the real clock, each day: it looks some thirty times a second while time flies."""


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
        (code, outcome) == (0, "registered") and trigger in ("drift", "quality"),
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


def shadowed(story: Story) -> str:
    """The challenger answers what is asked, out of everybody's way, until enough is known of it."""
    name, before, begun = story.use_case.name, len(story.answered), story.world.now
    story.do("experiment", "shadow", name, str(story.challenger), "--reason", "the gates let it")
    for _ in range(MOST_DAYS):
        story.live(1, new_world(story))
        by = _by(story, before)
        story.require(
            by == {story.champion}, f"in shadow, version {story.champion} answers; it was {by}"
        )
        found = story.see("that the shadow has caught up", lambda: _caught_up(story))
        if found["verdict"]["outcome"] in ("better", "worse"):
            break
    story.require(found["verdict"]["outcome"] == "better", found["verdict"]["says"])
    story.do("experiment", "stop", name, "--reason", "it is better")
    return (
        f"{len(story.answered) - before:,} requests answered by version {story.champion}, each by "
        f"version {story.challenger} too. After {_days(story, begun)} days: "
        f"{found['verdict']['says']}."
    )


def split_up(story: Story) -> str:
    """A share of the users is answered by the challenger, each always by the same one."""
    name, before = story.use_case.name, len(story.answered)
    words = ("--share", "0.2", "--auto", "--reason", "better in shadow")
    story.do("experiment", "ab", name, str(story.challenger), *words)
    story.see("that the server divides its clients", lambda: story.get("/").get("share") == 0.2)
    story.live(DAYS_OF_A_SHARE, new_world(story))
    fifth = _arms(story, before)
    before = len(story.answered)
    story.do("experiment", "share", name, "0.5", "--reason", "no complaints")
    story.see("the new share", lambda: story.get("/").get("share") == 0.5)
    story.live(DAYS_OF_A_SHARE, new_world(story))
    half = _arms(story, before)
    back = [user for user, arm in fifth.items() if arm > half.get(user, arm)]
    story.require(not back, f"the share grew, and users went back to the champion: {back[:3]}")
    found = _experiment(story)
    ratio = found["sample_ratio"]
    story.require(ratio["verdict"] == "ok", f"sample ratio: {ratio}")
    went = [sum(arm == story.challenger for arm in arms.values()) for arms in (fifth, half)]
    return (
        f"Of {len(fifth)} users {went[0]} went to version {story.challenger} at 20 %, of "
        f"{len(half)} {went[1]} at 50 %, each to one version only. {found['verdict']['says']}."
    )


def promoted(story: Story) -> str:
    """When it can be told that the challenger is better, it becomes champion, by itself."""
    begun = story.world.now
    for _ in range(MOST_DAYS):
        story.live(1, new_world(story))
        if _champion(story) == story.challenger:
            break
        verdict = _experiment(story).get("verdict")  # none: it has just been promoted
        if verdict is None or verdict["outcome"] == "better":
            story.see("that the better one is champion", lambda: _champion(story) != story.champion)
            break
    before = len(story.answered)
    old, story.champion = story.champion, story.challenger
    story.live(1, new_world(story))
    by = _by(story, before)
    story.require(
        by == {story.champion}, f"version {story.champion} was to be champion, and {by} answer"
    )
    with Ledger(story.settings.state_database) as ledger:
        last = [one for one in ledger.decisions(story.use_case.name) if one.action == "promote"][-1]
    story.require(last.version == story.champion, f"the ledger tells of version {last.version}")
    return (
        f"After {_days(story, begun)} more days: {last.reason}. Version {old} answers nobody any "
        "more."
    )


def poisoned(story: Story) -> str:
    """Prices come upside down: the gates keep out what learnt from them, until a person insists."""
    name, target = story.use_case.name, story.use_case.target
    assert story.parts is not None
    rows = story.parts.X_train.sample(POISONED_ROWS, random_state=story.seed)
    prices = story.parts.y_train[story.parts.X_train.index.get_indexer(rows.index)]
    delivery = story.settings.data / f"{name}.d" / "broker.csv"
    delivery.parent.mkdir(exist_ok=True)
    rows.assign(**{target.name: target.high - prices}).to_csv(delivery, index=False)
    words = ("--reason", "the broker's list came", "--only", CANDIDATE)
    found = story.do("retrain", name, *words)
    story.require(found["outcome"] == "kept", f"retraining on poison ended as {found['outcome']}")
    kept, story.challenger = found["says"], found["version"]
    story.do("promote", name, str(story.challenger), "--force", "--reason", "the broker insists")
    story.see("that it is champion", lambda: _champion(story) == story.challenger)
    return f"{kept}. It was forced all the same."


def rolled_back(story: Story) -> str:
    """Truths come, and the server goes back by itself; callers who met it are counted."""
    name, before, begun = story.use_case.name, len(story.answered), story.world.now
    for _ in range(DAYS_TO_GO_BACK):
        story.live(1, new_world(story))
        time.sleep(SECONDS_OF_THE_GUARD)
        if _champion(story) == story.champion:
            break
    touched = [
        one for one in story.answered[before:] if one.body["model_version"] == story.challenger
    ]
    story.require(_champion(story) == story.champion, f"version {story.challenger} answers still")
    with Ledger(story.settings.state_database) as ledger:
        last = ledger.decisions(name)[-1]
        story.require(
            (last.action, last.version, last.decided_by) == ("rollback", story.champion, "guard"),
            f"the ledger ends with {last.action} of {last.version} by {last.decided_by}",
        )
        verified = ledger.verify()
    story.require(verified.whole, f"the ledger: {verified}")
    before = len(story.answered)
    story.live(1, new_world(story))
    by = _by(story, before)
    story.require(by == {story.champion}, f"after the rollback {by} answer")
    users = len({one.ask.user for one in touched})
    story.series = story.get("/performance?window=365d")["series"]
    return (
        f"After {_days(story, begun)} days and {len(touched):,} answers to {users} users, "
        f"{last.reason}. Version {story.champion} answers again; all {verified.lines} lines of "
        "the ledger are as they were written."
    )


def _arms(story: Story, since: int) -> dict[str, int]:
    """Return which version answered each user. Requires that it was one."""
    arms: dict[str, int] = {}
    for one in story.answered[since:]:
        version = one.body["model_version"]
        first = arms.setdefault(one.ask.user, version)
        story.require(first == version, f"{one.ask.user} met version {first} and {version}")
    return arms


def _caught_up(story: Story) -> Any:
    found = _experiment(story)
    return found if found["rows_behind"] == 0 else None


def _experiment(story: Story) -> dict[str, Any]:
    found: dict[str, Any] = story.get("/experiments")["use_cases"][0]
    return found


def _by(story: Story, since: int) -> set[int]:
    """Return the versions that answered since then."""
    return {one.body["model_version"] for one in story.answered[since:]}


def _days(story: Story, begun: float) -> int:
    return round((story.world.now - begun) / DAY)


def _champion(story: Story) -> int:
    version: int = story.get("/")["model_version"]
    return version
