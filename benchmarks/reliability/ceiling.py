"""How many swapped fields could be told at all: `python -m benchmarks.reliability.ceiling`.

For each two counts that stay within their ranges when they are swapped, a boosting of 600 trees
learns honest training rows from swapped ones, and is asked for held-out rows. What it cannot tell
at a share of false flags, hardly any check of single rows will. The last column is what a bundle's
own check tells, with all its false flags (`mlops.build.swaps`).
"""

from __future__ import annotations

import itertools

import numpy as np
from lightgbm import LGBMClassifier

from mlops.build.data import split
from mlops.build.pipeline import ModelInputs
from mlops.build.profile import training_ranges
from mlops.deploy.unlike import Unlike
from mlops.loop.signature import signature
from mlops.usecases.housing import HOUSING

PAIRS = (
    ("total_rooms", "population"),
    ("total_bedrooms", "population"),
    ("total_bedrooms", "households"),
)
FALSE_FLAGS = (0.0025, 0.005, 0.01, 0.05)


def main() -> None:
    parts = split(HOUSING, HOUSING.load().table)
    rows, held_out = (X.to_numpy(float) for X in (parts.X_train, parts.X_test))
    inputs = ModelInputs(HOUSING.fields, HOUSING.inputs)
    names = [*HOUSING.fields, *HOUSING.input_names]
    ranges = training_ranges(names, np.hstack([rows, inputs.transform(rows)]))
    sealed = Unlike(HOUSING, signature(HOUSING, rows, ranges, {"inputs": inputs}))

    def flagged(some: np.ndarray) -> float:
        return float(sealed.rows(some, inputs.transform(some)).mean())

    print(f"| swapped | {' | '.join(f'{share:.2%}' for share in FALSE_FLAGS)} | sealed check |")
    print("|---|" + "---|" * (len(FALSE_FLAGS) + 1))
    for pair in PAIRS:
        places = [HOUSING.fields.index(name) for name in pair]
        swapped, swapped_held_out = rows.copy(), held_out.copy()
        for some in (swapped, swapped_held_out):
            some[:, places] = some[:, places[::-1]]
        trees = LGBMClassifier(n_estimators=600, learning_rate=0.05, num_leaves=63, verbose=-1)
        trees.fit(_seen(np.vstack([rows, swapped])), np.repeat([0, 1], len(rows)))
        honest, wrong = (
            trees.predict(_seen(some), raw_score=True) for some in (held_out, swapped_held_out)
        )
        told = [float((wrong > np.quantile(honest, 1 - share)).mean()) for share in FALSE_FLAGS]
        cells = " | ".join(f"{share:.1%}" for share in (*told, flagged(swapped_held_out)))
        print(f"| {' and '.join(pair)} | {cells} |", flush=True)
    print(f"honest held-out rows that the sealed check flags: {flagged(held_out):.2%}")


def _seen(rows: np.ndarray) -> np.ndarray:
    """Return the fields, and the logarithm of every ratio of two counts."""
    logs = np.log1p(rows[:, :4])
    ratios = [logs[:, i] - logs[:, j] for i, j in itertools.combinations(range(4), 2)]
    return np.column_stack([rows, *ratios])


if __name__ == "__main__":
    main()
