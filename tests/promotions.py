"""A copy of the trained project in which versions are planted and promoted."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mlops.improve.gates import Verdict, not_worse_than_champion
from mlops.improve.ledger import Ledger, Version
from mlops.loop import promote as promoting
from mlops.loop.gates import Judged, gates
from mlops.loop.promote import Promotion, promote
from mlops.package.bundle import seal
from mlops.settings import Settings, read_settings


@dataclasses.dataclass
class World:
    """A copy of the trained project; promotions in it are mirrored into a list, not to MLflow."""

    settings: Settings
    mirrored: list[tuple[str, int]]

    def promote(self, name: str, *arguments: Any, **options: Any) -> Promotion:
        return promote(name, *arguments, settings=self.settings, **options)

    def gates(self, name: str, number: int) -> Judged:
        return gates(name, number, settings=self.settings)

    def champion(self, name: str) -> int:
        with Ledger(self.settings.state_database) as ledger:
            return ledger.champion(name).version

    def decisions(self, name: str) -> list[Any]:
        with Ledger(self.settings.state_database) as ledger:
            return ledger.decisions(name)

    def bundle(self, name: str, number: int) -> Path:
        with Ledger(self.settings.state_database) as ledger:
            return self.settings.bundles / ledger.version(name, number).bundle

    def register(self, name: str, change: Callable[[dict[str, Any]], Any]) -> Version:
        """Seal the champion's bundle anew, with documents changed, as the newest version."""
        path = self.bundle(name, self.champion(name))
        documents = {
            document: json.loads((path / f"{document}.json").read_text())
            for document in ("signature", "reference", "golden", "metrics", "training")
        }
        change(documents)
        model = documents.pop("model", (path / "model.onnx").read_bytes())
        sealed = seal(
            self.settings.bundles,
            model=model,
            documents=documents,
            pipeline=b"",
            provenance={},
        )
        with Ledger(self.settings.state_database) as ledger:
            number = ledger.versions(name)[-1].version + 1
            version = Version(name, number, sealed, "Planted", "run", "2026-01-01")
            ledger.register(version)
        return version


def world_in(home: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    mirrored: list[tuple[str, int]] = []
    monkeypatch.setattr(
        promoting, "mirror_champion", lambda _, model, version: mirrored.append((model, version))
    )
    return World(read_settings(MLOPS_HOME=home), mirrored)


def asked(result: Promotion) -> Verdict:
    """What was said when both were held against each other."""
    (verdict,) = [v for v in result.verdicts if v.gate == not_worse_than_champion.NAME]
    return verdict


def refusing(decision: Any) -> list[str]:
    return [v["gate"] for v in decision.evidence if v["outcome"] == "fail"]


def no_better_than_the_baseline(documents: dict[str, Any]) -> None:
    documents["metrics"]["scores"]["r2_score"] = -0.5


def equal(documents: dict[str, Any]) -> None:
    documents["training"]["candidate"] = "Planted"
