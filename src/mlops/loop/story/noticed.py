"""The first half: a model is trained and served, and whatever goes wrong is noticed and told.

A chapter lets something happen over real HTTP and then requires what a user would want to be true;
it returns one sentence with the numbers. The first requirement that fails ends the story, and its
chapter is named.
"""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

import numpy as np

from mlops.build.data import prepare, split
from mlops.loop.promote import promote
from mlops.loop.story.tale import CANDIDATE, DAY, HOUR, Story, about, champion
from mlops.loop.story.traffic import PEAK_HOUR, Row, Traffic
from mlops.loop.train import train

RICHER, DEARER = 1.25, 1.35
"""By how much incomes drift, and later prices alone: the world that the model learnt is gone."""
FEW = 5
GARBAGE = b'{"total_rooms": "many"}'


def trained(story: Story) -> str:
    """A model is trained, tracked, sealed, gated and promoted."""
    name = story.use_case.name
    if champion(story) is None:
        train(name, only=(CANDIDATE,), settings=story.settings)
        promote(name, reason="the story begins", settings=story.settings)
    sealed = champion(story)
    story.require(sealed, "nobody is champion after training and promotion")
    assert sealed is not None
    metric, rows = story.use_case.metric, sealed.training
    table = prepare(story.use_case, story.settings.data)
    story.parts = split(story.use_case, table.frame)
    score, mean = (sealed.metrics[of][metric] for of in ("scores", "baseline"))
    story.require(score > mean + 0.5, f"{metric} is {score:.4f}, the mean has {mean:.4f}")
    return (
        f"{rows['rows_train']:,} rows learnt from; {metric} {score:.4f} on {rows['rows_test']:,} "
        f"rows never seen, where the mean has {mean:.4f}."
    )


def served(story: Story) -> str:
    """It is served, and answers as it did when it was sealed."""
    assert story.parts is not None
    fields, X = story.use_case.fields, story.parts.X_test.to_numpy(dtype=float)
    story.traffic = Traffic(fields, X, story.parts.y_test, a_day=story.a_day, seed=story.seed)
    seconds = story.world.start()
    story.champion = story.get("/")["model_version"]
    sealed = champion(story)
    assert sealed is not None
    golden = sealed.golden
    # A few: they are the data's extremes, of which many together would be drift.
    instances = [dict(zip(fields, row, strict=True)) for row in golden["fields"][:FEW]]
    status, body = story.world.post("/predict/batch", {"instances": instances})
    story.require(status == 200, f"the golden rows were answered with {status}")
    target = story.use_case.target.name
    off = max(
        abs(one[target] - sealed)
        for one, sealed in zip(body["predictions"], golden["prediction"][:FEW], strict=True)
    )
    story.require(off <= 1e-9, f"golden rows are off by {off:.3g} over HTTP")
    return f"Ready after {seconds:.1f} s; {len(instances)} golden rows answered as sealed."


