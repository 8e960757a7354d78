"""Numbers of dictionaries side by side: who is dominated, what is not comparable, and the repository that says so."""

import hashlib
import json
import re
from dataclasses import asdict, replace
from itertools import permutations
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub as hf
import numpy as np
import pytest
from conftest import random_sae
from hub_server import UPLOAD_WARNING

from hubsae import SAE, Report, compare, frontier, licences, load_report, tokens
from hubsae.activations import read_chunks
from hubsae.api import BoundDictionary
from hubsae.cli import main
from hubsae.errors import ArtifactError, CompatibilityError, ConfigError, DataError
from hubsae.evaluate import evaluate_together
from hubsae.frontier import COLUMNS, distinct, short_sites, undominated
from hubsae.hub_client import Source
from hubsae.identity import compare as compare_models
from hubsae.members import choose
from hubsae.metric_report import TABLE
from hubsae.report_config import FORMAT_VERSION, ReportConfig, record
from hubsae.report_rows import only_place, summary_of
from hubsae.store import WEIGHTS, write_json

REPO = "alice/frontier"
BASE = {"repo_id": "alice/tiny", "revision": "a" * 40, "model_type": "llama", "n_layers": 4, "hidden_size": 16}


def numbers(l0: float, recovered: float | None, fvu: float = 0.1, **more: Any) -> dict:
    """What was measured of a dictionary, as much of it as a report needs."""
    found = {"l0": l0, "fvu": fvu, "ce_recovered": recovered, "n_tokens": 500, "ce_original": 2.5, "dead_share": 0.25}
    return {**found, "n_documents": 20, "n_spliced_tokens": 400, "data": {"name": "wiki", "digest": "d"}, **more}


def reconstructing(l0: float, recovered: float, fvu: float = 0.1) -> dict:
    """Numbers that a dictionary's own card takes, with nothing about predictions."""
    return {name: value for name, value in numbers(l0, recovered, fvu).items() if name != "n_spliced_tokens"}


def sae_of(layer: int = 1, k: int = 4, base: dict | None = None, d: int = 16, **config: Any) -> SAE:
    site = (f"layers.{layer}.residual",)
    settings = {"reads": site, "writes": site, "base_models": (BASE if base is None else base,), **config}
    return random_sae(d, sparsity={"name": "topk", "k": k}, **settings)


def planted(results: dict[str, dict], **dictionaries: SAE) -> Report:
    """A report with these numbers."""
    found = {name: dictionaries.get(name, sae_of()) for name in results}
    return Report(ReportConfig(tuple(record(one, name) for name, one in found.items())), results)


@pytest.fixture
def report() -> Report:
    """Three of layer 1, of which one is dominated, and one of layer 2."""
    interval = {"ce_recovered": [0.88, 0.92], "fvu": [0.05, 0.15]}
    results = {
        "sparse": numbers(4, 0.9, intervals=interval),
        "worse": numbers(8, 0.89, 0.2),
        "dense": numbers(16, 0.97, 0.05),
        "other": numbers(4, 0.5),
    }
    return planted(results, sparse=sae_of(1, 4), worse=sae_of(1, 8), dense=sae_of(1, 16), other=sae_of(2, 4))


def names(frame) -> list[str]:
    return frame["name"].tolist()


# --- the frontier


def test_a_dominated_dictionary_is_not_on_the_frontier_and_other_sites_do_not_dominate(report):
    assert names(report.frontier()) == ["sparse", "dense", "other"]
    assert names(report.frontier("fvu")) == ["sparse", "dense", "other"]
    assert [row["on_frontier"] for row in report] == [True, False, True, True]
    assert [group.names for group in report.groups] == [("sparse", "worse", "dense"), ("other",)]
    assert "Not among them: worse" in str(report.frontier())
    assert names(report.best()) == ["dense", "other"]
    assert names(report.best(max_l0=10)) == ["sparse", "other"]
    with pytest.raises(DataError, match="at most 3 active"):
        report.best(max_l0=3)
    with pytest.raises(ConfigError, match="by='l0': expected one of ce_recovered"):
        report.frontier("l0")


