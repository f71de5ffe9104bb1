"""The score card: what may fail in production, a harness for each, and what it found.

A harness is a function `(world, size) -> Found`; tests and `make bench-reliability` call the same
one at different sizes. Each was seen to find a planted fault (`tests/test_reliability.py`).
"""

import sys
from pathlib import Path

# The harnesses use what the tests use: servers, traffic, and the reading of logs.
TESTS = str(Path(__file__).parents[2] / "tests")
if TESTS not in sys.path:
    sys.path.insert(0, TESTS)
