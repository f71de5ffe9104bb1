"""Channels: where messages go (e-mail, Slack, webhooks and what else apprise knows), and sending.

Sending is done by a process of its own (`python -m mlops.monitor.alerts.channels`), so that a
channel that hangs keeps nobody waiting and can be ended, and so that a server that has nothing to
tell never loads the library. Addresses hold secrets: they go there through standard input, and
what comes back is cleared of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import sys
import threading
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from mlops.errors import UsageError
from mlops.monitor.alerts.book import Channel

Told = Callable[[int, str | None], Awaitable[None]]

SECONDS_TO_SEND = 20.0
SCHEME = r"[A-Za-z][A-Za-z0-9]*://"
SHORTEST_SECRET = 4


class Note(NamedTuple):
    """One message for one channel. `kind` is apprise's: info, success, warning or failure."""

    url: str
    title: str
    body: str
    kind: str


def parse_channels(text: str) -> tuple[Channel, ...]:
    """Return the channels of `ALERT_URLS`, named by scheme and place: "slack", "json 2".

    Raises `UsageError` that names the place of what is no address, never the text itself.
    """
    urls = [part for part in re.split(rf"[,\s]+(?={SCHEME})", text.strip(" ,\n")) if part]
    channels: list[Channel] = []
    for place, url in enumerate(urls, 1):
        found = re.match(SCHEME, url)
        if not found:
            raise UsageError(
                f"ALERT_URLS: number {place} is no address",
                "separate addresses like mailtos://… and slack://… by commas",
            )
        scheme = found[0].removesuffix("://").lower()
        before = sum(one.name.split()[0] == scheme for one in channels)
        channels.append(Channel(f"{scheme} {before + 1}" if before else scheme, url))
    return tuple(channels)


async def send(
    notes: Sequence[Note], told: Told | None = None, seconds: float = SECONDS_TO_SEND
) -> list[str | None]:
    """Send notes side by side; return for each why it could not be sent, None if it was.

    `told` is called with the place of each and the same, as soon as that is known: whoever is
    cancelled while one channel hangs has written down what the others took. A note that is not sent
    after `seconds` has failed. Raises `OSError` if no process can be started for it.
    """
    answers: dict[int, str | None] = {}

    async def know(number: int, error: str | None) -> None:
        answers[number] = error
        if told:
            await told(number, error)

    missing = "the process that sends ended without an answer"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", __name__),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,  # a traceback could hold an address
    )
    try:
        async with asyncio.timeout(seconds):
            process.stdin.write(f"{json.dumps(notes)}\n".encode())  # type: ignore[union-attr]  # a pipe
            async for line in process.stdout:  # type: ignore[union-attr]
                await know(*json.loads(line))
    except TimeoutError:
        missing = f"no answer within {seconds:g} s"
    except OSError:  # it ended before it had read all of them
        pass
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    for number in range(len(notes)):
        if number not in answers:
            await know(number, missing)
    return [answers[number] for number in range(len(notes))]


def cleared(text: str, url: str) -> str:
    """Return a text without any part of the address that could be a secret."""
    parts = re.split(r"[/:@?&=,\s]+", url.partition("://")[2])
    for part in sorted({url, *parts}, key=len, reverse=True):
        if len(part) >= SHORTEST_SECRET:
            text = text.replace(part, "…")
    return text


def _deliver(note: Note) -> str | None:
    import apprise

    sender = apprise.Apprise(
        asset=apprise.AppriseAsset(app_id="mlops", app_desc="mlops", secure_logging=True)
    )
    if not sender.add(note.url):
        return "this is no address that apprise knows: https://appriseit.com/services"
    kind = apprise.NotifyType(note.kind)
    result = sender.notify(title=note.title, body=note.body, notify_type=kind)
    if result:
        return None
    said = [entry.message for one in result.results for entry in one.attempts[-1].logs]
    return cleared(said[-1] if said else "the channel refused it", note.url)


def _end_with_input() -> None:
    """End the process when nobody is left to write down what was sent: it would be sent again."""
    os.read(sys.stdin.fileno(), 1)
    os._exit(1)


def main() -> None:
    """Read notes from standard input; print a line [number, error or null] when each is done.

    Standard input stays open until the process that wants to know has read that, or died.
    """
    notes: list[Any] = json.loads(sys.stdin.buffer.readline())
    threading.Thread(target=_end_with_input, daemon=True).start()

    def deliver(number: int) -> None:
        try:
            error = _deliver(Note(*notes[number]))
        except Exception as failure:  # noqa: BLE001  a channel's plug-in may raise anything
            error = cleared(f"{type(failure).__name__}: {failure}", notes[number][0])
        sys.stdout.write(json.dumps([number, error]) + "\n")
        sys.stdout.flush()

    with ThreadPoolExecutor(max_workers=max(1, len(notes))) as pool:
        list(pool.map(deliver, range(len(notes))))


if __name__ == "__main__":
    main()
