"""R22: are mistakes of unit flagged, and honest rows left alone?"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np

from benchmarks.reliability.world import Found, World
from mlops.build.data import prepare, split
from mlops.deploy.predictor import Champion
from mlops.improve.ledger import Ledger
from mlops.loop.follow import open_champion
from mlops.settings import Settings
from mlops.usecase import UseCase
from mlops.usecases.housing import HOUSING
from mlops.usecases.iris import IRIS


def unit_mistakes(world: World, rows: int = 500) -> Found:
    """Multiply, divide by 1,000 and swap the fields of held-out rows of every use case.

    A row is flagged if its answer carries a warning or it is refused. What holds: of each use
    case at least 90 % of the spoilt rows, over all kinds of mistake, and of all honest rows at
    most 1 %.
    """
    home = world.home()
    settings = Settings(MLOPS_HOME=home)
    says, shares, honest_flags, missed, tried = [], [], [], [], 0
    for use_case in (HOUSING, IRIS):
        held_out = split(use_case, prepare(use_case, home / "data").frame).X_test.to_numpy(float)
        with Ledger(settings.state_database) as ledger:
            version = ledger.champion(use_case.name)
        assert version is not None
        champion = open_champion(use_case, version, settings)
        if world.fault == "no-warnings":
            champion._warnings = lambda *_: {}  # type: ignore[method-assign]
        honest_flags.append(flagged(champion, held_out))
        kinds = {
            kind: float(flagged(champion, spoilt).mean())
            for kind, spoilt in mistakes(use_case, held_out[:rows])
        }
        tried += len(kinds) * len(held_out[:rows])
        shares.append(float(np.mean(list(kinds.values()))))
        missed += [f"{kind} ({share:.0%})" for kind, share in kinds.items() if share < 0.5]
        says.append(f"{use_case.name} {shares[-1]:.1%}")
    honest = float(np.concatenate(honest_flags).mean())
    says.append(f"honest rows {honest:.2%}")
    if missed:
        says.append("mostly missed: " + ", ".join(missed))
    return Found(
        "; ".join(says),
        min(shares) >= 0.9 and honest <= 0.01,
        f"{tried:,} spoilt rows",
        goal=min(shares) >= 0.98,
    )


def mistakes(use_case: UseCase, rows: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    for place, name in enumerate(use_case.fields):
        for factor in (1000.0, 0.001):
            spoilt = rows.copy()
            spoilt[:, place] *= factor
            yield f"{name} times {factor:g}", spoilt
    for pair in itertools.combinations(range(len(use_case.fields)), 2):
        spoilt = rows.copy()
        spoilt[:, pair] = spoilt[:, pair[::-1]]
        yield " and ".join(use_case.fields[place] for place in pair) + " swapped", spoilt


def flagged(champion: Champion, rows: np.ndarray) -> np.ndarray:
    """Return, for each row, whether it is refused by a hard limit or answered with a warning."""
    features = champion.use_case.features
    low, high = (np.array([getattr(f, edge) for f in features]) for edge in ("low", "high"))
    refused = ((rows < low) | (rows > high)).any(axis=1)
    answers = champion.predict(rows.tolist(), [""] * len(rows), [None] * len(rows))
    return refused | np.array([answer.warnings is not None for answer in answers])