@pytest.mark.parametrize("certain", [False, True])
def test_the_frontier_is_that_of_its_definition(certain):
    rng = np.random.default_rng(0)
    rows = [
        {"l0": float(l0), "kl": v, "kl_lo": v - w, "kl_hi": v + w}
        for l0, v, w in zip(rng.integers(1, 9, 60), rng.normal(size=60).round(1), rng.random(60), strict=True)
    ]

    def beats(a: dict, b: dict) -> bool:
        better = a["l0"] <= b["l0"] and a["kl"] <= b["kl"] and (a["l0"] < b["l0"] or a["kl"] < b["kl"])
        return better and (not certain or a["kl_hi"] < b["kl_lo"])

    wanted = [not any(beats(other, row) for other in rows) for row in rows]
    assert undominated(rows, "kl", certain) == wanted
    assert 0 < sum(wanted) < 60


def test_equals_stay_and_what_differs_by_rounding_alone_is_equal():
    rows = [{"l0": l0, "fvu": fvu} for l0, fvu in ((4.0, 0.1), (4.0, 0.1), (4 - 1e-15, 0.2), (2.0, None), (None, 0.0))]
    assert undominated(rows, "fvu") == [True, True, False, False, False]
    assert undominated(rows, "fvu", certain=True) == [True, True, True, False, False]


# --- what is comparable


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"data": {"name": "code", "digest": "e"}}, "on code (500 tokens"),
        ({"ce_original": 2.51}, "the texts are the same, and were cut or read differently"),
        ({"n_tokens": 499}, "(499 tokens"),
        ({"data": {"name": "wiki", "digest": "e"}}, "the texts are not"),
    ],
)
def test_numbers_of_different_texts_are_kept_apart_and_it_is_said(change, said):
    results = {"a": numbers(4, 0.9), "b": numbers(8, 0.8, **change)}
    report = planted(results, a=sae_of(1, 4), b=sae_of(1, 8))
    assert [group.names for group in report.groups] == [("a",), ("b",)]
    assert len({group.label for group in report.groups}) == 2
    assert names(report.frontier()) == ["a", "b"]
    notes = " ".join(report.notes)
    assert "Not measured on the same tokens of alice/tiny@aaaaaaaa: a on wiki (500 tokens" in notes
    assert said in notes
    card = str(report.generate_model_card())
    assert "Numbers stand beside each other within a table above, and nowhere else" in card


def test_losses_that_differ_by_the_order_of_summing_are_those_of_the_same_texts():
    report = planted({"a": numbers(4, 0.9), "b": numbers(8, 0.95, ce_original=2.5 + 1e-6)}, b=sae_of(1, 8))
    assert [group.names for group in report.groups] == [("a", "b")]
    assert not [note for note in report.notes if "tokens" in note]


def test_dictionaries_of_different_models_are_kept_apart_and_unknown_names_of_one_model_are_not():
    other = {**BASE, "repo_id": "alice/larger", "revision": "b" * 40}
    results = {name: numbers(4 + i, 0.9 - i / 100) for i, name in enumerate("abc")}
    local = {**BASE, "repo_id": None, "revision": None}
    report = planted(results, b=sae_of(base=other), c=sae_of(base=local))
    assert [group.names for group in report.groups] == [("a", "c"), ("b",)]
    assert "different language models: alice/tiny@aaaaaaaa (a, c); alice/larger@bbbbbbbb (b)" in " ".join(report.notes)
    assert [group.label for group in report.groups] == [
        "layers.1.residual of alice/tiny@aaaaaaaa",
        "layers.1.residual of alice/larger@bbbbbbbb",
    ]
    assert {"alice/tiny", "alice/larger"} <= set(report.card_metadata()["tags"])


