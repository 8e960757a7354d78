"""How little is asked of the Hub, and that what comes with the arrays is what the commit holds."""

import hashlib
import json
from pathlib import Path

import mlx.core as mx
import pytest
from conftest import random_sae
from hub_server import UPLOAD_WARNING
from huggingface_hub.errors import CachedRepoTreeNotFoundError

from hubsae import load_sae
from hubsae.errors import ConfigError, HubsaeWarning
from hubsae.store import carried_texts, file_sums, read_json, sum_of_sums, write_arrays

pytestmark = pytest.mark.filterwarnings(UPLOAD_WARNING)


def asked(hub, load) -> int:
    before = len(hub.requests)
    load()
    return len(hub.requests) - before


@pytest.fixture
def pushed(alice):
    sae = random_sae()
    sae.statistics, sae.metrics = {"rows": 7, "note": 'é "quoted"\n\\ \U0001f600 \x1f'}, {"fvu": 0.5}
    return sae, sae.push_to_hub("alice/sae")


def test_a_cold_load_asks_four_times_a_warm_one_once_and_a_pinned_one_never(alice, pushed):
    sae, commit = pushed
    assert asked(alice, lambda: load_sae("alice/sae")) == 4
    assert asked(alice, lambda: load_sae("alice/sae")) == 1
    assert asked(alice, lambda: load_sae("alice/sae", revision=commit.oid)) == 0
    found = load_sae("alice/sae", local_files_only=True)
    assert (found.statistics, found.metrics, found.config) == (sae.statistics, sae.metrics, sae.config)
    assert read_json(Path(found.source.file("statistics.json"))) == sae.statistics  # a file like any other there


def test_what_people_changed_in_the_repository_counts_not_what_the_arrays_carry(alice, pushed):
    changed = {**pushed[0].metrics, "fvu": 0.25}
    alice.put("alice/sae", {"metrics.json": json.dumps(changed).encode()})
    assert load_sae("alice/sae").metrics == changed


def test_what_is_no_longer_in_the_repository_is_not_taken_from_the_arrays(alice, pushed):
    alice.put("alice/sae", {"metrics.json": None})
    assert load_sae("alice/sae").metrics == {}


def test_a_load_that_was_cut_off_goes_on(alice, pushed):
    _, commit = pushed
    root = Path(load_sae("alice/sae").source.file("config.json")).parent
    for name in ("config.json", "metrics.json"):
        (root / name).unlink()
    assert asked(alice, lambda: load_sae("alice/sae", revision=commit.oid)) == 0  # the arrays are there, and carry both
    assert load_sae("alice/sae", revision=commit.oid).metrics == {"fvu": 0.5}
    (root / "model.safetensors").unlink()
    assert load_sae("alice/sae", revision=commit.oid).metrics == {"fvu": 0.5}


@pytest.mark.parametrize("error", [CachedRepoTreeNotFoundError("x"), AttributeError("x")])
def test_a_cache_without_its_list_of_files_is_read_all_the_same(alice, pushed, monkeypatch, error):
    load_sae("alice/sae")

    def missing(*args, **kwargs):
        raise error

    monkeypatch.setattr("hubsae.commit_files.get_cached_repo_tree", missing)
    assert load_sae("alice/sae", local_files_only=True).metrics == {"fvu": 0.5}


def test_what_is_unpacked_can_be_read_by_whoever_reads_the_arrays(pushed):
    source = load_sae("alice/sae").source
    modes = [Path(source.file(name)).stat().st_mode & 0o666 for name in ("config.json", "model.safetensors")]
    assert modes[0] == modes[1]
    assert not list(Path(source.file("config.json")).parent.glob("tmp*"))


def test_numbers_too_many_for_a_header_stand_in_their_file_alone(alice):
    sae = random_sae()
    sae.statistics, sae.metrics = {"log": list(range(30_000))}, {"fvu": 0.5}
    sae.push_to_hub("alice/sae")
    found = load_sae("alice/sae")
    assert found.statistics == sae.statistics
    assert set(carried_texts(Path(found.source.file("model.safetensors")))) == {"config.json", "metrics.json"}


def test_an_artifact_in_a_folder_inside_carries_its_own_files(alice, tmp_path):
    sae = random_sae()
    sae.metrics = {"fvu": 0.5}
    sae.save(tmp_path / "sae")
    files = {f"deep/er/{p.name}": p.read_bytes() for p in (tmp_path / "sae").iterdir()}
    alice.put("alice/many", {**files, "config.json": b"{}", "statistics.json": b'{"rows": 9}'})
    found = load_sae("alice/many", subfolder="deep/er")
    assert (found.metrics, found.statistics) == ({"fvu": 0.5}, {})


def test_a_safetensors_file_that_carries_nothing_is_read_as_ever(tmp_path):
    write_arrays(tmp_path / "a.safetensors", {"x": mx.zeros(2)}, {})
    assert carried_texts(tmp_path / "a.safetensors") == {}
    (tmp_path / "b.safetensors").write_bytes(b"no such thing")
    assert carried_texts(tmp_path / "b.safetensors") == {}


def test_files_are_compared_with_the_sums_on_the_card(alice, tmp_path):
    sae = random_sae()
    sae.metrics = {"fvu": 0.5}
    sae.push_to_hub("alice/sae")
    found = load_sae("alice/sae").compared_files()
    assert {one.field: one.verdict for one in found} == dict.fromkeys(
        ("config.json", "metrics.json", "model.safetensors"), "same"
    )
    card = alice.files("alice/sae")["README.md"].decode()
    outside = card.replace("`metrics.json`", "`../../metrics.json`")
    alice.put(
        "alice/sae", {"config.json": alice.files("alice/sae")["config.json"] + b" ", "README.md": outside.encode()}
    )
    found = {one.field: one for one in load_sae("alice/sae").compared_files()}
    assert found["config.json"].verdict == "warning"
    assert found["../../metrics.json"].found == "no such file"
    with pytest.raises(ConfigError, match="nowhere"):
        random_sae().compared_files()


def test_one_sum_stands_for_a_folder(tmp_path):
    (tmp_path / "b").write_bytes(b"2")
    (tmp_path / "a").write_bytes(b"1")
    sums = {name: digest for name, _, digest in file_sums(tmp_path)}
    listed = "".join(f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in (("a", b"1"), ("b", b"2")))
    assert sum_of_sums(sums) == hashlib.sha256(listed.encode()).hexdigest()


def test_an_edited_card_gets_the_new_sums(alice):
    sae = random_sae()
    sae.metrics = {"fvu": 0.5}
    sae.push_to_hub("alice/sae")
    card = alice.files("alice/sae")["README.md"].decode()
    alice.put("alice/sae", {"README.md": card.replace("## Files", "My words.\n\n## Files").encode()})
    sae.metrics = {"fvu": 0.25}
    with pytest.warns(HubsaeWarning, match="edited by hand"):
        sae.push_to_hub("alice/sae")
    assert "My words." in alice.files("alice/sae")["README.md"].decode()
    assert {one.verdict for one in load_sae("alice/sae").compared_files()} == {"same"}
