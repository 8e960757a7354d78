"""The site of a dictionary says what is known of it, and nothing in it can be taken for code."""

import json
import re
import socket
from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest
from conftest import random_sae
from site_parts import HOSTILE, HOSTILE_LABEL, data_of, hostile

from hubsae import SurveyConfig, train_crosscoder
from hubsae.dashboard import AnalysedText, Column, Dashboard, Pairs, Side
from hubsae.dashboard.feature_data import SHARD, closest_groups
from hubsae.dashboard.shards import short
from hubsae.errors import ArtifactError, ConfigError, DataError, HubsaeWarning
from hubsae.features import Label
from hubsae.tables import plain
from hubsae.text_analysis import analyze_text

CONFIG = SurveyConfig(top_examples=5, random_examples=12, tokens_before=4, tokens_after=3, sampled_rows=2_000)


@pytest.fixture(scope="module")
def sae(demo_model, demo_texts):
    """A dictionary that was analysed; its first ten features are dead."""
    found = random_sae(128, 300, {"name": "topk", "k": 6}, base_models=(demo_model.identity.to_dict(),))
    found.b_enc = mx.where(mx.arange(300) < 10, -1e4, found.b_enc)
    found.bind(demo_model)
    found.feature_statistics(demo_texts[:150], config=CONFIG, dataset_name="the atlas")
    found.relabel({11: Label("of words", 0.85, 20, "somebody"), 12: Label("unscored", None, 0, "")})
    return found


@pytest.fixture(scope="module")
def site(sae):
    return sae.make_dashboard()


def part(site, name):
    return data_of(site.files[f"data/{name}.js"]())


def feature(site, i):
    shard = part(site, f"0/features-{i // SHARD}")
    return {**shard["features"][i % SHARD], "strings": shard["strings"]}


def close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=0.0051)


def test_the_list_says_of_every_feature_what_is_known(site, sae):
    found, known = part(site, "0/list"), sae.features
    assert found["n"] == known.n_active.tolist()
    close(found["mean"], known.mean)
    close(found["max"], known.maximum)
    assert found["labelled"] == [[11, "of words", 0.85], [12, "unscored", None]]
    assert found["shares"] is None
    for i in (0, 11, 50, 299):
        assert [found["strings"][k] for k in found["tokens"][i]] == [plain(t) for t in known.top_tokens(i)]
    top = known.examples(50, "top", 1)[0]
    assert found["context"][50] == plain("".join(top.tokens[max(0, top.at - 8) : top.at + 1]))


def test_parts_hold_every_feature_once_with_its_numbers_and_neighbours(site, sae):
    known = sae.features
    shards = [part(site, f"0/features-{k}") for k in range(5)]
    assert [len(shard["features"]) for shard in shards] == [64, 64, 64, 64, 44]
    for i in (0, 11, 200, 299):
        own = feature(site, i)
        assert own["n"] == known.n_active[i]
        assert own["histogram"] == known.columns["histogram"][i].tolist()
        close([own["mean"], own["std"], own["max"]], [known.mean[i], known.std[i], known.maximum[i]])
        close(own["norms"], known.site_norms[i])
        assert own["name"] == plain(known.name(i))
        for name in ("cofiring", "similar"):
            expected = getattr(known, name)(i)
            assert [(n[0], n[2]) for n in own[name]] == [(n.feature, n.count) for n in expected]
            close([n[1] for n in own[name]], [n.score for n in expected])
            assert [own["strings"][n[3]] for n in own[name]] == [plain(known.name(n.feature)) for n in expected]
        for name in ("promoted", "suppressed"):
            expected = known.token_weights(i, name)
            assert [own["strings"][s] for s, _ in own[name]] == [plain(w.token) for w in expected]
            close([w for _, w in own[name]], [w.weight for w in expected])
    assert feature(site, 11)["label"] == {"score": 0.85, "n": 20, "labeler": "somebody"}