def test_what_reads_other_sites_and_writes_the_same_is_compared_and_it_is_said():
    transcoder = BoundDictionary(replace(sae_of().config, reads=("layers.1.mlp_in",), kind=""), sae_of().arrays())
    report = planted({"a": numbers(4, 0.9), "t": numbers(4, 0.8)}, t=transcoder)  # type: ignore[arg-type]
    assert names(report.frontier()) == ["a"]
    note = "not all read the same: a reads layers.1.residual, t reads layers.1.mlp_in."
    assert any(note in one for one in report.notes)


def test_records_of_models_are_read_and_compared_once_and_too_many_are_refused(monkeypatch):
    calls = []
    monkeypatch.setattr(frontier, "compare", lambda a, b: calls.append(1) or compare_models(a, b))
    first = record(sae_of(), "first")
    said = [{**BASE, "repo_id": None}, {**BASE, "n_layers": 9}, {**BASE, "fingerprint": {"tokens": []}}]
    entries = [{**first, "name": str(i), "base_models": [said[i % 3]]} for i in range(300)]
    report = Report(ReportConfig(tuple(entries)), {str(i): numbers(4, 0.9) for i in range(300)})
    assert sorted(len(group.names) for group in report.groups) == [100, 200]
    assert len(calls) <= 6
    assert not any("fingerprint" in entry["base_models"][0] for entry in report.config.entries)
    others = [{**first, "name": str(i), "base_models": [{**BASE, "vocab_size": i}]} for i in range(400)]
    with pytest.raises(ConfigError, match="400 different language models are too many"):
        ReportConfig(tuple(others))


@pytest.mark.parametrize(
    ("sites", "wanted"),
    [
        ([("layers.1.mlp", 4), ("layers.2.mlp", 4)], {"layer": 1}),
        ([("layers.1.mlp", 4), ("layers.1.attn", 4)], {"layer": 1, "component": "mlp"}),
        ([("layers.1.mlp", 4), ("layers.1.mlp", 8)], {"layer": 1, "k": 4}),
        ([("layers.1.mlp", 4), ("layers.1.mlp", 8), ("layers.1.attn", 4)], {"layer": 1, "component": "mlp", "k": 4}),
        ([("layers.1.mlp", 4), ("layers.1.mlp", 4)], None),
    ],
)
def test_the_place_that_a_card_names_is_that_of_one_dictionary(sites, wanted, tmp_path):
    entries = []
    for i, (site, k) in enumerate(sites):
        sae = BoundDictionary(replace(sae_of(k=k).config, reads=(site,), writes=(site,)), sae_of().arrays())
        sae.source = Source(f"alice/{i}", "a" * 40, {"repo_id": f"alice/{i}", "subfolder": None})
        sae.statistics = {"imported": {}}  # whose files are not asked for
        entries.append(record(sae, str(i)))
    place = only_place(entries)
    assert place == wanted
    if place:
        write_json(tmp_path / "report.json", asdict(ReportConfig(tuple(entries))))
        found = choose(tmp_path, **{"layer": None, "component": None, "k": None, "revision": None, **place})
        assert found.source == "alice/0"


def test_names_stay_apart():
    assert distinct(["a", "a (2)", "a", "a"]) == ["a", "a (2)", "a (3)", "a (4)"]


# --- compare


@pytest.fixture(scope="module")
def three(demo_model) -> list[SAE]:
    """Two of layer 2 and one of layer 0, bound to the model."""
    base = demo_model.identity.to_dict()
    found = [sae_of(layer, k, base, demo_model.hidden_size) for layer, k in ((2, 8), (0, 4), (2, 4))]
    for sae in found:
        sae.models = (demo_model,)
    return found


