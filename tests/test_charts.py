"""Charts: the same bytes for the same numbers, numbers at their places, text that stays text, whatever is drawn."""

import math
import re
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from conftest import random_sae
from hub_server import UPLOAD_WARNING

from hubsae import SAE, charts, dictionary_card, drawing
from hubsae.axes import Axis, Scale
from hubsae.charts import Picture, Point
from hubsae.errors import DataError

SVG = "{http://www.w3.org/2000/svg}"
HOSTILE = "</svg><script>alert(1)</script>\"'&]]>\x00\x1b\ufffe\ud800\u202e{{ 7 }}"


def picture_of(rng: np.random.Generator, kind: str) -> Picture:
    """A picture of random numbers, some of which are none, are beyond all bounds, or lie in one place."""
    n = int(rng.choice([0, 1, 2, 7, 300]))

    def draw() -> list[Any]:
        size = float(rng.choice([1e-320, 1e-9, 1, 1e9, 1e90, 1e300]))
        found: list[Any] = (rng.standard_normal(n) * size).tolist() if rng.random() < 0.8 else [3.0] * n
        odd = [None, math.nan, math.inf, -math.inf, "x", True, 10**400, 0, -0.0, {}]
        return [odd[int(rng.integers(len(odd)))] if rng.random() < 0.1 else value for value in found]

    def axis() -> Axis:
        low, high = rng.choice([math.nan, 0.0, -5.0, 1e9], 2).tolist()
        return Axis(HOSTILE, log=bool(rng.integers(2)), percent=bool(rng.integers(2)), low=low, high=high)

    names = [f"{HOSTILE} {i}" for i in range(int(rng.integers(4)))]
    marks = {HOSTILE: float(rng.choice([0.5, math.nan, -1e200]))} if rng.random() < 0.5 else None
    said = {"title": HOSTILE, "alt": HOSTILE}
    if kind == "lines":
        return charts.lines({name: (draw(), draw()) for name in names}, x=axis(), y=axis(), marks=marks, **said)
    if kind == "bars":
        labels = [f"{HOSTILE} {i}" for i in range(min(n, 20))]
        return charts.bars(labels, {name: draw()[: len(labels)] for name in names}, x=axis(), **said)
    if kind == "scatter":
        groups, both = names or [""], lambda: [(a, b) for a, b in zip(draw(), draw(), strict=True)]
        given = zip(draw(), draw(), both(), both(), strict=True)
        points = [Point(x, y, HOSTILE, groups[i % len(groups)], a, b) for i, (x, y, a, b) in enumerate(given)]
        return charts.scatter(points, x=axis(), y=axis(), joined=bool(rng.integers(2)), marks=marks, **said)
    edges = np.cumsum(rng.random(n + 2)) * float(rng.choice([1e-9, 1, 1e9]))
    counts = {name: rng.integers(0, 10 ** int(rng.integers(1, 12)), n + 1) for name in names}
    apart = (HOSTILE, 5) if rng.random() < 0.5 else None
    return charts.histogram(edges, counts, x=axis(), y=axis(), apart=apart, marks=marks, **said)


@pytest.mark.parametrize("kind", ["lines", "bars", "scatter", "histogram"])
def test_whatever_is_drawn_is_well_formed_small_and_the_same_again(kind):
    for seed in range(40):
        picture = picture_of(np.random.default_rng(seed), kind)
        assert picture == picture_of(np.random.default_rng(seed), kind)
        root = ElementTree.fromstring(picture.svg)
        tags = {element.tag.removeprefix(SVG) for element in root.iter()}
        assert tags <= {"svg", "title", "desc", "rect", "path", "text"}
        assert not re.search(r"\b(nan|inf|None|id=|href|<script)", picture.svg.split("</desc>")[1])
        assert len(picture.svg.encode()) < 30_000
        for number in re.findall(
            r'(?<=[MLHV" ])-?\d+\.?\d*(?=[ "LHVMz])', " ".join(re.findall(r' d="[^"]*"', picture.svg))
        ):
            assert -1e4 < float(number) < 1e4
        assert "</svg><script" not in picture.svg


