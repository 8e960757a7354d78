"""How little is asked of the Hub, and that what comes with the arrays is what the commit holds."""

import json
from pathlib import Path

import mlx.core as mx
import pytest
from conftest import random_sae
from hub_server import UPLOAD_WARNING

from hubsae import load_sae
from hubsae.store import carried_texts, read_json, write_arrays

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