def test_numbers_are_those_of_evaluate_whatever_the_order(three, demo_texts):
    texts = demo_texts[:14]
    report = compare(three, texts=iter(texts), max_rows=350, dataset_name="the atlas")
    named = [f"layers.{layer}.residual topk k={k} F=64" for layer, k in ((0, 4), (2, 4), (2, 8))]
    assert [row["name"] for row in report] == named
    assert [group.names for group in report.groups] == [(named[0],), tuple(named[1:])]
    alone = three[0].evaluate(texts=texts, max_rows=350).to_dict()
    row = report[named[2]]
    for name in ("l0", "fvu", "ce_recovered", "ce_recovered_mean", "kl", "cosine", "dead_share", "n_tokens"):
        assert row[name] == alone[name]
    assert report.results[named[2]]["intervals"] == alone["intervals"]
    assert "fingerprint" not in report.entry(named[2])["measured_with"][0]
    again = compare(three[::-1], three[0].model, texts, max_rows=350, dataset_name="the atlas")
    assert (again.config, again.metrics) == (report.config, report.metrics)
    other = compare(three[1], texts=texts[1:], max_rows=20, dataset_name="the atlas")
    assert report.results[named[0]]["data"]["digest"] != other.results[named[0]]["data"]["digest"]


def test_recorded_numbers_are_taken_where_there_are_no_texts(three, tmp_path):
    three[0].metrics, three[2].metrics = reconstructing(8, 0.9), reconstructing(4, 0.8)
    three[0].save(tmp_path / "k8")
    reports = [compare(order) for order in permutations([three[2], str(tmp_path / "k8")])]
    three[0].source = None
    assert reports[0].config == reports[1].config
    assert [row["name"] for row in reports[0]] == ["layers.2.residual topk k=4 F=64", "k8"]
    assert reports[0]["k8"]["ce_recovered"] == 0.9
    assert reports[0].entry("k8")["sha256"] == hashlib.sha256((tmp_path / "k8" / WEIGHTS).read_bytes()).hexdigest()
    assert len(reports[0].groups) == 1
    assert "not measured anew" in reports[0].notes[0]
    assert compare(tmp_path / "k8", names=["mine"])["mine"]["k"] == 8


def test_what_cannot_be_compared_is_refused_with_the_reason(three, demo_model, demo_texts):
    bare, texts = random_sae(), demo_texts[:10]
    for call, message in (
        (lambda: compare([bare]), "has no recorded metrics; give texts="),
        (lambda: compare([bare], texts=texts), "names no repository of its base model; give model="),
        (lambda: compare([bare], demo_model), "a model needs texts"),
        (lambda: compare([]), "at least one"),
        (lambda: compare(3), "a int: expected a list of dictionaries"),
        (lambda: compare([3]), "a int: expected an SAE"),
        (lambda: compare(three, texts=texts, names=["a"]), "expected 3, one for each"),
        (lambda: compare(three[:2], texts=texts, names=["a", "a"]), "expected different ones"),
        (lambda: compare(three[:2], texts=texts, names=["a", ""]), "expected a text of 1 to"),
    ):
        with pytest.raises(ConfigError, match=message):
            call()
    with pytest.raises(CompatibilityError):
        compare([sae_of(1, 4, {**BASE, "model_type": "gpt2"})], demo_model, texts)
    chunks = list(tokens.take_rows(read_chunks(demo_model, texts, three[0].config.token_config()), 50))
    with pytest.raises(ConfigError, match="read and write the same sites"):
        evaluate_together(three[:2], demo_model, chunks)


# --- the artifact


def test_a_saved_report_comes_back_exactly_and_saves_the_same_bytes(report, tmp_path):
    report.save_pretrained(tmp_path / "r")
    again = load_report(tmp_path / "r")
    assert (again.config, again.metrics, again.rows, again.notes) == (
        report.config,
        report.metrics,
        report.rows,
        report.notes,
    )
    before = {p: p.read_bytes() for p in sorted((tmp_path / "r").rglob("*")) if p.is_file()}
    assert {p.name for p in before} >= {"report.json", "metrics.json", TABLE, "README.md", "frontier.svg", "fvu.svg"}
    again.save_pretrained(tmp_path / "r")
    assert {p: p.read_bytes() for p in before} == before
    assert "loss recovered" in str(again)
    assert "<table" in again._repr_html_()
    with pytest.raises(DataError, match="no dictionary 'x' in this report; it has sparse, worse"):
        again["x"]


