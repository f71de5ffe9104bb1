"""The score card: what may fail in production, a harness for each, and what it found.

A harness is a function `(world, size) -> Found`; tests and `make bench-reliability` call the same
one at different sizes. Each was seen to find a planted fault (`tests/test_reliability.py`).
"""
