"""What is exported loads again as the same dictionary, and is refused where a library has no form for it."""

import json
from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest
from foreign import Case, cases
from hub_server import UPLOAD_WARNING
from test_formats import ACCEPTED, name_of

from hubsae import export_transcoder_set, list_dictionaries, load_sae
from hubsae.errors import ArtifactError, ConfigError, HubError
from hubsae.identity import BaseModel
from hubsae.store import read_json

pytestmark = pytest.mark.filterwarnings("ignore:.*its threshold is -1")
REPO = "alice/both"


@pytest.mark.parametrize("to", ["saelens", "sparsify"])
@pytest.mark.parametrize("case", ACCEPTED, ids=name_of)
def test_an_export_loads_again_as_the_same_dictionary(case: Case, to, tmp_path):
    dictionary = case.load(tmp_path)
    try:
        out = dictionary.export(tmp_path / "out", to)
    except ArtifactError as error:
        assert "there is no file that it would compute the same from" in str(error)  # noqa: PT017
        return
    again = load_sae(out)
    assert again.config.reads == dictionary.config.reads
    assert again.config.writes == dictionary.config.writes
    x = mx.array(case.expected["x"])
    assert mx.allclose(again.encode(x), dictionary.encode(x), rtol=1e-5, atol=1e-4)
    assert mx.array_equal(again.encode(x) != 0, dictionary.encode(x) != 0)
    assert mx.allclose(again(x), dictionary(x), rtol=1e-5, atol=1e-4)


def test_every_sparsity_and_kind_has_a_form_somewhere(tmp_path):
    found = {}
    for number, case in enumerate(ACCEPTED):
        dictionary = case.load(tmp_path / str(number))
        for to in dictionary.forms:
            try:
                dictionary.export(tmp_path / str(number) / to, to)
            except ArtifactError:
                continue
            found.setdefault((dictionary.config.kind, dictionary.rule.name), set()).add(to)
    kinds = {("sae", rule) for rule in ("relu", "topk", "batchtopk", "jumprelu", "gated")}
    assert set(found) == kinds | {("transcoder", rule) for rule in ("relu", "topk", "jumprelu")}
    assert found["transcoder", "topk"] == {"sparsify"}
    assert found["sae", "gated"] == {"saelens"}


def test_base_model_commit_and_tokens_come_back(sae, tmp_path):
    base = BaseModel(repo_id="google/gemma-2-2b", revision="a" * 40, model_type="gemma2", hidden_size=16)
    tokens = {"context_size": 128, "skip_positions": 2, "add_special_tokens": False, "skip_special": True}
    sae.config = replace(sae.config, base_models=(base.to_dict(),), tokens=tokens)
    again = load_sae(sae.export(tmp_path / "out"))
    assert (again.base_model.repo_id, again.base_model.revision) == ("google/gemma-2-2b", "a" * 40)
    assert again.config.tokens == tokens
    config = read_json(tmp_path / "out" / "cfg.json")
    assert config["metadata"]["hook_name"] == "blocks.1.hook_resid_post"
    assert config["metadata"]["hf_hook_name"] == "model.layers.1"
    assert config["metadata"]["model_from_pretrained_kwargs"] == {"revision": "a" * 40}


def test_a_set_of_transcoders_loads_again_layer_by_layer(tmp_path):
    dictionary = Case("circuit_tracer_jumprelu_skip").load(tmp_path)
    layers = [moved(dictionary, layer) for layer in (1, 0, 2)]
    out = export_transcoder_set(layers, tmp_path / "set")
    assert [entry.subfolder for entry in list_dictionaries(out)] == [f"layer_{i}.safetensors" for i in range(3)]
    again = load_sae(out, subfolder="layer_2")
    assert again.config.reads == ("layers.2.mlp_in",)
    assert again.base_model.repo_id == "google/gemma-2-2b"
    assert all(mx.array_equal(again.arrays()[name], array) for name, array in dictionary.arrays().items())


def moved(dictionary, layer: int):
    places = {"reads": (f"layers.{layer}.mlp_in",), "writes": (f"layers.{layer}.mlp",)}
    return type(dictionary)(replace(dictionary.config, **places), dictionary.arrays())