def test_examples_are_those_that_the_library_shows(site, sae):
    for i in (5, 11, 120, 299):
        own = feature(site, i)
        shown = {"top": own["top"], "random": own["random"], "quantile": [own["random"][k] for k in own["quantile"]]}
        for kind, rows in shown.items():
            expected = sae.features.examples(i, kind, 10 if kind == "quantile" else None)
            assert len(rows) == len(expected)
            for (value, at, document, tokens, flat), example in zip(rows, expected, strict=True):
                close(value, example.value)
                assert (at, document) == (example.at, example.document)
                assert [own["strings"][t] for t in tokens] == [plain(t) for t in example.tokens]
                values = dict(zip(flat[::2], flat[1::2], strict=True))
                assert set(values) == {k for k, v in enumerate(example.values) if v > 0}
                close([values[k] for k in sorted(values)], [v for v in example.values if v > 0])


def test_the_overview_counts_every_feature_and_repeats_the_metrics(site, sae):
    about = part(site, "about")
    own = about["sides"][0]
    density = own["density"]
    assert sum(density["counts"]) + density["never"] == 300
    assert density["never"] == own["n_dead"] == int(sae.features.dead.sum())
    log = np.log10(sae.features.density[sae.features.density > 0])
    for low, high, count in zip(density["edges"], density["edges"][1:], density["counts"], strict=False):
        assert count == ((log >= low) & (log < high)).sum()
    assert own["data"] == "the atlas"
    assert own["models"] == [{"name": "a local llama model", "full": "a local llama model", "url": None}]
    assert own["training"] is None
    assert about["pairs"] is None


def test_the_training_log_becomes_columns(sae):
    from hubsae.dashboard.page_data import about

    log = [{"rows": 10 * k, "fvu": 1 / k, "l0": 6.0, "dead_share": 0.0, "step": k} for k in (1, 2, 3)]
    trained = random_sae(128, 300, {"name": "topk", "k": 6})
    trained.statistics = {"log": log, "dead_after_rows": 500, "data": {"name": "novels"}}
    own = about([Side(trained, sae.features, "sae")], "sae", [], [], None)["sides"][0]
    assert own["training"]["rows"] == [10, 20, 30]
    assert own["training"]["fvu"] == [1.0, 0.5, 0.333]
    assert own["training"]["loss"] == [None, None, None]
    assert own["trained_on"] == "novels"
    trained.statistics = {"log": [{"rows": k, "fvu": 0.5} for k in range(1, 5_001)]}
    rows = about([Side(trained, sae.features, "sae")], "sae", [], [], None)["sides"][0]["training"]["rows"]
    assert (len(rows), rows[0], rows[-1]) == (1_001, 1, 5_000)


def test_what_others_wrote_into_the_numbers_is_left_out_where_it_is_none(sae):
    from hubsae.dashboard.page_data import about

    strange = random_sae(128, 300, {"name": "topk", "k": 6})
    strange.metrics = {
        **{"fvu": "0.1", "l0": float("nan"), "kl": 10**400, "cosine": True, "ce_zero": [1], "n_tokens": 5},
        **{"intervals": {"fvu": "ab", "l0": [1, float("inf")], "kl": [1, 2], "no": [1, 2]}, "data": "texts"},
        "fvu_per_site": {"a": "x", "b": 0.5},
    }
    log = [
        5,
        {"rows": "1"},
        {"rows": 1, "fvu": 10**400},
        {"rows": 2, "fvu": "x", "l0": 3},
        {"rows": 10**400},
        {"rows": 1e17},
    ]
    strange.statistics = {"data": [], "log": log, "dead_after_rows": "never"}
    own = about([Side(strange, sae.features, "sae")], "sae", [], [], None)["sides"][0]
    assert own["metrics"] == {
        **{"n_tokens": 5, "fvu_per_site": {"a": None, "b": 0.5}, "intervals": {"kl": [1, 2]}, "data": None},
    }
    assert own["training"]["rows"] == [1, 2]
    assert own["training"]["l0"] == [None, 3.0]
    assert own["training"]["dead_after_rows"] is None
    strange.statistics = {"log": {"rows": 1}}
    assert about([Side(strange, sae.features, "sae")], "sae", [], [], None)["sides"][0]["training"] is None


