"""Dictionaries that belong together: a repository each, one index, one collection; one of them by its layer."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import random_sae
from hub_server import UPLOAD_WARNING
from huggingface_hub import get_collection

from hubsae import load_report, load_sae, push_family
from hubsae.cli import main
from hubsae.errors import ArtifactError, ConfigError, HubError, HubsaeWarning
from hubsae.family import distinct_names
from hubsae.hub_client import hub_api
from hubsae.members import Member
from hubsae.report_config import record

pytestmark = pytest.mark.filterwarnings(UPLOAD_WARNING)
INDEX = "alice/tiny-saes"


def judged(layer: int, k: int, component: str = "residual"):
    site = (f"layers.{layer}.{component}",)
    sae = random_sae(sparsity={"name": "topk", "k": k}, reads=site, writes=site)
    sae.metrics = {"n_tokens": 100, "l0": float(k), "fvu": 1 / k, "ce_recovered": 1 - 1 / k}
    return sae


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("saes")
    for layer, k in ((1, 4), (2, 4), (2, 8)):
        judged(layer, k).save(root / f"{layer}-{k}")
    return root


@pytest.fixture
def family(alice, folders):
    return push_family([folders / "2-8", folders / "1-4", folders / "2-4"], INDEX, title="Tiny SAEs")


def commits(alice) -> dict[str, int]:
    return {repo.web: len(repo.log) for repo in alice.repos.values()}


def test_each_has_a_repository_and_all_an_index_and_a_collection(alice, family):
    names = [f"{INDEX}-{name}" for name in ("L1-residual-k4", "L2-residual-k4", "L2-residual-k8")]
    assert [one.repo_id for one in family.members] == names
    assert set(commits(alice)) == {f"datasets/{INDEX}", *names}
    items = get_collection(family.collection).items
    assert [(item.item_type, item.item_id) for item in items] == [("dataset", INDEX), *(("model", n) for n in names)]
    assert items[1].note == "layers.1.residual: 64 features, topk(k=4), l0 4, FVU 0.25, loss recovered 75.0 %"
    report = load_report(INDEX)
    assert [entry["repo_id"] for entry in report.config.entries] == names
    assert [entry["revision"] for entry in report.config.entries] == [alice.head(name) for name in names]
    assert report.load("tiny-saes-L2-residual-k8").rule.k == 8  # with the weights that the index knows
    card = alice.files(names[0])["README.md"].decode()
    assert f"datasets/{INDEX})" in card
    assert f"collections/{family.collection})" in card
    assert f'load_sae("{INDEX}", layer=1)' in alice.files(INDEX, repo_type="dataset")["README.md"].decode()


def test_the_same_call_changes_nothing_and_a_new_member_joins(alice, family, folders):
    before = commits(alice)
    again = push_family(folders, INDEX, title="Another title")  # a folder of them all
    assert (again.collection, again.commit, again.members) == (family.collection, family.commit, family.members)
    assert commits(alice) == before
    more = push_family([folders, judged(3, 4, "mlp")], INDEX)
    assert more.collection == family.collection
    assert more.members[-1].repo_id == f"{INDEX}-L3-mlp-k4"
    assert len(get_collection(family.collection).items) == 5
    assert {web: count - before.get(web, 0) for web, count in commits(alice).items()} == {
        **dict.fromkeys(before, 0),
        f"datasets/{INDEX}": 1,
        f"{INDEX}-L3-mlp-k4": 2,
    }


def test_an_index_grows_and_repositories_keep_their_names(alice):
    first = push_family([judged(1, 4), judged(2, 4)], INDEX)
    names = [one.repo_id for one in first.members]
    assert names == [f"{INDEX}-L1-residual", f"{INDEX}-L2-residual"]
    grown = push_family([judged(2, 8)], INDEX)
    assert [one.repo_id for one in grown.members] == [*names, f"{INDEX}-L2-residual-k8"]
    assert load_sae(INDEX, layer=1).rule.k == 4
    again = push_family([judged(2, 8), judged(2, 4), judged(1, 4)], INDEX)
    assert again.members == grown.members
    less = push_family([judged(1, 4)], INDEX, replace=True)
    assert [one.repo_id for one in less.members] == names[:1]
    assert [item.item_id for item in get_collection(less.collection).items] == [INDEX, names[0]]
    assert ("model", names[1].lower()) in alice.repos


def test_what_was_cut_off_goes_on(alice, folders):
    alice.fail(r"/api/models/.*k8/commit", 503, times=20)
    with pytest.raises(HubError, match=r"2 of 3 dictionaries of the family are published; the same call goes on"):
        push_family(folders, INDEX)
    before = commits(alice)
    alice.faults.clear()
    family = push_family(folders, INDEX)
    assert len(family.members) == 3
    assert len(alice.collections) == 1
    assert {web: commits(alice)[web] - count for web, count in before.items() if "k4" in web} == {
        f"{INDEX}-L1-residual-k4": 0,
        f"{INDEX}-L2-residual-k4": 0,
    }


def test_a_layer_chooses_from_an_index_a_collection_and_a_folder(alice, family, folders):
    for source in (INDEX, family.collection, folders):
        assert load_sae(source, layer=1).config.reads == ("layers.1.residual",)
        assert load_sae(source, layer=2, k=8).rule.k == 8
        with pytest.raises(ArtifactError, match=r"2 dictionaries read layer=2; give .* k="):
            load_sae(source, layer=2)
        with pytest.raises(ArtifactError, match=r"no dictionary reads layer=1, component='mlp'; it holds"):
            load_sae(source, layer=1, component="mlp")
    found = load_sae(INDEX, layer=1)
    assert (found.source.name, found.source.revision) == (family.members[0].repo_id, family.members[0].commit)
    with pytest.raises(ArtifactError, match="index of 3 dictionaries; give layer="):
        load_sae(INDEX)


def test_the_index_says_which_commit_and_a_collection_without_one_does_with_the_newest(alice, family):
    name = family.members[0].repo_id
    newer = judged(1, 4)
    newer.metrics["fvu"] = 0.5
    newer.push_to_hub(name)
    assert load_sae(INDEX, layer=1).metrics["fvu"] == 0.25
    api, slug = hub_api(), family.collection
    (index,) = [item for item in get_collection(slug).items if item.item_type == "dataset"]
    api.delete_collection_item(slug, index.item_object_id)
    assert load_sae(slug, layer=1).metrics["fvu"] == 0.5


def test_a_repository_with_one_dictionary_has_to_be_of_that_layer(alice, family):
    name = family.members[0].repo_id
    assert load_sae(name, layer=1, component="residual").source.name == name
    with pytest.raises(ArtifactError, match="no dictionary reads layer=2"):
        load_sae(name, layer=2)
    with pytest.raises(ConfigError, match="subfolder"):
        load_sae(name, layer=2, subfolder="x")
    with pytest.raises(ConfigError, match="no revisions"):
        load_sae(family.collection, layer=1, revision="v1")


def test_an_odd_item_does_not_spoil_a_collection(alice, family, monkeypatch, tmp_path):
    alice.put("bob/gated", {"config.json": b"{}"}, gated=True)
    alice.put("bob/broken", {"config.json": b"[1]", "model.safetensors": b""})
    alice.put("bob/data", {"report.json": b"[1]"}, repo_type="dataset")
    api, slug = hub_api(), family.collection
    for kind, name in (("model", "bob/gated"), ("model", "bob/broken"), ("dataset", "bob/data")):
        api.add_collection_item(slug, name, kind)  # pyright: ignore[reportArgumentType]
    assert load_sae(slug, layer=1).source.name == family.members[0].repo_id
    alice.fail(f"GET /api/datasets/{INDEX}", 503, times=9)
    with pytest.warns(HubsaeWarning, match="may not be the newest"):  # the index of the cache, not the newest commits
        assert load_sae(slug, layer=1).source.revision == family.members[0].commit
    alice.faults.clear()
    (tmp_path / family.members[0].repo_id).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="a folder of that name is here"):
        load_sae(slug, layer=1)


def test_an_old_commit_is_not_used_by_a_layer_without_a_word(alice, family):
    name = family.members[0].repo_id
    load_sae(name, layer=1)
    alice.fail("GET /api/models/", 503, times=9)
    with pytest.warns(HubsaeWarning, match="may not be the newest"):
        load_sae(name, layer=1)
    alice.faults.clear()
    alice.fail("GET /api/models/", 403, times=9)
    with pytest.raises(HubError, match="may not do that"):
        load_sae(name, layer=1)


def test_a_layer_is_a_number(alice, folders):
    bad: Any
    for bad in ("1", 1.0, True, [1]):
        with pytest.raises(ConfigError, match="layer="):
            load_sae(folders, layer=bad)


def test_names_of_other_libraries_tell_the_layer():
    cases = {
        "layer_1/width_16k/average_l0_10": 1,
        "layer_0/width_16k/average_l0_71": 0,
        "blocks.10.hook_resid_post": 10,
        "layers.07.mlp": 7,
        "l12r_8x": 12,
        "models/h.3": 3,
        "saelens": None,
    }
    for name, layer in cases.items():
        fits = [i for i in range(100) if Member("a/b", subfolder=name).fits(i, None)]
        assert fits == ([] if layer is None else [layer]), name
        assert Member("a/b", subfolder=name).fits(None, "mlp")


def test_a_form_of_another_library_is_not_a_second_dictionary(alice):
    judged(1, 4).push_to_hub("alice/both", also=["saelens"])
    assert load_sae("alice/both", component="residual").source.name == "alice/both"


def test_offline_the_index_answers_and_a_collection_says_why_not(alice, family):
    load_sae(INDEX, layer=1)
    before = len(alice.requests)
    assert load_sae(INDEX, layer=1, local_files_only=True).config.reads == ("layers.1.residual",)
    with pytest.raises(HubError, match="the Hub was not asked"):
        load_sae(family.collection, layer=1, local_files_only=True)
    assert len(alice.requests) == before
    with pytest.raises(HubError, match="no such repository"):
        load_sae("alice/nothing-" + "0" * 24, layer=1)


def test_nothing_is_sent_before_all_is_known_to_be_right(alice, folders, tmp_path):
    cases = [
        (lambda: push_family([random_sae()], INDEX), "no recorded metrics"),
        (lambda: push_family(folders, "tiny"), "expected owner/name"),
        (lambda: push_family(folders, INDEX, names=["a", "A", "b"]), "expected different"),
        (lambda: push_family(folders, INDEX, names=["a"]), "expected 3"),
        (lambda: push_family(folders, INDEX, title="x" * 99), "letters"),
        (lambda: push_family(folders, INDEX, license="no such thing!"), "licen"),
        (lambda: push_family(folders, INDEX, also=["what"]), "what"),
        (lambda: push_family([tmp_path], INDEX), "no folder with a dictionary"),
        (lambda: push_family([], INDEX), "no dictionaries"),
    ]
    for call, message in cases:
        with pytest.raises((ConfigError, ArtifactError), match=message):
            call()
    assert not alice.repos
    assert not alice.collections


def test_names_tell_what_differs():
    one, two = (record(judged(1, k), "?") for k in (4, 8))
    assert distinct_names([one]) == ["L1-residual"]
    assert distinct_names([one, two]) == ["L1-residual-k4", "L1-residual-k8"]
    assert len(set(distinct_names([one, one, two]))) == 3


def test_the_command_line_lists_an_index_and_a_collection(alice, family, capsys):
    for source in (INDEX, family.collection):
        assert main(["list", source]) == 0
        told = capsys.readouterr().out
        assert "3 dictionaries" in told
        assert f"{INDEX}-L2-residual-k8" in told
    assert main(["list", "alice/nothing"]) == 1
    assert "no such repository" in capsys.readouterr().err


def test_the_command_line_publishes_a_folder_of_them(alice, folders, tmp_path, capsys):
    shutil.copytree(folders / "1-4", tmp_path / "a")
    assert main(["push", str(tmp_path / "a"), str(folders / "2-4"), INDEX]) == 1
    assert "--collection" in capsys.readouterr().err
    assert main(["push", str(tmp_path / "a"), str(folders / "2-4"), INDEX, "--collection", "Some SAEs"]) == 0
    assert "alice/some-saes-" in capsys.readouterr().out
