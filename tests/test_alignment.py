"""The artifact of an alignment: kept, published, read again, refused where it was tampered with, and used."""

import json
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub as hf
import mlx.core as mx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import random_sae
from hub_server import UPLOAD_WARNING, HubServer
from site_parts import data_of

import hubsae
from hubsae import aligning, sparsity
from hubsae.align_config import AlignConfig
from hubsae.alignment import StoredAlignment
from hubsae.alignment_config import AlignmentConfig, record
from hubsae.anchors import AnchorConfig, read_anchors, text_id
from hubsae.api import SAE
from hubsae.causal import CAUSAL_MEASURES
from hubsae.cli import main
from hubsae.demo import atlas
from hubsae.demo.run import load_model
from hubsae.errors import ArtifactError, CompatibilityError, ConfigError, DataError
from hubsae.frames import Frame, stacked
from hubsae.map_quality import measured
from hubsae.maps import LinearMap
from hubsae.pair_tables import COLUMNS, TABLES, kinds
from hubsae.pairing import FATES
from hubsae.two_models import Alignment, align, load_alignment
from hubsae.verification import verify_on

pytestmark = pytest.mark.filterwarnings(UPLOAD_WARNING)
REPO = "alice/two-minds"
HOSTILE = "x | <img src=q onerror=alert(1)> `~` ]](http://evil) \n\n```\n# Mine **bold** $a$ {{ 7 * 7 }}"


def linear(rng: np.random.Generator, p: int, q: int) -> LinearMap:
    """A random map whose numbers are those that float32 holds."""
    return LinearMap(*(rng.standard_normal(s).astype(np.float32).astype(float) for s in ((p, q), p, q)))


def handmade(
    a: SAE, b: SAE, ids: Any = ((3, 5), (7, 1), (2, 9)), *, confirmed: Any = None, seed: int = 0, data: Any = "texts"
) -> Alignment:
    """An alignment of two dictionaries with the pairs `ids` and random maps and numbers."""
    rng = np.random.default_rng(seed)
    p, q, n = a.config.d_in, b.config.d_in, len(ids)
    first, second = (np.array([pair[side] for pair in ids], np.int64) for side in (0, 1))
    draw: dict[type, Callable[[], np.ndarray]] = {
        int: lambda: rng.integers(0, 99, n),
        float: lambda: rng.random(n),
        bool: lambda: rng.random(n) < 0.5,
    }
    pairs = {name: draw[kind]() for name, kind in kinds("pairs").items()}
    known = np.ones(n, bool) if confirmed is None else np.array(confirmed, bool)
    pairs |= {"feature_a": first, "feature_b": second, "confirmed": known, "corr_eval": 0.9 - 0.1 * np.arange(n)}
    rows = [
        measured("r2", 0.5, lo=0.4, hi=0.6, method="procrustes", null_name="moved on", null_mean=0.0, p=0.025, n=9),
        measured("cka", 0.25, direction="both", null_name="within words", null_mean=0.125),
        measured("context_excess", float("nan"), method="procrustes"),
    ]
    frames = {
        "pairs": Frame(pairs),
        "candidates": Frame({name: pairs[name] for name in COLUMNS["candidates"]}),
        "features_a": features(a.n_features, first, known),
        "features_b": features(b.n_features, second, known),
        "metrics": Frame(stacked(rows, kinds("metrics"))),
    }
    maps = {method: (linear(rng, p, q), linear(rng, q, p)) for method in ("procrustes", "shuffled")}
    thresholds = {"correlation": 0.1, "cosine": 0.3}
    anchors = {"rule": "end", "rule_version": 1, "n_anchors": {"fit": 5}, "coverage": [0.5, 0.75], "digest": "0f"}
    config = AlignmentConfig(record(a), record(b), asdict(AlignConfig(method="procrustes")), anchors, thresholds, data)
    found = Alignment(config, maps, frames)
    found.dictionaries, found.metrics = (a, b), aligning.summary(frames["metrics"])
    return found


def features(n: int, paired: np.ndarray, confirmed: np.ndarray) -> Frame:
    fate = np.full(n, "below_null", object)
    fate[paired] = np.where(confirmed, "matched", "unconfirmed")
    index = np.arange(n)
    best = np.where(index % 2, np.nan, 0.5)
    return Frame(
        {
            "index": index,
            "n_fire": index,
            "density": index / n,
            "fate": fate,
            "best_partner": index % 8,
            "best_corr": best,
        }
    )


def with_effects(alignment: Alignment) -> Alignment:
    """The same with a table of effects and a number of them."""
    old, row = alignment.frames["metrics"], measured("causal_auc", 0.9, null_name="chance", null_mean=0.5, method="x")
    new = Frame(stacked([*(old.row(i) for i in range(len(old))), row], kinds("metrics")))
    alignment.frames |= {"metrics": new, "effects": effects()}
    return alignment


def effects(n: int = 3) -> Frame:
    rows = [
        {
            "condition": c,
            "feature_a": i,
            "feature_b": i,
            "effect_corr": 0.1 * i,
            "n_tested": n,
            "kl_a": 0.3,
            "kl_b": 0.2,
        }
        for c in ("procrustes", "random direction")
        for i in range(n)
    ]
    return Frame(stacked(rows, kinds("effects")))


def wide(d: int = 12, n_features: int = 40, **config) -> SAE:
    return random_sae(d, n_features, **config)


@pytest.fixture
def small(sae) -> Alignment:
    return handmade(sae, wide())


def check_same(one: StoredAlignment, other: StoredAlignment) -> None:
    """Configs, tables and maps are equal, as float32 holds the maps."""
    assert one.config == other.config
    assert set(one.frames) == set(other.frames)
    for name, frame in one.frames.items():
        for column, values in frame.columns.items():
            np.testing.assert_array_equal(other.frames[name][column], values, err_msg=f"{name}.{column}")
            assert (values.dtype.kind in "OU") == (other.frames[name][column].dtype.kind == "O")
    assert set(one.maps) == set(other.maps)
    for method, both in one.maps.items():
        for map_, again in zip(both, other.maps[method], strict=True):
            for part in ("matrix", "mean_x", "mean_y"):
                np.testing.assert_array_equal(getattr(map_, part).astype(np.float32), getattr(again, part))


