"""Build: a raw table becomes a fitted, measured pipeline."""