def test_the_sum_of_the_weights_is_that_of_their_bytes_whatever_the_cache_calls_them(tmp_path):
    sae_of().save(tmp_path / "d")
    blob = tmp_path / ("b" * 64)
    (tmp_path / "d" / WEIGHTS).rename(blob)
    (tmp_path / "d" / WEIGHTS).symlink_to(blob)
    found = record(SAE.from_pretrained(tmp_path / "d"), "x")["sha256"]
    assert found == hashlib.sha256(blob.read_bytes()).hexdigest()


@pytest.mark.filterwarnings(UPLOAD_WARNING)
def test_it_is_a_dataset_repository_whose_unchanged_push_is_no_commit(alice, sae, tmp_path):
    for name, k in (("one", 4), ("two", 8)):
        dictionary = sae_of(1, k)
        dictionary.metrics = reconstructing(k, 0.5 + k / 100, 1 / k)
        dictionary.push_to_hub(f"alice/{name}")
    report = compare(["alice/two", "alice/one"])
    first = report.push_to_hub(REPO, license="mit")
    assert report.push_to_hub(REPO).oid == first.oid == load_report(REPO).push_to_hub(REPO).oid
    again = load_report(REPO, revision=first.oid)
    assert again.rows == report.rows
    datasets.disable_progress_bars()
    found = datasets.load_dataset(REPO, split="train")
    datasets.enable_progress_bars()
    assert found.column_names == list(COLUMNS)
    assert found["k"] == [4, 8]
    assert found["on_frontier"] == [True, True]
    card = hf.DatasetCard(alice.files(REPO, "main", "dataset")["README.md"].decode())
    card.validate()
    data = card.data.to_dict()
    assert data["configs"] == [{"config_name": "dictionaries", "data_files": TABLE, "default": True}]
    assert data["license"] == "mit"
    assert {"hubsae-report", "sparse-autoencoder", "alice/tiny"} <= set(data["tags"])
    assert "pipeline_tag" not in data
    assert "library_name" not in data
    assert "![Loss recovered against active features per token, 2 dictionaries." in card.text
    head = alice.head("alice/one")
    assert (again.entry("alice/one")["revision"], again.entry("alice/one")["repo_id"]) == (head, "alice/one")
    assert again.load("alice/one").config.sparsity["k"] == 4
    again.entry("alice/one")["fingerprint"]["W_enc"] = [1.0]
    with pytest.raises(CompatibilityError, match="other weights than 'alice/one'"):
        again.load("alice/one")
    with pytest.raises(ConfigError, match="a: was not on the Hub when it was judged"):
        planted({"a": numbers(4, 0.9)}).load("a")


@pytest.fixture
def folder(report, tmp_path) -> Path:
    """The report's two files of settings and numbers."""
    write_json(tmp_path / "report.json", asdict(report.config))
    write_json(tmp_path / "metrics.json", report.metrics)
    return tmp_path


