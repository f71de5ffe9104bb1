"""Errors as clients see them: `{"detail": [...]}`, always strict JSON, never a traceback."""

from __future__ import annotations

import math
import re
from typing import Any

import orjson
from pydantic import ValidationError

from mlops.errors import MlopsError
from mlops.usecase import UseCase

LONGEST_INPUT = 200
MOST_ERRORS = 100
NO_INPUT = frozenset(
    ("missing", "json_invalid", "model_type", "too_long", "too_many_names", "too_many_values")
)
RETRY_AFTER_SECONDS = "1"


def invalid(error: ValidationError, use_case: UseCase, body: bytes) -> list[dict[str, Any]]:
    """Describe what pydantic found, each entry naming the field, the value and the limit.

    `loc` is `["body", field]`, in a batch `["body", "instances", index, field]`.
    """
    units = {feature.name: feature.unit for feature in use_case.features}
    found = error.errors(include_url=False, include_context=True)
    answers = [_invalid(item, units, use_case.fields) for item in found[:MOST_ERRORS]]
    if answers[0]["type"] == "json_invalid":
        answers[0]["msg"] += _near(found[0]["ctx"]["error"], body, use_case.fields)
    return answers


def problem(kind: str, message: str, loc: tuple[str | int, ...] = ()) -> list[dict[str, Any]]:
    """Describe one error that is not about a field."""
    return [{"type": kind, "loc": list(loc), "msg": message}]


def from_error(error: MlopsError) -> list[dict[str, Any]]:
    kind = type(error).__name__.removesuffix("Error")
    return problem("".join(f"_{c.lower()}" if c.isupper() else c for c in kind)[1:], str(error))


def internal_error() -> list[dict[str, Any]]:
    return problem("internal_error", "this request met a defect of the server")


def as_json(detail: list[dict[str, Any]]) -> bytes:
    return orjson.dumps({"detail": detail})


def for_path(path: str, detail: list[dict[str, Any]]) -> bytes:
    """The same in the shape that the route's protocol has for errors."""
    if path == "/v2" or path.startswith("/v2/"):
        return orjson.dumps({"error": "; ".join(item["msg"] for item in detail)})
    return as_json(detail)


def _invalid(item: Any, units: dict[str, str], fields: tuple[str, ...]) -> dict[str, Any]:
    # A name may be as long as the body, and hold anything.
    loc = ["body", *(part if isinstance(part, int) else shown(part) for part in item["loc"])]
    kind = item["type"]
    if kind == "float_type" and type(item["input"]) is int:
        kind = "finite_number"  # past the largest double, as pydantic calls it in a short body
    name = str(loc[-1])
    limits = item.get("ctx", {})
    unit = f" {units[name]}" if name in units else ""
    given = shown(item["input"])
    messages = {
        "missing": f"{name} is missing",
        "extra_forbidden": f"{name} is not a field; the fields are {', '.join(fields)}",
        "finite_number": f"{name} must be a finite number, got {given}",
        "float_type": f"{name} must be a number, got {given}",
        "greater_than_equal": f"{name} must be at least {limits.get('ge')}{unit}, got {given}",
        "less_than_equal": f"{name} must be at most {limits.get('le')}{unit}, got {given}",
        "repeated_name": f"{name} is given more than once",
        "too_many_names": "the body has many more names than the fields " + ", ".join(fields),
        "too_short": f"{name} must hold at least {limits.get('min_length')} item, got 0",
        "too_long": f"{name} must hold at most {limits.get('max_length')} items, "
        f"got {limits.get('actual_length')}",
        "list_type": f"{name} must be a list, got {given}",
        "model_type": "must be a JSON object with the fields " + ", ".join(fields),
    }
    answer = {"type": kind, "loc": loc, "msg": messages.get(kind, item["msg"])}
    # The whole body is no help in naming what is missing from it, and may hold anything.
    if kind not in NO_INPUT:
        answer["input"] = given
    return answer


def _near(error: str, body: bytes, fields: tuple[str, ...]) -> str:
    """Name the field at which the JSON breaks, from an error like "… at line 1 column 43"."""
    found = re.search(r"at line (\d+) column (\d+)$", error)
    if found is None:
        return ""
    line, column = int(found[1]), int(found[2])
    *lines, last = body.split(b"\n", line)[:line]
    before = b"\n".join([*lines, last[:column]])
    position, name = max((before.rfind(f'"{name}"'.encode()), name) for name in fields)
    return f", near {name}" if position >= 0 else ""


def shown(value: Any) -> Any:
    """Return a value that strict JSON can hold, short enough to print."""
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, int) and abs(value) < 2**53:
        return value
    text = value if isinstance(value, str) else _text(value)
    text = text.encode("utf-8", "replace").decode()  # lone surrogates cannot be sent
    return text if len(text) <= LONGEST_INPUT else f"{text[:LONGEST_INPUT]}…"


def _text(value: Any) -> str:
    if isinstance(value, int):
        # Not str(): it refuses more than 4,300 digits.
        return f"an integer of {value.bit_length()} bits"
    if isinstance(value, dict | list):
        return f"{'an object' if isinstance(value, dict) else 'a list'} of {len(value)}"
    return type(value).__name__
