"""Risk: cells of the input space in which a model errs alike, learnt from errors it made unseen.

A small regression tree is grown on the losses that cross-validation gave for training rows, over
the request fields and what the answer says of itself. Its leaves are the cells. Half of the rows
choose them; what a cell's losses are is to be measured on others, for a cell that was chosen
because its losses were high by chance looks worse than it is (honest trees: Athey and Imbens,
"Recursive partitioning for heterogeneous causal effects", PNAS 113 (2016) 7353-7360).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.tree import DecisionTreeRegressor

from mlops.usecase import SEED

MOST_CELLS = 24
FEWEST_ROWS_OF_A_CELL = 20
LEAST_SHARE_OF_A_CELL = 0.02


def learn_cells(rows: np.ndarray, losses: np.ndarray) -> tuple[dict[str, list[Any]], np.ndarray]:
    """Return a tree as plain lists, and the numbers of the rows that chose it.

    `rows` is (n, columns), `losses` (n,). Node k asks whether column `column[k]` is at most
    `threshold[k]` and goes to node `left[k]`, else `right[k]`; where `column[k]` is -1 it is a
    cell. Node 0 is the root.
    """
    order = np.random.default_rng(SEED).permutation(len(rows))
    choosing = np.sort(order[: len(order) // 2])
    fewest = max(FEWEST_ROWS_OF_A_CELL, int(LEAST_SHARE_OF_A_CELL * len(choosing)))
    tree = DecisionTreeRegressor(
        max_leaf_nodes=MOST_CELLS, min_samples_leaf=fewest, random_state=SEED
    )
    tree.fit(rows[choosing], losses[choosing])
    grown = tree.tree_
    leaf = grown.children_left < 0
    return {
        "column": np.where(leaf, -1, grown.feature).tolist(),
        "threshold": np.where(leaf, 0.0, grown.threshold).tolist(),
        "left": np.where(leaf, -1, grown.children_left).tolist(),
        "right": np.where(leaf, -1, grown.children_right).tolist(),
    }, choosing