def test_what_is_no_set_is_refused(sae, tmp_path):
    dictionary = Case("circuit_tracer_relu").load(tmp_path)
    for layers, message in (
        ([moved(dictionary, 1)], r"layers \[0\] are missing"),
        ([moved(dictionary, 0), moved(dictionary, 0)], "two transcoders of layer 0"),
        ([moved(dictionary, 0), sae], "this is a sae from"),
    ):
        with pytest.raises(ArtifactError, match=message):
            export_transcoder_set(layers, tmp_path / "set")
    topk = Case("sparsify_transcoder").load(tmp_path / "topk")
    with pytest.raises(ArtifactError, match=r"no topk\(k=6\)"):
        export_transcoder_set([moved(topk, 0)], tmp_path / "set")
    with pytest.raises(ConfigError, match="a list of transcoders"):
        export_transcoder_set([], tmp_path / "set")
    assert not (tmp_path / "set").exists()


def test_a_folder_of_something_else_stays_as_it_was(sae, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ArtifactError, match=r"holds thesis\.txt"):
        sae.export(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]
    with pytest.raises(ArtifactError, match="is a file"):
        sae.export(tmp_path / "thesis.txt")
    with pytest.raises(ConfigError, match="no export to 'onnx'"):
        sae.export(tmp_path / "new", "onnx")
    assert not (tmp_path / "new").exists()
    assert sae.export(tmp_path / "new") == sae.export(tmp_path / "new")  # an earlier export of its own is replaced


def test_crosscoders_have_no_form_elsewhere(tmp_path):
    for case in cases(refused=False):
        if case.info["kind"] != "crosscoder":
            continue
        crosscoder = case.load(tmp_path / case.name)
        for to in crosscoder.forms:
            with pytest.raises(ArtifactError, match="at once"):
                crosscoder.export(tmp_path / "out", to)


@pytest.mark.filterwarnings(UPLOAD_WARNING)
def test_one_repository_serves_both_worlds_in_one_commit(alice, sae):
    sae.push_to_hub(REPO, also=["saelens", "sparsify"])
    assert len(alice.seen(r"POST .*/commit/")) == 1
    assert {"saelens/cfg.json", "sparsify/layers.1/cfg.json", "config.json"} <= set(alice.files(REPO))
    assert "SAE.from_pretrained" in alice.files(REPO)["README.md"].decode()
    assert [entry.format for entry in list_dictionaries(REPO)] == ["hubsae", "SAELens", "sparsify"]
    theirs = load_sae(REPO, subfolder="saelens")
    assert theirs.source.revision == alice.head(REPO)
    assert load_sae(REPO).source.name == REPO
    assert all(mx.array_equal(theirs.arrays()[name], array) for name, array in sae.arrays().items())


@pytest.mark.filterwarnings(UPLOAD_WARNING)
def test_a_form_that_is_there_is_written_anew_and_taken_away_when_others_are_named(alice, sae):
    sae.push_to_hub(REPO, also=["saelens"])
    head = alice.head(REPO)
    sae.push_to_hub(REPO)
    assert alice.head(REPO) == head
    sae.b_dec = sae.b_dec + 1
    sae.push_to_hub(REPO)
    assert np.allclose(np.array(load_sae(REPO, subfolder="saelens").b_dec), np.array(sae.b_dec))
    sae.push_to_hub(REPO, also=[])
    assert not [name for name in alice.files(REPO) if name.startswith("saelens/")]
    assert "SAE.from_pretrained" not in alice.files(REPO)["README.md"].decode()
    with pytest.raises(ConfigError, match="'onnx'"):
        sae.push_to_hub(REPO, also=["onnx"])


@pytest.mark.filterwarnings(UPLOAD_WARNING)
def test_a_form_that_cannot_be_written_leaves_the_repository_as_it_was(alice, tmp_path):
    gated = Case("saelens_gated").load(tmp_path)
    with pytest.raises(ArtifactError, match="no gated"):
        gated.push_to_hub(REPO, also=["sparsify"])
    assert not alice.seen(r"POST .*/repos/create")


def test_a_foreign_dictionary_of_a_repository_is_read_alone(alice, tmp_path):
    case = Case("sparsify_several")
    files = {
        str(p.relative_to(case.folder / "repo")): p.read_bytes()
        for p in (case.folder / "repo").rglob("*.*")
        if p.is_file()
    }
    alice.put("alice/several", files)
    asked = len(alice.requests)
    found = load_sae("alice/several", subfolder="layers.2.mlp")
    paths = [r.path for r in alice.requests[asked:]]
    assert not [path for path in paths if "h.1" in path]
    assert found.source.revision == alice.head("alice/several")
    assert found.statistics["imported"]["from"].startswith("alice/several@")
    assert found.base_model.repo_id == "openai-community/gpt2"
    pinned = load_sae("alice/several", subfolder="layers.2.mlp", revision=alice.head("alice/several"))
    assert pinned.config == found.config


