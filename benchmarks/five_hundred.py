"""The model that serving is measured with: 500 boosted trees, trained and promoted like any other.

python -m benchmarks.five_hundred HOME
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

TREES = 500


def build(seed: int) -> Any:
    from mlops.usecases.housing import gradient_boosting

    return gradient_boosting(seed).set_params(n_estimators=TREES)


def main() -> None:
    """Train and promote it as the housing champion of a home folder."""
    from mlops.loop.promote import promote
    from mlops.loop.train import train
    from mlops.settings import read_settings
    from mlops.usecase import Candidate
    from mlops.usecases import USE_CASES
    from mlops.usecases.housing import HOUSING

    candidate = Candidate(f"GradientBoosting{TREES}", build)
    USE_CASES["housing"] = dataclasses.replace(HOUSING, candidates=(candidate,))
    settings = read_settings(MLOPS_HOME=Path(sys.argv[1]))
    [version] = train("housing", settings=settings).registered
    promote("housing", version.version, settings=settings)


if __name__ == "__main__":
    main()