def quiet(story: Story) -> str:
    """Weeks pass in which nothing happens, and nothing is said to have happened."""
    before = story.get("/metrics")["total_predictions"]
    story.live(story.quiet_days)
    asked = len(story.answered)
    metrics = story.get("/metrics")
    counted = metrics["total_predictions"] - before
    story.require(counted == asked, f"{asked} predictions were answered, {counted} are counted")
    ever = metrics["windows"]["all"]
    users = len({one.ask.user for one in story.answered})
    story.require(
        abs(ever["unique_users"] - users) <= 0.05 * users,
        f"{users} users asked, {ever['unique_users']} are counted",
    )
    hours = Counter(int(one.at // HOUR) for one in story.answered)
    peak = int(ever["peak_hour"]["start"][11:13])
    story.require(
        abs(peak - PEAK_HOUR) <= 4, f"most ask at {PEAK_HOUR}h, the peak is said to be at {peak}h"
    )
    alarms = [one.drifted for one in story.days if one.drifted]
    story.require(not alarms, f"drift was alarmed of while nothing drifted: {alarms[:1]}")
    opened = story.get("/alerts")["open"]
    story.require(not opened, f"an alert is open while nothing is wrong: {opened[:1]}")
    story.require(not story.world.heard, f"a message was sent for nothing: {story.world.heard[:1]}")
    return (
        f"{story.quiet_days} days, {asked:,} predictions of {users} users, each counted once; at "
        f"most {max(hours.values())} an hour. {len(story.days)} looks, no alarm, no message."
    )


def late_truths(story: Story) -> str:
    """Truths arrive days later and out of order, each is kept once, and the model is still good."""
    sent = [one for one in story.answered if one.at < story.world.now - 20 * DAY][:50]
    items = [{"prediction_id": one.body["prediction_id"], "actual": one.ask.actual} for one in sent]
    status, body = story.world.post("/feedback", {"items": items})
    story.require(
        status == 200 and (body["attached"], body["already"]) == (0, len(items)),
        f"truths sent again were answered with {status}: {body}",
    )
    unknown = "01900000-0000-7000-8000-000000000000"
    status, body = story.world.post(
        "/feedback", {"items": [items[0], {"prediction_id": unknown, "actual": 2.0}]}
    )
    story.require(
        status == 404 and body["unknown"] == [unknown],
        f"a truth of an unknown prediction was answered with {status}: {body}",
    )
    found = story.get("/performance?window=30d")
    [overall] = [one for one in found["findings"] if one["subject"] == "all rows"]
    story.require(overall["verdict"] == "ok", f"quality: {overall['says']}")
    return f"{story.told:,} truths attached once each, up to two weeks late. {overall['says']}."


def drifted(story: Story) -> str:
    """Incomes rise: drift is alarmed of, by name, and a message says so."""

    def richer(row: Row, actual: float) -> tuple[Row, float]:
        return {**row, "median_income": row["median_income"] * RICHER}, actual

    begun = story.world.now
    for _ in range(14):
        story.live(1, richer)
        if "median_income" in story.days[-1].drifted:
            break
    else:
        story.require(False, "incomes rose by a quarter for two weeks, and no drift was seen")
    heard = story.world.heard
    message = story.minutes_until("a message about drift", lambda: about(heard, "drift"))
    delay = round((story.world.now - begun) / DAY)
    return (
        f"Incomes ×{RICHER:g}: alarmed of after {delay} day{'s' * (delay != 1)}, and told: "
        f"“{message['title']}”."
    )


def worse(story: Story) -> str:
    """Prices rise while houses stay: the estimate mutes itself, and quality is alarmed of."""

    def dearer(row: Row, actual: float) -> tuple[Row, float]:
        return row, min(actual * DEARER, story.use_case.target.high)

    begun = story.world.now
    for _ in range(30):
        story.live(1, dearer)
        found = story.get("/performance")
        verdict = {one["subject"]: one["verdict"] for one in found["findings"]}["all rows"]
        if verdict == "alarm" and found["estimate"]["state"] == "muted":
            break
    else:
        story.require(False, f"prices rose by a third, and after 30 days quality is {verdict}")
    story.world.pass_to(story.world.now + HOUR)  # the server judges once an hour
    message = story.minutes_until(
        "a message about quality", lambda: about(story.world.heard, "quality")
    )
    return (
        f"Prices ×{DEARER:g}: after {(story.world.now - begun) / DAY:.0f} days quality is alarmed "
        f"of (“{message['title']}”), and the estimate without truths has muted itself: "
        f"{found['estimate']['says']}."
    )


def burst(story: Story) -> str:
    """A client sends garbage: one message when that is an alert, one when it has ended."""
    heard = len(story.world.heard)

    def minute(garbage: int) -> None:
        story.world.pass_to(story.world.now + 5)
        assert story.traffic is not None
        story.world.ask([*story.traffic.hour(PEAK_HOUR)][:10])
        for _ in range(garbage):
            status, _body = story.world.post("/predict", GARBAGE)
            story.require(status == 422, f"garbage was answered with {status}")
            story.refused += 1
        time.sleep(0.2)

    def told(event: str) -> Any:
        return about(story.world.heard[heard:], "error rate", event)

    def passes(garbage: int, event: str) -> Any:
        for _ in range(150):
            minute(garbage)
            if message := told(event):
                return message
        return story.minutes_until(
            f"a message that the error rate's alert {event}", lambda: told(event)
        )

    started = passes(10, "started")
    ended = passes(0, "ended")
    messages = [one for one in story.world.heard[heard:] if "error rate" in one["title"]]
    story.require(len(messages) == 2, f"{len(messages)} messages were sent, not one and one")
    return f"“{started['title']}” and later “{ended['title']}”, once each."


def killed(story: Story) -> str:
    """The server is killed while it answers, and started again: nothing is lost, counts go on."""
    before = story.get("/metrics")
    story.world.kill()
    seconds = story.world.start()
    after = story.get("/metrics")
    story.series = story.get("/performance?window=365d")["series"]
    for what in ("total_predictions", "failed_requests", "predictions_by_version"):
        story.require(
            after[what] == before[what], f"{what} was {before[what]}, and is {after[what]}"
        )
    random = np.random.default_rng(story.seed)
    for place in random.integers(len(story.answered), size=20):
        one = story.answered[int(place)]
        kept = story.get(f"/predictions/{one.body['prediction_id']}")
        target = story.use_case.target.name
        story.require(
            kept["prediction"] == one.body[target],
            f"prediction {kept['prediction_id']} was {one.body[target]}, and is now "
            f"{kept['prediction']}",
        )
    return (
        f"Killed with kill -9, ready again after {seconds:.1f} s: "
        f"{after['total_predictions']:,} predictions, as before."
    )
