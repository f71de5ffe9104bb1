"""R1: a server is killed under load; what its clients know is compared with its log."""

from __future__ import annotations

import contextlib
import sys

from test_kill import Campaign

from benchmarks.reliability.world import FAULTY, Found, World


def kills(world: World, number: int = 20) -> Found:
    """Kill a server so many times; the check of all that was acknowledged comes at the end.

    After every other kill the requests without an answer are sent again, by their keys.
    Raises `AssertionError` that counts what was lost, doubled, invented or torn.
    """
    command = [sys.executable, str(FAULTY), world.fault, "serve", "housing", "--port", "{port}"]
    campaign = Campaign(world.home(), command if world.fault else None, world.chance)
    done = 0
    with contextlib.closing(campaign):
        for turn in world.rounds(number):
            campaign.round(turn, resend=turn % 2 == 0)
            done += 1
        campaign.check()
    under_load, acked = campaign.kills_under_load, len(campaign.acked)
    return Found(
        "0 lost, 0 duplicate, 0 phantom, 0 torn",
        under_load >= 0.75 * done and acked > 20 * done,  # else there was nothing to lose
        f"{done:,} kills, {under_load:,} with requests under way; {acked:,} acknowledged",
    )
