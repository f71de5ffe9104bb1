"""Which model answers a client: sticky without a memory, and moved as little as weights allow.

Weighted rendezvous hashing (Thaler and Ravishankar 1998; weights: Schindelhauer and Schomaker
2005): each arm draws a number for the client from a salted hash, and the highest bid wins. The
same client gets the same arm on every server and after every restart. An arm whose weight grows
takes clients from others, and none change between those others. Another salt, for another
experiment, divides the clients anew, independently of before.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping

from mlops.errors import UsageError


def arm_of(client: str, weights: Mapping[str, float], salt: str) -> str:
    """Return the arm that answers `client`; `weights` are shares of any sum, 0 for none.

    Raises `UsageError` unless some weight is positive and all are finite and none negative.
    """
    best, highest = "", -math.inf
    for arm, weight in weights.items():
        if not 0 <= weight < math.inf:
            raise UsageError(f"the weight of {arm} is {weight:g}", "give each arm 0 or more")
        if weight > 0:
            # -log(u) / weight is exponential with rate `weight`: the least of them is this arm's
            # with probability weight / sum of weights.
            bid = math.log(_uniform(salt, arm, client)) / weight
            if bid > highest:
                best, highest = arm, bid
    if not best:
        raise UsageError("no arm has a weight", "give one of them a share above 0")
    return best


def _uniform(*words: str) -> float:
    """Return a number above 0 and below 1 that the words decide."""
    # Lengths keep ("ab", "c") apart from ("a", "bc").
    text = "".join(f"{len(word)}:{word}" for word in words)
    digest = hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=8).digest()
    return (int.from_bytes(digest) + 0.5) / 2**64
