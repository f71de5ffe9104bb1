"""Improve: who is champion, and what a model must show to become it."""
