"""What if: the ledger decided by another policy, from the evidence that it kept."""

from __future__ import annotations

import itertools
import json
import random
from typing import Any

import pytest
from experimental import register_off
from promotions import World, equal, world_in

from mlops import cli
from mlops.build.data import prepare, split
from mlops.errors import GateError, UsageError
from mlops.improve import policies
from mlops.improve.decisions import Decision
from mlops.improve.gates import GATES
from mlops.improve.hindsight import Hindsight, replay
from mlops.improve.ledger import Ledger
from mlops.improve.policies import Answer, Policy
from mlops.loop.feedback import feedback
from mlops.loop.predict import predict
from mlops.loop.what_if import WhatIf, what_if
from mlops.usecases import USE_CASES

HOUSING = USE_CASES["housing"]
NAMES = [gate.NAME for gate in GATES]


# --- histories that are written down here, and known by hand


def verdict(gate: str, outcome: str = "pass", *, blocks: bool = False, **numbers: float) -> Any:
    says = f"{gate} says {outcome}"
    return {"gate": gate, "outcome": outcome, "says": says, "numbers": numbers, "blocks": blocks}


def asked(score: float, *more: Any, high: float | None = None) -> list[Any]:
    """What the gates kept of a version: its score, and how it compares, None with nothing."""
    against = (
        verdict(policies.CHAMPION, "cannot tell")
        if high is None
        else verdict(policies.CHAMPION, "fail" if high > 1 else "pass", blocks=high > 1, high=high)
    )
    return [verdict(policies.BASELINE, score=score), against, *more]


def history(*lines: tuple[Any, ...]) -> list[Decision]:
    """Lines as (day, action, version, previous, evidence, rule)."""
    return [
        Decision(
            number,
            f"2026-01-{day:02}T12:00:00.000000+00:00",
            "housing",
            action,
            version,
            previous,
            "why",
            evidence,
            "somebody",
            *(rest or ["gates"]),
            hash="",
        )
        for number, (day, action, version, previous, evidence, *rest) in enumerate(lines, 1)
    ]


FORCED = history(
    (1, "train", 1, None, [{"run_id": "a"}]),
    (1, "promote", 1, None, asked(0.70)),
    (3, "train", 2, 1, [{"run_id": "b"}]),
    (3, "keep", 2, 1, asked(0.60, high=2.0)),
    (4, "promote", 2, 1, asked(0.60, high=2.0), "force"),
    (6, "train", 3, 2, [{"run_id": "c"}]),
    (6, "promote", 3, 2, asked(0.80, verdict("fair between bands", "cannot tell"), high=-0.1)),
    (8, "rollback", 2, 3, [], "rollback"),
    (9, "promote", 4, 2, asked(0.80, high=0.5)),
)


def under(policy: str, lines: list[Decision] = FORCED, **options: Any) -> Hindsight:
    return replay(lines, policies.find(policy), **options)


def champions(found: Hindsight) -> list[tuple[str, int | None, tuple[int | None, ...]]]:
    return [(one.since[8:10], one.was, one.would) for one in found.stretches]


def differing(found: Hindsight) -> list[tuple[int, str]]:
    return [(one.line, one.would) for one in found.weighed if one.differs]


def test_the_rule_as_it_is_gives_what_happened_where_nothing_was_forced():
    honest = [one for one in FORCED if one.id not in (5, 7, 8, 9)]
    honest += history(
        (6, "promote", 3, 1, asked(0.80, high=-0.1)), (8, "rollback", 1, 3, [], "rollback")
    )
    found = under("gates", honest)
    assert [one.would for one in found.weighed] == ["promoted", "kept", "promoted", "rolled back"]
    assert all(one.differs is False for one in found.weighed)
    assert champions(found) == [("01", 1, (1,)), ("06", 3, (3,)), ("08", 1, (1,))]


def test_a_forced_promotion_does_not_happen_and_what_follows_it_cannot_be_told():
    found = under("no-force")
    assert differing(found) == [(5, "kept")]
    assert "forced" in found.weighed[2].says
    assert champions(found) == [
        ("01", 1, (1,)),
        ("04", 2, (1,)),
        ("06", 3, (1, 3)),  # version 3 was held against version 2 alone
        ("08", 2, (1,)),  # the rollback leaves version 3 in neither case
        ("09", 4, (1, 4)),
    ]
    row = found.weighed[3]
    assert (row.would, row.differs) == ("cannot tell", None)
    assert row.says == "the gates never held it against version 1"


def test_where_somebody_knows_the_two_against_each_other_it_can_be_told():
    def held(version: int, champion: int | None) -> Any:
        return asked(0.8, high=-0.2) if (version, champion) == (3, 1) else None

    found = under("no-force", held=held)
    assert champions(found)[2:] == [("06", 3, (3,)), ("08", 2, (1,)), ("09", 4, (1, 4))]