# What is kept


@pytest.mark.parametrize("steered", [False, True])
def test_a_saved_alignment_comes_back_exactly(small, tmp_path, steered):
    if steered:
        with_effects(small)
    small.config = replace(small.config, verified_by=({"n_anchors": 3, "numbers_inside": 0.5},), data="Straße 🗺")
    small.save_pretrained(tmp_path / "x")
    files = {p.relative_to(tmp_path / "x").as_posix() for p in (tmp_path / "x").rglob("*") if p.is_file()}
    assert files == {"assets/pairs.svg", "alignment.json", "map.safetensors", "metrics.json", "README.md"} | {
        f"{name}.parquet" for name in TABLES if steered or name != "effects"
    }
    again = load_alignment(tmp_path / "x")
    check_same(small, again)
    assert again.metrics == small.metrics
    assert again.dictionaries is None
    again.save_pretrained(tmp_path / "y")
    for name in files - {"README.md"}:
        assert (tmp_path / "x" / name).read_bytes() == (tmp_path / "y" / name).read_bytes()


def test_an_alignment_without_any_confirmed_pair_is_kept_and_said_to_have_none(sae, tmp_path):
    found = handmade(sae, wide(), confirmed=(False, False, False))
    rows = [found.frames["metrics"].row(i) for i in range(3)]
    rows.append(measured("top_k_overlap", float("nan"), n=0))  # as it comes out then: no value, no null
    found.frames["metrics"] = Frame(stacked(rows, kinds("metrics")))
    found.save_pretrained(tmp_path / "x")
    again = load_alignment(tmp_path / "x")
    assert (len(again.pairs), list(again), again.partner(3)) == (0, [], None)
    card = (tmp_path / "x" / "README.md").read_text()
    assert "**No pair** is confirmed" in card
    assert "3 were chosen and not confirmed" in card
    assert "The most alike" not in card


def test_a_push_is_a_dataset_that_finds_its_dictionaries_by_commit(alice: HubServer, tmp_path):
    commits = [random_sae(d, n).push_to_hub(f"alice/sae-{i}").oid for i, (d, n) in enumerate(((16, 64), (12, 40)))]
    a, b = (hubsae.load_sae(f"alice/sae-{i}") for i in range(2))
    found = handmade(a, b)
    first = found.push_to_hub(REPO).oid
    assert found.push_to_hub(REPO).oid == first
    a.metrics["fvu"] = 0.5
    a.push_to_hub("alice/sae-0")  # a later commit: not the one that was aligned
    again = load_alignment(REPO, revision=first)
    check_same(found, again)
    assert again.dictionaries is not None
    assert [d.source.revision for d in again.dictionaries] == commits
    assert not again.compare(a, b)
    assert again.transfer().config.d_in == 12
    assert again.push_to_hub(REPO).oid == first
    datasets.disable_progress_bars()
    table = datasets.load_dataset(REPO, "pairs", split="train")
    assert isinstance(table, datasets.Dataset)
    assert table["feature_a"][:] == [3, 7, 2]
    assert set(table.column_names) == set(COLUMNS["pairs"])
    default = datasets.load_dataset(REPO, split="train")
    assert isinstance(default, datasets.Dataset)
    assert default[:] == table[:]
    fates = datasets.load_dataset(REPO, "features_b", split="train")
    assert isinstance(fates, datasets.Dataset)
    assert fates["fate"][5] == "matched"
    card = hf.DatasetCard(alice.files(REPO, "main", "dataset")["README.md"].decode())
    card.validate()
    assert {"hubsae-alignment", "alice/sae-0", "alice/sae-1"} <= set(card.data["tags"])
    assert "license" not in card.data.to_dict()
    for i, commit in enumerate(commits):
        assert f"[alice/sae-{i}](https://huggingface.co/alice/sae-{i}/tree/{commit})" in card.text


def test_the_folder_of_an_alignment_is_published_by_its_name(alice, small, tmp_path):
    small.save_pretrained(tmp_path / "x")
    assert main(["push", str(tmp_path / "x"), REPO, "--license", "mit"]) == 0
    files = alice.files(REPO, repo_type="dataset")
    assert json.loads(files["alignment.json"]) == json.loads((tmp_path / "x" / "alignment.json").read_text())
    assert b'  author = "{alice}",\n' in files["README.md"]


# What is refused


def test_other_dictionaries_are_refused(small, sae, tmp_path):
    small.save_pretrained(tmp_path / "x")
    b = wide()
    load_alignment(tmp_path / "x", sae, b)
    other_weights = SAE(sae.config, {**sae.arrays(), "W_dec": sae.W_dec[::-1]})
    other_rule = SAE(replace(sae.config, sparsity={"name": "topk", "k": 5}), sae.arrays())
    for other in (other_weights, other_rule):
        with pytest.raises(CompatibilityError, match="A has other weights"):
            load_alignment(tmp_path / "x", other, b)
    elsewhere = dict.fromkeys(("reads", "writes"), ("layers.2.residual",))
    for other, message in ((wide(n_features=41), "41 features"), (wide(**elsewhere), r"layers\.2\.residual")):
        with pytest.raises(CompatibilityError, match=rf"B reads .*{message}"):
            load_alignment(tmp_path / "x", sae, other)
    with pytest.raises(CompatibilityError, match="A reads"):
        load_alignment(tmp_path / "x", b, sae)
    found = load_alignment(tmp_path / "x", other_weights, b, check="ignore")
    assert found.dictionaries == (other_weights, b)
    half = SAE(sae.config, {name: array.astype(mx.float16) for name, array in sae.arrays().items()})
    load_alignment(tmp_path / "x", half, b)


