"""Feedback over HTTP: actual values for prediction ids, one or many.

Each item stands for itself: what is right is attached whatever its neighbours are, and every other
item is named, with the reason. Sending it all again changes nothing, so a client that got no
answer just sends again.

    200   every item is attached, now or before
    404   the ids left over are not in the log
    409   an item contradicts what is attached, which stays
    422   an item cannot be read, or its value cannot be true; or nothing can be read: none counts

The status is the gravest of what is left over, the last of these first.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from mlops.deploy import problems
from mlops.records import Attached
from mlops.usecase import UseCase

LARGEST_BATCH = 10_000
ID = "[!-~]{1,100}"
ITEM = ("prediction_id", "actual")


class Takes(Protocol):
    """What feedback needs of a use case's service. Both raise `MlopsError` without a log."""

    use_case: UseCase

    def known(self, prediction_ids: Sequence[str]) -> set[str]: ...
    def attach(self, pairs: Sequence[tuple[str, float | str]]) -> Attached: ...


class Feedback(NamedTuple):
    """An answer: its status, what it says, and how many items were sent."""

    status: int
    says: dict[str, Any]
    items: int = 0


class _RefusedError(Exception):
    """Why nothing of a body, or one item, can be taken: `detail`, in the shape of errors."""

    def __init__(self, kind: str, says: str, loc: tuple[str | int, ...]) -> None:
        super().__init__(says)
        self.detail = problems.problem(kind, says, loc)


class _Repeated(dict[str, Any]):
    """A JSON object that gave a name twice: readers differ in which value they would take."""


def actual_value(use_case: UseCase, sent: Any) -> float | str:
    """Return an actual value as it is kept: a number, or of a classification the label.

    A class may be sent as its label or its number. Raises `ValueError`, which says what may come.
    """
    target = use_case.target
    is_number = isinstance(sent, int | float) and not isinstance(sent, bool)
    if target.labels:
        if isinstance(sent, str) and sent in target.labels:
            return sent
        if is_number and sent in range(len(target.labels)):
            return target.labels[int(sent)]
        numbers = f"or its number, 0 to {len(target.labels) - 1}"
        raise ValueError(f"must be one of {', '.join(target.labels)}, {numbers}")
    if not is_number or not target.low <= sent <= target.high:
        limits = f"from {target.low:g} to {target.high:g} {target.unit}"
        raise ValueError(f"must be a number {limits}")
    return float(sent)


async def take(services: Sequence[Takes], body: bytes) -> Feedback:
    """Attach what a body holds, each item to the prediction of the service that made it."""
    try:
        items, where = _items(body)
    except _RefusedError as refused:
        return Feedback(422, {"detail": refused.detail})
    left: list[tuple[int, int, list[dict[str, Any]]]] = []  # place, status, detail
    read: list[tuple[int, str, Any]] = []
    for place, item in enumerate(items):
        try:
            read.append((place, *_read(item, where(place))))
        except _RefusedError as refused:
            left.append((place, 422, refused.detail))
    answer: dict[str, Any] = {"attached": 0, "already": 0, "unknown": [], "conflicts": []}
    for service in services:
        known = await asyncio.to_thread(service.known, [one for _, one, _ in read])
        mine = [one for one in read if one[1] in known]
        read = [one for one in read if one[1] not in known]
        await _attach(service, mine, where, answer, left)
    for place, prediction_id, _ in read:
        answer["unknown"].append(prediction_id)
        left.append((place, 404, _unknown(where(place))))
    if not left:
        return Feedback(200, answer, len(items))
    left.sort(key=lambda one: one[0])
    detail = [entry for _, _, details in left for entry in details]
    return Feedback(max(status for _, status, _ in left), {**answer, "detail": detail}, len(items))


