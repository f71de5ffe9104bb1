"""California Housing: the median value of the houses in a block group of the 1990 census.

Source: R. K. Pace and R. Barry, "Sparse Spatial Autoregressions", Statistics and Probability
Letters 33 (1997) 291-297, StatLib. `data/california_housing_1990.csv` is the raw census table:
20,640 block groups with whole counts. scikit-learn publishes the same table with the counts
turned into averages (`fetch_california_housing`); `docs/data.md` tells how one was rebuilt from
the other, row by row, and how to check it.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import math
from importlib import resources
from typing import Any

from mlops.errors import DataError
from mlops.usecase import (
    About,
    Candidate,
    Coordinates,
    Fairness,
    Feature,
    Product,
    Profile,
    Range,
    Ratio,
    Rule,
    Slice,
    Source,
    Target,
    UseCase,
)
from mlops.usecases.accurate_housing import COAST, accurate, fast

RAW_TABLE = "california_housing_1990.csv"
RAW_TABLE_SHA256 = "8a5396dba2c96ff32351fff11af69e8bfe9c08e572cafb38591f50daa75e368c"

CALIFORNIA = (
    # Oregon's border, Nevada's, the Colorado river, Mexico's border
    *((-124.21, 42.00), (-120.00, 42.00), (-120.00, 39.00), (-114.63, 35.00), (-114.57, 34.83)),
    *((-114.38, 34.45), (-114.14, 34.30), (-114.42, 34.08), (-114.53, 33.93), (-114.50, 33.70)),
    *((-114.53, 33.60), (-114.71, 33.40), (-114.68, 33.23), (-114.46, 32.91), (-114.53, 32.76)),
    (-114.72, 32.72),
    *COAST,
)
"""The state's outline as (longitude, latitude), coarse: to recognise, not to measure by."""

log = logging.getLogger(__name__)


def load() -> Source:
    """Read the raw census table and give it scikit-learn's columns, the counts kept beside them.

    Columns: MedInc (10,000 dollars), HouseAge (years), AveRooms, AveBedrms, AveOccup (each per
    household), Population, Latitude, Longitude (degrees), MedHouseVal (100,000 dollars), and
    total_rooms, total_bedrooms, households (counts).
    """
    import io

    import pandas as pd

    raw_bytes = (resources.files("mlops.usecases") / "data" / RAW_TABLE).read_bytes()
    found = hashlib.sha256(raw_bytes).hexdigest()
    if found != RAW_TABLE_SHA256:
        raise DataError(
            f"{RAW_TABLE} is not the vendored table (SHA-256 {found[:12]}…, "
            f"expected {RAW_TABLE_SHA256[:12]}…)",
            "restore it with: git checkout -- src/mlops/usecases/data",
        )
    raw = pd.read_csv(io.BytesIO(raw_bytes))
    households = raw["households"]
    table = pd.DataFrame(
        {
            "MedInc": raw["median_income"],
            "HouseAge": raw["housing_median_age"].astype(float),
            "AveRooms": raw["total_rooms"] / households,
            "AveBedrms": raw["total_bedrooms"] / households,
            "Population": raw["population"].astype(float),
            "AveOccup": raw["population"] / households,
            "Latitude": raw["latitude"],
            "Longitude": raw["longitude"],
            "MedHouseVal": raw["median_house_value"] / 100_000,
            "total_rooms": raw["total_rooms"],
            "total_bedrooms": raw["total_bedrooms"],
            "households": households,
        }
    )
    return Source(table, f"vendored 1990 census table (Pace and Barry 1997), SHA-256 {found[:12]}…")


def linear_regression(seed: int) -> Any:
    from sklearn.linear_model import LinearRegression

    return LinearRegression()


def decision_tree(seed: int) -> Any:
    from sklearn.tree import DecisionTreeRegressor

    return DecisionTreeRegressor(max_depth=5, random_state=seed)


