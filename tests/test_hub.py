"""Publishing and loading through the unmodified client."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace

import mlx.core as mx
import pytest
from hub_server import UPLOAD_WARNING, HubServer
from huggingface_hub import ModelCard, ModelHubMixin

from hubsae import InterpretableModel, licences, load_sae
from hubsae.errors import ArtifactError, CompatibilityError, ConfigError, HubError, HubsaeWarning
from hubsae.hub_client import hub_api

pytestmark = pytest.mark.filterwarnings(UPLOAD_WARNING)
REPO, BASE = "alice/tiny-sae", "alice/base"


def put_base(hub: HubServer, folder, **changes) -> str:
    """Publish the demo model, with other content for some files."""
    content = {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}
    return hub.put(BASE, {**content, **changes})


def pushed_commits(hub: HubServer, repo: str = REPO) -> list[str]:
    return [commit.title for commit in hub.commits(repo)]


def test_an_artifact_is_a_hub_mixin_with_its_signatures(sae):
    import inspect

    assert isinstance(sae, ModelHubMixin)
    for name in ("save_pretrained", "from_pretrained", "push_to_hub"):
        theirs = inspect.signature(getattr(ModelHubMixin, name)).parameters
        ours = inspect.signature(getattr(type(sae), name)).parameters
        kept = [p for p, v in theirs.items() if v.kind is not v.VAR_KEYWORD]
        assert [p for p in ours if p in kept] == kept


def test_one_push_is_one_commit_and_comes_back_exactly(alice, sae):
    commit = sae.push_to_hub(REPO, commit_message="first")
    assert pushed_commits(alice)[0] == "first"
    assert len([t for t in pushed_commits(alice) if t == "first"]) == 1
    assert commit.oid == alice.head(REPO)
    assert len(alice.seen(r"POST .*/commit/")) == 1
    again = load_sae(REPO)
    assert all(mx.array_equal(again.arrays()[n], a) for n, a in sae.arrays().items())
    assert again.source.revision == alice.head(REPO)
    card = ModelCard(alice.files(REPO)["README.md"].decode())
    assert card.data.to_dict()["library_name"] == "hubsae"
    assert f'load_sae("{REPO}"' in card.text


def test_a_card_that_people_edited_keeps_its_text(alice, sae):
    sae.push_to_hub(REPO)
    card = alice.files(REPO)["README.md"].decode()
    alice.put(
        REPO, {"README.md": card.replace("# tiny-sae", "# My SAE").replace("---\n", "---\nlicense: mit\n", 1).encode()}
    )
    sae.metrics = {"fvu": 0.25, "l0": 4.0}
    with pytest.warns(HubsaeWarning, match="edited by hand"):
        sae.push_to_hub(REPO)
    merged = ModelCard(alice.files(REPO)["README.md"].decode())
    assert "# My SAE" in merged.text
    assert merged.data.to_dict()["license"] == "mit"
    assert merged.data.to_dict()["model-index"][0]["results"][0]["metrics"][0]["value"] == 0.25
    sae.push_to_hub(REPO, card="replace")
    assert "# tiny-sae" in alice.files(REPO)["README.md"].decode()


def test_a_card_that_was_edited_in_the_folder_is_published(alice, sae, tmp_path):
    sae.save(tmp_path / "d")
    card = (tmp_path / "d" / "README.md").read_text()
    (tmp_path / "d" / "README.md").write_text(card.replace("# d", "# Written by hand"), newline="\r\n")
    with pytest.warns(HubsaeWarning, match="edited by hand"):
        load_sae(tmp_path / "d").push_to_hub(REPO)
    assert "# Written by hand" in alice.files(REPO)["README.md"].decode()


def test_numbers_of_an_earlier_version_do_not_stay_behind(alice, sae, tmp_path):
    sae.metrics, sae.statistics = {"fvu": 0.5}, {"rows": 3}
    sae.push_to_hub(REPO)
    sae.save(tmp_path / "d")
    sae.metrics, sae.statistics = {}, {}
    sae.push_to_hub(REPO)
    sae.save(tmp_path / "d")
    for again in (load_sae(REPO), load_sae(tmp_path / "d")):
        assert (again.metrics, again.statistics) == ({}, {})
    assert "model-index" not in ModelCard(alice.files(REPO)["README.md"].decode()).data.to_dict()


def test_a_public_repository_is_not_published_to_as_private(alice, sae):
    sae.push_to_hub(REPO)
    head = alice.head(REPO)
    sae.b_dec = sae.b_dec + 1
    with pytest.raises(HubError, match="is public"):
        sae.push_to_hub(REPO, private=True)
    assert alice.head(REPO) == head


def test_callers_lists_are_left_alone(alice, sae):
    patterns = ["*.tmp"]
    sae.push_to_hub(REPO, ignore_patterns=patterns)
    assert patterns == ["*.tmp"]


def test_a_repository_that_holds_no_dictionary_is_refused(alice):
    alice.put("alice/other", {"config.json": b'{"model_type": "llama"}', "model.safetensors": b"x" * 100})
    with pytest.raises(ArtifactError, match=r"not written by hubsae|not a valid safetensors"):
        load_sae("alice/other")
    alice.put("alice/empty", {"hello.txt": b"x"})
    with pytest.raises(ArtifactError, match=r"holds no dictionary.*hello\.txt"):
        load_sae("alice/empty")


def test_a_dictionary_is_checked_against_a_base_model_that_changes(alice, demo_folder, demo_texts):
    put_base(alice, demo_folder)
    model = InterpretableModel(BASE)
    assert model.identity.repo_id == BASE
    assert model.identity.revision == alice.head(BASE)
    trained = model.train_sae(1, demo_texts, "residual", expansion_factor=2, k=8, batch_size=128, progress=False)
    trained.push_to_hub(REPO)
    recorded = json.loads(alice.files(REPO)["config.json"])["base_models"][0]
    assert recorded["repo_id"] == BASE
    assert recorded["revision"] == alice.head(BASE)
    assert all(len(ids) == 1 for ids in recorded["files"].values())

    load_sae(REPO, model=model, check="strict")
    load_sae(REPO, model=InterpretableModel(demo_folder))  # the same bytes from a local folder

    alice.put(BASE, {"README.md": b"# Edited\n"})
    load_sae(REPO, model=InterpretableModel(BASE), check="strict")  # another commit, the same model

    weights = demo_folder.joinpath("model.safetensors").read_bytes()
    alice.put(BASE, {"model.safetensors": weights[:-2] + b"\x01\x01"})
    assert load_sae(REPO, model=InterpretableModel(BASE)).models  # other bytes, and the same activations
    alice.put(BASE, {"model.safetensors": weights[: -(1 << 19)] + bytes(1 << 19)})
    changed = InterpretableModel(BASE)
    with pytest.warns(HubsaeWarning, match=r"weights, model\.safetensors"):
        load_sae(REPO, model=changed)
    with pytest.raises(CompatibilityError, match=r"weights, model\.safetensors"):
        load_sae(REPO, model=changed, check="strict")
    load_sae(REPO, model=changed, check="ignore")
    pinned = InterpretableModel(BASE, revision=recorded["revision"])
    load_sae(REPO, model=pinned, check="strict")

    from hubsae.demo.run import load_model

    with pytest.raises(CompatibilityError, match=r"layers.1.residual, which it reads: recorded 128 columns, found 96"):
        load_sae(REPO, model=load_model("atlas-neox"))


def test_a_fresh_process_needs_only_the_environment(hub, sae, tmp_path):
    code = f"""