def test_pairs_that_fire_together_are_those_that_were_counted(site, sae):
    found, columns = part(site, "0/together"), sae.features.columns
    start = np.concatenate([[0], np.cumsum(found["counts_of"])])
    for i in (11, 120, 299):
        mine = slice(start[i], start[i + 1])
        expected = sae.features.cofiring(i)
        assert found["other"][mine] == [n.feature for n in expected]
        assert found["count"][mine] == [n.count for n in expected]
        close(found["phi"][mine], [n.score for n in expected])
    assert found["rows"] == 2_000
    assert len(set(found["start"])) == len(found["start"]) > 10
    assert found["width"] == columns["cofiring_ids"].shape[1]


def test_groups_begin_with_the_closest_and_keep_their_members_together():
    ids = np.array([[1, -1], [0, 2], [1, -1], [4, -1], [3, -1], [-1, -1]])
    phi = np.array([[0.9, 0], [0.9, 0.2], [0.2, 0], [0.95, 0], [0.95, 0], [0, 0]])
    counts = np.where(ids >= 0, 1000, 0)
    assert closest_groups(ids, phi, counts) == [3, 4, 0, 1, 2]
    assert closest_groups(ids, phi, np.where(phi > 0.92, 1, counts)) == [0, 1, 2, 3, 4]  # seen together once
    assert closest_groups(np.full((4, 2), -1), np.zeros((4, 2)), np.zeros((4, 2), int)) == []


def test_a_text_is_told_token_by_token(sae, demo_model):
    text = "Paris is the capital of France. People there speak French."
    analysis = analyze_text(sae, demo_model, text)
    site = Dashboard.of([Side.of(sae, sae.features)], texts=[AnalysedText(0, text, analysis)])
    (found,) = part(site, "texts")
    assert "".join(found["tokens"][1:]) == text
    assert found["read"] == analysis.read.astype(int).tolist()
    code = analysis.code.toarray()
    for position, flat in enumerate(found["at"]):
        assert set(flat[::2]) == set(np.flatnonzero(code[position]).tolist())
        close(flat[1::2], code[position, flat[::2]])
    for i, typical, flat in found["features"]:
        close(typical, sae.features.mean[i])
        assert flat[::2] == np.flatnonzero(code[:, i]).tolist()
        close(flat[1::2], code[flat[::2], i])
        assert found["names"][str(i)] == plain(sae.features.name(i))
    assert part(site, "about")["sides"][0]["has_texts"]


def test_a_circuit_leads_to_the_dictionaries_that_are_there(demo_model, demo_texts):
    from hubsae import find_feature_circuits

    saes = {}
    for layer in (0, 2):
        reads = {"reads": (f"layers.{layer}.residual",), "writes": (f"layers.{layer}.residual",)}
        saes[layer] = random_sae(
            128, 96, {"name": "topk", "k": 6}, base_models=(demo_model.identity.to_dict(),), **reads
        )
        saes[layer].bind(demo_model)
        saes[layer].feature_statistics(demo_texts[:40], config=CONFIG)
    prompts = ["The capital of France is", "The capital of Italy is"]
    circuit = find_feature_circuits(demo_model, saes, 0, 2, prompts, top_k=6, n_targets=3, n_random=3)
    site = saes[2].make_dashboard(circuits=[circuit])
    assert [side.dictionary for side in site.sides] == [saes[2], saes[0]]
    found = part(site, "circuit-0")
    assert found["sides"] == {"0": 1, "2": 0}
    assert found["edges"] == json.loads(circuit.to_json())["edges"]
    assert part(site, "about")["circuits"] == ["The capital of France is …"]
    alone = Dashboard.of([Side.of(saes[0], saes[0].features)], circuits=[circuit])
    assert part(alone, "circuit-0")["sides"] == {"0": 0, "2": None}


