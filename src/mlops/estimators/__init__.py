"""Transformers and estimators of our own, for use cases to build candidates from."""