import warnings; warnings.simplefilter("ignore", DeprecationWarning)
from hubsae import load_sae
load_sae({str(tmp_path / "sae")!r}).push_to_hub({REPO!r})
print(load_sae({REPO!r}))
"""
    sae.save(tmp_path / "sae")
    environment = {**os.environ, **hub.env(tmp_path / "home")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert "SAE(layers.1.residual" in done.stdout, done.stderr
    shutil.rmtree(tmp_path / "home")


@pytest.fixture(scope="module")
def licensed_base(demo_folder) -> dict[str, bytes]:
    card = b"---\nlicense: other\nlicense_name: atlas-terms\nlicense_link: LICENSE\n---\n# Base\n"
    return {**{p.name: p.read_bytes() for p in demo_folder.iterdir() if p.is_file()}, "README.md": card}


def front_matter(hub: HubServer) -> dict:
    return ModelCard(hub.files(REPO)["README.md"].decode()).data.to_dict()


def test_the_licence_of_the_base_model_is_inherited_unless_another_is_chosen(alice, sae, licensed_base):
    alice.put(BASE, licensed_base)
    sae.config = replace(sae.config, base_models=({"repo_id": BASE},))
    sae.push_to_hub(REPO)
    said = front_matter(alice)
    assert [said[f"license{name}"] for name in ("", "_name", "_link")] == [
        "other",
        "atlas-terms",
        f"https://huggingface.co/{BASE}/blob/main/LICENSE",
    ]
    assert f"the licence of {BASE}" in alice.files(REPO)["README.md"].decode()
    head = alice.head(REPO)
    load_sae(REPO).push_to_hub(REPO)
    assert alice.head(REPO) == head
    load_sae(REPO).push_to_hub(REPO, license="apache-2.0")
    said = front_matter(alice)
    assert said["license"] == "apache-2.0"
    assert "license_name" not in said
    assert "whose activations" not in alice.files(REPO)["README.md"].decode()
    text = alice.files(REPO)["README.md"].decode()
    alice.put(REPO, {"README.md": text.replace("license: apache-2.0", "license: cc-by-nc-4.0").encode()})
    load_sae(REPO).push_to_hub(REPO)  # what people wrote there counts
    assert front_matter(alice)["license"] == "cc-by-nc-4.0"
    assert "`cc-by-nc-4.0`." in alice.files(REPO)["README.md"].decode()
    foreign = load_sae(REPO)
    foreign.statistics = {"imported": {"format": "x", "from": "y", "folded": [], "recorded": {}, "unknown": []}}
    foreign.push_to_hub("alice/foreign")
    assert "license" not in ModelCard(alice.files("alice/foreign")["README.md"].decode()).data.to_dict()
    with pytest.raises(ConfigError, match="id of a licence"):
        sae.push_to_hub(REPO, license="My Own Licence!")


def test_a_licence_that_is_not_known_or_not_shared_is_left_out(alice, sae, licensed_base):
    alice.put(BASE, licensed_base)
    for bases in (["alice/unseen"], [None], [BASE, "alice/unseen"], [BASE, None], []):
        assert licences.shared(hub_api(), bases) is None
    assert licences.shared(hub_api(), [BASE, BASE]) is not None
    sae.push_to_hub(REPO)
    assert "license" not in front_matter(alice)


def test_the_card_names_its_files_with_their_sums_and_some_features(alice, labelled_sae):
    labelled_sae.push_to_hub(REPO)
    files = alice.files(REPO)
    text = files["README.md"].decode()
    for name in ("config.json", "model.safetensors", "features.parquet", "metrics.json", "statistics.json"):
        assert f"`{name}` | {len(files[name]):,} | `{hashlib.sha256(files[name]).hexdigest()}`" in text
    rows = [line for line in text.splitlines() if line.startswith("| ") and " % | `" in line]
    assert len(rows) == 10
    densities = [float(row.split(" | ")[-2].removesuffix(" %")) for row in rows]
    assert densities == sorted(densities, reverse=True)
    assert "arXiv 2406.04093" in text
    head = alice.head(REPO)
    again = load_sae(REPO)
    assert again.features.n_features == labelled_sae.n_features
    again.push_to_hub(REPO)
    assert alice.head(REPO) == head


def test_features_of_other_weights_are_not_on_the_card(alice, labelled_sae):
    labelled_sae.push_to_hub(REPO)
    other = load_sae(REPO)
    assert other.features.has_examples
    other.W_enc = -other.W_enc
    with pytest.warns(HubsaeWarning, match="weights have changed"):
        other.push_to_hub("alice/changed")
    assert "features.parquet" not in alice.files("alice/changed")["README.md"].decode()


def test_a_push_that_is_refused_leaves_the_dictionary_as_it_was(alice, sae):
    sae.push_to_hub(REPO)
    before = sae.statistics
    with pytest.raises(HubError, match="is public"):
        sae.push_to_hub(REPO, private=True, license="mit")
    assert sae.statistics == before
