import hashlib
import os
import shutil
import subprocess
import warnings
from dataclasses import replace

import pytest

from hubsae import identity
from hubsae.errors import CompatibilityError, ConfigError, HubsaeWarning
from hubsae.identity import BaseModel, blob_ids, compare, compared, differences, judge

KNOWN = BaseModel(
    repo_id="org/model",
    revision="a" * 40,
    model_type="llama",
    hidden_size=64,
    n_layers=4,
    vocab_size=100,
    files={"config.json": ["c1"], "model.safetensors": ["w1"], "tokenizer.json": ["t1"]},
)


def severities(found: BaseModel) -> dict[str, str]:
    return {d.field: d.severity for d in compare(KNOWN, found)}


@pytest.mark.parametrize(
    ("change", "field", "severity"),
    [
        ({"hidden_size": 128}, "residual width", "error"),
        ({"n_layers": 5}, "number of layers", "error"),
        ({"model_type": "qwen2"}, "architecture", "error"),
        ({"vocab_size": 101}, "vocabulary size", "error"),
        ({"quantization": {"bits": 4, "group_size": 64}}, "quantisation", "warning"),
        ({"repo_id": "fork/model"}, "repository", "warning"),
        ({"revision": "b" * 40}, "commit", "silent"),
        ({"files": {**KNOWN.files, "model.safetensors": ["w2"]}}, "weights, model.safetensors", "warning"),
        ({"files": {**KNOWN.files, "tokenizer.json": ["t2"]}}, "tokenizer, tokenizer.json", "warning"),
        ({"files": {**KNOWN.files, "config.json": ["c2"]}}, "config, config.json", "warning"),
        ({"files": {}, "repo_id": None, "revision": None}, "files", "silent"),
    ],
)
def test_each_difference_has_its_weight(change, field, severity):
    assert severities(replace(KNOWN, **change)) == {field: severity}


def test_the_same_model_has_no_difference_and_other_files_do_not_count():
    assert compare(KNOWN, KNOWN) == []
    assert compare(KNOWN, replace(KNOWN, files={**KNOWN.files, "README.md": ["r2"]})) == []


def test_judgement_raises_warns_or_is_silent():
    other_weights = compare(KNOWN, replace(KNOWN, files={**KNOWN.files, "model.safetensors": ["w2"]}))
    with pytest.warns(HubsaeWarning, match=r"model\.safetensors: recorded w1, found w2"):
        judge(other_weights, "warn", "sae")
    with pytest.raises(CompatibilityError, match="check='ignore'"):
        judge(other_weights, "strict", "sae")
    other_shape = compare(KNOWN, replace(KNOWN, hidden_size=1))
    with pytest.raises(CompatibilityError, match="residual width: recorded 64, found 1"):
        judge(other_shape, "warn", "sae")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert judge(other_shape, "ignore", "sae") == other_shape
        judge(compare(KNOWN, replace(KNOWN, revision="b" * 40)), "strict", "sae")
    with pytest.raises(ConfigError, match="'warn', 'strict' or 'ignore'"):
        judge([], "maybe", "sae")  # type: ignore[arg-type]


def test_a_warning_points_at_the_callers_line():
    with pytest.warns(HubsaeWarning) as caught:
        judge(compare(KNOWN, replace(KNOWN, repo_id="fork/model")), "warn", "sae")
    assert caught[0].filename == __file__


def test_a_record_survives_json():
    assert BaseModel.from_dict({**KNOWN.to_dict(), "later": 1}) == KNOWN


@pytest.mark.skipif(shutil.which("git") is None, reason="git computes the reference")
def test_blob_ids_are_gits(tmp_path):
    path = tmp_path / "config.json"
    path.write_bytes(b"hello\n" * 1000)
    git = subprocess.run(["git", "hash-object", str(path)], capture_output=True, text=True, check=True).stdout.strip()
    assert blob_ids(path)[0] == git
    sha = hashlib.sha256(path.read_bytes()).hexdigest()
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha}\nsize 6000\n"
    command = ["git", "hash-object", "--stdin"]
    git = subprocess.run(command, input=pointer, capture_output=True, text=True, check=True).stdout.strip()
    assert blob_ids(path)[1] == git


def test_links_of_the_hubs_cache_name_the_blob(tmp_path):
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    content = b"weights" * 100
    sha256 = hashlib.sha256(content).hexdigest()
    for name in ("a" * 40, sha256):
        (blobs / name).write_bytes(content)
    regular, large = tmp_path / "config.json", tmp_path / "model.safetensors"
    os.symlink(blobs / ("a" * 40), regular)
    os.symlink(blobs / sha256, large)
    plain = tmp_path / "plain.safetensors"
    plain.write_bytes(content)
    assert blob_ids(regular) == ["a" * 40]
    assert blob_ids(large) == blob_ids(plain)[1:]


def test_only_files_that_matter_are_recorded(tmp_path):
    for name in ("config.json", "README.md", "tokenizer.json", "model-00001.safetensors", "other.safetensors"):
        (tmp_path / name).write_text(name)
    assert set(identity.model_files(tmp_path)) == {"config.json", "tokenizer.json", "model-00001.safetensors"}


def test_every_field_has_a_verdict_and_differences_are_those_that_differ():
    full = BaseModel("a/b", "c" * 40, model_type="llama", hidden_size=8, n_layers=2, vocab_size=9, files={"x": ["1"]})
    fields = compared(full, full)
    assert {one.verdict for one in fields} == {"same"}
    assert not differences(fields)
    unknown = compared(full, BaseModel())
    assert {one.verdict for one in unknown} == {"unknown", "silent"}
    other = replace(full, hidden_size=16, repo_id="a/c")
    found = {one.field: one.verdict for one in compared(full, other)}
    assert found["residual width"] == "error"
    assert found["repository"] == "warning"
    assert found["architecture"] == "same"
    assert compare(full, other) == differences(compared(full, other))