def test_a_picture_says_its_title_and_finding_as_text():
    root = ElementTree.fromstring(charts.lines({}, x="x", y="y", title="a<b", alt="one & two\n").svg)
    paper = root.find(f"{SVG}rect")
    assert root.findtext(f"{SVG}title") == "a<b"
    assert root.findtext(f"{SVG}desc") == "one & two\\u000a"
    assert root.get("role") == "img"
    assert paper is not None
    assert paper.get("fill") == "#ffffff"  # the Hub's dark theme does not reach into an image


def ticks(svg: str, vertical: bool) -> tuple[list[float], list[float]]:
    """Pixels and numbers of an axis, from the picture itself."""
    found = []
    for element in ElementTree.fromstring(svg).iter(f"{SVG}text"):
        text = (element.text or "").replace(",", "").replace("k", "e3").removesuffix(" %")
        is_x = element.get("text-anchor") == "middle" and element.get("font-size") == "11"
        if (element.get("text-anchor") == "end" if vertical else is_x) and re.fullmatch(r"[-\d.e]+", text):
            place = float(element.get("y" if vertical else "x", "")) - 4 * vertical
            found.append((place, float(text)))
    return [place for place, _ in found], [value for _, value in found]


@pytest.mark.parametrize("log", [False, True])
def test_a_point_lies_where_the_ticks_say(log):
    xs, ys = np.array([3.0, 50.0, 700.0]), np.array([0.02, 0.3, 0.9])
    svg = charts.lines({"a": (xs, ys)}, x=Axis("x", log), y=Axis("y", log), title="", alt="").svg
    path = next(p for p in re.findall(r'd="M([^"]*)" fill="none"', svg) if "L" in p)
    places = np.array([[float(v) for v in pair.split()] for pair in path.split("L")])
    for column, values in enumerate((xs, ys)):
        at, said = ticks(svg, vertical=bool(column))
        numbers = np.log10(said) if log else np.array(said)
        assert len(at) >= 3
        slope, start = np.polyfit(numbers, at, 1)
        wanted = slope * (np.log10(values) if log else values) + start
        np.testing.assert_allclose(places[:, column], wanted, atol=0.2)


def test_bars_and_counts_are_as_long_as_their_numbers():
    svg = charts.bars(["a", "b"], {"s": [1.0, 2.5]}, x="x", title="", alt="").svg
    first, second = (float(w) for w in re.findall(r'width="([\d.]+)" height="[\d.]+" fill="#0072B2"', svg))
    assert second / first == pytest.approx(2.5, abs=0.01)
    svg = charts.histogram([0, 1, 2], {"n": [10, 30]}, x="x", y="y", title="", alt="").svg
    base, ten, thirty = map(float, re.findall(r"M[\d.]+ ([\d.]+)V([\d.]+)H[\d.]+V([\d.]+)H", svg)[0])
    assert (base - thirty) / (base - ten) == pytest.approx(3, abs=0.02)


def test_a_legend_is_filled_like_what_it_explains():
    svg = charts.bars(["a"], {"s": [1.0], "t": [2.0]}, x="x", title="", alt="").svg
    assert re.findall(r'fill-opacity="([\d.]+)"', svg) == ["0.75"] * 4
    svg = charts.histogram([0, 1], {"s": [1], "t": [2]}, x="x", y="y", title="", alt="").svg
    assert re.findall(r'fill-opacity="([\d.]+)"', svg) == ["0.2"] * 4


def test_a_missing_number_is_a_gap_and_a_lonely_point_a_dot():
    svg = charts.lines({"a": (range(6), [1, 2, None, 4, math.nan, 6])}, x="x", y="y", title="", alt="").svg
    path = next(p for p in re.findall(r'd="([^"]*)" fill="none"', svg) if "L" in p)
    assert path.count("M") == 1
    assert path.count("L") == 1
    assert svg.count('stroke-linecap="round"') == 1


