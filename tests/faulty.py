"""A server with a planted fault, to show that a test would find it: `python faulty.py FAULT ...`.

answer-first   answers go out 30 ms before they are committed
forget-keys    idempotency keys are ignored, and answers go out 30 ms after they are committed
torn-lines     each second line of the log file is written without its end
"""

from __future__ import annotations

import sys
import time
from typing import Any

from mlops.cli import main
from mlops.deploy import groupcommit, service
from mlops.deploy.groupcommit import GroupCommit
from mlops.monitor import logfile

DELAY = 0.03


def answer_first() -> None:
    def work(
        self: GroupCommit, champion: Any, waiting: Any, failures: Any, timings: Any
    ) -> list[Any]:
        submissions = groupcommit._predict_together(champion, waiting) if waiting else []

        def commit_late() -> None:
            time.sleep(DELAY)
            self._log.append(submissions, [failure for failure, _ in failures], timings)

        self._thread.submit(commit_late)
        return [submission.rows for submission in submissions]

    GroupCommit._work = work  # type: ignore[method-assign]


def forget_keys() -> None:
    work = GroupCommit._work

    def slowly(self: GroupCommit, *arguments: Any) -> list[Any]:
        done = work(self, *arguments)
        time.sleep(DELAY)
        return done

    service._key = lambda headers: None
    GroupCommit._work = slowly  # type: ignore[method-assign]


def torn_lines() -> None:
    as_line = logfile.as_line
    logfile.as_line = lambda row: as_line(row)[: -20 if row.id % 2 else None]


if __name__ == "__main__":
    fault, *arguments = sys.argv[1:]
    {"answer-first": answer_first, "forget-keys": forget_keys, "torn-lines": torn_lines}[fault]()
    main(arguments)
