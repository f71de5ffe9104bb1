"""R20: over HTTP every row gets the answer that training gave it."""

from __future__ import annotations

import numpy as np
import test_parity_over_http as over_http

from benchmarks.reliability.world import Found, World
from mlops.package.probes import on_thresholds
from mlops.usecases.housing import HOUSING


def parity(world: World, rows: int = 25_000) -> Found:
    """Ask for all held-out rows singly and in batches, then for rows on thresholds of the trees.

    These are made of training rows in another order each time, and compared with what the fitted
    scikit-learn pipeline says of them. Raises `AssertionError` for a held-out row that differs.
    """
    home = world.home()
    server = world.start(home)
    over_http.test_held_out_flowers_get_over_http_the_classes_and_probabilities_of_training(server)
    over_http.test_all_held_out_houses_get_over_http_the_answers_and_the_score_of_training(server)
    asked = server.request("/metrics")[1]["total_predictions"]
    _, pipeline = over_http.champion(home, HOUSING)
    known = over_http.parts(home, HOUSING).X_train.to_numpy(dtype=float)
    low, high = (np.array([getattr(f, edge) for f in HOUSING.features]) for edge in ("low", "high"))
    chance, differing = np.random.default_rng(world.seed), 0
    for _ in world.rounds(rows):
        if asked >= rows:
            break
        probes = np.concatenate(list(on_thresholds(pipeline, chance.permutation(known), 20_000)))
        probes = probes[((probes >= low) & (probes <= high)).all(axis=1)]
        answers = over_http.ask(server, HOUSING, probes, 1_000)
        served = np.array([answer["predicted_price"] for answer in answers])
        away = np.abs(served - pipeline.predict(probes))
        differing += int((away > over_http.SAME_ANSWER).sum())
        asked += len(probes)
    return Found(f"{differing} differing", not differing, f"{asked:,} rows")
