"""Iris: the species of a flower from four measurements (Fisher 1936, as scikit-learn ships it)."""

from __future__ import annotations

import math
from typing import Any

from mlops.usecase import About, Candidate, Feature, Range, Slice, Source, Target, UseCase

SPECIES = ("setosa", "versicolor", "virginica")


def load() -> Source:
    """Return Fisher's 150 flowers: four measurements in cm and the name of the species."""
    from sklearn.datasets import load_iris

    iris = load_iris(as_frame=True)
    table = iris.data.set_axis(
        ["sepal_length", "sepal_width", "petal_length", "petal_width"], axis=1
    )
    table["species"] = [SPECIES[number] for number in iris.target]
    return Source(table, "scikit-learn's copy of Fisher 1936")


def logistic_regression(seed: int) -> Any:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(max_iter=200, random_state=seed)


def random_forest(seed: int) -> Any:
    from sklearn.ensemble import RandomForestClassifier

    return RandomForestClassifier(n_estimators=100, random_state=seed)


def linear_discriminant_analysis(seed: int) -> Any:
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    return LinearDiscriminantAnalysis()


def votes(seed: int) -> Any:
    """The mean of three models' probabilities."""
    from sklearn.ensemble import RandomForestClassifier, VotingClassifier

    return VotingClassifier(
        [
            ("logistic", logistic_regression(seed)),
            ("discriminant", linear_discriminant_analysis(seed)),
            ("forest", RandomForestClassifier(n_estimators=20, random_state=seed)),
        ],
        voting="soft",
    )


def _measurement(name: str, description: str) -> Feature:
    return Feature(name, name, "cm", 0.05, 30, description)


IRIS = UseCase(
    name="iris",
    title="Iris",
    description="Species of an iris from the size of its sepals and petals.",
    model_name="IrisClassifierModel",
    task="classification",
    target=Target("predicted_class", "species", "species", low=0, high=2, labels=SPECIES),
    features=(
        _measurement("sepal_length", "Length of the sepal"),
        _measurement("sepal_width", "Width of the sepal"),
        _measurement("petal_length", "Length of the petal"),
        _measurement("petal_width", "Width of the petal"),
    ),
    inputs=("sepal_length", "sepal_width", "petal_length", "petal_width"),
    load=load,
    candidates=(
        Candidate(
            "LogisticRegression",
            logistic_regression,
            scaled=True,
            search={"C": Range(0.01, 100.0, log=True)},
        ),
        Candidate(
            "RandomForest",
            random_forest,
            file="RandomForestClassifier",
            always_registered=True,
            search={"max_depth": Range(2, 8), "min_samples_leaf": Range(1, 10)},
        ),
        Candidate(
            "LinearDiscriminantAnalysis",
            linear_discriminant_analysis,
            search={"solver": ("lsqr",), "shrinkage": Range(0.0, 0.9)},
        ),
    ),
    on_demand=(Candidate("Votes", votes, scaled=True),),
    metric="accuracy",
    examples={
        "setosa": {
            "sepal_length": 5.1,
            "sepal_width": 3.5,
            "petal_length": 1.4,
            "petal_width": 0.2,
        },
        "virginica": {
            "sepal_length": 6.3,
            "sepal_width": 3.3,
            "petal_length": 6.0,
            "petal_width": 2.5,
        },
    },
    about=About(
        row="One flower.",
        data="150 irises, 50 of each of three species, collected and measured by E. Anderson, "
        "published by R. A. Fisher (Annals of Eugenics 7, 1936).",
        intended="To learn and to show how a classifier is trained, served and watched.",
        misuse="Any other species: each flower is given one of the three.",
    ),
    slices=(
        Slice(
            "petal",
            "petals below 2.5 cm, below 5 cm, and longer",
            {
                "short": {"petal_length": (-math.inf, 2.5)},
                "middle": {"petal_length": (2.5, 5.0)},
                "long": {"petal_length": (5.0, math.inf)},
            },
        ),
    ),
)