def test_a_foreign_dictionary_loads_again_without_a_network(hub, tmp_path):
    case = Case("saelens_gated")
    files = {
        str(p.relative_to(case.folder / "repo")): p.read_bytes()
        for p in (case.folder / "repo").rglob("*.*")
        if p.is_file()
    }
    home = tmp_path / "home"
    with hub.patched(home):
        hub.put("alice/gated", files)
        first = load_sae("alice/gated")
    with hub.patched(home, offline=True):
        asked = len(hub.requests)
        assert load_sae("alice/gated").config == first.config
        assert len(hub.requests) == asked
    assert json.dumps(first.statistics["imported"])


def test_files_of_somebody_else_are_never_overwritten(sae, tmp_path):
    mine = Case("saelens_gated").copied(tmp_path) / "blocks.5.hook_resid_pre"
    before = {path.name: path.read_bytes() for path in mine.iterdir()}
    with pytest.raises(ArtifactError, match="which hubsae did not write"):
        sae.export(mine)
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "model.safetensors").write_bytes(b"weights")
    with pytest.raises(ArtifactError, match="somebody else's"):
        sae.save(tmp_path / "theirs")
    assert {path.name: path.read_bytes() for path in mine.iterdir()} == before
    assert [path.name for path in (tmp_path / "theirs").iterdir()] == ["model.safetensors"]


def test_an_export_stays_in_its_folder(sae, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "cfg.json").write_text("{}")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "layers.1").symlink_to(outside)
    with pytest.raises(ArtifactError):
        sae.export(tmp_path / "out", "sparsify")
    assert (outside / "cfg.json").read_text() == "{}"
    (tmp_path / "b" / "sae_weights.safetensors").mkdir(parents=True)
    with pytest.raises(ArtifactError, match="is a folder"):
        sae.export(tmp_path / "b")
    assert not (tmp_path / "b" / "cfg.json").exists()
    for wrong in ("a\0b", "x" * 300):
        with pytest.raises(ArtifactError):
            sae.export(tmp_path / wrong)


def test_a_second_layer_goes_beside_the_first(sae, tmp_path):
    sae.export(tmp_path / "out", "sparsify")
    sae.config = replace(sae.config, reads=("layers.2.residual",), writes=("layers.2.residual",))
    sae.export(tmp_path / "out", "sparsify")
    assert [entry.subfolder for entry in list_dictionaries(tmp_path / "out")] == ["layers.1", "layers.2"]


@pytest.mark.filterwarnings(UPLOAD_WARNING)
def test_folders_of_other_people_in_the_repository_stay(alice, sae):
    notes = {
        "sparsify/other.md": b"mine",
        "saelens/layer_3/cfg.json": b"{}",
        "saelens/layer_3/sae_weights.safetensors": b"x",
    }
    alice.put(REPO, notes)
    sae.push_to_hub(REPO)
    assert "saelens/cfg.json" not in alice.files(REPO)
    sae.push_to_hub(REPO, also=["saelens", "sparsify"])
    sae.config = replace(sae.config, reads=("layers.2.residual",), writes=("layers.2.residual",))
    sae.push_to_hub(REPO)
    assert {"sparsify/layers.2/cfg.json", "saelens/cfg.json"} <= set(alice.files(REPO))
    assert "sparsify/layers.1/cfg.json" not in alice.files(REPO)  # of what is there no longer
    sae.push_to_hub(REPO, also=[])
    assert set(notes) <= set(alice.files(REPO))
    assert "saelens/cfg.json" not in alice.files(REPO)
    alice.put(REPO, {"saelens/cfg.json": b'{"d_in": 3}'})
    with pytest.raises(HubError, match="is not of hubsae"):
        sae.push_to_hub(REPO, also=["saelens"])
    assert alice.files(REPO)["saelens/cfg.json"] == b'{"d_in": 3}'


def test_records_of_features_are_written_anew_over_earlier_ones(labelled_sae, tmp_path):
    names = {"model_id": "atlas-llama", "source_set": "res"}
    out = labelled_sae.export_features(tmp_path / "records", **names)
    before = {path.relative_to(out): path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert labelled_sae.export_features(tmp_path / "records", **names) == out
    assert {path.relative_to(out): path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    (tmp_path / "mine" / "features").mkdir(parents=True)
    (tmp_path / "mine" / "features" / "batch-0.jsonl.gz").write_bytes(b"mine")
    with pytest.raises(ArtifactError, match="which hubsae did not write"):
        labelled_sae.export_features(tmp_path / "mine", **names)