def test_pairs_stand_with_all_their_numbers(sae):
    other = random_sae(128, 300, {"name": "topk", "k": 6})
    sides = [Side.of(sae, sae.features), Side(other, sae.features, "other")]
    columns = [Column("cosine", "cosine", [0.5, np.nan], "of decoder rows"), Column("r", "correlation", [0.1, 0.2])]
    site = Dashboard.of(sides, pairs=Pairs([3, 4], [7, 8], columns, "matched"))
    assert part(site, "pairs") == {
        "a": [3, 4],
        "b": [7, 8],
        "columns": [
            {"name": "cosine", "title": "cosine", "description": "of decoder rows"},
            {"name": "r", "title": "correlation", "description": ""},
        ],
        "values": [[0.5, None], [0.1, 0.2]],
        "note": "matched",
    }
    assert part(site, "about")["title"] == "layers.1.residual and other"
    assert "data/1/list.js" in site.files
    lazy = Pairs((i for i in (3, 4)), (i for i in (7, 8)), columns, "matched")  # type: ignore
    assert part(Dashboard.of(sides, pairs=lazy), "pairs") == part(site, "pairs")
    with pytest.raises(DataError, match="needs a dictionary"):
        Dashboard.of([])
    with pytest.raises(ConfigError, match="title=5"):
        Dashboard.of(sides, title=5)  # type: ignore
    for pairs, why in (
        (Pairs([3], [7, 8], columns), "different lengths"),
        (Pairs([3, 4], [7, 800], columns), "feature 800"),
        (Pairs([3, 4], [7, 8], []), "at least one Column"),
        (Pairs([3, 4], [7, 8], [Column("a", "a", ["x", "y"])]), "holds no numbers"),
        (Pairs([3, 4], [7, 8], ["a"]), "at least one Column"),  # type: ignore
        (Pairs([3, 4], [7, 8], columns, None), "expected texts"),  # type: ignore
        (Pairs([3, 4], [7, 8], [Column("a", None, [1, 2])]), "expected texts"),  # type: ignore
        (Pairs([3, 4], [7, 8], [Column("a", "a", [1, 2])] * 2), "different names"),
        (Pairs([3, 4], [7, 8], [Column("a", "a", [[1, 2], [3, 4]])]), "different lengths"),
        (Pairs([3, 4.5], [7, 8], columns), "feature 4.5"),  # type: ignore
    ):
        with pytest.raises(DataError, match=why):
            Dashboard.of(sides, pairs=pairs)
    with pytest.raises(DataError, match="two dictionaries"):
        Dashboard.of(sides[:1], pairs=Pairs([3, 4], [7, 8], columns))


def test_shares_of_sites_are_told_where_there_are_several(demo_model, demo_texts):
    found = demo_model.train_crosscoder(
        demo_texts[:700], layers=[0, 1], component="residual", expansion_factor=1, k=8, batch_size=64, progress=False
    )
    site = found.make_dashboard(demo_texts[:30])
    shares = np.array(part(site, "0/list")["shares"])
    norms = found.features.site_norms
    np.testing.assert_allclose(shares.T, norms / norms.sum(axis=1, keepdims=True), rtol=0.006)
    own = part(site, "about")["sides"][0]
    assert (own["kind"], own["writes"]) == ("crosscoder", ["layers.0.residual", "layers.1.residual"])
    assert own["training"]["rows"] == sorted(own["training"]["rows"])
    assert len(part(site, "texts")) == 3  # beginnings of the texts that were analysed


