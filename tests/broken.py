"""Verbs one part of which is broken, for the story to notice: `python broken.py PART ...`.

answers    predictions are off by a millionth
budget     drift is tested as if nobody had to be spared false alarms
truths     truths that came before are said to be attached again
drift      drift sees nothing
estimate   the estimate of quality never mutes itself
alerts     the rule about errors never finds a breach
counts     when it begins, one prediction is counted no more
reason     a retraining writes its reason down when it is over
gates      champion and challenger are measured on the rows of the old world alone
shadow     a shadow answers callers too
split      each request of an A/B draws its model anew
verdict    an experiment that is to decide by itself does not
checks     no gate is asked before a promotion
guard      the guard finds no champion worse than the one before
"""

from __future__ import annotations

import math
import random
import sys
from typing import Any

from mlops.cli import main
from mlops.deploy import lineup
from mlops.improve import guard
from mlops.loop import alerts, evidence, experimenting, follow, promote
from mlops.loop import follow as following
from mlops.loop import retrain as retraining
from mlops.monitor import estimate
from mlops.monitor.alerts import book
from mlops.monitor.alerts.rules import RULES, Reading
from mlops.monitor.drift import report
from mlops.monitor.log import PredictionLog


def answers() -> None:
    open_champion = following.open_champion

    class Off:
        def __init__(self, model: Any) -> None:
            self._model = model

        def run(self, rows: Any) -> Any:
            output = self._model.run(rows)
            return output._replace(prediction=output.prediction + 1e-6)

    def opened(*arguments: Any) -> Any:
        champion = open_champion(*arguments)
        champion._model = Off(champion._model)
        return champion

    following.open_champion = opened
    following.rehearse = lambda *_: None


def budget() -> None:
    assess = report.assess
    report.assess = lambda profile, counts, _, *more: assess(profile, counts, 50.0, *more)


def truths() -> None:
    attach = PredictionLog.attach

    def again(self: PredictionLog, *arguments: Any, **options: Any) -> Any:
        done = attach(self, *arguments, **options)
        return done._replace(attached=done.attached + done.already, already=0)

    PredictionLog.attach = again  # type: ignore[method-assign]


def drift() -> None:
    assess = report.assess

    def blind(*arguments: Any) -> Any:
        return [one._replace(verdict="ok") for one in assess(*arguments)]

    report.assess = blind


def estimates() -> None:
    estimate.Z_MUTED = math.inf


def rules() -> None:
    nothing = Reading(False, "no breach")
    blind = tuple(
        one._replace(read=lambda *_: nothing) if one.name == "error_rate" else one for one in RULES
    )
    alerts.RULES = book.RULES = blind


def counts() -> None:
    begin = PredictionLog.__init__

    def forgetful(self: PredictionLog, *arguments: Any, **options: Any) -> None:
        begin(self, *arguments, **options)
        self._writer.execute(
            "UPDATE counts SET logged = logged - 1 WHERE (width, start) ="
            " (SELECT width, start FROM counts WHERE logged > 1 AND status = 200 LIMIT 1)"
        )

    PredictionLog.__init__ = forgetful  # type: ignore[method-assign]


def reason() -> None:
    begin, end, held = retraining._begin, retraining._end, []
    retraining._begin = lambda *arguments: held.append(arguments)

    def late(*arguments: Any) -> None:
        begin(*held.pop())
        end(*arguments)

    retraining._end = late


def old_world() -> None:
    evidence.counted = lambda rows, of_old, _: rows.index.to_numpy() < of_old


def shadow() -> None:
    def split(found: Any, challenger: Any) -> Any:
        return lineup.Split(challenger, 0.5, found.experiment.salt) if challenger else None

    follow._split = split


def draws() -> None:
    lineup.arm_of = lambda _, weights, salt: random.choice([*weights])


def undecided() -> None:
    async def wait(*_: Any) -> None: ...

    experimenting.Keeper.decide = wait


def unchecked() -> None:
    promote.check_all = lambda _: []


def unguarded() -> None:
    quality = guard.quality
    guard.quality = lambda *losses: quality(*losses)._replace(verdict="ok")


PARTS = {
    "answers": answers,
    "budget": budget,
    "truths": truths,
    "drift": drift,
    "estimate": estimates,
    "alerts": rules,
    "counts": counts,
    "reason": reason,
    "gates": old_world,
    "shadow": shadow,
    "split": draws,
    "verdict": undecided,
    "checks": unchecked,
    "guard": unguarded,
}

if __name__ == "__main__":
    PARTS[sys.argv[1]]()
    main(sys.argv[2:])
