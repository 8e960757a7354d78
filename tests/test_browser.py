"""The dashboard as files in a real browser: what people see, that links and keys work, that nothing leaves the page."""

import re
from collections.abc import Iterator

import mlx.core as mx
import numpy as np
import pytest
from browser import CONFIG, TEXT, Visit, visit
from conftest import random_sae
from site_parts import HOSTILE, HOSTILE_LABEL, hostile

from hubsae import find_feature_circuits
from hubsae.dashboard import AnalysedText, Column, Dashboard, Pairs, Side
from hubsae.tables import plain
from hubsae.text_analysis import analyze_text


@pytest.fixture(scope="module")
def sae(labelled_sae):
    return labelled_sae


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
    here.page.set_viewport_size({"width": 390, "height": 800})
    here.go("#/of/1/features?sort=score")  # without labels there is no such column
    assert here.page.locator(".row .n:visible").count() == here.count(".row")


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
    here.page.focus(".heat tbody tr:nth-child(6) th a")
    here.page.keyboard.press("ArrowRight")
    assert here.page.evaluate("document.activeElement.tagName") == "A"
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


def test_numbers_of_no_sense_break_no_page(chromium, sae, tmp_path):
    strange = random_sae(128, 256, {"name": "topk", "k": 8})
    for number, rows in enumerate(([10**15, 10**15 + 16], [1e-30, 5e-30], [0, 0], [9e15, 1], [1e17, 2e17, 3e17])):
        strange.statistics = {"log": [{"rows": n, "fvu": 0.5 / (i + 1), "l0": 1e290} for i, n in enumerate(rows)]}
        strange.metrics = {"fvu": 1e-290, "l0": -1e290, "kl": 0}
        folder = Dashboard.of([Side(strange, sae.features, "x")]).write(tmp_path / str(number))
        with visit(chromium, (folder / "index.html").as_uri()) as found:
            assert "How well it reconstructs" in found.text()


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