def test_whatever_a_text_holds_the_files_hold_text(sae, tmp_path):
    features = hostile(sae.features)
    strange = random_sae(128, 300, {"name": "topk", "k": 6})
    strange.statistics = {"data": {"name": HOSTILE[2]}}
    side = Side(strange, features, plain(HOSTILE[3]))
    site = Dashboard.of([side], title=HOSTILE[0])
    for path, make in site.files.items():
        content = make()
        if path.startswith("data/"):
            texts = re.findall(r'"((?:[^"\\]|\\.)*)"', json.dumps(data_of(content), ensure_ascii=False))
            assert not [t for t in texts if re.search(r"[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\u2028\u2029]", t)]
    assert part(site, "about")["title"] == HOSTILE[0]  # as text
    assert feature(site, 11)["name"] == plain(HOSTILE_LABEL)
    assert HOSTILE[1] in feature(site, 50)["strings"]
    site.write(tmp_path / "site")


@pytest.mark.parametrize("value", [0.0, 1.0, 0.12345, 123456.0, 9.996e-5, -0.034567, 1.2345e-38, 3.4e38, 999.6])
def test_short_numbers_keep_three_digits(value):
    found = short([value])[0]
    assert found == pytest.approx(value, rel=0.00501, abs=0)
    assert len(re.sub(r"e.*|[-.]", "", repr(found)).strip("0")) <= 3
    assert short([value, float("nan"), float("inf")])[1:] == [None, None]


def test_a_folder_is_written_whole_and_what_was_there_is_not_lost(site, sae, tmp_path, monkeypatch):
    folder = site.write(tmp_path / "site")
    assert {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()} == set(site.files)
    assert all((folder / path).read_bytes() == make() for path, make in site.files.items())
    (folder / "data/0/features-77.js").write_text("of an earlier, larger dictionary")
    before = (folder / "data/about.js").read_bytes()
    broken = {**site.files, "data/texts.js": lambda: 1 / 0}
    with pytest.raises(ZeroDivisionError):
        Dashboard("x", site.sides, broken).write(folder)
    assert (folder / "data/about.js").read_bytes() == before
    site.write(folder)
    assert not (folder / "data/0/features-77.js").exists()
    assert not list(folder.glob(".writing-*"))


def test_folders_of_something_else_are_refused(site, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ArtifactError, match=r"thesis\.tex"):
        site.write(tmp_path)
    (tmp_path / "index.html").write_text("<p>a home page</p>")
    with pytest.raises(ArtifactError, match="holds other files"):
        site.write(tmp_path)
    with pytest.raises(ArtifactError, match="is a file"):
        site.write(tmp_path / "thesis.tex")
    assert {p.name for p in tmp_path.iterdir()} == {"thesis.tex", "index.html"}
    for folder in (tmp_path / ("x" * 300), "~no-such-user/x"):
        with pytest.raises(ArtifactError, match="no site can be written"):
            site.write(folder)
    for nothing in (None, "", 5, "\0x"):
        with pytest.raises(ConfigError, match="expected the path"):
            site.write(nothing)