def change_json(path: Path, change: Any) -> None:
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(entries=[]), "expected a list of 1 to"),
        (lambda d: d.update(entries="x"), "expected a list of 1 to"),
        (lambda d: d.update(entries=[3]), "entries='3'"),
        (lambda d: d.update(format_version=FORMAT_VERSION + 1), "reads up to format"),
        (lambda d: d.update(library_name="x"), "not written by hubsae"),
        (lambda d: d.update(more=1), "unknown entries more"),
        (lambda d: d.update(data=3), "data='3'"),
        (lambda d: d.update(data={"name": 3}), "data, name='3'"),
        (lambda d: d["entries"][0].pop("kind"), "missing or unknown kind"),
        (lambda d: d["entries"][0].update(x=1), "missing or unknown x"),
        (lambda d: d["entries"][0].update(name=" "), "expected a text of 1 to"),
        (lambda d: d["entries"][0].update(name="worse"), "several are called 'worse'"),
        (lambda d: d["entries"][0].update(writes=["nowhere"]), "is no site"),
        (lambda d: d["entries"][0].update(writes=[["layers.1"]]), "writes="),
        (lambda d: d["entries"][0].update(writes=["layers.1", "layers.1.residual"]), "stands there twice"),
        (lambda d: d["entries"][0].update(kind="transcoder"), "does not fit the sites"),
        (lambda d: d["entries"][0].update(n_features=0), "expected at least 1"),
        (lambda d: d["entries"][0].update(n_features=1e9), "n_features='1000000000"),
        (lambda d: d["entries"][0].update(sparsity={"name": "evil"}), "sparsity 'evil'"),
        (lambda d: d["entries"][0].update(sparsity={"name": "topk", "k": []}), "k="),
        (lambda d: d["entries"][0].update(tokens={"context_size": "x"}), "context_size"),
        (lambda d: d["entries"][0].update(base_models=[3]), "base model"),
        (lambda d: d["entries"][0].update(base_models=[{"repo_id": ["x"]}]), "repo_id: expected str"),
        (lambda d: d["entries"][0].update(fingerprint={"W": [float("nan")]}), "fingerprint"),
        (lambda d: d["entries"][0].update(repo_id="a/b"), "belong together"),
        (lambda d: d["entries"][0].update(repo_id="../../etc", revision="a" * 40), "not of this form"),
        (lambda d: d["entries"][0].update(sha256="x"), "not of this form"),
        (lambda d: d["entries"][0].update(n_features=10**30), r"less than 2\*\*63"),
        (lambda d: d["entries"][0].update(training_tokens=1 << 63), r"less than 2\*\*63"),
        (lambda d: d["entries"][0].update(training_data="\ud800"), "half a letter"),
        (lambda d: d["entries"][0].update(training_data="x" * 201), "201 characters"),
        (lambda d: d["entries"][0].update(base_models=[BASE] * 11), "11 of them, expected at most 10"),
        (lambda d: d["entries"][0].update(measured_with=[BASE] * 11), "11 of them, expected at most 10"),
        (lambda d: d["entries"][0].update(reads=[f"layers.{i}" for i in range(201)]), "201 of them"),
        (lambda d: d.update(data={"name": "x" * 201}), "201 characters"),
        (lambda d: d.update(data={"n_texts": 10**30}), r"less than 2\*\*63"),
    ],
)
def test_a_damaged_or_hostile_report_is_refused(folder, change, message):
    change_json(folder / "report.json", change)
    with pytest.raises(ArtifactError, match=message):
        load_report(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.clear(), "results"),
        (lambda d: d["results"].pop("worse"), "missing or unknown worse"),
        (lambda d: d["results"].update(x={}), "missing or unknown x"),
        (lambda d: d["results"].update(worse=[]), "expected a value of type dict"),
        (lambda d: d["results"]["worse"].update(fvu=float("inf")), "fvu='inf'"),
        (lambda d: d["results"]["worse"].update(l0=10**400), "l0="),
        (lambda d: d["results"]["worse"].update(l0=-1), "cannot be negative"),
        (lambda d: d["results"]["worse"].update(ce_recovered="0.9"), "ce_recovered='0.9'"),
        (lambda d: d["results"]["worse"].update(n_tokens=0), "n_tokens=0"),
        (lambda d: d["results"]["worse"].pop("n_tokens"), "no n_tokens"),
        (lambda d: d["results"]["worse"].update(intervals={"fvu": [1]}), "expected two numbers"),
        (lambda d: d["results"]["worse"].update(intervals={"fvu": [0.2, 0.1]}), "0.2 to 0.1"),
        (lambda d: d["results"]["worse"].update(intervals=[1]), "intervals: expected a dict"),
        (lambda d: d["results"]["worse"].update(fvu_per_site={"a": "b"}), "fvu_per_site"),
        (lambda d: d["results"]["worse"].update(data={"name": ["x"]}), "data, name"),
        (lambda d: d["results"]["worse"].update(n_tokens=10**30), r"less than 2\*\*63"),
        (lambda d: d["results"]["worse"].update(kl=1e300), "expected at most 1e"),
        (lambda d: d["results"]["worse"].update(intervals={str(i): [0, 1] for i in range(201)}), "201 numbers"),
        (lambda d: d["results"]["worse"].update(fvu_per_site={"\udfff": 0.1}), "half a letter"),
        (lambda d: d.update(more="\ud800"), "half a letter"),
    ],
)
def test_damaged_or_hostile_numbers_are_refused(folder, change, message):
    change_json(folder / "metrics.json", change)
    with pytest.raises(ArtifactError, match=message):
        load_report(folder)


