"""Takes the pictures of the dashboard that the README shows: `make screenshots`.

A project is trained in a temporary folder, and a real server answers traffic of some hours, which
pass in seconds by the clock that `mlops story` uses: rows of the tables themselves, of the last
hours with higher incomes than training saw, some refused, the truth following. Then the server
runs on by the machine's clock, and a real browser (Debian's Chromium) shows it on a desktop and on
a phone, light and dark.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import io
import itertools
import json
import math
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

from mlops import clock
from mlops.usecase import UseCase
from mlops.usecases import find

ROOT = Path(__file__).resolve().parent.parent
PICTURES = ROOT / "docs" / "screenshots"
USE_CASES = ("housing", "iris")
CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
"""Debian's, that of the workflow's machines, and its twin."""
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
SEED = 7
BEFORE = (
    *(f"train {name} --promote" for name in USE_CASES),
    "train housing --only Blend",
    "experiment shadow housing 2 --reason=several-are-better-than-one",
)
"""Commands of `mlops`, before the traffic: what is shown, and a version that is tried beside it."""
SCREENS = {"desktop": (1280, 800), "phone": (390, 844)}
LARGEST = 150_000
"""Bytes of a picture: they are committed."""
PAGES = {
    "overview": "",
    "use-case": "/housing",
    "try": "/housing/try",
    "predictions": "/housing/predictions?told=true&min=3",
    "prediction": "/housing/prediction?id={id}",
    "experiment": "/housing/experiment",
    "ledger": "/ledger",
}


def find_chromium() -> str | None:
    """Return the path of a browser that Playwright can drive, if one is here."""
    return next(filter(None, map(shutil.which, CHROMIUM)), None)


class Visitor:
    """Asks one use case with rows of its own table, over one connection that is kept."""

    def __init__(self, port: int, use_case: UseCase, data: Path) -> None:
        self._asking = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        self._use_case = use_case
        self._chance = random.Random(f"{SEED} {use_case.name}")
        table = pd.read_csv(data / f"{use_case.name}.csv")
        self._rows = table[[feature.column for feature in use_case.features]].to_numpy(dtype=float)
        self._actual = table[use_case.target.column].to_list()
        self.answered: list[tuple[str, Any]] = []
        """Ids with the truth, which has not been told yet."""

    def close(self) -> None:
        self._asking.close()

    def ask(self, *, richer: float = 1.0) -> None:
        """Send a request; of a hundred, one that is refused. Incomes may be `richer`."""
        number = self._chance.randrange(len(self._rows))
        inputs = dict(zip(self._use_case.fields, self._rows[number].tolist(), strict=True))
        if "median_income" in inputs:
            inputs["median_income"] = min(100.0, inputs["median_income"] * richer)
        refused = self._chance.random() < 0.01
        if refused:
            del inputs[self._use_case.fields[0]]
        answer = self._post("predict", inputs)
        if not refused:
            self.answered.append((answer["prediction_id"], self._actual[number]))

    def tell(self) -> None:
        """Send the truth of what was answered since."""
        items = [{"prediction_id": name, "actual": actual} for name, actual in self.answered]
        self.answered.clear()
        if items:
            self._post("feedback", {"items": items})

    def _post(self, route: str, body: Any) -> Any:
        client = f"visitor {self._chance.randrange(40)}"
        headers = {"content-type": "application/json", "x-client-id": client}
        path = f"/{self._use_case.name}/{route}"
        self._asking.request("POST", path, json.dumps(body), headers)
        return json.loads(self._asking.getresponse().read())


@contextlib.contextmanager
def server(home: Path, **more: str) -> Iterator[int]:
    """Run `mlops serve` over a project; yield its port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    command = [sys.executable, "-m", "mlops.cli", "serve", *USE_CASES, "--port", str(port)]
    environ = {**os.environ, "MLOPS_HOME": str(home), **more}
    with (home / "server.out").open("ab") as output:
        process = subprocess.Popen(command, cwd=home, env=environ, stdout=output, stderr=output)
    try:
        deadline = time.monotonic() + 60
        while not _ready(port):
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"no server: see {home}/server.out")
            time.sleep(0.1)
        yield port
    finally:
        process.terminate()
        process.wait(timeout=30)


def _ready(port: int) -> bool:
    with contextlib.suppress(OSError, http.client.HTTPException):
        return bool(get(port, "/health/ready")["status"] == "healthy")
    return False


def get(port: int, path: str) -> Any:
    """Return what a route answers."""
    asking = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    with contextlib.closing(asking):
        asking.request("GET", path)
        return json.loads(asking.getresponse().read())


