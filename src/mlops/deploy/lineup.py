"""Who answers: the champion, and beside it those that answer by name, for a share, or in need.

A `Lineup` is never changed, only replaced as a whole, so no request meets half of a change. Each
request is answered by one model, all its rows, and each row says by which.

Where a model raises, or gives what is not finite, another answers those requests in its place: the
champion for any other model, and for the champion the fallback. The row then has the version that
answered, and a warning.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import orjson

from mlops.deploy.predictor import Champion, NotFiniteError
from mlops.deploy.split import arm_of
from mlops.records import Prediction, Submission, one_each, quickly

OnFailure = Callable[[int, BaseException, int], None]
"""Told of a run of a model that failed: its version, the error, and how many rows it was over."""


class _Seen(NamedTuple):
    failed: OnFailure
    runs: Counter[int]


class Request(NamedTuple):
    """What is asked: rows of field values, (n, fields), each also as JSON text.

    `model` is the one that is to answer; None for the champion of the moment. `finish` is called
    with the logged rows, or with the error instead.
    """

    rows: Sequence[Sequence[float]] | np.ndarray
    inputs: Sequence[str]
    key: str | None
    client: str | None
    model: Champion | None
    finish: Callable[[tuple[Prediction, ...] | BaseException], None]


as_request = quickly(Request)


class Split(NamedTuple):
    """An A/B: the challenger answers this share of the clients, and `salt` says which."""

    challenger: Champion
    share: float
    salt: str

    def model_for(self, client: str) -> Champion | None:
        """Return the challenger if this client is its own, else None; the same in each process."""
        weights = {"champion": 1 - self.share, "challenger": self.share}
        return self.challenger if arm_of(client, weights, self.salt) == "challenger" else None


@dataclasses.dataclass(frozen=True, slots=True)
class Lineup:
    """All models that are open. `split` is None unless an A/B is under way.

    `fallback` is whoever the alias of that name means, else the champion before.
    """

    champion: Champion
    challenger: Champion | None = None
    split: Split | None = None
    aliases: Mapping[str, Champion] = dataclasses.field(default_factory=dict)
    fallback: Champion | None = None

    def named(self) -> dict[str, Champion]:
        """Return who answers by name: those with a role, the aliases, then all by number."""
        roles = {
            "champion": self.champion,
            "challenger": self.challenger,
            "fallback": self.fallback,
            **self.aliases,
        }
        found = {name: model for name, model in roles.items() if model is not None}
        return found | {str(model.version): model for model in found.values()}

    def instead_of(self, model: Champion) -> Champion | None:
        """Return who answers where `model` failed."""
        other = self.champion if model is not self.champion else self.fallback
        return None if other is model else other

    def answer(
        self, requests: Sequence[Request], failed: OnFailure, runs: Counter[int]
    ) -> list[Submission | Exception]:
        """Run each model once over the rows of its requests; return for each what is to be logged.

        In its place stands the error of a model that failed and has nobody to answer instead.
        `runs` counts, by version, those runs that did not fail.
        """
        seen = _Seen(failed, runs)
        if not any(one.model is not None for one in requests):
            return self._answer_by(self.champion, requests, seen)
        places: dict[Champion, list[int]] = {}
        for place, one in enumerate(requests):
            places.setdefault(one.model or self.champion, []).append(place)
        found: dict[int, Submission | Exception] = {}
        for model, its in places.items():
            answers = self._answer_by(model, [requests[place] for place in its], seen)
            found.update(zip(its, answers, strict=True))
        return [found[place] for place in range(len(requests))]

    def _answer_by(
        self, model: Champion, requests: Sequence[Request], seen: _Seen
    ) -> list[Submission | Exception]:
        try:
            submissions = _submissions(model, requests)
        except NotFiniteError as error:
            good = _divide(error.predictions, requests)
            ends = itertools.accumulate(len(one.rows) for one in requests)
            starts = (end - len(one.rows) for end, one in zip(ends, requests, strict=True))
            bad = [
                place
                for place, (start, one) in enumerate(zip(starts, requests, strict=True))
                if any(start <= row < start + len(one.rows) for row in error.rows)
            ]
            answers: list[Submission | Exception] = [*good]
            instead = self._answer_instead(model, [requests[place] for place in bad], error, seen)
            for place, answer in zip(bad, instead, strict=True):
                answers[place] = answer
            return answers
        except Exception as error:  # noqa: BLE001  # handed to whoever asked, unless another answers
            return self._answer_instead(model, requests, error, seen)
        seen.runs[model.version] += 1
        return [*submissions]

    def _answer_instead(
        self, model: Champion, requests: Sequence[Request], error: Exception, seen: _Seen
    ) -> list[Submission | Exception]:
        seen.failed(model.version, error, sum(len(one.rows) for one in requests))
        other = self.instead_of(model)
        if other is None:
            return [error] * len(requests)
        try:
            submissions = _submissions(other, requests)
        except Exception as again:  # noqa: BLE001  # the first error is the one to show
            seen.failed(other.version, again, sum(len(one.rows) for one in requests))
            return [error] * len(requests)
        seen.runs[other.version] += 1
        says = f"version {model.version} could not answer this: version {other.version} did"
        return [
            one._replace(rows=tuple(_warned(row, says) for row in one.rows)) for one in submissions
        ]


def _submissions(model: Champion, requests: Sequence[Request]) -> list[Submission]:
    each, inputs, _, clients, *_ = zip(*requests, strict=True)
    texts = list(itertools.chain.from_iterable(inputs))
    rows: Any  # a matrix, if one is there already
    if np.ndarray in map(type, each):
        rows = np.concatenate(each)
    else:
        rows = list(itertools.chain.from_iterable(each))
    if len(texts) > len(requests):
        clients = tuple(
            itertools.chain.from_iterable(map(itertools.repeat, clients, map(len, inputs)))
        )
    return _divide(model.predict(rows, texts, clients), requests)


def _divide(predictions: Sequence[Prediction], requests: Sequence[Request]) -> list[Submission]:
    """Hand each request its own."""
    if len(predictions) == len(requests):  # one each: half of the time
        return one_each(predictions, [one.key for one in requests])
    submissions = []
    start = 0
    for one in requests:
        end = start + len(one.rows)
        submissions.append(Submission(tuple(predictions[start:end]), one.key))
        start = end
    return submissions


def _warned(row: Prediction, says: str) -> Prediction:
    texts = orjson.loads(row.warnings) if row.warnings else []
    return row._replace(warnings=orjson.dumps([*texts, says]).decode())