def test_a_report_without_its_numbers_is_refused(folder, report):
    assert load_report(folder).rows == report.rows
    (folder / "metrics.json").unlink()
    with pytest.raises(ArtifactError, match=r"metrics\.json is missing"):
        load_report(folder)


# --- the card


def test_every_value_of_the_template_goes_through_a_filter():
    source = (Path(__file__).parent.parent / "cards" / "report.md").read_text()
    safe = ("md", "code", "number", "number(3)", "number(4)", "percent", "percent(2)", "tojson", "urlencode", "tex")
    own = ('"', "interval(", "share(", "picture(", "repo(", "base_row(")
    for expression in re.findall(r"{{ (.*?) -?}}", source):
        assert expression.split("| ")[-1] in safe or expression.startswith(own), expression


def test_hostile_names_stay_text_in_card_pictures_and_print():
    evil = "</td><script>alert(1)</script>|`‮\n# x"
    base = {**BASE, "repo_id": evil}
    result = numbers(4, 0.9, data={"name": evil, "dataset": evil})
    report = planted({evil: result, "b": numbers(8, 0.95, data={"name": evil})}, **{evil: sae_of(base=base)})
    card = str(report.generate_model_card(pictures={n: p.alt for n, p in report.card_pictures().items()}))
    assert "<script>" not in card.split("---\n", 2)[2].replace("```python", "")
    for picture in report.card_pictures().values():
        assert "<script>" not in picture.svg
    assert "<script>" not in report._repr_html_()
    assert "\u202e" not in str(report)


def test_the_card_says_what_is_compared_and_shows_the_pictures(report):
    pictures = report.card_pictures()
    assert set(pictures) == {"frontier", "fvu", "layers"}
    card = str(report.generate_model_card(pictures={n: p.alt for n, p in pictures.items()}, repo_id=REPO))
    for words in (
        "How sparse and how faithful 4 sparse autoencoders of layers.1.residual and layers.2.residual",
        "2 of 3 that stand beside others are on the frontier: no other has",
        "1 stands alone: nothing here can be compared with it.",
        "| sha256 of model.safetensors |",
        "[arXiv 2406.04093](https://arxiv.org/abs/2406.04093)",
        'url = "https://huggingface.co/datasets/alice/frontier"',
        'author = "{alice}"',
        "90.00 % [88, 92]",
        'hubsae.load_report("alice/frontier")',
        "They write different sites.",
        "## Limits",
    ):
        assert words in card
    for name in pictures:
        assert f"(assets/{name}.svg)" in card
    assert "](assets/frontier.svg)" not in str(report.generate_model_card())
    assert not planted({"a": numbers(4, 0.9)}).card_pictures()
    assert "frontiers" not in str(planted({"a": numbers(4, None)}).generate_model_card())