async def _attach(
    service: Takes,
    items: Sequence[tuple[int, str, Any]],
    where: Callable[[int], tuple[str | int, ...]],
    answer: dict[str, Any],
    left: list[tuple[int, int, list[dict[str, Any]]]],
) -> None:
    pairs, places = [], []
    for place, prediction_id, sent in items:
        try:
            pairs.append((prediction_id, actual_value(service.use_case, sent)))
            places.append(place)
        except ValueError as error:
            says = f"actual {error}, got {problems.shown(sent)!r}"
            left.append((place, 422, problems.problem("actual", says, (*where(place), "actual"))))
    if not pairs:
        return
    attached = await asyncio.to_thread(service.attach, pairs)
    answer["attached"] += attached.attached
    answer["already"] += attached.already
    answer["unknown"] += attached.unknown  # deleted in this moment
    answer["conflicts"] += [conflict._asdict() for conflict in attached.conflicts]
    contradicted = {(one.prediction_id, one.sent): one for one in attached.conflicts}
    gone = set(attached.unknown)
    for place, pair in zip(places, pairs, strict=True):
        if pair[0] in gone:
            left.append((place, 404, _unknown(where(place))))
        elif conflict := contradicted.get(pair):
            says = f"{conflict.attached!r} is attached to this prediction, and stays"
            left.append((place, 409, problems.problem("conflict", says, (*where(place), "actual"))))


def _items(body: bytes) -> tuple[list[Any], Callable[[int], tuple[str | int, ...]]]:
    """Return the items of a body, and a function that says where one stands in it."""
    try:
        found = json.loads(body, object_pairs_hook=_once, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise _RefusedError("json_invalid", f"Invalid JSON: {error}", ("body",)) from None
    if not isinstance(found, dict):
        raise _RefusedError("model_type", "must be a JSON object", ("body",))
    if "items" not in found:
        return [found], lambda place: ("body",)
    items = found["items"]
    if isinstance(found, _Repeated) or set(found) != {"items"} or not isinstance(items, list):
        raise _RefusedError("items", "must hold one list, items, and nothing else", ("body",))
    if not 1 <= len(items) <= LARGEST_BATCH:
        says = f"items must hold 1 to {LARGEST_BATCH:,} items, got {len(items):,}"
        raise _RefusedError("too_short" if not items else "too_long", says, ("body", "items"))
    return items, lambda place: ("body", "items", place)


def _read(item: Any, loc: tuple[str | int, ...]) -> tuple[str, Any]:
    """Return the id and the value of one item."""
    if not isinstance(item, dict):
        raise _RefusedError("model_type", f"must be a JSON object with {' and '.join(ITEM)}", loc)
    if isinstance(item, _Repeated):
        raise _RefusedError("repeated_name", "gives a name more than once", loc)
    for name in ITEM:
        if name not in item:
            raise _RefusedError("missing", f"{name} is missing", (*loc, name))
    for name in item:
        if name not in ITEM:
            says = f"{problems.shown(name)} is not a field; the fields are {', '.join(ITEM)}"
            raise _RefusedError("extra_forbidden", says, loc)
    prediction_id = item["prediction_id"]
    if not isinstance(prediction_id, str) or not re.fullmatch(ID, prediction_id):
        says = "prediction_id must be a text of 1 to 100 letters, digits and signs of ASCII"
        raise _RefusedError("string_type", says, (*loc, "prediction_id"))
    if not isinstance(item["actual"], str | int | float) or isinstance(item["actual"], bool):
        raise _RefusedError("actual", "actual must be a number or a label", (*loc, "actual"))
    return prediction_id, item["actual"]


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    return found if len(found) == len(pairs) else _Repeated(found)


def _no_number(constant: str) -> float:
    raise ValueError(f"{constant} is not JSON")


def _unknown(loc: tuple[str | int, ...]) -> list[dict[str, Any]]:
    says = "no prediction with this id is in the log: it was never made here, or was deleted since"
    return problems.problem("unknown", says, (*loc, "prediction_id"))