def random_forest(seed: int) -> Any:
    """100 trees on a third of the inputs at each split (Breiman's choice for a regression)."""
    from sklearn.ensemble import RandomForestRegressor

    return RandomForestRegressor(
        n_estimators=100, max_features=1 / 3, min_samples_leaf=5, n_jobs=2, random_state=seed
    )


def gradient_boosting(seed: int) -> Any:
    """LightGBM at its defaults; scikit-learn's own boosting where LightGBM cannot load.

    One thread: this table takes it 0.2 s. Two wait for each other by spinning, which on a machine
    with other work made that 4 to 14 s.
    """
    regressor = _lightgbm()
    if regressor is None:
        from sklearn.ensemble import HistGradientBoostingRegressor

        return HistGradientBoostingRegressor(random_state=seed)
    return regressor(
        random_state=seed, deterministic=True, force_row_wise=True, n_jobs=1, verbose=-1
    )


def blend(seed: int) -> Any:
    """Three parts boosting, one part forest."""
    from sklearn.ensemble import VotingRegressor

    return VotingRegressor(_members(seed), weights=[3, 1])


def stack(seed: int) -> Any:
    """Boosting and forest, weighed by least squares on what they say of rows they have not seen."""
    from sklearn.ensemble import StackingRegressor
    from sklearn.linear_model import LinearRegression

    return StackingRegressor(_members(seed), LinearRegression(), cv=5)


def _members(seed: int) -> list[tuple[str, Any]]:
    return [("boosting", gradient_boosting(seed)), ("forest", random_forest(seed))]


@functools.cache
def _lightgbm() -> Any:
    """Return LightGBM's regressor; None, and one line that says so, if it cannot be loaded."""
    try:
        from lightgbm import LGBMRegressor
    except (ImportError, OSError) as error:  # OSError: libgomp is missing
        log.warning(
            "LightGBM cannot be loaded (%s): using HistGradientBoostingRegressor instead. "
            "On Debian, libgomp1 is what it needs.",
            error,
        )
        return None
    return LGBMRegressor


