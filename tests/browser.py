"""A real browser for tests of the dashboard: pages that are watched, and the server that people start.

It needs Chromium: `chromium` on the path, or HUBSAE_BROWSER. With HUBSAE_BROWSER=required a missing one is an error.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from hubsae import SurveyConfig

CONFIG = SurveyConfig(top_examples=6, random_examples=12, tokens_before=6, tokens_after=4, sampled_rows=2_000)
PLACES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
MAC = "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome"
OPTIONS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
TEXT = "Paris is the capital of France. People there speak French."
SHIFTS = """() => { window.shift = 0; new PerformanceObserver((list) => {
    for (const entry of list.getEntries()) if (!entry.hadRecentInput) window.shift += entry.value;
}).observe({ type: "layout-shift", buffered: true }); }"""


def browser_path() -> str | None:
    wanted = os.environ.get("HUBSAE_BROWSER", "")
    if wanted and wanted != "required":
        return wanted
    found = next(filter(None, map(shutil.which, PLACES)), None)
    return found or (MAC if Path(MAC).exists() else None)


def chromium() -> Iterator[Any]:
    """A browser; the test is left out where there is none and none is required."""
    path = browser_path()
    if path is None:
        assert os.environ.get("HUBSAE_BROWSER") != "required", "no Chromium was found, and it is required"
        pytest.skip("no Chromium was found")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=OPTIONS)
        yield browser
        browser.close()


class Visit:
    """A page that is watched: what it logs, what it asks for, how far it jumps."""

    def __init__(self, page: Any, home: str):
        self.page, self.home = page, home
        self.problems: list[str] = []
        self.requests: list[str] = []
        page.on("console", lambda m: self.problems.append(m.text) if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        page.on("dialog", lambda dialog: (self.problems.append("a dialog"), dialog.dismiss()))
        page.on("request", lambda request: self.requests.append(request.url))
        page.goto(home)
        self.settle()
        page.evaluate(SHIFTS)

    def settle(self) -> None:
        self.page.wait_for_selector("main:not([aria-busy])")
        self.until("!document.body.classList.contains('loading')")

    def until(self, condition: str) -> None:
        """Wait until a JavaScript expression is true; asked from outside, since the pages allow no evaluation."""
        end = time.monotonic() + 10
        while not self.page.evaluate(condition):
            assert time.monotonic() < end, condition
            time.sleep(0.02)

    def go(self, place: str) -> "Visit":
        self.page.evaluate("place => { location.hash = place }", place)
        self.page.wait_for_timeout(50)
        self.settle()
        return self

    def text(self, selector: str = "main") -> str:
        return self.page.inner_text(selector)

    def count(self, selector: str) -> int:
        return self.page.locator(selector).count()

    def check(self) -> None:
        """Nothing was logged, nothing left the site, nothing is wider than the window."""
        assert self.problems == []
        root = self.home.split("#")[0].rsplit("/", 1)[0]
        assert [url for url in self.requests if not url.startswith((root, "data:,", "blob:"))] == []
        assert self.page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
        assert self.page.evaluate("window.taken") is None


@contextmanager
def visit(chromium: Any, home: str, **options: Any) -> Iterator[Visit]:
    context = chromium.new_context(**{"viewport": {"width": 1366, "height": 800}, **options})
    found = Visit(context.new_page(), home)
    try:
        yield found
        found.check()
    finally:
        context.close()


@contextmanager
def serving(folder: Path, model: Path) -> Iterator[str]:
    """The address that `hubsae dashboard` prints; it is ended by Ctrl+C, if not by `stop`."""
    command = [sys.executable, "-m", "hubsae.cli", "dashboard", str(folder), "--port", "0", "--no-browser"]
    with subprocess.Popen([*command, "--model", str(model)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        line = process.stdout.readline()
        address = next(word for word in line.split() if word.startswith("http://"))
        RUNNING[address] = process
        yield address
        stop(address)


RUNNING: dict[str, subprocess.Popen] = {}


def stop(address: str) -> None:
    if process := RUNNING.pop(address, None):
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