def test_dictionaries_that_stand_alone_are_on_no_frontier(report):
    assert [str(table.rows[0][-1]) for table in report._shown()] == ["yes", "-"]
    alone = planted({"a": numbers(4, 0.9), "b": numbers(4, 0.8)}, b=sae_of(2))
    assert "No two of them can be compared" in str(alone.generate_model_card())
    unknown = planted({"a": numbers(4, None), "b": numbers(8, None)}, b=sae_of(1, 8))
    assert "None of them has a place on a frontier" in str(unknown.generate_model_card())


def test_what_a_picture_says_names_each_point_once():
    results = {f"{i}": numbers(4, 0.9) for i in range(4)} | {"5": numbers(8, 0.95)}
    report = planted(results, **{name: sae_of(int(name) % 5, 8 if name == "5" else 4) for name in results})
    alt = report.card_pictures()["frontier"].alt
    assert "layers.0.residual: 90 % at 4, 95 % at 8; layers.1.residual: 90 % at 4; layers.2.residual" in alt
    assert alt.endswith("; and 1 more line.")


def test_several_sites_of_one_component_are_named_together():
    assert short_sites([f"layers.{i}.mlp" for i in (1, 2, 3)]) == "layers.1,2,3.mlp"
    assert short_sites([*(f"layers.{i}.mlp" for i in (0, 4, 5, 6, 7)), "1:layers.3"]) == (
        "layers.0,4-7.mlp + 1:layers.3.residual"
    )
    rows = [{"kind": kind, "writes": "layers.1.mlp"} for kind in ("sae", "sae", "transcoder", "crosscoder")]
    assert summary_of(rows, []).startswith("2 sparse autoencoders, a transcoder and a crosscoder of layers.1.mlp")


def test_the_licence_that_all_base_models_share_is_inherited(monkeypatch):
    monkeypatch.setattr(licences, "_of", lambda api, repo_id: repo_id and {"id": "mit"})
    api: Any = None
    other = planted({"a": numbers(4, 0.9), "b": numbers(4, 0.8)}, b=sae_of(base={**BASE, "repo_id": "alice/other"}))
    assert other._inherited(api) == {"id": "mit", "from": ["alice/tiny", "alice/other"]}
    assert planted({"a": numbers(4, 0.9)}, a=sae_of(base={**BASE, "repo_id": None}))._inherited(api) is None


def test_of_many_sites_twelve_lines_are_drawn_and_the_layers_too():
    results = {f"{i}-{k}": numbers(k, 0.9 + k / 100, 1 / k) for i in range(14) for k in (2, 4)}
    report = planted(results, **{name: sae_of(int(name.split("-")[0]), int(name[-1])) for name in results})
    pictures = report.card_pictures()
    assert "2 shorter lines are not drawn" in pictures["frontier"].alt
    assert "lowest 0.25 at layer 0 (topk, k=4)" in pictures["layers"].alt
    assert "k=4" not in pictures["frontier"].svg.split("</desc>")[1]


# --- the command line


def test_the_command_prints_writes_and_names_the_dictionaries(three, demo_folder, demo_texts, tmp_path, capsys):
    for sae in three[::2]:
        sae.save_pretrained(tmp_path / f"k{sae.config.sparsity['k']}")
    (tmp_path / "t.txt").write_text("\n".join(demo_texts[:12]))
    arguments = f"compare {tmp_path}/k4 {tmp_path}/k8 --model {demo_folder} --texts {tmp_path}/t.txt"
    assert main(f"{arguments} --max-rows 150 --names few,many --out {tmp_path}/r".split()) == 0
    shown = capsys.readouterr().out
    assert "layers.2.residual: 150 tokens of t.txt" in shown
    assert "few" in shown
    assert [row["name"] for row in load_report(tmp_path / "r")] == ["few", "many"]
    assert main(["compare", str(tmp_path / "k4"), "--model", str(demo_folder)]) == 1
    assert "a model needs texts" in capsys.readouterr().err
