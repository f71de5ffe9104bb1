"""Benchmarks: `make bench`. Ratios within one run, never times to compare across machines."""

import sys
from pathlib import Path

# Benchmarks use what the tests use: servers, traffic, planted models, and the reading of logs.
TESTS = str(Path(__file__).parents[1] / "tests")
if TESTS not in sys.path:
    sys.path.insert(0, TESTS)
