"""The dashboard in a real browser: Debian's Chromium, over a real server with three hours of log.

Not run where Chromium is neither there nor to be installed; continuous integration must run it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import os
import re
import shutil
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import screenshots
from axe_playwright_python.sync_playwright import Axe
from conftest import Server, copy_project, free_port, mlops, start_server
from experimental import register_off
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright
from promotions import World

from mlops.improve.ledger import Ledger
from mlops.loop.prediction_log import open_log
from mlops.records import Submission
from mlops.settings import read_settings
from mlops.usecases.housing import HOUSING

pytestmark = [pytest.mark.slow]

RULES = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]}
PAGES = {
    "overview": "/dashboard",
    "housing": "/dashboard/housing",
    "iris": "/dashboard/iris",
    "try": "/dashboard/housing/try",
    "try iris": "/dashboard/iris/try",
    "predictions": "/dashboard/housing/predictions",
    "prediction": "/dashboard/housing/prediction?id={id}",
    "no such prediction": "/dashboard/iris/prediction?id=nobody",
    "no experiment": "/dashboard/iris/experiment",
    "card": "/dashboard/housing/card",
    "card of iris": "/dashboard/iris/card",
    "ledger": "/dashboard/housing/ledger",
    "ledger of all": "/dashboard/ledger",
}
SCRIPT = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """The browser, from Debian's package where it is missing."""
    if not screenshots.find_chromium():
        install = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", "chromium"]
        if not shutil.which("apt-get") or subprocess.run(install, check=False).returncode:
            if os.environ.get("CI"):
                pytest.fail("Chromium is not here and could not be installed")
            pytest.skip("Chromium is not here and could not be installed")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=screenshots.find_chromium(), args=list(screenshots.FLAGS)
        )
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def project(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained project with some hours of traffic, and a row that tries to be HTML."""
    home = copy_project(trained, tmp_path_factory.mktemp("dashboard") / "home")
    shutil.copytree(trained / "models" / "diagnoses", home / "models" / "diagnoses")
    screenshots.seed(home, hours=0.5, a_minute=20)
    log = open_log(HOUSING, read_settings(MLOPS_HOME=home))
    [last] = log.rows(1)
    planted = last._replace(
        prediction_id="planted", warnings=json.dumps([SCRIPT]), client=SCRIPT, bundle=SCRIPT
    )
    log.append([Submission((planted,))])
    log.close()
    decided(home)
    return home


def decided(home: Path) -> None:
    """Plant a second version of housing that a gate kept out, forced in, and rolled back again."""
    with Ledger(read_settings(MLOPS_HOME=home).state_database) as ledger:
        first = ledger.version("housing", 1)
        second = dataclasses.replace(first, version=2, candidate="Planted")
        ledger.register(second, reason="trained again", evidence=[{"scores": {"r2_score": 0.7}}])
        said = {"gate": "fair between bands", "says": SCRIPT, "numbers": {}, "blocks": True}
        evidence = [{**said, "outcome": "fail"}, {**said, "outcome": "cannot tell"}]
        ledger.refuse(second, previous=1, reason=SCRIPT, evidence=evidence, rule="gates", by="ann")
        ledger.promote(second, expected=1, reason="forced: mine", evidence=evidence, rule="force")
        ledger.promote(
            first, expected=2, reason="no", evidence=[], action="rollback", rule="rollback", by="bo"
        )


@pytest.fixture(scope="module")
def server(project: Path) -> Iterator[Server]:
    server = start_server(project)
    yield server
    server.stop()


class Watched:
    """A page whose console, errors and requests are kept."""

    def __init__(self, page: Page, server: Server) -> None:
        self.page = page
        self.url = server.url
        self.complaints: list[str] = []
        self.hosts: set[str] = set()
        page.on("console", lambda message: self._note(message.type, message.text))
        page.on("pageerror", lambda error: self._note("error", str(error)))
        page.on("request", lambda request: self.hosts.add(urlsplit(request.url).netloc))

    def _note(self, kind: str, text: str) -> None:
        if kind in {"error", "warning"}:
            self.complaints.append(f"{kind}: {text}")

    def open(self, path: str) -> Page:
        if "{id}" in path:
            path = path.format(id=newest(self.url))
        self.page.goto(self.url + path)
        self.page.locator("h1").wait_for()
        self.page.wait_for_timeout(900)
        return self.page


def newest(url: str) -> str:
    path = "/housing/predictions?limit=1&warned=false"
    name: str = screenshots.get(int(url.rpartition(":")[2]), path)["predictions"][0][
        "prediction_id"
    ]
    return name


@pytest.fixture
def watched(chromium: Browser, server: Server, request: pytest.FixtureRequest) -> Iterator[Watched]:
    theme, width = getattr(request, "param", ("light", 1280))
    context = chromium.new_context(
        viewport={"width": width, "height": 844}, color_scheme=theme, timezone_id="UTC"
    )
    yield Watched(context.new_page(), server)
    context.close()


@pytest.mark.parametrize(
    "watched", [("light", 1280), ("dark", 390)], indirect=True, ids=["desktop", "phone"]
)
def test_each_page_loads_without_complaint_asks_nobody_else_is_accessible_and_fits(
    watched: Watched,
) -> None:
    axe = Axe()
    for name, path in PAGES.items():
        page = watched.open(path)
        assert page.title().endswith("mlops")
        if "try" in name:
            page.get_by_role("button", name="Predict").click()
            page.locator(".big").wait_for()
        if name == "housing":
            page.get_by_label("Errors, held-out rows").check()
        if name in ("housing", "ledger"):
            for summary in page.locator("summary").all():
                summary.click()
        found = axe.run(page, options=RULES)
        assert found.violations_count == 0, f"{name}\n{found.generate_report()}"
        assert len(found.response["passes"]) > 15, "guards the test itself"
        wide = page.evaluate("document.documentElement.scrollWidth")
        assert wide <= page.viewport_size["width"], name  # type: ignore[index]
        levels = [int(tag[1]) for tag in page.locator("h1, h2, h3, h4").evaluate_all(
            "found => found.map((one) => one.tagName)")]  # fmt: skip
        assert levels[0] == 1, name
        assert all(b - a <= 1 for a, b in itertools.pairwise(levels)), name
        complaints = [one for one in watched.complaints if "404" not in one]
        assert complaints == [], name
    assert watched.hosts == {urlsplit(watched.url).netloc}


def test_axe_finds_what_is_planted(watched: Watched) -> None:
    page = watched.open("/dashboard")
    page.evaluate("document.querySelector('main').append(document.createElement('input'))")
    page.evaluate("document.querySelector('.lead, .headline').style.color = '#ccc'")
    broken = {one["id"] for one in Axe().run(page, options=RULES).response["violations"]}
    assert {"label", "color-contrast"} <= broken


def ask(server: Server, number: int = 1) -> None:
    for _ in range(number):
        status, _ = server.request("/housing/predict", next(iter(HOUSING.examples.values())))
        assert status == 200


def test_live_values_change_as_requests_come(watched: Watched, server: Server) -> None:
    page = watched.open("/dashboard")
    total = page.locator(".card").first.locator(".tile", has_text="Predictions").locator("dd").first
    before = int(total.inner_text().replace(",", ""))
    ask(server, 5)
    expect(total).to_have_text(f"{before + 5:,}", timeout=10_000)
    expect(page.locator(".card").first.locator(".sentence")).to_contain_text("requests/s")


def test_nothing_is_asked_while_the_page_is_hidden(watched: Watched, server: Server) -> None:
    page = watched.open("/dashboard")
    page.evaluate("Object.defineProperty(document, 'hidden', {value: true, configurable: true})")
    page.wait_for_timeout(2500)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.wait_for_timeout(3000)
    assert asked == []
    page.evaluate("delete document.hidden; document.dispatchEvent(new Event('visibilitychange'))")
    page.wait_for_timeout(1000)
    assert any("/overview" in url for url in asked)


def test_the_form_predicts_and_its_slider_and_number_say_the_same(
    watched: Watched, server: Server
) -> None:
    page = watched.open("/dashboard/housing/try")
    income = page.get_by_label("median income 10,000 dollars")
    slider = page.get_by_label("median income, by percentile")
    slider.focus()
    page.keyboard.press("End")
    assert float(income.input_value()) == pytest.approx(15.0001, abs=1e-3)
    income.fill("3.5")
    assert 40 < float(slider.input_value()) < 60
    page.keyboard.press("Enter")
    page.locator(".big").wait_for()
    _, logged = server.request("/housing/predictions?limit=1")
    row = logged["predictions"][0]
    assert row["inputs"]["median_income"] == 3.5
    said = page.locator(".big").inner_text()
    assert int(said.strip("$").replace(",", "")) == pytest.approx(1e5 * row["prediction"], rel=1e-3)
    expect(page.locator(".result")).to_contain_text("of the training rows’ answers")
    asked = f"/housing/predictions/{row['prediction_id']}?interval=true"
    low = server.request(asked)[1]["interval"]["low"]
    interval = page.locator(".result .interval")
    expect(interval).to_contain_text("In 90 % of such cases the truth is $")
    dollars = interval.inner_text().split("$")[1].split()[0]
    assert int(dollars.replace(",", "")) == pytest.approx(1e5 * low, rel=1e-3)
    expect(page.locator(".result .contribution")).to_have_count(len(HOUSING.fields))

    income.fill("99")  # allowed, and unlike all that training saw
    page.get_by_role("button", name="Predict").click()
    expect(page.locator(".warnings")).to_contain_text("median_income = 99 is outside")
    page.get_by_label("Begin with an example").select_option(index=1)
    assert page.get_by_label("total rooms rooms").input_value() == "8"
    page.get_by_label("latitude degrees north").fill("99")
    page.get_by_role("button", name="Predict").click()
    assert page.get_by_label("latitude degrees north").evaluate("one => !one.checkValidity()")


def test_a_use_case_shows_truth_quality_and_drift_with_verdicts(watched: Watched) -> None:
    page = watched.open("/dashboard/housing")
    expect(page.locator("#drift .drift")).to_have_count(
        1 + len({*HOUSING.fields, *HOUSING.input_names}), timeout=20_000
    )
    income = page.locator("#drift .drift", has_text="median income")
    expect(income.locator(".badge")).to_have_text("▲ alarm")
    expect(page.locator("#quality figure")).to_be_visible()
    expect(page.locator("#quality .lead")).to_contain_text("the truth has come for")
    expect(page.locator("#quality")).to_contain_text("truths lay within theirs; 90.0 % is promised")
    expect(page.locator("#accuracy .choice")).to_contain_text("Live: the newest")
    expect(page.locator("#accuracy svg")).to_be_visible()
    page.get_by_label("Errors, live").check()
    expect(page.locator("#map")).to_contain_text("Errors where the truth has come")
    page.locator("#map summary").click()
    expect(page.locator("#map tbody tr")).to_have_count(10)


def test_a_prediction_shows_its_truth_and_its_explanation(watched: Watched) -> None:
    page = watched.open("/dashboard/housing/predictions?told=true")
    page.locator("tbody a").first.click()
    expect(page.locator("#truth")).to_contain_text("Predicted too")
    expect(page.locator(".answer .interval")).to_contain_text("In 90 % of such cases")
    expect(page.locator("#why .contribution")).to_have_count(len(HOUSING.fields))


def test_filters_find_and_keep_to_the_address_and_lead_to_a_prediction(watched: Watched) -> None:
    page = watched.open("/dashboard/housing/predictions")
    page.get_by_label("Least").fill("4")
    page.get_by_label("Greatest").fill("4.5")
    page.get_by_role("button", name="Search").click()
    rows = page.locator("tbody tr")
    expect(page.locator(".status")).to_contain_text("found")
    page.wait_for_timeout(500)
    amounts = [
        int(text.strip("$").replace(",", ""))
        for text in rows.locator("td:nth-child(2)").all_inner_texts()
    ]
    assert amounts
    assert all(400_000 <= amount <= 450_000 for amount in amounts)
    assert "min=4" in page.url
    page.reload()
    page.wait_for_timeout(900)
    assert page.get_by_label("Least").input_value() == "4"
    page.get_by_label("Search", exact=True).fill("no row has this")
    page.get_by_role("button", name="Search").click()
    expect(page.locator(".absent")).to_contain_text("No prediction in the log fits")
    page.get_by_role("button", name="Clear").click()
    expect(rows.first).to_be_visible()
    page.get_by_role("button", name="Look at older ones").click()
    expect(rows).to_have_count(100)
    # The newest is the planted row, of a bundle that never was, where no test has asked before.
    rows.nth(1).locator("a").click()
    expect(page.locator("h1")).to_have_text("California Housing: prediction")
    expect(page.get_by_role("heading", name="Where it comes from")).to_be_visible()
    expect(page.locator("#lineage")).to_contain_text("answers now")


def test_the_card_is_drawn_section_by_section_and_can_be_taken_along(
    watched: Watched, server: Server
) -> None:
    page = watched.open("/dashboard/housing/card")
    _, card = server.request("/housing/card")
    titles = [one["title"] for one in card["sections"]]
    assert page.locator("section h2").all_inner_texts() == titles
    rows = page.locator("#metrics-by-slice tbody tr")
    expect(rows).to_have_count(7)
    expect(rows.first).to_contain_text("bay area")
    expect(page.locator("#intended-use code").first).to_have_text("total_rooms")
    assert "`" not in page.locator("main").inner_text()
    with page.expect_download() as begun:
        page.get_by_role("link", name="As Markdown").click()
    assert begun.value.suggested_filename == "housing-version-1.md"
    assert begun.value.path().read_text() == card["markdown"]
    page.get_by_role("link", name="Metrics by slice").click()
    expect(page.locator("#metrics-by-slice")).to_be_in_viewport()


def test_the_ledger_shows_each_decision_with_its_evidence_and_finds_what_is_asked(
    watched: Watched,
) -> None:
    page = watched.open("/dashboard/housing/ledger")
    expect(page.locator(".chain .badge")).to_have_text("✓ whole")
    lines = page.locator(".decision")
    before = lines.count()
    expect(lines.first).to_contain_text("▼ rolled back")
    expect(lines.first).to_contain_text("version 1 again, after version 2")
    page.get_by_label("Decision", exact=True).select_option("keep")
    page.get_by_role("button", name="Search").click()
    expect(lines).to_have_count(1)
    assert "action=keep" in page.url
    expect(lines).to_contain_text("ann · rule gates")
    expect(lines.locator("table")).to_be_hidden()
    lines.locator("summary").click()
    expect(lines.locator("tbody tr")).to_have_count(2)
    expect(lines.locator("tbody")).to_contain_text("✕ fail")
    expect(lines.locator("tbody")).to_contain_text(SCRIPT)
    assert page.title() != "owned"
    page.reload()
    expect(lines).to_have_count(1)
    page.get_by_label("Search", exact=True).fill("no line has this")
    page.keyboard.press("Enter")
    expect(page.locator(".absent")).to_have_text("No line fits.")
    page.get_by_role("button", name="Clear").click()
    expect(lines).to_have_count(before)
    page = watched.open("/dashboard/ledger")
    expect(page.locator(".decision", has_text="Iris").first).to_be_visible()


def test_a_ledger_that_somebody_changed_is_said_to_be_broken(
    chromium: Browser, trained: Path, tmp_path: Path
) -> None:
    home = copy_project(trained, tmp_path / "home")
    decided(home)
    with contextlib.closing(sqlite3.connect(home / "models" / "state.db")) as state:
        state.execute("DROP TRIGGER decisions_are_not_changed")
        state.execute("UPDATE decisions SET evidence = '{}' WHERE action = 'keep'")
        state.commit()
    server = start_server(home)
    page = chromium.new_page()
    try:
        Watched(page, server).open("/dashboard/housing/ledger")
        expect(page.locator(".chain .badge")).to_have_text("✕ broken")
        expect(page.locator(".chain")).to_contain_text("is not what was written")
        assert page.locator(".decision", has_text="kept out").count() == 0
        assert page.locator(".decision", has_text="trained again").count() == 1
    finally:
        page.close()
        server.stop()


@pytest.fixture
def tried(trained: Path, tmp_path: Path, chromium: Browser) -> Iterator[tuple[Server, Page, str]]:
    """A server with keys and a version 2 that answers too dear; its page with the admin's key."""
    home = copy_project(trained, tmp_path / "home")
    world = World(read_settings(MLOPS_HOME=home), [])
    register_off(world, 0.5)
    key = mlops("keys", "add", "boss", "--role", "admin", home=home).stdout
    key = next(word for word in key.split() if word.startswith("mlk_"))
    server = start_server(home)
    context = chromium.new_context(viewport={"width": 1280, "height": 844}, timezone_id="UTC")
    context.add_init_script(f"sessionStorage.setItem('mlops-key', '{key}')")
    yield server, context.new_page(), key
    context.close()
    server.stop()


def do(page: Page, button: str, reason: str, **fields: str) -> Locator:
    """Press a button, fill its dialog and confirm it; return where the answer is shown."""
    page.get_by_role("button", name=button, exact=True).click()
    dialog = page.locator("dialog[open]")
    for label, value in fields.items():
        dialog.get_by_label(label.replace("_", " ")).fill(value)
    dialog.get_by_label("Reason").fill(reason)
    dialog.get_by_role("button", name=button, exact=True).click()
    return dialog.locator(".outcome")


def told(answer: Locator, text: str) -> None:
    """Wait for what the server says: a promotion asks the gates, which takes seconds."""
    expect(answer).to_contain_text(text, timeout=60_000)


def close(page: Page) -> None:
    page.locator("dialog[open]").get_by_role("button", name="Close").click()


def test_an_experiment_is_begun_watched_and_ended_on_its_page(
    tried: tuple[Server, Page, str],
) -> None:
    server, page, key = tried
    Watched(page, server).open("/dashboard/housing/experiment")
    now = page.locator(".now")
    expect(now).to_contain_text("No experiment is open")
    answer = do(page, "Try one in the shadow", "is it too dear?")
    told(answer, "✓ Version 2 follows in the shadow.")
    close(page)
    expect(now.locator("h2").first).to_have_text("Shadow: version 2 against 1")

    headers = {"x-api-key": key}
    rows = [{**one} for one in HOUSING.examples.values()]
    batch = {"instances": [{**rows[n % len(rows)], "latitude": 33 + n / 50} for n in range(120)]}
    status, found = server.request("/housing/predict/batch", batch, headers)
    assert status == 200
    items = [
        {"prediction_id": one["prediction_id"], "actual": min(5.0, one["predicted_price"])}
        for one in found["predictions"]
    ]
    assert server.request("/housing/feedback", {"items": items}, headers)[0] == 200
    expect(now.locator(".badge").first).to_have_text("✕ worse", timeout=60_000)
    expect(now.locator("svg")).to_have_attribute("aria-label", re.compile("all above zero: worse"))
    now.locator("summary").click()
    expect(now.get_by_role("region", name="Confidence sequence")).to_be_visible()
    found = Axe().run(page, options=RULES)
    assert found.violations_count == 0, found.generate_report()

    answer = do(page, "Promote", "all the same")
    told(answer, "✕ Not done")
    told(answer, "not worse than the champion")
    found = Axe().run(page, options=RULES)
    assert found.violations_count == 0, found.generate_report()
    page.keyboard.press("Escape")
    answer = do(page, "Roll back", "just so")
    told(answer, "has had no champion before version 1")
    page.keyboard.press("Escape")
    told(do(page, "Stop it", "seen enough"), "✓ The experiment has ended.")
    close(page)
    expect(now).to_contain_text("No experiment is open")
    expect(page.locator("#past tbody tr")).to_have_count(1)
    expect(page.locator("#past tbody")).to_contain_text("stopped")
    Watched(page, server).open("/dashboard/housing/ledger?action=end")
    expect(page.locator(".decision")).to_contain_text("seen enough")


def test_the_share_of_an_experiment_is_changed_and_clients_are_counted(
    tried: tuple[Server, Page, str],
) -> None:
    server, page, key = tried
    Watched(page, server).open("/dashboard/housing/experiment")
    answer = do(page, "Begin an A/B", "for some", Percent_of_the_clients="50")
    told(answer, "✓ Version 2 answers 50 % of the clients")
    close(page)
    now = page.locator(".now")
    expect(now.locator("h2").first).to_have_text("A/B: version 2 against 1")
    row = next(iter(HOUSING.examples.values()))
    for client in range(30):
        headers = {"x-api-key": key, "x-client-id": f"client {client}"}
        assert server.request("/housing/predict", row, headers)[0] == 200
    seen = now.get_by_role("region", name="Clients by arm").locator("tbody tr")
    expect(seen.first).to_contain_text("50.0 %", timeout=60_000)
    assert do(page, "Change the share", "").count() == 1
    dialog = page.locator("dialog[open]")
    assert dialog.locator(".outcome").inner_text() == "", "a reason is needed"
    dialog.get_by_label("Percent").fill("20")
    dialog.get_by_label("Reason").fill("fewer")
    page.keyboard.press("Enter")
    told(dialog.locator(".outcome"), "✓ Its share is 20 %")
    close(page)
    expect(now).to_contain_text("answers 20.0 % of the clients")


def test_a_decision_without_a_key_that_may_is_refused_in_words(
    watched: Watched, server: Server
) -> None:
    page = watched.open("/dashboard/housing/experiment")
    answer = do(page, "Promote", "mine")
    told(answer, "API key with the role admin is needed")
    told(answer, "mlops keys add NAME --role admin")


def test_what_is_logged_never_becomes_html(watched: Watched) -> None:
    for path in ("predictions?search=planted", "prediction?id=planted"):
        page = watched.open(f"/dashboard/housing/{path}")
        assert "onerror" in page.content()
        assert page.locator("img[src=x]").count() == 0
        assert page.title() != "owned"
    expect(page.locator(".warnings")).to_contain_text(SCRIPT)


def test_the_keyboard_alone_reaches_everything(watched: Watched) -> None:
    page = watched.open("/dashboard")
    page.keyboard.press("Tab")
    expect(page.get_by_text("Skip to the content")).to_be_focused()
    reached = []
    for _ in range(14):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.textContent.trim()"))
        outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline != "none", reached[-1]
    assert reached[1:6] == ["Overview", "California Housing", "Iris", "Ledger", "API"]
    assert {"Dark", "API key", "Try it", "Predictions"} <= set(reached)


def test_the_theme_is_chosen_and_kept(watched: Watched) -> None:
    page = watched.open("/dashboard")
    paper = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(paper)
    page.get_by_role("button", name="Use the dark theme").click()
    assert page.evaluate(paper) != light
    page = watched.open("/dashboard/housing/try")
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"


def test_a_key_is_asked_for_typed_once_and_used(
    chromium: Browser, trained: Path, tmp_path: Path
) -> None:
    home = copy_project(trained, tmp_path / "home")
    made = mlops("keys", "add", "reader", "--role", "read", home=home)
    key = next(word for word in made.stdout.split() if word.startswith("mlk_"))
    server = start_server(home)
    try:
        watched = Watched(chromium.new_page(), server)
        page = watched.open("/dashboard")
        expect(page.locator(".absent").first).to_contain_text("API key with the role read")
        page.get_by_role("button", name="API key").click()
        page.get_by_label("API key with the role read").fill(key)
        page.keyboard.press("Enter")
        expect(page.locator(".sentence").first).to_contain_text("version 1 answers")
        page = watched.open("/dashboard/housing/try")
        page.get_by_role("button", name="Predict").click()
        expect(page.locator(".result .absent")).to_contain_text("role")
        assert page.evaluate("Object.values(localStorage).join()").count("mlk_") == 0
        page.close()
    finally:
        server.stop()


def test_a_server_that_is_gone_is_said_to_be_and_one_that_is_back_too(
    chromium: Browser, trained: Path, tmp_path: Path
) -> None:
    home, port = copy_project(trained, tmp_path / "home"), free_port()
    server = start_server(home, port=port)
    page = Watched(chromium.new_page(), server).open("/dashboard")
    server.stop()
    expect(page.locator("#pulse")).to_contain_text("no answer, shown is", timeout=10_000)
    expect(page.locator("#said")).to_contain_text("not live any more")
    expect(page.locator(".sentence").first).to_contain_text("version 1 answers")
    server = start_server(home, port=port)
    expect(page.locator("#pulse")).to_contain_text("live", timeout=10_000)
    time.sleep(0.1)
    page.close()
    server.stop()


def test_pictures_are_taken_by_the_command_that_the_readme_names(
    chromium: Browser, server: Server, tmp_path: Path
) -> None:
    screenshots.take(chromium, server.port, tmp_path)
    taken: list[Any] = sorted(path.name for path in tmp_path.iterdir())
    assert len(taken) == (len(screenshots.PAGES) + 1) * len(screenshots.SCREENS) * 2
    assert max(path.stat().st_size for path in tmp_path.iterdir()) <= screenshots.LARGEST
    shown = {path.name for path in screenshots.PICTURES.iterdir()}
    assert shown <= set(taken)
