"""Bundles of a trained project that were changed and sealed anew: old ones, and forged ones."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

from test_bundle import resign, rewrite

from mlops.improve.ledger import Ledger


def champions_bundle(home: Path, use_case: str) -> Path:
    with Ledger(home / "models" / "state.db") as ledger:
        return home / "models" / "bundles" / ledger.champion(use_case).bundle


def seal_without(home: Path, use_case: str, *names: str) -> None:
    """Make a champion's bundle one that was sealed before there were these files."""
    path = champions_bundle(home, use_case)
    for name in names:
        (path / name).unlink()
    renamed = resign(path, lambda manifest: [manifest["files"].pop(name) for name in names][:0])
    _registered_as(home, path.name, renamed.name)


def seal_with(home: Path, use_case: str, name: str, content: bytes) -> None:
    """Give a file of a champion's bundle another content."""
    path = champions_bundle(home, use_case)
    _registered_as(home, path.name, rewrite(path, name, content).name)


def _registered_as(home: Path, before: str, after: str) -> None:
    with contextlib.closing(sqlite3.connect(home / "models" / "state.db")) as state:
        for table in ("versions", "champions"):
            columns = [row[1] for row in state.execute(f"PRAGMA table_info({table})")]
            if "bundle" in columns:
                state.execute(f"UPDATE {table} SET bundle = ? WHERE bundle = ?", (after, before))
        state.commit()