def seed(home: Path, *commands: str, hours: float = 30, a_minute: int = 30) -> None:
    """Let so many hours of traffic have passed, the last of them busy, after some commands.

    The truth comes later, and not for the last minutes; incomes rise half-way.
    """
    begin, minute = time.time() - 3600 * hours, 0
    kept = home / "clock"
    clock.set_to(kept, begin)
    for words in commands:
        command = [sys.executable, "-m", "mlops.cli", *words.split()]
        environ = {**os.environ, "MLOPS_HOME": str(home), "MLOPS_STORY_CLOCK": str(kept)}
        subprocess.run(command, cwd=home, env=environ, check=True, stdout=subprocess.DEVNULL)
    with server(home, MLOPS_STORY_CLOCK=str(kept)) as port:
        visitors = [Visitor(port, find(name), home / "data") for name in USE_CASES]
        while (left := (time.time() - begin) / 60 - minute) > 1:
            wave = 1 + 0.4 * math.sin(minute / 7) + 0.15 * math.sin(minute / 1.7)
            usual = a_minute if left < 70 else a_minute / 12
            coming = max(1, round(usual * wave))
            for visitor in visitors:
                for number in range(coming):
                    clock.set_to(kept, begin + 60 * (minute + number / coming))
                    visitor.ask(richer=1.4 if minute > 30 * hours else 1.0)
                if minute % 10 == 9:
                    visitor.tell()
            if left < 70:
                get(port, "/metrics")  # response times are counted in the minute that they are of
            minute += 1
        for visitor in visitors:
            visitor.close()
        time.sleep(1.5)  # response times reach the log within a second


@contextlib.contextmanager
def visited(port: int, home: Path) -> Iterator[None]:
    """Let visitors come, some each second, by the machine's clock."""
    gone = threading.Event()

    def visit() -> None:
        visitors = [Visitor(port, find(name), home / "data") for name in USE_CASES]
        while not gone.wait(1.4):
            for visitor in visitors:
                visitor.ask(richer=1.4)
        for visitor in visitors:
            visitor.close()

    coming = threading.Thread(target=visit)
    coming.start()
    try:
        yield
    finally:
        gone.set()
        coming.join()


def wait_for_alerts(port: int) -> None:
    """Wait until the server has seen that incomes have risen: it looks every few seconds."""
    deadline = time.monotonic() + 120
    while not get(port, "/alerts")["open"] and time.monotonic() < deadline:
        time.sleep(0.5)


def take(browser: Browser, port: int, to: Path) -> None:
    """Take every page on every screen in both themes; the desktop's as high as it is."""
    for screen, (width, height) in SCREENS.items():
        for theme in ("light", "dark"):
            context = browser.new_context(
                viewport={"width": width, "height": height},
                color_scheme="dark" if theme == "dark" else "light",
            )
            page = context.new_page()
            for name, path in PAGES.items():
                open_page(page, port, path)
                whole = Image.open(io.BytesIO(page.screenshot(full_page=name != "predictions")))
                for part, picture in parts(name, whole, page):
                    save(picture, to / f"{part}-{screen}-{theme}.png")
            context.close()


def open_page(page: Page, port: int, path: str) -> None:
    """Open a page and wait until it shows what it has."""
    if "{id}" in path:
        found = get(port, "/housing/predictions?limit=1&warned=true")["predictions"]
        found = found or get(port, "/housing/predictions?limit=1")["predictions"]
        path = path.format(id=found[0]["prediction_id"])
    page.goto(f"http://127.0.0.1:{port}/dashboard{path}")
    page.wait_for_timeout(1500)
    if path.endswith("/try"):
        page.get_by_role("button", name="Predict").click()
        page.locator(".big").wait_for()
        page.wait_for_timeout(700)


def parts(name: str, picture: Image.Image, page: Page) -> Iterator[tuple[str, Image.Image]]:
    """Cut the page of a use case, which is long, where quality over time begins."""
    if name != "use-case":
        yield name, picture
        return
    cut = int(page.locator("#quality").evaluate("one => one.getBoundingClientRect().top"))
    cut += int(page.evaluate("scrollY")) - 8
    yield "use-case", picture.crop((0, 0, picture.width, cut))
    yield "quality-and-drift", picture.crop((0, cut, *picture.size))


def save(picture: Image.Image, path: Path) -> None:
    """Write a picture with as many colours as its size allows. Ends the program if none do."""
    picture = picture.convert("RGB")
    for colours in (256, 128, 64, 32):
        reduced(picture, colours).save(path, optimize=True)
        size = path.stat().st_size
        if size <= LARGEST:
            print(f"{path.name}  {size / 1000:.0f} kB  {colours} colours")
            return
    raise SystemExit(f"{path.name} has {size:,} bytes, more than {LARGEST:,}")


def reduced(picture: Image.Image, colours: int) -> Image.Image:
    """Return the picture in so many colours: its commonest as they are, the rest chosen apart."""
    counted: list[Any] = picture.getcolors(1 << 24) or []
    common = [colour for _, colour in sorted(counted, reverse=True)[: colours // 2]]
    chosen = picture.quantize(colours // 2, method=Image.Quantize.MAXCOVERAGE).getpalette() or []
    palette = Image.new("P", (1, 1))
    palette.putpalette([*itertools.chain(*common), *chosen[: 3 * colours // 2]])
    return picture.quantize(palette=palette, dither=Image.Dither.NONE)


def main() -> None:
    if not (chromium := find_chromium()):
        raise SystemExit(
            "no Chromium: apt-get install -y --no-install-recommends chromium, then again"
        )
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--to", type=Path, default=PICTURES)
    parser.add_argument("--home", type=Path, help="a project that was trained and seeded before")
    options = parser.parse_args()
    options.to.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        home = options.home or Path(folder)
        if not options.home:
            seed(home, *BEFORE)
        with server(home) as port, visited(port, home), sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=chromium, args=list(FLAGS))
            wait_for_alerts(port)
            take(browser, port, options.to)
            browser.close()


if __name__ == "__main__":
    main()