HOUSING = UseCase(
    name="housing",
    title="California Housing",
    description="Median value of the houses of a census block group (California, 1990).",
    model_name="HousingPriceModel",
    task="regression",
    target=Target("predicted_price", "MedHouseVal", "100,000 dollars", low=0.0, high=5.00001),
    features=(
        Feature("total_rooms", "total_rooms", "rooms", 1, 1e6, "Rooms in the block group"),
        Feature("total_bedrooms", "total_bedrooms", "rooms", 0, 1e6, "Bedrooms in the block group"),
        Feature("population", "Population", "people", 1, 1e6, "People in the block group"),
        Feature("households", "households", "households", 1, 1e6, "Households in the block group"),
        Feature("median_income", "MedInc", "10,000 dollars", 0, 100, "Median household income"),
        Feature("housing_median_age", "HouseAge", "years", 0, 200, "Median age of the houses"),
        Feature("latitude", "Latitude", "degrees north", 32, 42.5, "Latitude, in California"),
        Feature("longitude", "Longitude", "degrees east", -125, -114, "Longitude, in California"),
    ),
    inputs=(
        "median_income",
        "housing_median_age",
        Ratio("rooms_per_household", "total_rooms", "households", "rooms a household"),
        Ratio("bedrooms_per_household", "total_bedrooms", "households", "bedrooms a household"),
        "population",
        Ratio("people_per_household", "population", "households", "people a household"),
        "latitude",
        "longitude",
    ),
    load=load,
    candidates=(
        Candidate("LinearRegression", linear_regression, scaled=True),
        Candidate(
            "DecisionTree",
            decision_tree,
            search={"max_depth": Range(3, 20), "min_samples_leaf": Range(2, 100, log=True)},
        ),
        Candidate(
            "RandomForest",
            random_forest,
            search={"max_features": Range(0.2, 0.8), "min_samples_leaf": Range(2, 20, log=True)},
        ),
        Candidate(
            "GradientBoosting",
            gradient_boosting,
            # Twice the trees or leaves would score a little better, and answer half as fast.
            search={
                "n_estimators": Range(100, 600),
                "learning_rate": Range(0.02, 0.3, log=True),
                "num_leaves": Range(15, 63, log=True),
                "min_child_samples": Range(5, 100, log=True),
                "colsample_bytree": Range(0.5, 1.0),
                "reg_lambda": Range(1e-3, 10.0, log=True),
            },
        ),
    ),
    # Slower to train and to answer than boosting alone, and no better: see decision 12.
    # The last two are the products of the profile below.
    on_demand=(
        Candidate("Blend", blend),
        Candidate("Stack", stack),
        Candidate("Accurate", accurate),
        Candidate("Fast", fast),
    ),
    profiles=(
        Profile(
            "accurate",
            "the most accurate model, and one that answers in microseconds",
            minutes=15,
            products=(Product("accurate", "Accurate"), Product("fast", "Fast")),
        ),
    ),
    metric="r2_score",
    fairness=(Fairness("income", largest_gap=0.4),),
    coordinates=Coordinates("longitude", "latitude", CALIFORNIA),
    examples={
        "a block group in Berkeley": {
            "total_rooms": 880.0,
            "total_bedrooms": 129.0,
            "population": 322.0,
            "households": 126.0,
            "median_income": 8.3252,
            "housing_median_age": 41.0,
            "latitude": 37.88,
            "longitude": -122.23,
        },
        "8 rooms for 500 households: answered, with a warning": {
            "total_rooms": 8.0,
            "total_bedrooms": 3.0,
            "population": 1000.0,
            "households": 500.0,
            "median_income": 3.5,
            "housing_median_age": 35.0,
            "latitude": 37.7749,
            "longitude": -122.4194,
        },
    },
    rules=(
        Rule(
            ("total_bedrooms", "total_rooms"),
            "must be at most total_rooms: a bedroom is a room",
            lambda table: table["total_bedrooms"] <= table["total_rooms"],
        ),
    ),
    unique_rows=True,
    slices=(
        Slice(
            "region",
            "where in California",
            {
                "bay area": {"latitude": (36.9, 38.6), "longitude": (-123.6, -121.4)},
                "los angeles": {"latitude": (33.5, 34.5), "longitude": (-119, -117.2)},
                "north": {"latitude": (36.9, math.inf)},
                "south": {"latitude": (-math.inf, 36.9)},
            },
        ),
        Slice(
            "income",
            "median household income: below 25,000 dollars, below 50,000, and above",
            {
                "low": {"median_income": (-math.inf, 2.5)},
                "middle": {"median_income": (2.5, 5.0)},
                "high": {"median_income": (5.0, math.inf)},
            },
        ),
    ),
    about=About(
        row="A block group of the census of 1990 in California: the smallest area that the Census "
        "Bureau publishes sample data of, with 600 to 3,000 people as a rule.",
        data="Counts and medians of 20,640 block groups, put together by R. K. Pace and R. Barry "
        '("Sparse Spatial Autoregressions", Statistics and Probability Letters 33, 1997). Groups '
        "that reported zero for any of these were left out. Incomes and values are what people "
        "stated; medians of values are cut off at 500,000 dollars, of incomes at 150,000, and of "
        "ages at 52 years.",
        intended="To learn and to show how a model is trained, served and watched; to compare "
        "methods; to estimate what houses of a block group were worth in 1990.",
        misuse="Prices of today, of one house, or of another state. Loans, insurance, taxes, rents "
        "or any decision about people: income and place stand for who lives there.",
        fairness="The table says nothing of origin, language or age of people, and a model without "
        "them is not fair for that: income and place go along with them, in 1990 after decades of "
        "redlining. Errors in dollars are larger where houses are dear, and prices beyond the cut "
        "are always too low.",
    ),
    derived=(
        Ratio("AveRooms", "total_rooms", "households", "rooms a household"),
        Ratio("AveBedrms", "total_bedrooms", "households", "bedrooms a household"),
        Ratio("AveOccup", "Population", "households", "people a household"),
    ),
)
