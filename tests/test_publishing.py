"""What a push finds there and keeps: other people's repositories, words and metadata, links of its own."""

import re

import pytest
import yaml
from conftest import random_sae
from hub_server import UPLOAD_WARNING

from hubsae import compare, load_sae, push_family
from hubsae.errors import ConfigError, HubError, HubsaeWarning
from hubsae.render import split

pytestmark = pytest.mark.filterwarnings(UPLOAD_WARNING)
REPO = "alice/sae"
MODEL = {"config.json": b'{"model_type": "llama"}', "model.safetensors": b"weights", "tokenizer.json": b"{}"}


def judged(k: int = 4, fvu: float = 0.5):
    sae = random_sae(sparsity={"name": "topk", "k": k})
    sae.metrics = {"n_tokens": 100, "n_spliced_tokens": 90, "l0": float(k), "fvu": fvu, "ce_recovered": 1 - fvu}
    keys = ("explained_variance", "cosine", "dead_share", "ce_original", "ce_spliced", "ce_mean", "ce_zero", "kl")
    sae.metrics |= {**dict.fromkeys(keys, 0.25), "ce_recovered_mean": 0.5, "n_documents": 7, "intervals": {}}
    return sae


@pytest.mark.parametrize(
    ("files", "kind", "push"),
    [
        (MODEL, "model", lambda: judged().push_to_hub(REPO)),
        ({"metrics.json": b"{}"}, "model", lambda: judged().push_to_hub(REPO)),
        ({"alignment.json": b"{}"}, "model", lambda: judged().push_to_hub(REPO)),
        ({"report.json": b'{"of": "a trainer"}'}, "dataset", lambda: compare([judged()]).push_to_hub(REPO)),
        ({"report.json": b'{"of": "a trainer"}'}, "dataset", lambda: push_family([judged()], REPO, names=["x"])),
        (MODEL, "model", lambda: push_family([judged()], "alice/fam", names=["sae"])),
    ],
)
def test_nothing_else_is_overwritten(alice, files, kind, push):
    alice.put(REPO, files, repo_type=kind)
    before = alice.files(REPO, repo_type=kind)
    with pytest.raises(HubError, match=r"alice/sae holds something else .*Nothing was sent"):
        push()
    assert alice.files(REPO, repo_type=kind) == before
    assert not alice.collections


def test_a_report_is_no_index_and_an_index_no_report(alice):
    push_family([judged()], REPO, names=["one"])
    with pytest.raises(HubError, match="index of a family"):
        compare([judged()]).push_to_hub(REPO)
    compare([judged()]).push_to_hub("alice/report")
    with pytest.raises(HubError, match="a report that is no family's index"):
        push_family([judged()], "alice/report", names=["one"])


def test_a_tag_is_made_once_and_refused_where_it_names_something_else(alice):
    sae = judged()
    first = sae.push_to_hub(REPO, tag="v1")
    assert sae.push_to_hub(REPO, tag="v1").oid == first.oid
    sae.metrics["fvu"] = 0.25
    sae.push_to_hub(REPO)
    with pytest.raises(HubError, match=f"'v1' names {first.oid[:8]}; choose another. Nothing was sent"):
        sae.push_to_hub(REPO, tag="v1")
    with pytest.raises(ConfigError, match="card="):
        sae.push_to_hub("alice/new", card="bogus")  # type: ignore[arg-type]
    assert ("model", "alice/new") not in alice.repos


def test_after_a_push_it_knows_where_it_is(alice, tmp_path):
    sae = judged()
    sae.save(tmp_path / "sae")
    commit = sae.push_to_hub(REPO)
    assert str(sae.source) == f"{REPO}@{commit.oid[:8]}"
    before = len(alice.requests)
    assert compare([sae]).config.entries[0]["revision"] == commit.oid
    assert len(alice.requests) == before  # nothing is downloaded for a sum
    with pytest.raises(HubError, match="not in the local cache"):
        load_sae(REPO, local_files_only=True)
    sae.push_to_hub(REPO, branch="next")
    assert str(sae.source) == f"{REPO}@{commit.oid[:8]}"


def test_links_stay_where_they_belong(alice):
    push_family([judged()], "alice/fam", names=["sae"])
    other = load_sae(REPO)
    other.push_to_hub("alice/other")
    assert "family" not in load_sae("alice/other").statistics
    judged(fvu=0.25).push_to_hub(REPO)  # from a folder that knows of no family
    found = load_sae(REPO)
    assert found.statistics["family"]["index"] == "alice/fam"
    assert found.metrics["fvu"] == 0.25


def test_of_an_edited_card_only_what_people_wrote_is_kept(alice):
    sae = judged()
    sae.push_to_hub(REPO)
    card = alice.files(REPO)["README.md"].decode()
    edited = card.replace("## Limits\n", "## Limits\n\n- Mine.\n").replace(
        "## Files", "## About me\n\nHello.\n\n## Files"
    )
    edited = re.sub(r"## Use\n.*?(?=## )", "", edited, flags=re.DOTALL)
    front, body = split(edited)
    data = {**yaml.safe_load(front.strip("-\n")), "datasets": ["alice/mine"], "base_model_relation": "finetune"}
    alice.put(REPO, {"README.md": f"---\n{yaml.safe_dump(data, sort_keys=False)}---\n{body}".encode()})
    sae.metrics["fvu"] = 0.125
    for _ in range(2):
        with pytest.warns(HubsaeWarning, match="is kept: Limits, About me"):
            sae.push_to_hub(REPO)
    found = alice.files(REPO)["README.md"].decode()
    assert "- Mine." in found
    assert "Hello." in found
    assert "## Use" not in found
    assert "0.125" in found.split("## Results")[1].split("##")[0]  # renewed
    assert [line for line in found.splitlines() if line.startswith("## ")] == [
        line for line in edited.splitlines() if line.startswith("## ")
    ]
    assert "alice/mine" in found
    sae.statistics["licence"] = {"id": "mit"}
    with pytest.warns(HubsaeWarning, match="is kept: Limits, About me"):
        sae.push_to_hub(REPO)
    assert "## Licence" in alice.files(REPO)["README.md"].decode()  # a new part joins
    assert load_sae(REPO).compared_files()
