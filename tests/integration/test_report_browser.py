"""The reports in a real browser: each opens without an error, shows every section, and fits wide and narrow screens.

Needs Chromium and its driver (Debian: `apt-get install chromium chromium-driver`).
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from refine_fixture import write_refine_run
from report_fixture import write_open, write_run
from selenium import webdriver
from selenium.webdriver.common.by import By

from raft_ray.report import write_refine_report, write_report

FLAGS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
RUN_HEADINGS = [
    "Verdict",
    "Results",
    "What was gained, what it cost",
    "What was lost, by kind of instruction",
    "Training",
    "Stage 1: refined answers",
    "Time",
    "Who worked when",
    "Weight distance",
    "Answers to domain questions",
    "Answers to open questions",
    "Answers to general questions",
]
REFINE_HEADINGS = [
    "At a glance",
    "From rows to answers",
    "Similarity and the threshold",
    "Judges",
    "Compatibility gap",
    "Length and style",
    "Time and cost",
    "Rows before and after",
]
WIDTHS = [1280, 400]

# Elements that stick out of the window, unless they lie in a box that scrolls by itself.
STICKING_OUT = """
return [...document.querySelectorAll('body *')].filter(element => {
  const box = element.getBoundingClientRect();
  const scrolls = element.parentElement.closest('.wide, nav, .text');
  return !scrolls && box.width > 0 && (box.right > window.innerWidth + 1 || box.left < -1);
}).map(element => element.outerHTML.slice(0, 120));
"""

# Chart texts that leave the card of their figure (their chart, if it scrolls), or that cover another text of it.
MISPLACED_TEXTS = """
const found = [];
for (const figure of document.querySelectorAll('figure')) {
  const card = (figure.querySelector('.wide svg') || figure).getBoundingClientRect();
  const texts = [...figure.querySelectorAll('svg text')].map(text => [text.textContent, text.getBoundingClientRect()]);
  texts.forEach(([name, box], i) => {
    if (box.left < card.left || box.right > card.right || box.bottom > card.bottom || box.top < card.top) {
      found.push(name + ' leaves its card');
    }
    for (const [other, taken] of texts.slice(i + 1)) {
      const wide = Math.min(box.right, taken.right) - Math.max(box.left, taken.left);
      const high = Math.min(box.bottom, taken.bottom) - Math.max(box.top, taken.top);
      if (wide > 1 && high > 4) found.push(name + ' covers ' + other);
    }
  });
}
return found;
"""


@dataclass(frozen=True)
class Page:
    """A report, and what it must show."""

    address: str
    headings: list[str]
    charts: int


@pytest.fixture(scope="module", params=["run", "refine"])
def page(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Page:
    folder = tmp_path_factory.mktemp("report") / "run"
    if request.param == "run":
        return Page(write_report(write_open(write_run(folder))).as_uri(), RUN_HEADINGS, charts=17)
    return Page(write_refine_report(write_refine_run(folder)).as_uri(), REFINE_HEADINGS, charts=4)


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[webdriver.Chrome]:
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    assert chromium, "Chromium is missing: apt-get install chromium"
    assert driver, "Chromium's driver is missing: apt-get install chromium-driver"
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in [*FLAGS, f"--user-data-dir={tmp_path / 'profile'}"]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    started = webdriver.Chrome(options, webdriver.ChromeService(driver))
    yield started
    started.quit()


def show(browser: webdriver.Chrome, address: str, width: int, scheme: str = "light") -> None:
    """Open the page in a window `width` pixels wide (a real window cannot be as narrow as a phone)."""
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    browser.get(address)


def sizes(browser: webdriver.Chrome, selector: str) -> list[dict[str, Any]]:
    return [element.rect for element in browser.find_elements(By.CSS_SELECTOR, selector)]


@pytest.mark.parametrize("width", WIDTHS)
def test_it_opens_without_errors_and_loads_nothing(browser: webdriver.Chrome, page: Page, width: int) -> None:
    show(browser, page.address, width)
    assert browser.get_log("browser") == []
    assert browser.execute_script("return performance.getEntriesByType('resource').map(e => e.name)") == []


@pytest.mark.parametrize("width", WIDTHS)
def test_every_section_is_visible_and_every_figure_has_a_size(
    browser: webdriver.Chrome, page: Page, width: int
) -> None:
    show(browser, page.address, width)
    headings = browser.find_elements(By.TAG_NAME, "h2")
    assert [heading.text for heading in headings] == page.headings
    assert all(heading.is_displayed() for heading in headings)
    charts = sizes(browser, "svg.chart")
    assert len(charts) == page.charts
    assert all(chart["width"] > 250 and chart["height"] > 150 for chart in charts)
    assert all(figure["width"] > 300 and figure["height"] > 100 for figure in sizes(browser, "figure"))


@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_overflows_sideways(browser: webdriver.Chrome, page: Page, width: int) -> None:
    show(browser, page.address, width)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    assert browser.execute_script(STICKING_OUT) == []


@pytest.mark.parametrize("width", WIDTHS)
def test_texts_of_charts_stay_in_their_cards_and_apart(browser: webdriver.Chrome, page: Page, width: int) -> None:
    show(browser, page.address, width)
    assert browser.execute_script(MISPLACED_TEXTS) == []


def test_it_follows_the_colour_scheme_and_is_light_on_paper(browser: webdriver.Chrome, page: Page) -> None:
    background = "return getComputedStyle(document.body).backgroundColor"
    show(browser, page.address, 1280, "light")
    light = browser.execute_script(background)
    show(browser, page.address, 1280, "dark")
    dark = browser.execute_script(background)
    features = [{"name": "prefers-color-scheme", "value": "dark"}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print", "features": features})
    paper = browser.execute_script(background)
    assert (light, dark, paper) == ("rgb(251, 251, 250)", "rgb(20, 23, 26)", "rgb(255, 255, 255)")