def test_the_extremes_of_a_long_line_stay():
    rng = np.random.default_rng(0)
    ys = rng.random(50_000)
    ys[31_415], ys[27_182] = 5.0, -3.0
    svg = charts.lines({"a": (np.arange(50_000), ys)}, x="x", y="y", title="", alt="").svg
    assert len(svg) < 20_000
    heights = [float(y) for _, y in re.findall(r"[ML]([\d.]+) ([\d.]+)", max(re.findall(r'd="([^"]*)"', svg), key=len))]
    at, said = ticks(svg, vertical=True)
    slope, start = np.polyfit(at, said, 1)
    assert slope * min(heights) + start == pytest.approx(5, abs=0.05)
    assert slope * max(heights) + start == pytest.approx(-3, abs=0.05)


def test_labels_cover_neither_each_other_nor_points():
    points = [Point(i % 5, i // 5, f"point {i}") for i in range(25)] + [Point(2.01, 2.01, "close")]
    root = ElementTree.fromstring(charts.scatter(points, x="x", y="y", title="", alt="", joined=False).svg)
    boxes = []
    for text in (t for t in root.iter(f"{SVG}text") if t.get("paint-order")):
        wide = drawing.text_width(text.text or "", 11)
        left = float(text.get("x", "")) - {None: 0, "middle": wide / 2, "end": wide}[text.get("text-anchor")]
        y = float(text.get("y", ""))
        boxes.append((left, y - 10, left + wide, y + 3))
    assert len(boxes) >= 20
    for i, a in enumerate(boxes):
        assert a[0] >= 0
        assert a[2] <= drawing.WIDTH
        for b in boxes[:i]:
            assert a[0] >= b[2] or b[0] >= a[2] or a[1] >= b[3] or b[1] >= a[3]


def test_colour_is_not_all_that_tells_series_apart():
    looks = {drawing.stroke(i) for i in range(drawing.MOST_SERIES)}
    without_colour = [re.sub(r'stroke="#\w+"', "", drawing.stroke(i)) for i in range(5)]
    assert len(looks) == drawing.MOST_SERIES
    assert len(set(without_colour)) == 5
    with pytest.raises(DataError, match="at most 12 can be told apart"):
        charts.lines({str(i): ([1], [1]) for i in range(13)}, x="x", y="y", title="", alt="")


def test_ticks_are_round_and_around_all_numbers():
    rng = np.random.default_rng(1)
    for _ in range(300):
        values = 10 ** rng.uniform(-8, 8) * np.array([1, 1 + 10 ** rng.uniform(-5, 6)])
        log = bool(rng.integers(2))
        scale = Scale.of(Axis("x", log), [values], 0.0, 100.0, most=6)
        assert 2 <= len(scale.ticks) <= 13
        assert (scale.at(values) >= -1e-6).all()
        assert (scale.at(values) <= 100 + 1e-6).all()
        assert len(set(scale.texts())) == len(scale.texts())
        steps = np.diff(np.log10(scale.ticks) if log and scale.high / scale.low > 3 else scale.ticks)
        assert (steps > 0).all()


def test_what_cannot_be_drawn_is_said():
    for edges, counts, what in (
        ([1], [], "ascending"),
        ([1, 1], [3], "ascending"),
        (range(500), [1] * 499, "499 bins"),
        ([1, 2], [3, 4], "another number of counts"),
        ([1, 2], [-1], "at least 0"),
        ([1, 2], [math.nan], "at least 0"),
    ):
        with pytest.raises(DataError, match=what):
            charts.histogram(edges, {"n": counts}, x="x", y="y", title="", alt="")
    with pytest.raises(DataError, match="61 bars"):
        charts.bars(list("x" * 61), {"s": [1.0] * 61}, x="x", title="", alt="")
    with pytest.raises(DataError, match="a: 1 numbers along x, 2 along y"):
        charts.lines({"a": ([1], [1, 2])}, x="x", y="y", title="", alt="")


# --- of a dictionary's card

METRICS: dict[str, Any] = {
    "n_tokens": 1000,
    "fvu": 0.25,
    "density_median": 0.0042,
    "density_log10_histogram": {
        "edges": [-3, -2.5, -2, -1.5, -1, -0.5, 0],
        "counts": [10, 20, 20, 6, 4, 0],
        "never": 4,
    },
    "fvu_per_site": {"layers.0.mlp": 0.1, "layers.1.mlp": 0.2, "layers.2.mlp": 0.4},
    "ce_recovered_per_model": [0.9, 0.8, 0.7],
    "l0": 8.0,
    "ce_recovered": 0.875,
    "beside": [
        {"name": "topk(k=4)", "n_features": 64, "l0": 4.0, "fvu": 0.5, "ce_recovered": 0.75},
        {"name": "topk(k=8)", "n_features": 64, "l0": 8.0, "fvu": 0.25, "ce_recovered": 0.875},
    ],
}
LOG = [{"rows": 100 * i, "fvu": 1 / i, "l0": 100 / i, "dead_share": 0.01 * i} for i in range(1, 21)]
WRITES = ("layers.0.mlp", "layers.1.mlp", "layers.2.mlp")


def test_the_pictures_of_a_card_state_their_findings():
    found = dictionary_card.pictures(WRITES, 64, {"log": LOG}, METRICS)
    assert tuple(found) == dictionary_card.PICTURES
    assert found["density"].alt == (
        "Of 64 features 4 (6.2 %) never fire on 1,000 held-out tokens; half of those that fire do so on at most 0.42 % "
        "of the tokens, 4 on 10 % or more."
    )
    for unknown in (None, "0.1", -1, 3, math.nan, []):
        alt = dictionary_card.pictures(WRITES, 64, {}, {**METRICS, "density_median": unknown})["density"].alt
        assert alt == "Of 64 features 4 (6.2 %) never fire on 1,000 held-out tokens; 4 fire on 10 % or more."
    assert found["training"].alt == (
        "Over 2,000 tokens the fraction of variance unexplained went from 1 to 0.05; at most 20 % of the features were "
        "dead at once, 20 % at the end. On held-out texts it is 0.25."
    )
    assert found["l0"].alt == "Over 2,000 tokens the active features per token went from 100 to 5."
    assert "between 0.1 (layers.0.mlp) and 0.4 (layers.2.mlp)" in found["sites"].alt
    assert found["models"].alt == "Loss recovered: 90 % of model 0, 80 % of model 1, 70 % of model 2."
    assert found["frontier"].alt == "Loss recovered 87.5 % at 8 active features; of those beside it 75 % at 4."


def test_a_picture_that_cannot_be_made_is_left_out():
    whole = METRICS["density_log10_histogram"]
    for wrong in (
        None,
        [],
        {"edges": whole["edges"]},
        {**whole, "never": 5},  # not as many as there are features
        {**whole, "counts": whole["counts"][1:]},
        {**whole, "counts": ["10", 20, 20, 6, 4, 0]},
        {**whole, "counts": [10.5, 19.5, 20, 6, 4, 0]},
        {**whole, "counts": [-10, 40, 20, 6, 4, 0]},
        {**whole, "edges": [*whole["edges"][:-1], math.nan]},
        {**whole, "edges": whole["edges"][::-1]},
        {**whole, "edges": [-3, -2.5, -2, -1.5, -1, -0.5, 300]},
        {"edges": list(range(-99_999, 1)), "counts": [0] * 99_999, "never": 64},
    ):
        assert "density" not in dictionary_card.pictures(WRITES, 64, {}, {"density_log10_histogram": wrong})
    for log in (
        None,
        {},
        LOG[:1],
        [{"rows": "1", "fvu": 1}] * 9,
        [None, 3, []],
        LOG * 10_000,
        [{"rows": -1, "fvu": 1}] * 5,
    ):
        assert not dictionary_card.pictures(WRITES, 64, {"log": log}, {})
    one, own = METRICS["beside"]
    hostile = ({**one, "l0": "4"}, {**one, "ce_recovered": math.nan}, {**one, "l0": -1}, 3, None)
    for beside in (None, [own], [one], [own, own], [one, one], [own] * 99, {}, *([own, bad] for bad in hostile)):
        assert "frontier" not in dictionary_card.pictures(WRITES, 64, {}, {**METRICS, "beside": beside})
    for sites in (None, [], {"layers.0.mlp": 0.1}, dict.fromkeys(WRITES, math.nan), dict.fromkeys(WRITES, "1")):
        assert not dictionary_card.pictures(WRITES, 64, {}, {"fvu_per_site": sites})
    same = [{**row, "l0": 16.0} for row in LOG]
    assert set(dictionary_card.pictures(WRITES[:1], 64, {"log": same}, {})) == {"training"}


def test_no_content_of_statistics_and_metrics_breaks_or_stops_the_pictures():
    rng = np.random.default_rng(0)
    odd = [None, True, -1, 1e300, math.nan, math.inf, 10**500, "x" * 10_000, [], {}, [[]] * 500, {"rows": 1}, HOSTILE]

    def spoilt(value: Any) -> Any:
        if rng.random() < 0.08:
            return odd[int(rng.integers(len(odd)))]
        if isinstance(value, dict):
            return {key: spoilt(one) for key, one in value.items()}
        return [spoilt(one) for one in value] if isinstance(value, list) else value

    for _ in range(120):
        found = dictionary_card.pictures(WRITES, 64, {"log": spoilt(LOG)}, {k: spoilt(v) for k, v in METRICS.items()})
        for picture in found.values():
            ElementTree.fromstring(picture.svg)
            assert "nan" not in picture.alt
            assert "inf" not in picture.alt


def test_a_saved_dictionary_has_its_pictures_and_the_same_card_when_it_is_loaded(tmp_path):
    sae = random_sae()
    sae.statistics = {
        **{
            "steps": 9,
            "rows": 2000,
            "batch_size": 64,
            "dead_after_rows": 500,
            "peak_learning_rate": 0.005,
            "seconds": 12.5,
            "trained_together": 4,
        },
        **{
            "log": LOG,
            "recipe": {"k": 4, "matryoshka": (0.25, 1.0), "validation_split": 0.05},
            "data": {"name": "alice/texts"},
        },
    }
    sae.metrics = {"density_log10_histogram": METRICS["density_log10_histogram"]}
    sae.save(tmp_path / "one" / "d")
    type(sae).from_pretrained(tmp_path / "one" / "d").save(tmp_path / "two" / "d")
    first, again = ({p.name: p.read_bytes() for p in (tmp_path / n).rglob("*.*")} for n in ("one", "two"))
    assert first == again
    assert {"density.svg", "training.svg", "l0.svg"} <= set(first)
    card = first["README.md"].decode()
    assert "![Of 64 features 4 (6.2 %) never fire" in card
    assert "| `matryoshka` | `[0.25, 1.0]` | `None` |" in card
    assert "datasets:\n- alice/texts\n" in card
    assert "in 12 s, together with 3 others in one pass" in card
    assert "(https://huggingface.co/datasets/alice/texts), without the texts held out |" in card
    sae.statistics, sae.metrics = {}, {}
    sae.save(tmp_path / "one" / "d")
    assert not list((tmp_path / "one").rglob("*.svg"))


@pytest.mark.filterwarnings(UPLOAD_WARNING)
def test_pictures_are_published_once_and_taken_away_with_what_they_showed(alice):
    sae = random_sae()
    sae.metrics = {"density_log10_histogram": METRICS["density_log10_histogram"]}
    sae.push_to_hub("alice/drawn")
    before = alice.head("alice/drawn")
    assert "](assets/density.svg)" in alice.files("alice/drawn")["README.md"].decode()
    assert alice.files("alice/drawn")["assets/density.svg"] == sae.card_pictures()["density"].svg.encode()
    again = SAE.from_pretrained("alice/drawn")
    again.push_to_hub("alice/drawn")
    assert alice.head("alice/drawn") == before
    again.metrics = {}
    again.push_to_hub("alice/drawn")
    assert "assets/density.svg" not in alice.files("alice/drawn")
    assert "assets/" not in alice.files("alice/drawn")["README.md"].decode()
