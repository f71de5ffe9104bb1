"""What a use case is: one declaration from which everything else follows.

The request schema, the checks on the training data, the pipeline, its exact ONNX export, the
documentation and the log's table are all read from a `UseCase`. It holds no behaviour of its own
beyond looking things up, and imports nothing of ours.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import pandas as pd

SEED = 42
"""Seed of the split, of cross-validation and of every candidate."""

TEST_SHARE = 0.2
FOLDS = 5


@dataclasses.dataclass(frozen=True, slots=True)
class Feature:
    """One field of a request, and the column of the data file that it is learnt from.

    `low` and `high` are hard limits, both allowed: a value outside cannot be true (a latitude of
    91, minus three rooms) and is refused. What training saw is narrower, is learnt, and only warns.
    """

    name: str
    column: str
    unit: str
    low: float
    high: float
    description: str


@dataclasses.dataclass(frozen=True, slots=True)
class Ratio:
    """A derived model input: one field divided by another; a zero denominator counts as one."""

    name: str
    numerator: str
    denominator: str
    unit: str


@dataclasses.dataclass(frozen=True, slots=True)
class Target:
    """What is predicted. `labels` names the classes by their number; empty for a regression."""

    name: str
    column: str
    unit: str
    low: float
    high: float
    labels: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class Rule:
    """What must be true of each row of the data file, beyond the limits of each column.

    `holds` takes a data frame and returns one truth a row; `columns` are those it looks at. `says`
    completes "column, line, value: …".
    """

    columns: tuple[str, ...]
    says: str
    holds: Callable[[pd.DataFrame], pd.Series[bool]]


@dataclasses.dataclass(frozen=True, slots=True)
class Range:
    """Values to search: from `low` to `high`, both included; whole numbers if both are `int`.

    `log` searches each order of magnitude as much as the next.
    """

    low: float
    high: float
    log: bool = False


Search = Mapping[str, Range | tuple[str | float | None, ...]]
"""Where tuning looks: parameters of the estimator, each with a range or a tuple of choices."""


@dataclasses.dataclass(frozen=True, slots=True)
class Candidate:
    """One algorithm that competes for the use case.

    `build(seed)` returns an unfitted scikit-learn estimator. `scaled` puts a `StandardScaler` in
    front of it, inside the pipeline; trees do without. `file` names `models/<file>.pkl`.
    `always_registered` makes every training register a version, whether it wins or not. What has
    no `search` is not tuned.
    """

    name: str
    build: Callable[[int], Any]
    scaled: bool = False
    file: str = ""
    always_registered: bool = False
    search: Search = dataclasses.field(default_factory=dict)

    @property
    def pickle_name(self) -> str:
        return f"{self.file or self.name}.pkl"


@dataclasses.dataclass(frozen=True, slots=True)
class Product:
    """A candidate that is served beside others, under an alias: `/<use case>/models/<alias>`."""

    alias: str
    candidate: str


@dataclasses.dataclass(frozen=True, slots=True)
class Profile:
    """A training for better models that takes longer than the plain one: so it has to be asked for.

    Each of its `products` is trained, sealed, registered and held to the gates. One is to be
    champion, the first unless the setting `CHAMPION_PRODUCT` names another. `says` is a sentence
    for people, `minutes` what the training takes on two cores.
    """

    name: str
    says: str
    minutes: float
    products: tuple[Product, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Budget:
    """What a model may take to be served: megabytes of its graph, and time for one row in it."""

    megabytes: float = 50.0
    microseconds: float = 1_000.0


@dataclasses.dataclass(frozen=True, slots=True)
class Fairness:
    """A slice whose bands are to be treated alike: how far two bands' mean losses may be apart.

    In squared units of the target, or for a classification as a share of wrong classes.
    """

    slice: str
    largest_gap: float


@dataclasses.dataclass(frozen=True, slots=True)
class Coordinates:
    """The two fields that say where a row is, so that errors can be drawn on a map.

    `outline` is a line of (longitude, latitude) in degrees to draw behind them, or empty.
    """

    longitude: str
    latitude: str
    outline: tuple[tuple[float, float], ...] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class Slice:
    """A division of the rows whose quality is looked at apart, such as regions or income bands.

    `bands` gives each band its limits, field by field: low <= value < high. A row is in the first
    band whose limits it keeps, and in `rest` if it keeps none.
    """

    name: str
    description: str
    bands: Mapping[str, Mapping[str, tuple[float, float]]]
    rest: str = "elsewhere"

    def band(self, row: Mapping[str, float]) -> str:
        """Return the band of one row of request fields."""
        for name, limits in self.bands.items():
            if all(low <= row[field] < high for field, (low, high) in limits.items()):
                return name
        return self.rest


@dataclasses.dataclass(frozen=True, slots=True)
class Source:
    """A raw table and where it came from."""

    table: pd.DataFrame
    origin: str


@dataclasses.dataclass(frozen=True, slots=True)
class About:
    """What no figure tells of a use case: sentences for its model card. Each may be left out.

    `row` says what a row is, `data` how the table came about, `intended` and `misuse` what the
    model is for and what not, `fairness` who may be treated unlike others, and why.
    """

    row: str = ""
    data: str = ""
    intended: str = ""
    misuse: str = ""
    fairness: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class Retraining:
    """When a model is trained again by itself, and from what; settings win (`RETRAIN_…`).

    `max_age_days` is the champion's age, `new_rows` the number of rows that no training has learnt
    from, `every_days` the time between two trainings; 0 means that this is no reason. After a
    retraining began, nothing is a reason for `pause_days`. `window_days` leaves out logged rows
    that are older; 0 keeps all. `new_row_weight` is what a row that came counts for, where one of
    the data file counts 1.
    """

    max_age_days: float = 90
    new_rows: int = 1000
    every_days: float = 0
    pause_days: float = 0.5
    window_days: float = 0
    new_row_weight: float = 1


@dataclasses.dataclass(frozen=True, slots=True)
class UseCase:
    """A table to learn from and a service to offer.

    `inputs` lists what the model sees, in order: the name of a field, or a `Ratio` of two.
    `load` returns the raw table in data-file columns. `metric` decides (higher is better).
    `on_demand` are candidates that are trained only when they are named, as `profiles` do.
    `budget` and `fairness` are limits that gates hold a model to.
    `rules` hold in every row. `key` names columns that tell one row from all others, if any do;
    `unique_rows` says that two equal rows are one row twice, not two alike.
    `coordinates` is for rows that lie somewhere on a map. `slices` are looked at apart when truths
    arrive. `derived` are columns of the data file that are ratios of two others: filled in where
    rows come without them. `about` is for the model card.
    """

    name: str
    title: str
    description: str
    model_name: str
    task: Literal["regression", "classification"]
    target: Target
    features: tuple[Feature, ...]
    inputs: tuple[str | Ratio, ...]
    load: Callable[[], Source]
    candidates: tuple[Candidate, ...]
    metric: str
    examples: Mapping[str, Mapping[str, float]]
    on_demand: tuple[Candidate, ...] = ()
    profiles: tuple[Profile, ...] = ()
    budget: Budget = Budget()
    fairness: tuple[Fairness, ...] = ()
    rules: tuple[Rule, ...] = ()
    key: tuple[str, ...] = ()
    unique_rows: bool = False
    coordinates: Coordinates | None = None
    slices: tuple[Slice, ...] = ()
    derived: tuple[Ratio, ...] = ()
    retraining: Retraining = Retraining()
    about: About = About()

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of the request fields, in order."""
        return tuple(feature.name for feature in self.features)

    @property
    def input_names(self) -> tuple[str, ...]:
        """Names of the model's inputs, in order."""
        return tuple(i if isinstance(i, str) else i.name for i in self.inputs)

    @property
    def log_name(self) -> str:
        """Name of the log's folder and of its table."""
        return f"{self.name}logs"

    @property
    def is_classification(self) -> bool:
        return self.task == "classification"

    def candidate(self, name: str) -> Candidate:
        """Return the candidate of that name; `KeyError` if there is none."""
        for candidate in (*self.candidates, *self.on_demand):
            if candidate.name == name:
                return candidate
        raise KeyError(name)

    def trained_in(self, profile: str) -> tuple[Candidate, ...]:
        """Return what a training in that profile fits; without one, the plain candidates."""
        if not profile:
            return self.candidates
        return tuple(self.candidate(one.candidate) for one in self.profile(profile).products)

    def profile(self, name: str) -> Profile:
        """Return the profile of that name; `KeyError` if there is none."""
        for profile in self.profiles:
            if profile.name == name:
                return profile
        raise KeyError(name)

    def product_of(self, training: Mapping[str, Any]) -> str:
        """Return the alias of the product that a bundle's document `training` tells of, or ""."""
        made = training.get("profile"), training.get("candidate")
        for profile in self.profiles:
            for product in profile.products:
                if made == (profile.name, product.candidate):
                    return product.alias
        return ""
