"""Is what would serve what was measured?

Two halves: the proof that was made when the bundle was sealed, on every row; and the score, which
the graph that would serve must reach now on the same test rows.
"""

from __future__ import annotations

from mlops.improve.gates.evidence import Evidence, Verdict

NAME = "serves what was measured"
UNKNOWN_BLOCKS = False
"""It cannot tell when the data have changed since training; the proof was still made."""
TOLERANCE = 1e-9


def check(evidence: Evidence) -> Verdict:
    proof = evidence.proof
    if proof.rows is None:
        return Verdict(NAME, "fail", "the bundle holds no proof of parity: train it again", {})
    numbers = {"difference": proof.difference, "allowed": TOLERANCE, "rows": proof.rows}
    if not proof.difference <= TOLERANCE or proof.rows < proof.needed:
        says = (
            f"proven on {proof.rows} of {proof.needed} rows, largest difference "
            f"{proof.difference:.3g}, allowed {TOLERANCE:.0e}"
        )
        return Verdict(NAME, "fail", says, numbers)
    proven = f"equal on {proof.rows} rows to {proof.difference:.1g}"
    if evidence.measured_score is None:
        says = f"{proven}; not measured again, the data are others than those it learnt from"
        return Verdict(NAME, "cannot tell", says, numbers)
    off = abs(evidence.measured_score - evidence.score)
    numbers |= {"sealed score": evidence.score, "score now": evidence.measured_score}
    now, sealed = evidence.measured_score, evidence.score
    says = f"{proven}; {evidence.metric} {now:.4f} now, {sealed:.4f} sealed"
    return Verdict(NAME, "pass" if off <= TOLERANCE else "fail", says, numbers)
