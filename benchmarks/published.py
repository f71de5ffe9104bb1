"""Figures that others published for California Housing. None of them was run here.

RMSE in 100,000 dollars, and R2. On the research split R2 follows from the variance of its test
targets, 1.30395.
"""

from __future__ import annotations

import dataclasses

VARIANCE = 1.30395
"""Of the test targets of the research split."""


@dataclasses.dataclass(frozen=True, slots=True)
class Anchor:
    """A published model: its RMSE on the research split, or RMSE and R2 on seed 42."""

    model: str
    origin: str
    research: float | None = None
    own: tuple[float, float] | None = None

    def cell(self, split: str) -> str:
        """Return what it has for a split, "" if nothing is published."""
        if split == "research" and self.research is not None:
            return f"{self.research:.4f} ({1 - self.research**2 / VARIANCE:.4f})"
        if split == "42" and self.own is not None:
            return f"{self.own[0]:.4f} ({self.own[1]:.4f})"
        return ""


_PUBLISHED = "published, not run here"
_POINT = "reference point, untuned, not run here"

ANCHORS = (
    Anchor("TabPFN v2, fine-tuned, 5 models", f"Rubachev et al. 2025, {_PUBLISHED}", 0.3789),
    Anchor("TabR, 5 models", f"Gorishniy et al. 2024, {_PUBLISHED}", 0.3914),
    Anchor("TabM", f"Gorishniy et al. 2025, {_PUBLISHED}", 0.4244),
    Anchor("CatBoost, tuned, 5 models", _PUBLISHED, 0.4265),
    Anchor("XGBoost, tuned", _PUBLISHED, 0.4316),
    Anchor("LightGBM, tuned", _PUBLISHED, 0.4339),
    Anchor("best published pair of RMSE and R²", _PUBLISHED, own=(0.4548, 0.8422)),
    Anchor("linear regression", _PUBLISHED, own=(0.7456, 0.5758)),
    Anchor("LightGBM on rotated coordinates, distances, ratios", _POINT, 0.4008, (0.4023, 0.8765)),
    Anchor("… with targets of neighbours", _POINT, 0.3961, (0.3969, 0.8798)),
    Anchor("… averaged with CatBoost", _POINT, 0.3931, (0.3929, 0.8822)),
)