def test_a_gate_that_holds_whoever_is_champion_keeps_it_out_of_either():
    worse = [verdict(policies.BASELINE, "fail", blocks=True, score=-1.0)]
    lines = [*FORCED[:7], *history((9, "keep", 4, 3, worse))]
    found = under("no-force", lines)
    assert found.stretches[-1].would == (1, 3)
    assert (found.weighed[-1].would, found.weighed[-1].differs) == ("kept", False)


def test_the_newest_is_champion_at_once_and_a_rollback_goes_back_from_it():
    found = under("newest")
    assert differing(found) == [(1, "promoted"), (3, "promoted"), (6, "promoted")]
    assert champions(found)[-2:] == [("08", 2, (2,)), ("09", 4, (4,))]


def test_the_higher_score_wins_whatever_chance_has_to_do_with_it():
    found = under("higher-score")
    assert [(one.line, one.would) for one in found.weighed] == [
        (2, "promoted"),
        (4, "kept"),
        (5, "kept"),
        (7, "promoted"),
        (8, "rolled back"),
        (9, "promoted"),
    ]
    assert differing(found) == [(5, "kept"), (8, "rolled back")]
    assert champions(found)[3] == ("08", 2, (1,))


def test_strict_takes_no_cannot_tell_but_for_the_first_champion():
    lines = FORCED[:2] + history(
        (6, "promote", 3, 1, asked(0.8, verdict("fair between bands", "cannot tell"), high=-0.1))
    )
    found = under("strict", lines)
    assert [one.would for one in found.weighed] == ["promoted", "kept"]
    assert found.weighed[1].says == "cannot tell: fair between bands"


def test_a_tie_changes_nothing_where_better_must_be_proven():
    lines = FORCED[:2] + history(
        (5, "promote", 3, 1, asked(0.8, high=0.5)), (9, "promote", 4, 3, asked(0.9, high=-0.1))
    )
    found = under("proven", lines)
    assert [one.would for one in found.weighed] == ["promoted", "kept", "cannot tell"]
    found = under("proven", [*lines[:2], *history((9, "promote", 4, 1, asked(0.9, high=-0.1)))])
    assert found.stretches[-1].would == (4,)


def test_an_experiment_counts_as_evidence_from_the_line_on_that_ends_it():
    told = {"verdict": "better", "mean": -0.2}
    lines = FORCED[:2] + history(
        (3, "promote", 2, 1, asked(0.8, high=0.5)),
        (4, "rollback", 1, 2, [], "rollback"),
        (6, "end", 2, 1, [{"experiment": 1, "outcome": "kept"}, told]),
    )
    found = under("tried", lines)
    assert [(one.was, one.would) for one in found.weighed] == [
        ("promoted", "promoted"),
        ("promoted", "kept"),
        ("rolled back", "nothing"),
        ("its experiment ended", "promoted"),
    ]
    assert found.weighed[1].says == "it was not tried"
    by_experiment = [*FORCED[:2], *history((3, "promote", 2, 1, [*asked(0.8, high=0.5), told]))]
    assert under("tried", by_experiment).weighed[-1].would == "promoted"


def test_who_may_have_been_champion_is_never_left_out_however_often_it_went_back():
    """Against every course that could have been: each "cannot tell" taken once either way."""
    chance = random.Random(11)
    for _ in range(300):
        lines, version = [], 0
        for day in range(1, 9):
            if version and chance.random() < 0.4:
                lines.append((day, "rollback", 0, chance.randint(1, version), [], "rollback"))
            else:
                version += 1
                lines.append((day, "promote", version, None, asked(0.5), ""))
        unsure = {one for one in range(2, version + 1) if chance.random() < 0.5}
        policy = Policy(
            "chance",
            "",
            lambda case, unsure=unsure: Answer(
                "cannot tell" if case.version in unsure else "promote", ""
            ),
        )
        found = replay(history(*lines), policy).stretches[-1].would
        possible = set()
        for taken in itertools.product([True, False], repeat=len(unsure)):
            choice = dict(zip(sorted(unsure), taken, strict=True))
            stack: list[int] = []
            for _, action, number, previous, *_ in lines:
                if action == "promote" and choice.get(number, True):
                    stack.append(number)
                elif action == "rollback" and stack[-1:] == [previous] and len(stack) > 1:
                    stack.pop()
            possible |= {stack[-1]}
        assert possible <= set(found)


def test_a_slower_policy_counts_the_days_of_its_own_champion():
    lines = FORCED[:2] + history(
        (3, "promote", 2, 1, asked(0.8, high=0.5)),
        (9, "promote", 3, 2, asked(0.9, high=0.5)),
    )
    found = under("slower", lines)
    assert [one.would for one in found.weighed] == ["promoted", "kept", "cannot tell"]
    assert found.weighed[1].says == "version 1 had been champion for 2.0 days"


@pytest.mark.parametrize("policy", [one.name for one in policies.POLICIES])
def test_each_policy_takes_any_history_and_says_why(policy):
    early = history((1, "promote", 1, None, []), (2, "rollback", 1, 2, []), (3, "keep", 1, 1, []))
    old = [{"gate": "x", "outcome": "fail", "says": "", "numbers": {}}]
    for lines in ([], early, FORCED, [*FORCED, *history((10, "promote", 9, 4, old))]):
        found = under(policy, lines)
        assert all(one.says for one in found.weighed if one.would != "rolled back")
        assert all(a.until == b.since for a, b in zip(found.stretches, found.stretches[1:]))  # noqa: B905


