"""Can every client go on as it is?

What was a valid request must stay one, and mean the same, and so must the answer: the same fields
with the same units, no limit narrower, the same target with the same unit and labels. Held against
the champion's sealed signature, and without one against what the use case declares.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mlops.improve.gates.evidence import Evidence, Verdict

NAME = "clients can go on"
UNKNOWN_BLOCKS = True
"""It can always tell."""


def check(evidence: Evidence) -> Verdict:
    against, other = "the declaration", evidence.declared
    if evidence.champion_signature is not None:
        against, other = evidence.champion, evidence.champion_signature
    broken = breaks(other, evidence.signature)
    fields = len(evidence.signature["fields"])
    return Verdict(
        NAME,
        "fail" if broken else "pass",
        "; ".join(broken) if broken else f"{fields} fields and the target as {against} has them",
        {"fields": fields, "broken": len(broken)},
    )


def breaks(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Return what a client of `before` would stumble over, one line each."""
    found = []
    old = {field["name"]: field for field in before["fields"]}
    new = {field["name"]: field for field in after["fields"]}
    found += [f"the field {name} is gone" for name in old.keys() - new.keys()]
    found += [f"the field {name} is new, and required" for name in new.keys() - old.keys()]
    for name in (name for name in old if name in new):
        was, now = old[name], new[name]
        if was["unit"] != now["unit"]:
            found.append(f"{name} is in {now['unit']}, was in {was['unit']}")
        if now["low"] > was["low"] or now["high"] < was["high"]:
            limits = f"{now['low']:g} to {now['high']:g}, was {was['low']:g} to {was['high']:g}"
            found.append(f"{name} is narrower: {limits}")
    for part in ("name", "unit", "labels"):
        was, now = (list(one["target"][part]) for one in (before, after))
        if was != now:
            shown = [", ".join(v) if part == "labels" else "".join(v) for v in (now, was)]
            found.append(f"the target's {part} is {shown[0]}, was {shown[1]}")
    return found