def changed_config(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "alignment.json"
        data = json.loads(path.read_text())
        for name, value in changes.items():
            *outer, last = name.split("__")
            place = data
            for key in outer:
                place = place[key]
            place[last] = value
        path.write_text(json.dumps(data))

    return change


def changed_table(name: str, change: Callable[[pa.Table], pa.Table]) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        path = folder / f"{name}.parquet"
        pq.write_table(change(pq.read_table(path)), path)

    return write


def with_column(column: str, value: Any) -> Callable[[pa.Table], pa.Table]:
    def change(table: pa.Table) -> pa.Table:
        values = value if isinstance(value, pa.Array) else pa.array([value] * len(table))
        return table.set_column(table.column_names.index(column), column, values)

    return change


def changed_map(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = str(folder / "map.safetensors")
        arrays: dict[str, Any] = dict(mx.load(path))  # type: ignore[arg-type]
        for name, value in changes.items():
            name = name.replace("__", ".")
            arrays[name] = value(arrays[name]) if callable(value) else value
        mx.save_safetensors(path, {name: array for name, array in arrays.items() if array is not None})

    return change


def doubled(table: pa.Table) -> pa.Table:
    return pa.Table.from_arrays([*table.columns, table["p"]], names=[*table.column_names, "p"])


TAMPERED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "feature too large": (changed_table("pairs", with_column("feature_b", 40)), "features lie between 0 and 39"),
    "feature below 0": (changed_table("candidates", with_column("feature_a", -1)), "features lie between 0 and 63"),
    "effects of no feature": (changed_table("effects", with_column("feature_a", 64)), "effects.*lie between"),
    "unsigned": (changed_table("pairs", with_column("feature_a", pa.array([2**64 - 1] * 3, pa.uint64()))), "between"),
    "a partner for several": (changed_table("pairs", with_column("feature_b", 5)), "several confirmed partners"),
    "features that are not there": (changed_table("features_a", lambda t: t.slice(0, 60)), "one row for each feature"),
    "features twice": (changed_table("features_b", with_column("index", 0)), "one row for each feature"),
    "invented fate": (changed_table("features_a", with_column("fate", "blessed")), "unknown fates blessed"),
    "no fate": (changed_table("features_a", with_column("fate", pa.nulls(64))), "unknown fates None"),
    "missing column": (changed_table("pairs", lambda t: t.drop_columns(["q_bh"])), "no columns q_bh"),
    "column twice": (changed_table("pairs", doubled), "several columns p"),
    "text for numbers": (changed_table("pairs", with_column("corr_eval", "high")), "corr_eval: string, expected float"),
    "numbers for text": (changed_table("metrics", with_column("name", 1)), "name: int64, expected str"),
    "numbers for truth": (changed_table("pairs", with_column("confirmed", 1)), "confirmed: int64, expected bool"),
    "nested": (changed_table("pairs", with_column("p", pa.array([[0.1]] * 3))), "expected float"),
    "ids that are missing": (changed_table("pairs", with_column("feature_a", pa.array([1, None, 2]))), "are missing"),
    "text that is no text": (
        changed_table("metrics", with_column("name", pa.array([b"\xff"] * 4).view(pa.string()))),
        "not a readable Parquet",
    ),
    "no table": (lambda folder: (folder / "metrics.parquet").unlink(), r"metrics\.parquet is missing"),
    "broken table": (lambda folder: (folder / "pairs.parquet").write_bytes(b"PAR1xPAR1"), "not a readable Parquet"),
    "half a table": (
        lambda folder: (folder / "pairs.parquet").write_bytes((folder / "pairs.parquet").read_bytes()[:-9]),
        "not a readable Parquet",
    ),
    "map of another width": (changed_map(procrustes__forward__matrix=mx.zeros((16, 11))), r"maps \(16, 11\)"),
    "map of one dimension": (changed_map(procrustes__forward__matrix=mx.zeros(192)), r"maps \(192,\)"),
    "mean of another width": (changed_map(shuffled__backward__mean_x=mx.zeros(13)), r"shuffled\.backward maps"),
    "NaN in a map": (changed_map(procrustes__backward__mean_y=lambda x: x * float("nan")), "NaN or infinity"),
    "part of a map": (changed_map(procrustes__forward__mean_x=lambda x: None), r"missing \['procrustes\.forward"),
    "more than maps": (changed_map(procrustes__forward__code=mx.zeros(2)), r"unknown \['procrustes\.forward\.code"),
    "no map of the method": (changed_config(settings__method="ridge"), "no map of the method 'ridge'"),
    "no arrays": (lambda folder: (folder / "map.safetensors").write_bytes(b"\x80\x04}."), "not a valid safetensors"),
    "a later format": (changed_config(format_version=2), "reads up to format 1. Run: pip install -U"),
    "no format": (changed_config(format_version="1"), "not written by hubsae"),
    "another library's": (changed_config(library_name="other"), "not written by hubsae"),
    "unknown entries": (changed_config(surprise=1), "unknown entries surprise"),
    "widths that lie": (changed_config(a__width=17), r"the config says \(17, 12\)"),
    "features that lie": (changed_config(b__n_features=41), "one row for each feature from 0 to 40"),
    "width as text": (changed_config(a__width="16"), "expected int"),
    "truth for a width": (changed_config(a__width=True), "expected int"),
    "no features": (changed_config(a__n_features=0), "expected positive numbers"),
    "no site": (changed_config(a__site="../../etc"), "is no site"),
    "a model that is a list": (changed_config(a__base_model=[1]), "expected dict"),
    "a model of numbers": (changed_config(b__base_model={"repo_id": 1}), "expected str"),
    "a fingerprint of texts": (changed_config(a__fingerprint={"W_enc": ["x"]}), "expected a list of numbers"),
    "a repository of any commit": (changed_config(a__repo_id="alice/sae"), "without its commit"),
    "unknown settings": (changed_config(settings__fast=True), "fast"),
    "settings that cannot be": (changed_config(settings__max_q=2.0), "max_q"),
    "anchors that cannot be": (changed_config(anchors__rule="any"), "rule='any'"),
    "sides that are lists": (changed_config(a=[]), "expected objects"),
    "verified by a text": (changed_config(verified_by=["me"]), "expected objects"),
    "verified by a number": (changed_config(verified_by=7), "not iterable"),
}


@pytest.mark.parametrize("what", TAMPERED)
def test_a_folder_that_was_tampered_with_is_refused(what, small, tmp_path):
    change, message = TAMPERED[what]
    with_effects(small)
    small.save_pretrained(tmp_path / "x")
    change(tmp_path / "x")
    with pytest.raises(ArtifactError, match=message):
        load_alignment(tmp_path / "x")


def test_what_lacks_its_nulls_is_neither_saved_nor_described(small, tmp_path):
    nan = np.full(3, np.nan)
    pairs, metrics = small.frames["pairs"], small.frames["metrics"]
    without = [
        ("pairs", pairs.with_columns({**pairs.columns, name: nan}), name)
        for name in ("corr_docshift_q99", "corr_withinword_q99", "p", "q_bh")
    ]
    without += [
        ("pairs", pairs.with_columns({n: c for n, c in pairs.columns.items() if n != "q_bh"}), "q_bh"),
        ("metrics", metrics.with_columns({**metrics.columns, "null_mean": nan}), "cka, r2: without a null"),
    ]
    for name, frame, message in without:
        kept, small.frames[name] = small.frames[name], frame
        for refused in (small.generate_model_card, lambda: small.save_pretrained(tmp_path / "x")):
            with pytest.raises(ArtifactError, match=message):
                refused()
        small.frames[name] = kept
    del small.frames["metrics"]
    with pytest.raises(ArtifactError, match="without its pairs and metrics"):
        small.generate_model_card()
    assert not (tmp_path / "x").exists()


def test_a_map_that_is_not_finite_is_never_made(small):
    there, back = small.maps["procrustes"]
    bad = replace(there, mean_y=there.mean_y * np.inf)
    with pytest.raises(ArtifactError, match=r"procrustes\.forward holds NaN or infinity"):
        StoredAlignment(small.config, {"procrustes": (bad, back)}, small.frames)


# The card


def test_foreign_text_stays_text_on_the_card(sae, tmp_path):
    found = handmade(sae, wide(), data=HOSTILE)
    rows = [found.frames["metrics"].row(i) for i in range(3)]
    rows.append(measured(HOSTILE, 1.5, method=HOSTILE, null_name=HOSTILE, null_mean=0.0))
    rows.append(measured("causal_auc", 0.5, method=HOSTILE, null_name=HOSTILE, null_mean=0.5))
    found.frames |= {"metrics": Frame(stacked(rows, kinds("metrics"))), "effects": effects()}
    base = {**found.config.a["base_model"], "repo_id": HOSTILE, "revision": HOSTILE, "model_type": HOSTILE}
    side = {**found.config.a, "base_model": base, "repo_id": HOSTILE, "revision": HOSTILE, "subfolder": HOSTILE}
    anchors = {**found.config.anchors, "digest": HOSTILE, "rule_version": 1}
    found.config = replace(
        found.config,
        a=side,
        anchors=anchors,
        thresholds={HOSTILE: 1.0},
        created=HOSTILE,
        verified_by=({"by": HOSTILE, "data": HOSTILE, "n_anchors": 3},),
    )
    found.maps[HOSTILE] = found.maps["procrustes"]
    card = str(found.generate_model_card(repo_id=REPO))
    body = card.split("---\n", 2)[2]
    block = re.compile(r"^```(?:python|bibtex)\n.*?\n```\n", flags=re.DOTALL | re.MULTILINE)
    code, rest = "".join(block.findall(body)), block.sub("", body)
    assert len(re.findall(r"^```", code, flags=re.MULTILINE)) == 6
    assert len(re.findall(r"^```", rest, flags=re.MULTILINE)) == 0
    for line in code.splitlines():
        assert "onerror" not in line or "\\n\\n```\\n# Mine" in line  # inside of one JSON string
    spans = re.sub(r"(?<!`)(`+)(?!`).*?(?<!`)\1(?!`)", "", re.sub(r"\\.", "", rest))
    assert "<img" not in spans
    assert "](http://evil" not in spans
    assert "**bold**" not in spans
    assert not re.search(r"^# Mine", rest, flags=re.MULTILINE)
    assert "49" not in re.findall(r"7 \* 7|\{\{.*", rest)[0]
    assert hf.DatasetCard(card).data["tags"][-1] == HOSTILE  # YAML keeps it whole
    for line in rest.splitlines():  # no cell was broken open
        if line.startswith("|") and HOSTILE[:3] in line:
            cells = re.sub(r"\\\|", "", line).count("|") - 1
            assert cells in (2, 3, 4, 5, 7), line


def test_the_card_says_what_became_of_all_features_and_what_the_columns_mean(small):
    with_effects(small)
    card = str(small.generate_model_card(repo_id=REPO))
    table = re.findall(r"^\| `(\w+)` \| ([\d,]+) \| ([\d,]+) \| .{10,} \|$", card, flags=re.MULTILINE)
    assert [row[0] for row in table] == list(FATES)
    assert [sum(int(row[i]) for row in table) for i in (1, 2)] == [64, 40]
    for name in {column for known in COLUMNS.values() for column in known}:
        assert re.search(rf"^\| `{name}` \| (int|float|bool|str) \|", card, flags=re.MULTILINE), name
    assert "More Information Needed" not in card
    assert "None was made" not in card
    del small.frames["effects"]
    assert "None was made: nothing here says" in str(small.generate_model_card())


def test_the_card_shows_its_pairs_and_numbers_with_their_nulls(small):
    card = str(small.generate_model_card(repo_id=REPO))
    assert "| `r2` | procrustes | a-&gt;b | 0.5 [0.4, 0.6] | moved on | 0 | 0.025 |" in card
    for row in (small.pairs.row(i) for i in range(3)):
        start = rf"\| {row['feature_a']} \| {row['feature_b']} \| {row['corr_eval']:.3g} \[.*?\] "
        nulls = rf"\| {row['corr_docshift_q99']:.2g} \| {row['corr_withinword_q99']:.2g} \| {row['q_bh']:.2g} \|"
        assert re.search(start + nulls, card)
    assert "license" not in card.split("---\n")[1]


@pytest.mark.parametrize("known", [True, False])
def test_every_table_of_the_card_is_whole(small, known):
    with_effects(small)
    if known:
        side = {**small.config.a, "repo_id": "alice/sae", "revision": "0" * 40}
        entry = {"n_anchors": 5, "n_documents": 2, "numbers": 3, "numbers_inside": 1.0, "by": "bob"}
        small.config = replace(small.config, a=side, verified_by=(entry,))
    card = str(small.generate_model_card(repo_id=REPO))
    lines = [re.sub(r"\\.|`[^`]*`", "", line).rstrip() for line in card.splitlines()]
    heads = [i for i, line in enumerate(lines) if re.fullmatch(r"\|(-+\|)+", line)]
    assert len(heads) > 10
    for head in heads:
        columns, row = lines[head].count("|"), head - 1
        assert not lines[head - 2]
        while lines[row]:
            assert lines[row].count("|") == columns, lines[row]
            row += 1
        assert row > head + 1  # not an empty table
    assert len([line for line in lines if line.startswith("|")]) == sum(
        next(i for i, line in enumerate(lines[head - 1 :]) if not line) for head in heads
    )


# Questions


def test_partners_and_those_without(small):
    assert small.partner(7) == (7, 1, pytest.approx(0.8), pytest.approx(small.partner(7).interval))
    assert small.partner(1, "b").feature_a == small.partner(np.int64(7)).feature_a == 7
    assert small.partner(1) is None
    assert [(pair.feature_a, pair.feature_b) for pair in small] == [(3, 5), (7, 1), (2, 9)]
    assert set(small.unmatched("a")["index"]) == set(range(64)) - {3, 7, 2}
    assert set(small.unmatched("b")["index"]) == set(range(40)) - {5, 1, 9}
    for feature in (-1, 64, 1.0, "3"):
        with pytest.raises(DataError, match="a has the features 0 to 63"):
            small.partner(feature)
    with pytest.raises(DataError, match="b has the features 0 to 39"):
        small.partner(40, "b")
    for call in (small.partner, lambda *args: small.unmatched(args[-1])):
        with pytest.raises(ConfigError, match="expected 'a' or 'b'"):
            call(0, "c")
    assert small.metric("r2", "procrustes", "a->b")["null_mean"] == 0
    with pytest.raises(DataError, match="no metric 'r2' of method ridge"):
        small.metric("r2", "ridge")


def test_a_pair_that_was_not_confirmed_is_no_partner_and_is_kept_in_the_table(sae):
    found = handmade(sae, wide(), confirmed=(True, False, True))
    assert found.partner(7) is None
    assert [pair.feature_a for pair in found] == [3, 2]
    assert found.frames["pairs"]["feature_a"].tolist() == [3, 7, 2]
    assert "1 more were chosen and not confirmed" in str(found.pairs)
    assert dict(zip(*(found.unmatched()[n].tolist() for n in ("index", "fate")), strict=True))[7] == "unconfirmed"


def test_map_is_the_formula_for_rows_of_any_shape(small):
    rng = np.random.default_rng(3)
    for method, back, width in ((None, False, 16), ("shuffled", True, 12)):
        map_ = small.maps[method or "procrustes"][back]
        x = rng.standard_normal((2, 3, width)).astype(np.float32)
        expected = (x - map_.mean_x) @ map_.matrix + map_.mean_y
        for rows in (x, mx.array(x)):
            np.testing.assert_allclose(np.array(small.map(rows, method=method, back=back)), expected, atol=1e-4)
    assert small.map(mx.ones((1, 16), mx.bfloat16)).dtype == mx.float32
    with pytest.raises(ConfigError, match="holds procrustes, shuffled"):
        small.map(mx.ones(16), method="cca")
    with pytest.raises(DataError, match="this map takes 16 columns"):
        small.map(mx.ones(12))


def test_what_needs_the_dictionaries_or_models_says_so(small, tmp_path):
    small.save_pretrained(tmp_path / "x")
    again = load_alignment(tmp_path / "x")
    for call in (again.transfer, again.make_dashboard, lambda: again.verify(["a"]), lambda: again.causal_transfer("a")):
        with pytest.raises(ConfigError, match="dictionaries are not at hand; bind"):
            call()
    with pytest.raises(ConfigError, match="models are not at hand; bind"):
        small.verify(["a text"])
    with pytest.raises(ConfigError, match="names no repository of its dictionaries"):
        load_alignment(tmp_path / "x", model_a=object())
    moved = again.transfer(small.dictionaries[0])  # one that is given needs none at hand
    assert (moved.config.d_in, moved.config.reads) == (12, ("layers.1.residual",))


RULES = {name: {"name": name, **({"k": 4} if "topk" in name else {})} for name in sparsity.SPARSITIES}


@pytest.mark.parametrize("back", [False, True])
@pytest.mark.parametrize("name", RULES)
def test_a_transferred_dictionary_does_what_the_maps_and_the_original_do(small, name, back):
    rule, rng = sparsity.from_dict(RULES[name]), np.random.default_rng(1)
    own, other = (12, 16) if back else (16, 12)
    plain = random_sae(own, 48)
    learned = {n: mx.array(rng.uniform(0.5, 3, s).astype(np.float32)) for n, s in rule.array_shapes(48).items()}
    sae = SAE(replace(plain.config, sparsity=RULES[name]), {**plain.arrays(), **learned})
    y = rng.standard_normal((50, other)).astype(np.float32)
    moved = small.transfer(sae, back=back)
    there, here = small.maps["procrustes"][back], small.maps["procrustes"][not back]
    x = here(y.astype(np.float64)).astype(np.float32)
    arrays = {n: np.array(a, np.float64) for n, a in sae.arrays().items()}
    code = np.array(sae.encode(mx.array(x)), np.float64)
    assert (code > 0).any()
    decoded = code @ arrays["W_dec"] + arrays["b_dec"]
    expected = (decoded - there.mean_x) @ there.matrix + there.mean_y
    scale = float(np.abs(expected).max())
    np.testing.assert_allclose(np.array(moved(mx.array(y))) / scale, expected / scale, atol=1e-4)
    np.testing.assert_allclose(np.array(moved.encode(mx.array(y))), code, atol=1e-4 * float(code.max()))


# Chains


def three(ab: Any, bc: Any, ac: Any) -> tuple[Alignment, Alignment, Alignment]:
    a, b, c = random_sae(16, 64), random_sae(12, 40), random_sae(10, 48)
    return handmade(a, b, ab, seed=1), handmade(b, c, bc, seed=2), handmade(a, c, ac, seed=3)


def test_a_closed_cycle_closes_everywhere():
    ab, bc = [(i, (7 * i) % 40) for i in range(30)], [((7 * i) % 40, 47 - i) for i in range(30)]
    found = three(ab, bc, [(i, 47 - i) for i in range(30)])
    chain = found[0].compose(found[1])
    assert set(zip(*(chain.pairs[n].tolist() for n in ("feature_a", "via", "feature_b")), strict=True)) == {
        (i, (7 * i) % 40, 47 - i) for i in range(30)
    }
    x = np.random.default_rng(0).standard_normal((5, 16))
    np.testing.assert_allclose(chain.map(x), found[1].map_of()(found[0].map_of()(x)))
    cycle = found[0].cycle(found[1], found[2])
    assert (cycle.n_both, cycle.n_closed, cycle.share) == (30, 30, 1.0)
    assert cycle.chance == pytest.approx(1 / 30)
    assert set(cycle.closed) == set(range(30))
    assert "cycle consistency" in str(cycle)


def test_a_shuffled_cycle_closes_as_often_as_chance_says():
    rng, shares = np.random.default_rng(5), []
    for _ in range(20):
        ends = rng.permutation(30)
        straight = [(i, i) for i in range(30)]
        found = three(straight, straight, list(zip(range(30), ends.tolist(), strict=True)))
        cycle = found[0].cycle(found[1], found[2])
        assert cycle.share == np.mean(ends == np.arange(30))
        assert cycle.chance == pytest.approx(1 / 30)
        shares.append(cycle.share)
    assert abs(np.mean(shares) - 1 / 30) < 4 * np.sqrt(1 / 30 / 30 / 20)


def test_a_chain_goes_only_through_confirmed_pairs_and_keeps_the_smaller_correlation(sae):
    a, b, c = sae, random_sae(12, 40), random_sae(10, 48)
    first = handmade(a, b, confirmed=(True, True, False))
    second = handmade(b, c, ((9, 0), (1, 2), (8, 3)))
    chain = first.compose(second)
    assert [chain.pairs.row(i) for i in range(len(chain.pairs))] == [
        {"feature_a": 7, "via": 1, "feature_b": 2, "corr_eval": pytest.approx(0.8)}
    ]
    lonely = first.cycle(second, handmade(a, c, ((0, 0),)))
    assert (lonely.n_both, lonely.n_closed) == (0, 0)
    assert np.isnan(lonely.share)


def test_alignments_that_do_not_meet_are_not_joined(small, sae):
    c = random_sae(10, 48)
    with pytest.raises(DataError, match="do not meet: the middle"):
        small.compose(handmade(sae, c))
    other = wide()
    other = SAE(other.config, {**other.arrays(), "W_enc": -other.W_enc})
    with pytest.raises(DataError, match="do not meet: the middle"):
        small.compose(handmade(other, c))
    with pytest.raises(DataError, match="do not meet: the start"):
        small.cycle(handmade(wide(), c), handmade(wide(), c))
    with pytest.raises(DataError, match="do not meet: the end"):
        small.cycle(handmade(wide(), c), handmade(sae, sae))
    half = SAE(wide().config, {n: array.astype(mx.bfloat16) for n, array in wide().arrays().items()})
    assert small.compose(handmade(half, c)).pairs is not None  # the same dictionary in another precision


# Of two language models


SETTINGS = {
    "method": "procrustes",
    "eval_rows": 1000,
    "n_shifts": 39,
    "n_shuffles": 9,
    "n_bootstraps": 50,
    "n_refits": 5,
    "progress": False,
}


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return [document.text for document in atlas.generate(1000, seed=3)]


@pytest.fixture(scope="module")
def saes(texts) -> tuple[SAE, SAE]:
    found = [
        load_model(name).train_sae(3, texts[:300], "residual", expansion_factor=2, k=8, batch_size=64, progress=False)
        for name in ("atlas-llama", "atlas-neox")
    ]
    return found[0], found[1]


@pytest.fixture(scope="module")
def real(saes, texts) -> Alignment:
    return align(*saes, texts=texts[600:840], dataset_name="the atlas", **SETTINGS)


@pytest.fixture
def bound(real, saes, tmp_path) -> Iterator[Alignment]:
    """The real one, saved and loaded again, so that it may be changed."""
    real.save_pretrained(tmp_path / "real")
    yield load_alignment(tmp_path / "real", *saes)
    shutil.rmtree(tmp_path / "real")


def anchor_config(alignment: StoredAlignment) -> AnchorConfig:
    return AnchorConfig(**{n: alignment.config.anchors[n] for n in AnchorConfig.__dataclass_fields__})


@pytest.fixture(scope="module")
def eval_texts(real, saes, texts) -> list[str]:
    """The documents of the eval split."""
    tokenizers = [sae.model.tokenizer for sae in saes]
    anchors = read_anchors(texts[600:840], tokenizers, anchor_config(real), (256, 256))
    assert anchors.digest == real.config.anchors["digest"]
    chosen = {name for name, split in zip(anchors.texts, anchors.split, strict=True) if split == 2}
    return [text for text in texts[600:840] if text_id(text) in chosen]


def brute_force(saes: tuple[SAE, SAE], texts: list[str]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Activations and dense codes of both models, text by text, where tokens end at the same character."""
    rows: list[list[np.ndarray]] = [[], []]
    for text in texts:
        ends, acts = [], []
        for side in saes:
            model = side.model
            assert model is not None
            cut = model.tokenizer._tokenizer(text, return_offsets_mapping=True)
            pairs = enumerate(cut["offset_mapping"])
            ends.append({end: i for i, (start, end) in pairs if end > start and i >= 4})
            site = side.config.read_sites[0]
            run = model.run([cut["input_ids"]], read=[site])
            acts.append(np.array(run.activations[site].astype(mx.float32))[0])
        shared = sorted(ends[0].keys() & ends[1].keys())
        for part, known, act in zip(rows, ends, acts, strict=True):
            part.append(act[[known[end] for end in shared]])
    x, y = (np.concatenate(part) for part in rows)
    codes = [np.array(side.encode(mx.array(part))) for side, part in zip(saes, (x, y), strict=True)]
    return [x, y], codes


def test_the_numbers_of_pairs_are_those_of_brute_force(real, saes, eval_texts):
    activations, codes = brute_force(saes, eval_texts)
    n = real.config.anchors["n_anchors"]["eval"]
    assert [len(part) for part in (*activations, *codes)] == [n] * 4
    pairs = real.frames["pairs"]
    assert len(pairs) > 20
    for i in range(0, len(pairs), 3):
        row = pairs.row(i)
        a, b = codes[0][:, row["feature_a"]], codes[1][:, row["feature_b"]]
        assert row["corr_eval"] == pytest.approx(np.corrcoef(a, b)[0, 1], abs=2e-3)
        assert row["n_fire_a"] == pytest.approx((a > 0).sum(), abs=2)  # batches round otherwise
        assert row["n_cofire"] == pytest.approx(((a > 0) & (b > 0)).sum(), abs=2)
        assert row["jaccard_eval"] == pytest.approx(((a > 0) & (b > 0)).sum() / ((a > 0) | (b > 0)).sum(), abs=0.03)
        assert row["gain"] == pytest.approx((a @ b) / (a @ a), rel=0.02)
        mapped = np.array(saes[0].W_dec)[row["feature_a"]] @ real.maps["procrustes"][0].matrix
        target = np.array(saes[1].W_dec)[row["feature_b"]]
        cosine = mapped @ target / np.linalg.norm(mapped) / np.linalg.norm(target)
        assert row["cos_map"] == pytest.approx(cosine, abs=1e-4)
    map_ = real.maps["procrustes"][0]
    guess = (activations[0] - map_.mean_x) @ map_.matrix + map_.mean_y
    r2 = 1 - np.square(activations[1] - guess).sum() / np.square(activations[1] - map_.mean_y).sum()
    assert real.metric("r2", "procrustes", "a->b")["value"] == pytest.approx(r2, abs=0.05)  # of 1,000 of these rows
    assert real.metric("mean_corr_eval")["value"] == pytest.approx(np.mean([pair.correlation for pair in real]))


def test_every_feature_has_a_fate_and_no_dead_or_rare_one_a_partner(real, saes):
    settings, pairs = real.settings, real.frames["pairs"]
    for side, sae in zip("ab", saes, strict=True):
        table = real.frames[f"features_{side}"]
        assert table["index"].tolist() == list(range(sae.n_features))
        assert set(table["fate"]) <= set(FATES)
        of = dict(zip(table["index"].tolist(), table["fate"].tolist(), strict=True))
        known = zip(pairs[f"feature_{side}"].tolist(), pairs["confirmed"].tolist(), strict=True)
        assert all(of[i] == ("matched" if confirmed else "unconfirmed") for i, confirmed in known)
        assert sum(fate == "matched" for fate in of.values()) == len(real.pairs)
        assert (table["n_fire"][table["fate"] == "dead"] == 0).all()
        assert (table["n_fire"][pairs[f"feature_{side}"]] >= settings.min_firings).all()
        assert len(set(pairs[f"feature_{side}"].tolist())) == len(pairs)
        assert len(real.unmatched(side)) == sae.n_features - len(real.pairs)
    assert (pairs["corr_match"] > real.config.thresholds["correlation"]).all()
    assert (pairs["q_bh"][pairs["confirmed"]] < settings.max_q).all()
    assert (pairs["p"] > 0).all()


def test_a_real_alignment_comes_back_exactly_and_writes_the_same_files_again(real, bound, tmp_path):
    check_same(real, bound)
    bound.save_pretrained(tmp_path / "again")
    first, again = (
        {p.name: p.read_bytes() for p in (tmp_path / n).rglob("*") if p.is_file()} for n in ("real", "again")
    )
    assert first.keys() == again.keys()
    for name in first.keys() - {"README.md"}:
        assert first[name] == again[name], name
    assert "# again" in again["README.md"].decode()


def test_the_code_of_the_card_runs_as_it_stands(real, saes, alice, demo_folder, tmp_path, capsys):
    sides = []
    for sae, side, name in zip(saes, real.sides, ("atlas-llama", "atlas-neox"), strict=True):
        files = {p.name: p.read_bytes() for p in (demo_folder.parent / name).iterdir() if p.is_file()}
        base = {**side["base_model"], "repo_id": f"alice/{name}", "revision": alice.put(f"alice/{name}", files)}
        commit = sae.push_to_hub(f"alice/{name}-sae").oid
        sides.append({**side, "base_model": base, "repo_id": f"alice/{name}-sae", "revision": commit})
    published = Alignment(replace(real.config, a=sides[0], b=sides[1]), real.maps, real.frames)
    published.push_to_hub(REPO)
    card = alice.files(REPO, "main", "dataset")["README.md"].decode()
    datasets.disable_progress_bars()
    scope: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL):
        exec(block, scope)
    assert f"feature_a={real.pairs['feature_a'][0]}" in capsys.readouterr().out
    assert scope["mapped"].shape[-1] == 96
    assert scope["sae_in_b"].config.reads == ("layers.3.residual",)
    assert len(scope["pairs"]) == len(real.frames["pairs"])


def test_verify_finds_the_published_numbers_on_the_same_documents(bound, texts):
    models = tuple(sae.model for sae in bound.dictionaries)
    own = aligning.anchors_of(bound.dictionaries, models, texts[600:840], anchor_config(bound)).of("eval")
    found = verify_on(bound, bound.dictionaries, models, own)
    assert found.n_anchors == bound.config.anchors["n_anchors"]["eval"]
    assert found.n_documents == bound.config.anchors["n_documents"]["eval"]
    exact = np.isin(found.numbers["name"].astype(str), ("r2", "retrieval_at_1"))
    assert exact.sum() == 8
    np.testing.assert_allclose(found.numbers["fresh"][exact], found.numbers["value"][exact], atol=1e-5)
    np.testing.assert_allclose(found.pairs["fresh"], found.pairs["value"], atol=1e-5)
    assert found.share_of_pairs_compatible == 1
    assert found.share_inside == 1
    assert set(found.numbers["name"]) == {"r2", "context_excess", "retrieval_at_1", "cka"}


def test_verify_on_fresh_documents_gives_numbers_that_a_card_can_hold(bound, texts):
    found = hubsae.verify(bound, texts[860:960], progress=False)
    assert np.isfinite(found.numbers["fresh"].astype(float)).all()
    assert np.isfinite(found.pairs["fresh"]).all()
    assert found.share_inside > 0.3
    bound.config = replace(bound.config, verified_by=(found.to_dict(),))
    card = str(bound.generate_model_card())
    assert f"{found.n_anchors:,} anchors of 100 documents" in card
    assert "Nobody has recorded" not in card


def test_causal_transfer_adds_effects_that_are_published_too(bound, saes, texts, tmp_path):
    before = len(bound.frames["metrics"])
    shown = bound.causal_transfer(texts[600:840], n_features=6, n_anchors=40)
    table, numbers = bound.frames["effects"], bound.frames["metrics"]
    names = set(table["condition"])
    assert names == {"procrustes", "ridge", "shuffled", "partner", "random direction", "rotated map"}
    assert len(table) == 6 * len(names)
    added = numbers.where(np.isin(numbers["name"].astype(str), list(CAUSAL_MEASURES)))
    assert set(added["name"]) == set(CAUSAL_MEASURES)
    assert len(numbers) == before + len(added)
    assert len(shown)
    paired = {(pair.feature_a, pair.feature_b) for pair in bound}
    assert set(zip(table["feature_a"].tolist(), table["feature_b"].tolist(), strict=True)) <= paired
    assert np.median(np.abs(np.concatenate([table["kl_a"], table["kl_b"]]) / 0.3 - 1)) < 0.1
    assert bound.metric("stitched_loss_recovered", "ridge")["value"] > 0.3
    assert bound.metric("stitched_loss_recovered", "other places")["value"] < 0.2
    for name in names:
        own = table["effect_corr"][table["condition"] == name]
        assert bound.metric("causal_corr", name)["value"] == pytest.approx(own.mean())
    bound.save_pretrained(tmp_path / "more")
    again = load_alignment(tmp_path / "more", *saes)
    check_same(bound, again)
    assert again.metrics == bound.metrics
    again.causal_transfer(texts[600:840], n_features=2, n_anchors=10)  # in place of the old numbers
    assert len(again.frames["metrics"]) == len(numbers)
    card = (tmp_path / "more" / "README.md").read_text()
    assert "`causal_auc` | random direction (control)" in card


def test_a_dashboard_needs_what_is_known_of_the_features(small):
    with pytest.raises(DataError, match="call feature_statistics"):
        small.make_dashboard()


def test_the_dashboard_shows_the_pairs_of_the_alignment(bound, saes, texts, tmp_path):
    for sae in saes:
        sae.feature_statistics(texts[:60])
    site = bound.make_dashboard("Two minds").write(tmp_path / "site")
    shown = data_of((site / "data" / "pairs.js").read_bytes())
    ids = [[pair.feature_a for pair in bound], [pair.feature_b for pair in bound]]
    assert [shown["a"], shown["b"]] == ids
    assert "Within words" in {column["title"] for column in shown["columns"]}


def test_random_weights_are_recorded_and_told_from_trained_ones(saes, tmp_path):
    sae = saes[1]
    model = sae.model.untrained(seed=3)
    assert [str(d) for d in sae.compare([model.identity]) if d.field == "weights"] == [
        "weights: recorded trained, found random (seed 3)"
    ]
    with pytest.raises(CompatibilityError, match="random"):
        SAE.taken_from(sae).bind(model, "strict")
    assert record(sae, model.identity)["base_model"]["random_seed"] == 3


def test_what_the_maps_do_not_start_at_is_refused(real):
    with pytest.raises(DataError, match=r"these maps start at layers\.3\.residual"):
        real.transfer(random_sae(real.sides[0]["width"], 8))
    with pytest.raises(ConfigError, match="expected an alignment"):
        real.compose(None)
    with pytest.raises(DataError, match="expected activations"):
        real.map("x")
    with pytest.raises(DataError, match="these are the texts that were aligned"):
        real.verify([document.text for document in atlas.generate(1000, seed=3)][600:840])


def test_a_dictionary_with_numbers_that_are_none_is_refused_before_anything_is_read(saes):
    broken = SAE.taken_from(saes[0])
    broken.W_dec = broken.W_dec * float("nan")
    broken.models = saes[0].models
    with pytest.raises(DataError, match="W_dec holds NaN"):
        align(broken, saes[1], texts=["never read"], progress=False)


def test_a_pair_without_an_interval_says_nan():
    alignment = handmade(random_sae(6, 40), random_sae(5, 40))
    for name in ("corr_eval_lo", "corr_eval_hi"):
        alignment.frames["pairs"].columns[name][:] = np.nan
    found = alignment.partner(3)
    assert found is not None
    assert np.isnan(found.interval).all()
    assert next(iter(alignment))[:3] == found[:3]
