"""The dashboard in a real browser: what people see, that links and keys work, and that nothing leaves the page.

It needs Chromium: `chromium` on the path, or HUBSAE_BROWSER. With HUBSAE_BROWSER=required a missing one is an error.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from conftest import random_sae
from site_parts import HOSTILE, HOSTILE_LABEL, hostile

from hubsae import SurveyConfig, find_feature_circuits
from hubsae.dashboard import AnalysedText, Column, Dashboard, Pairs, Side
from hubsae.features import Label
from hubsae.tables import plain
from hubsae.text_analysis import analyze_text

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


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
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


@pytest.fixture(scope="module")
def sae(demo_model, demo_texts):
    """A trained dictionary with labels."""
    found = demo_model.train_sae(
        0, demo_texts[:800], "residual", expansion_factor=2, k=8, batch_size=64, progress=False
    )
    found.feature_statistics(demo_texts[:200], config=CONFIG, dataset_name="the atlas")
    found.relabel({7: Label("countries of the atlas", 0.93, 20, "a person"), 9: Label("months", None, 0, "a person")})
    return found


@pytest.fixture(scope="module")
def other(demo_model, demo_texts):
    """One of a later layer, whose first ten features are dead."""
    reads = {"reads": ("layers.2.residual",), "writes": ("layers.2.residual",)}
    found = random_sae(128, 96, {"name": "topk", "k": 6}, base_models=(demo_model.identity.to_dict(),), **reads)
    found.b_enc = mx.where(mx.arange(96) < 10, -1e4, found.b_enc)
    found.bind(demo_model)
    found.feature_statistics(demo_texts[:100], config=CONFIG)
    return found


@pytest.fixture(scope="module")
def circuit(sae, other, demo_model):
    prompts = ["The capital of France is", "The capital of Italy is"]
    return find_feature_circuits(demo_model, {0: sae, 2: other}, 0, 2, prompts, top_k=8, n_targets=3, n_random=3)


@pytest.fixture(scope="module")
def address(sae, other, circuit, demo_model, tmp_path_factory) -> str:
    """A site of everything, as files."""
    n = 40
    columns = [
        Column("score", "score", np.linspace(1, 0, n), "how well they match"),
        Column("r", "correlation", np.r_[np.nan, np.linspace(-1, 1, n - 1)], "of their activations"),
    ]
    site = Dashboard.of(
        [Side(sae, sae.features, "first"), Side(other, other.features, "second")],
        title="Two dictionaries",
        texts=[AnalysedText(0, TEXT, analyze_text(sae, demo_model, TEXT))],
        circuits=[circuit],
        pairs=Pairs(list(range(n)), list(range(20, 20 + n)), columns, "matched by hand"),
    )
    folder = site.write(tmp_path_factory.mktemp("site") / "a folder with spaces & signs")
    return (folder / "index.html").as_uri()


@pytest.fixture
def here(chromium, address) -> Iterator[Visit]:
    with visit(chromium, address) as found:
        yield found


def test_the_overview_tells_what_it_is_and_how_good(here, sae):
    text = here.text()
    assert "A sparse autoencoder that reads layers.0.residual of a local llama model as 256 features" in text
    assert f"{sae.metrics['fvu']:.4g}"[:5] in text
    assert "95 % interval" in text
    assert here.count("figure svg") == 5  # density, and four curves
    assert here.count("figure svg path.curve") == 4
    assert here.page.title() == "first · Two dictionaries"
    assert here.text(".choices [aria-current]") == "first"
    here.page.click(".choices >> text=second")
    here.settle()
    here.until("document.title === 'second · Two dictionaries'")


def test_a_bar_of_the_histogram_leads_to_its_features(here, sae):
    bar = here.page.locator("figure svg a").nth(2)
    said = bar.get_attribute("data-tip")
    bar.click()
    here.settle()
    here.page.wait_for_selector(".count")
    assert here.text(".count").split(" of ")[0] == said.split(" features")[0]
    assert "#/features?from=" in here.page.url


def test_every_page_has_a_place_in_the_navigation(here):
    names = [a.inner_text() for a in here.page.locator("#nav a").all()]
    assert names == ["Overview", "Features", "Pairs", "Together", "Texts", "Circuits"]
    for name in names:
        here.page.click(f"#nav a:text-is('{name}')")
        here.settle()
        assert here.text("#nav a[aria-current=page]") == name
        assert here.count("main h1") == 1
        assert here.count("main .error") == 0


def test_the_list_finds_labels_tokens_and_numbers(here, sae):
    here.go("#/features")
    alive = int((~sae.features.dead).sum())
    assert here.text(".count") == f"{alive} of 256"
    here.page.fill("#search", "COUNTRIES atlas")
    assert here.text(".count") == "1 of 256"
    assert here.text(".row .id") == "7"
    here.page.fill("#search", "12")
    assert here.text(".row >> nth=0").startswith("12\n")
    token = sae.features.top_tokens(20)[0]
    here.page.fill("#search", token.lower())
    found = int(here.text(".count").split(" of ")[0])
    shown = {int(row.inner_text()) for row in here.page.locator(".row .id").all()}
    assert found > 0
    assert 20 in shown or found > len(shown)
    here.page.fill("#search", "no such thing anywhere")
    assert here.text(".count") == "0 of 256"


def test_the_list_is_ordered_and_filtered_as_it_says(here, sae):
    known = sae.features

    def ids():
        here.page.wait_for_timeout(50)
        return [int(row.inner_text()) for row in here.page.locator(".row .id").all()]

    here.go("#/features?sort=max")
    assert known.maximum[ids()[0]] == known.maximum.max()
    here.go("#/features?sort=rare")
    assert known.n_active[ids()[0]] == known.n_active[known.n_active > 0].min()
    here.go("#/features?state=labelled&sort=id")
    assert ids() == [7, 9]
    here.go("#/features?score=0.9")
    assert ids() == [7]
    here.go("#/features?from=2&to=5")
    density = known.density
    assert here.text(".count").startswith(f"{int(((density >= 0.02) & (density < 0.05)).sum())} of")
    here.go("#/of/1/features?state=dead")
    assert ids() == list(range(10))


def test_only_rows_in_sight_are_elements_and_scrolling_brings_the_others(here):
    here.go("#/features?sort=id&state=all")
    assert here.count(".row") < 60
    here.page.evaluate("document.querySelector('.list').scrollTop = 1e9")
    here.until("document.querySelector('.row:last-child .id').textContent === '255'")
    assert here.count(".row") < 60


def test_keys_lead_through_the_list_to_a_feature_and_back(here):
    here.page.keyboard.press("/")
    here.until("document.activeElement.id === 'search'")
    here.page.keyboard.type("countries")
    here.page.keyboard.press("ArrowDown")
    assert here.count(".row.chosen") == 1
    here.page.keyboard.press("Enter")
    here.page.wait_for_selector(".feature")
    assert "countries of the atlas" in here.text("h1")
    here.page.keyboard.press("ArrowRight")
    here.until("location.hash.endsWith('feature/8')")
    here.page.go_back()
    here.page.go_back()
    here.page.wait_for_selector(".list")
    assert here.page.input_value("#search") == "countries"
    here.go("#/features?state=all&sort=id")
    here.page.focus(".list")
    for key in ("j", "j", "k", "End", "Home", "PageDown"):
        here.page.keyboard.press(key)
    assert int(here.text(".row.chosen .id")) > 5


def test_the_list_keeps_its_place_and_order_while_a_feature_is_read(here):
    here.go("#/features?state=all&sort=id")
    here.page.hover(".list")
    here.page.mouse.wheel(0, 3000)
    here.until("document.querySelector('.list').scrollTop > 2900")
    before = here.page.evaluate("document.querySelector('.list').scrollTop")
    here.page.click(".row >> nth=14")
    here.page.wait_for_selector(".feature")
    here.page.go_back()
    here.page.wait_for_selector(".row.chosen")
    assert here.page.evaluate("document.querySelector('.list').scrollTop") == before
    here.page.click("button[aria-label='the other way round']")
    assert here.text(".row >> nth=0").startswith("255\n")
    here.page.reload()
    here.settle()
    assert here.text(".row >> nth=0").startswith("255\n")


def test_the_skip_link_leads_to_the_content_of_the_same_page(here):
    here.go("#/features")
    here.page.focus(".skip")
    here.page.keyboard.press("Enter")
    assert here.page.evaluate("document.activeElement.id") == "main"
    assert here.page.url.endswith("#/features")
    assert here.count(".row") > 0


def test_curves_have_marks_that_can_be_read(here, sae):
    marks = here.page.evaluate(AXES)
    fvu = next(texts for title, texts in marks if title.startswith("variance"))
    values = [float(text) for text in fvu]
    log = [row["fvu"] for row in sae.statistics["log"]]
    assert len(values) >= 3
    assert min(log) <= min(values) < 2.6 * min(log)
    assert max(log) / 2.6 < max(values) <= max(log)
    dead = next(texts for title, texts in marks if title.startswith("features that have not"))
    assert all(text.endswith("%") for text in dead)


def test_a_feature_shows_all_that_is_known(here, sae):
    here.go("#/feature/7")
    known, text = sae.features, here.text()
    assert "0.93 on 20 texts" in text
    for title in ("Strongest", "From strong to weak", "By chance", "Raises the logits of", "Fires together with"):
        assert title in text
    shown = here.page.locator(".texts section").nth(0).locator("li")
    examples = known.examples(7, "top")
    assert shown.count() == len(examples)
    for row, example in zip(shown.all(), examples, strict=True):
        tokens = [t.text_content() for t in row.locator("bdi").all()]
        assert tokens == [plain(t) for t in example.tokens]
        assert row.locator("bdi.fires").count() == sum(v > 0 for v in example.values)
        assert row.locator("bdi.at").count() == 1
    first = here.page.locator("bdi.at").first
    first.hover()
    assert float(here.text("#tip")) == pytest.approx(examples[0].value, rel=0.006)
    here.page.keyboard.press("Escape")
    assert here.page.is_hidden("#tip")
    neighbour = known.cofiring(7)[0].feature
    here.page.click(f".links a[href='#/feature/{neighbour}']")
    here.until(f"location.hash === '#/feature/{neighbour}'")


def test_dead_features_and_addresses_of_nothing_are_explained(here):
    assert "never fires" in here.go("#/of/1/feature/3").text("h1")
    assert "fired on none of the" in here.text()
    for place in (
        "feature/256",
        "feature/x",
        "feature/",
        "pair/999",
        "circuit/7",
        "nowhere",
        "of/9/features",
        "feature/1e1",
    ):
        assert here.go(f"#/{place}").count(".error") == (place != "feature/1e1"), place


def test_what_fires_together_is_a_matrix_with_links(here, sae):
    here.go("#/together")
    n = here.count(".square tbody tr")
    assert n > 10
    assert here.count(".square tbody td") == n * n
    assert here.count(".square .same") == n
    here.page.fill("#around", "7")
    here.page.keyboard.press("Enter")
    here.until("location.hash.includes('around=7')")
    here.settle()
    shown = {int(t.inner_text()) for t in here.page.locator(".square thead a").all()}
    assert {7} | {n.feature for n in sae.features.cofiring(7)[:5]} <= shown
    phi = sae.features.cofiring(7)[0]
    here.page.hover(
        f".square tbody tr:has(th a[href='#/feature/7']) td >> nth={list(ordered(here)).index(phi.feature)}"
    )
    assert f"both on {phi.count} of 2,000 tokens" in here.text("#tip")


def ordered(here):
    return [int(t.inner_text()) for t in here.page.locator(".square thead a").all()]


def test_a_text_is_coloured_by_the_chosen_feature_and_token(here, sae, demo_model):
    here.go("#/texts")
    analysis = analyze_text(sae, demo_model, TEXT)
    tokens = here.page.locator(".passage .token")
    assert tokens.count() == len(analysis.tokens)
    row = here.page.locator(".heat tbody tr").nth(3)
    feature = int(row.get_attribute("data-feature"))
    row.locator("td").first.click()
    fires = [i for i, token in enumerate(tokens.all()) if "fires" in token.get_attribute("class")]
    assert fires == np.flatnonzero(analysis.values(feature)).tolist()
    tokens.nth(4).click()
    named = [int(a.inner_text()) for a in here.page.locator(".chosen-token .id").all()]
    assert set(named) == {f.feature for f in analysis.top(4)}
    here.page.keyboard.press("ArrowRight")
    here.until("document.activeElement.dataset.place === '5'")
    assert here.text(".chosen-token h2").startswith("At")
    here.page.focus(".heat td >> nth=0")
    for key in ("ArrowDown", "ArrowDown", "ArrowRight"):
        here.page.keyboard.press(key)
    third = here.page.locator(".heat tbody tr").nth(2)
    assert "chosen" in third.get_attribute("class")
    assert here.page.evaluate("document.activeElement.cellIndex") == 2
    tokens.nth(0).click()
    assert "does not read this token" in here.text(".chosen-token")


def test_a_circuit_is_a_graph_whose_nodes_lead_to_features(here, circuit):
    here.go("#/circuit/0")
    assert here.count(".graph .edge") == len(circuit.edges)
    assert here.count(".graph a") == len(circuit.nodes)
    here.page.hover(".graph a >> nth=0")
    lit = here.count(".graph .edge.lit")
    first = circuit.nodes[0]
    assert lit == sum((e.source_layer, e.source) == (first.layer, first.feature) for e in circuit.edges)
    here.page.click(".graph a >> nth=-1")
    here.page.wait_for_selector(".feature")
    assert here.page.url.endswith(f"#/of/1/feature/{circuit.nodes[-1].feature}")


def test_the_two_sides_of_a_pair_stand_next_to_each_other(here, sae, other):
    here.go("#/pairs")
    assert here.text(".count") == "40 of 40 pairs"
    assert here.page.get_attribute(".row >> nth=0", "href") == "#/pair/0"
    here.page.select_option(".toolbar select", "r")
    here.until("location.hash.includes('sort=r')")
    here.settle()
    assert here.page.get_attribute(".row >> nth=0", "href") == "#/pair/39"
    here.go("#/pair/12")
    left, right = (box.bounding_box() for box in here.page.locator("article").all())
    assert left["y"] == right["y"]
    assert left["x"] + left["width"] <= right["x"]
    for article, (known, i) in zip(here.page.locator("article").all(), ((sae, 12), (other, 32)), strict=True):
        assert article.locator(".texts section >> nth=0 >> li").count() == len(known.features.examples(i, "top"))
    assert "0.692" in here.text(".numbers")
    here.page.keyboard.press("ArrowRight")
    here.until("location.hash === '#/pair/13'")
    here.go("#/pairs?sort=r")
    here.page.fill("#search", "12")
    shown = here.text(".count")
    here.page.click(".row >> nth=0")
    here.page.wait_for_selector("article")
    here.page.go_back()
    here.page.wait_for_selector(".row.chosen")
    assert here.page.input_value("#search") == "12"
    assert here.text(".count") == shown != "40 of 40 pairs"
    assert "sort=r" in here.page.url


def test_nothing_jumps_while_pages_come(here):
    for place in ("features", "feature/20", "together", "texts", "circuit/0", "pairs", ""):
        here.go(f"#/{place}")
        here.page.wait_for_timeout(120)
    assert here.page.evaluate("window.shift") < 0.02


def test_light_and_dark_follow_the_system_and_the_button(chromium, address):
    def ground(found):
        return found.page.evaluate("getComputedStyle(document.body).backgroundColor")

    with visit(chromium, address, color_scheme="dark") as found:
        dark = ground(found)
        found.page.click("#theme")
        light = ground(found)
        assert sum(map(int, re.findall(r"\d+", dark))) < 150 < 700 < sum(map(int, re.findall(r"\d+", light)))
        found.page.reload()
        found.settle()
        assert ground(found) == light  # kept
    with visit(chromium, address, color_scheme="light") as found:
        assert ground(found) == light


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_contrast_everywhere(chromium, address, scheme):
    with visit(chromium, address, color_scheme=scheme) as found:
        for place in ("", "features", "feature/7", "texts", "pair/3"):
            found.go(f"#/{place}")
            weak = found.page.evaluate(CONTRAST)
            assert weak == [], place


# The title and the marks of the left axis of every figure.
AXES = """() => [...document.querySelectorAll("figure")].map((figure) => [
  figure.innerText.split("\\n")[0],
  [...figure.querySelectorAll("text[text-anchor=end]")].map((text) => text.textContent),
])"""


# Texts whose colour and ground (with all its layers) have a contrast of less than 4.5 (WCAG 2.2, AA).
CONTRAST = """() => {
  const channel = (v) => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
  const parse = (c) => { const n = c.match(/[\\d.]+/g).map(Number); return [n[0], n[1], n[2], n[3] ?? 1]; };
  const over = (a, b) => [0, 1, 2].map((i) => a[i] * a[3] + b[i] * (1 - a[3]));
  const weak = [];
  for (const node of document.querySelectorAll("body *")) {
    if (![...node.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim())) continue;
    if (node.closest("svg, option")) continue;
    if (!node.checkVisibility() || node.closest(".hidden, .skip, noscript, #tip")) continue;
    const layers = [];
    for (let n = node; n; n = n.parentElement) layers.push(parse(getComputedStyle(n).backgroundColor));
    let ground = [255, 255, 255];
    for (const layer of layers.reverse()) ground = over(layer, ground);
    const ink = over(parse(getComputedStyle(node).color), ground);
    const [a, b] = [light(ink), light(ground)].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < 4.5) weak.push(`${node.className} ${node.textContent.slice(0, 20)} ${ratio.toFixed(2)}`);
  }
  return weak;
}"""


@pytest.mark.parametrize("width", [360, 768])
def test_pages_fit_a_phone(chromium, address, width):
    options = {"viewport": {"width": width, "height": 780}, "is_mobile": True, "has_touch": True}
    with visit(chromium, address, **options) as found:
        for place in ("", "features", "feature/7", "together", "texts", "circuit/0", "pairs", "pair/3"):
            found.go(f"#/{place}")
            assert found.page.evaluate("document.documentElement.scrollWidth") <= width, place
        found.go("#/feature/7")
        found.page.tap("bdi.at >> nth=0")
        assert found.page.is_visible("#tip")


def test_hostile_texts_are_shown_as_text(chromium, sae, tmp_path, demo_model):
    features = hostile(sae.features)
    strange = random_sae(128, 256, {"name": "topk", "k": 8})
    strange.statistics = {"data": {"name": HOSTILE[2]}, "log": [{"rows": 1, "fvu": 1.0}, {"rows": 2, "fvu": 0.5}]}
    strange.metrics = {**sae.metrics, "data": {"name": HOSTILE[1]}, "fvu_per_site": {HOSTILE[0]: 0.1, HOSTILE[4]: 0.2}}
    side = Side(strange, features, HOSTILE[0])
    columns = [Column("a", HOSTILE[1], [0.5], HOSTILE_LABEL)]
    site = Dashboard.of([side, side], title=HOSTILE[3], pairs=Pairs([11], [12], columns, HOSTILE[2]))
    seen = ""
    with visit(chromium, (site.write(tmp_path / "site") / "index.html").as_uri()) as found:
        for place in (
            "",
            "features?state=all",
            "features?q=window",
            "feature/11",
            "feature/50",
            "feature/123",
            "together",
            "pairs",
            "pair/0",
        ):
            seen += found.go(f"#/{place}").page.evaluate("document.body.textContent")
            for tag in ("b", "img", "main script", "iframe", "[onclick]", "[onerror]", "a[href^='javascript' i]"):
                assert found.count(tag) == 0
    for text in (*HOSTILE, HOSTILE_LABEL):
        assert plain(text).strip() in seen
    assert not set("\u202e\u2066\x00\x07\x1b\u2028") & set(seen)


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


@pytest.fixture(scope="module")
def served(sae, demo_folder, tmp_path_factory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("served") / "sae"
    sae.save(folder)
    with serving(folder, demo_folder) as address:
        yield address


def test_a_typed_text_shows_its_features(chromium, served, sae, demo_model):
    with visit(chromium, served) as found:
        assert "token" not in found.page.url  # the key does not stay in the address
        found.page.click("#nav a:text-is('Try a text')")
        found.page.fill("textarea", TEXT)
        found.page.keyboard.press("Control+Enter")
        found.page.wait_for_selector(".heat")
        assert "".join(t.text_content() for t in found.page.locator(".passage .token").all()).endswith(TEXT)
        shown = [int(row.get_attribute("data-feature")) for row in found.page.locator(".heat tbody tr").all()]
        assert shown == [f.feature for f in sae.analyze_text(TEXT, demo_model).strongest(40)]
        found.page.fill("textarea", "  ")
        found.page.click("button[type=submit]")
        found.page.wait_for_selector(".answer .error")
        assert "expected 1 to" in found.text(".answer")
        found.problems = [p for p in found.problems if "400" not in p]  # the browser notes the refusal


def test_the_bench_puts_both_texts_side_by_side(chromium, served, sae, demo_model):
    with visit(chromium, served) as found:
        found.go("#/feature/7")
        found.page.click("text=steer with it")
        found.page.wait_for_selector(".strength-row")
        assert found.page.input_value(".feature-id") == "7"
        assert "countries of the atlas" in found.text(".strength-row")
        found.page.fill(".strength", "25")
        found.page.fill("textarea", "The capital of France is")
        found.page.click("text=Compare")
        found.page.wait_for_selector(".answer .two")
        expected = [
            demo_model.generate("The capital of France is", interventions=change, max_tokens=30)
            for change in (None, sae.intervene(add={7: 25.0}))
        ]
        said = [s.text_content().strip() for s in found.page.locator(".said").all()]
        assert said == [text.strip().replace("\n", "⏎\n") for text in expected]
        left, right = (s.bounding_box() for s in found.page.locator(".two > section").all())
        assert left["y"] == right["y"]


def test_the_bench_keeps_what_was_built_and_says_what_is_amiss(chromium, served):
    with visit(chromium, served) as found:
        found.go("#/steer?changes=7:set:2,9:ablate:0,99:add:-3.5")
        rows = found.page.locator(".strength-row")
        assert rows.count() == 3
        assert rows.nth(1).locator(".strength").is_hidden()
        assert found.page.input_value(".strength-row >> nth=2 >> .strength") == "-3.5"
        found.page.click("text=one more feature")
        assert found.page.evaluate("document.activeElement.className") == "feature-id"
        found.page.keyboard.type("99999")
        assert "there is no such feature" in rows.nth(3).inner_text()
        rows.nth(3).get_by_label("leave it out").click()
        found.page.fill("textarea", "The capital of Italy is")
        found.page.fill(".strength-row >> nth=2 >> .strength", "")
        found.page.click("text=Compare")  # the browser itself asks for a number
        found.page.wait_for_timeout(100)
        assert found.count(".answer .two") == 0
        found.page.fill(".strength-row >> nth=2 >> .strength", "2")
        found.page.click("text=Compare")
        found.page.wait_for_selector(".answer .two")
        found.page.fill("textarea", "The capital of Spain is")
        assert "stale" in found.page.get_attribute(".answer", "class")
        found.page.reload()
        found.settle()
        assert found.page.input_value("textarea") == "The capital of Spain is"
        assert rows.count() == 3


def test_a_server_that_was_stopped_and_parts_that_are_lost_are_told(chromium, sae, demo_folder, tmp_path):
    sae.save(tmp_path / "sae")
    with serving(tmp_path / "sae", demo_folder) as address, visit(chromium, address) as found:
        found.go("#/try")
        stop(address)
        found.page.fill("textarea", TEXT)
        found.page.click("button[type=submit]")
        found.page.wait_for_selector(".answer .error")
        assert "is it still running" in found.text(".answer .error")
        assert "does not answer" in found.go("#/feature/3").text(".error")
        found.problems.clear()  # the browser notes what could not be reached
    folder = sae.make_dashboard().write(tmp_path / "site")
    (folder / "data/0/features-1.js").write_text('hubsae.put("0/features-1", "bm8=");')
    (folder / "data/0/features-2.js").unlink()
    with visit(chromium, (folder / "index.html").as_uri()) as found:
        assert "features-1.js is damaged" in found.go("#/feature/64").text(".error")
        assert "features-2.js cannot be read" in found.go("#/feature/130").text(".error")
        assert found.go("#/feature/3").count(".examples") == 3
        for place in ("try", "steer"):
            assert "This needs a model" in found.go(f"#/{place}").text(".error")
        found.problems.clear()


def test_without_the_key_the_page_says_what_to_do(chromium, served):
    with visit(chromium, served.split("#")[0]) as found:
        found.go("#/try")
        assert "open the address that hubsae printed" in found.text(".error")
        assert found.count("textarea") == 1


def test_other_pages_cannot_read_the_server(chromium, served, tmp_path):
    """A page from elsewhere includes the data as a script, frames the site, and sends a question."""
    root = served.split("#")[0]
    page = f"""<script>window.got = []; window.hubsae = {{ put: (name) => got.push(name) }};</script>
    <script src="{root}data/about.js"></script><iframe src="{root}"></iframe>
    <script>fetch("{root}api/analyze", {{ method: "POST", body: "{{}}", headers: {{ "Content-Type": "text/plain" }} }})
      .then((r) => got.push(r.status), () => got.push("refused")).finally(() => {{ window.done = true }});</script>"""
    (tmp_path / "evil.html").write_text(page)
    context = chromium.new_context()
    evil = context.new_page()
    evil.goto((tmp_path / "evil.html").as_uri())
    evil.wait_for_function("window.done")
    assert evil.evaluate("got") == ["refused"]
    framed = evil.frames[1]
    assert "hubsae" not in framed.content() or framed.locator("#main").count() == 0
    context.close()