def test_links_and_other_peoples_files_in_a_site_are_left_alone(site, tmp_path):
    folder = site.write(tmp_path / "site")
    (folder / "data" / "mine.js").write_text("mine")
    project = tmp_path / "project"
    project.mkdir()
    (project / "list.js").write_text("precious")
    (folder / "data" / "9").symlink_to(project)
    site.write(folder)
    assert (folder / "data" / "mine.js").read_text() == "mine"
    assert (project / "list.js").read_text() == "precious"
    for name, moved in (("data", tmp_path / "moved"), ("site.css", None), ("data/0", tmp_path / "old")):
        other = site.write(tmp_path / f"site-{name.replace('/', '-')}")
        path = other / name
        if moved is None:
            path.unlink()
            path.mkdir()
        else:
            path.rename(moved)
            path.symlink_to(moved) if name == "data" else path.write_text("a file")
        before = contents(tmp_path)
        with pytest.raises(ArtifactError, match="is a link, or no"):
            site.write(other)
        assert contents(tmp_path) == before


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_numbers_alone_make_a_site_that_says_so(sae):
    found = random_sae(128, 300, {"name": "topk", "k": 6})
    found.b_enc = sae.b_enc
    with pytest.raises(DataError, match="nothing is known"):
        found.make_dashboard()
    found.features = sae.features.numbers_only()
    with pytest.warns(HubsaeWarning, match="only numbers"):
        site = found.make_dashboard()
    assert part(site, "about")["sides"][0]["has_examples"] is False
    assert feature(site, 50)["top"] == []
    with pytest.raises(ConfigError, match="bound to no model"):
        found.make_dashboard(["some", "texts"])
    with pytest.raises(ConfigError, match="bound to no model"), pytest.warns(HubsaeWarning):
        found.make_dashboard(texts=["a text"])


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ({"texts": "Paris"}, "expected a list of texts"),
        ({"texts": 5}, "expected a list of texts"),
        ({"texts": ["\ud800 x"]}, "half a character"),
        ({"circuits": 5}, "find_feature_circuits"),
        ({"circuits": [1]}, "find_feature_circuits"),
        ({"title": 5}, "title=5"),
    ],
)
def test_arguments_that_are_none_are_explained(sae, arguments, why):
    with pytest.raises((ConfigError, DataError), match=why):
        sae.make_dashboard(**arguments)


def test_what_can_be_checked_is_checked_before_a_long_analysis(sae, tmp_path):
    def texts():
        raise AssertionError("the texts were read")
        yield ""

    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ArtifactError, match="holds other files"):
        sae.export_dashboard(tmp_path, texts())
    with socket.create_server(("127.0.0.1", 0)) as other, pytest.raises(ConfigError, match="cannot be used"):
        sae.dashboard(texts(), other.getsockname()[1])
    with pytest.raises(ConfigError, match="title=5"):
        sae.make_dashboard(texts(), title=5)
    with pytest.raises(ConfigError, match="name of a Space"):
        sae.push_dashboard("", texts())


def test_bars_of_the_density_hold_what_lies_beyond_them():
    from hubsae.dashboard.page_data import density
    from hubsae.features import Features

    zeros = np.zeros(4)
    columns = {"n_active": np.array([1, 3_000_000, 0, 30]), "mean": zeros, "std": zeros, "maximum": zeros}
    found = density(Features(columns, {"n_tokens": 3_000_000, "n_documents": 1}))
    assert (found["counts"][0], found["counts"][-1], sum(found["counts"]), found["never"]) == (1, 1, 3, 1)


@pytest.mark.parametrize(("name", "place", "value"), [("top_tokens", 2, -1), ("top_at", 0, 60_000), ("top_at", 0, -5)])
def test_damaged_examples_are_refused(sae, name, place, value):
    columns = dict(sae.features.columns)
    columns[name] = columns[name].copy()
    columns[name][50, place] = value
    site = Dashboard.of([Side(sae, replace(sae.features, columns=columns), "sae")])
    with pytest.raises(ArtifactError, match="damaged"):
        feature(site, 50)
    if name == "top_at":
        with pytest.raises(ArtifactError, match="damaged"):
            part(site, "0/list")


def test_two_models_crosscoder_has_both_of_them(demo_model, demo_folder, demo_texts):
    from hubsae import InterpretableModel

    other = InterpretableModel(demo_folder.parent / "atlas-neox")
    found = train_crosscoder(
        [demo_model, other], demo_texts[:700], layers=1, expansion_factor=1, k=8, batch_size=64, progress=False
    )
    own = part(found.make_dashboard(demo_texts[:20], texts=["Paris is the capital of France."]), "about")["sides"][0]
    assert [model["name"] for model in own["models"]] == ["a local llama model", "a local gpt_neox model"]
    assert own["writes"] == ["layers.1.residual", "1:layers.1.residual"]