def test_the_names_that_policies_go_by_are_those_of_gates():
    assert {*policies.ALONE, policies.CHAMPION} <= set(NAMES)
    assert policies.BASELINE in policies.ALONE
    with pytest.raises(UsageError, match=r"no policy 'x' — take one of gates, strict, "):
        policies.find("x")


# --- with bundles, a log and truths


@pytest.fixture
def world(home: Any, monkeypatch: pytest.MonkeyPatch) -> World:
    return world_in(home, monkeypatch)


def asked_of(world: World, policy: str, **options: Any) -> WhatIf:
    return what_if("housing", policy, settings=world.settings, **options)


def answered(world: World, rows: int, told: int, tmp_path: Any) -> None:
    """Let the champion answer; the truth is what version 1 would have answered."""
    parts = split(HOUSING, prepare(HOUSING, world.settings.data).frame)
    records = parts.X_test.head(rows).to_dict("records")
    given = predict("housing", records, settings=world.settings)
    less = 0.5 if world.champion("housing") == 2 else 0.0
    lines = [f"{one['prediction_id']},{one['predicted_price'] - less!r}" for one in given[:told]]
    (tmp_path / "truth.csv").write_text("\n".join(["prediction_id,actual", *lines]))
    feedback("housing", tmp_path / "truth.csv", settings=world.settings)


def test_what_a_forced_promotion_cost_is_found_to_the_digit(world, tmp_path, monkeypatch, capfd):
    assert asked_of(world, "no-force").cost.outcome == "none"
    answered(world, 60, 60, tmp_path)
    register_off(world, 0.5)
    with pytest.raises(GateError):
        world.promote("housing", 2)
    world.promote("housing", 2, force=True, reason="it is mine")
    answered(world, 200, 150, tmp_path)
    found = asked_of(world, "no-force")
    assert [one.would for one in found.weighed if one.differs] == ["kept"]
    cost = found.cost
    assert (cost.outcome, cost.predictions, cost.truths) == ("better", 200, 150)
    assert cost.was == pytest.approx(0.25, abs=1e-9)
    assert cost.would == pytest.approx(0, abs=1e-9)
    assert cost.total == pytest.approx(-0.25 * 150, abs=1e-6)
    assert cost.high == pytest.approx(-0.25, abs=1e-6)
    assert [one.cost.outcome for one in found.reigns] == ["none", "better"]
    same = asked_of(world, "newest").cost
    assert (same.outcome, same.says) == (
        "none",
        "the same versions would have answered all that was asked",
    )

    monkeypatch.setenv("MLOPS_HOME", str(world.settings.home))
    for words in (["--json"], []):
        with pytest.raises(SystemExit) as ended:
            cli.main(["what-if", "housing", "--policy", "no-force", *words])
        assert ended.value.code == 0
    printed = capfd.readouterr().out
    document, end = json.JSONDecoder().raw_decode(printed)
    assert (document["differ"], document["cost"]["truths"]) == (1, 150)
    assert "1 of 3 differ, 0 cannot be told" in printed[end:]
    assert "better: mean loss -0.25" in printed[end:]

    world.bundle("housing", 1).rename(world.settings.home / "gone")
    gone = asked_of(world, "no-force").cost
    assert gone.outcome == "cannot tell"
    assert "version 1: " in gone.says


def test_too_few_truths_are_said_to_be(world, tmp_path):
    register_off(world, 0.5)
    world.promote("housing", 2, force=True, reason="it is mine")
    answered(world, 60, 20, tmp_path)
    cost = asked_of(world, "no-force").cost
    assert cost.outcome == "cannot tell"
    assert cost.says == "the truth is known of 20 of 60 predictions, 30 are needed"


def test_gates_that_never_met_are_asked_now_if_so_wished(world):
    register_off(world, 0.5)
    world.promote("housing", 2, force=True, reason="it is mine")
    world.register("housing", equal)
    with Ledger(world.settings.state_database) as ledger:
        evidence = [verdict(one) for one in NAMES]
        planted = ledger.version("housing", 3)
        ledger.promote(planted, expected=2, reason="all passed", evidence=evidence, rule="gates")
    assert asked_of(world, "gates").weighed[-1].would == "cannot tell"
    found = asked_of(world, "gates", measure=True)
    # The bundle that is sealed anew is the first one's graph with another name: it passes or not,
    # but it was held against version 1 now.
    assert found.weighed[-1].would in ("promoted", "kept")


def test_an_unknown_policy_or_use_case_is_named(world):
    with pytest.raises(UsageError, match="there is no policy"):
        asked_of(world, "best")
    with pytest.raises(UsageError, match="no use case"):
        what_if("cars", "gates", settings=world.settings)
