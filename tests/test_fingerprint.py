"""What a model does on a fixed text tells whether files that differ hold the same model."""

import json
import shutil
import warnings
from dataclasses import replace
from typing import cast

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from conftest import random_sae

from hubsae import InterpretableModel
from hubsae.errors import CompatibilityError, ConfigError, HubsaeWarning
from hubsae.fingerprint import _signs, fingerprint, of_sites, recorded
from hubsae.identity import SIGNS, BaseModel, Fingerprint, compared
from hubsae.sites import Site

SITES = (Site(1), Site(2, "mlp"))


@pytest.fixture(scope="module")
def known(demo_model) -> BaseModel:
    (base,) = recorded([demo_model], SITES)
    assert base.fingerprint is not None
    assert set(base.fingerprint.sites) == {"layers.1.residual", "layers.2.mlp", "layers.3.residual"}
    assert set(of_sites(base, SITES[:1]).to_dict()["fingerprint"]["sites"]) == {
        "layers.1.residual",
        "layers.3.residual",
    }
    return base


def measure(model, sites, tokens=None) -> Fingerprint:
    found = fingerprint(model, sites, tokens)
    assert found is not None
    return found


@pytest.fixture(scope="module")
def sae(known):
    made_for = replace(known, repo_id="org/atlas", revision="a" * 40).to_dict()
    return random_sae(d=128, base_models=(made_for,))


def verdicts(sae, model) -> dict[str, str]:
    return {one.field.split(",")[0]: one.verdict for one in sae.compared_with(model) if one.verdict != "same"}


def changed(demo_folder, tmp_path, name, change) -> InterpretableModel:
    """A model whose weight file went through `change`."""
    folder = tmp_path / name
    shutil.copytree(demo_folder, folder)
    for path in folder.glob("*.safetensors"):
        arrays = {key: change(array) for key, array in cast(dict, mx.load(str(path))).items()}
        mx.save_safetensors(str(path), arrays, {"format": "mlx"})
    return InterpretableModel(folder)


def test_the_same_model_is_no_distance_away_and_survives_a_config(known, demo_model):
    again = BaseModel.from_dict(json.loads(json.dumps(known.to_dict())))
    assert again.fingerprint == known.fingerprint
    assert measure(demo_model, SITES).difference(known.fingerprint) == 0


@pytest.mark.parametrize("change", [lambda n: n.set_dtype(mx.bfloat16), lambda n: nn.quantize(n, 32, 4)])
def test_the_difference_is_that_of_the_activations(known, demo_folder, demo_model, change):
    other = InterpretableModel(demo_folder)
    change(other.model)
    tokens = known.fingerprint.tokens
    estimate = measure(other, SITES[:1], tokens).difference(known.fingerprint)
    a, b = (
        np.array(m.run([tokens], read=SITES[:1], logits=False).activations[SITES[0]].astype(mx.float32))[0, 1:]
        for m in (demo_model, other)
    )
    a, b = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (a, b))
    true = np.sqrt(np.mean(np.sum((a - b) ** 2, axis=1)))
    assert estimate == pytest.approx(true, rel=0.6)  # 16 signs: a standard error of 18 %


def test_converted_weights_are_equivalent_silent_by_default_and_refused_when_strict(sae, demo_folder, tmp_path):
    model = changed(demo_folder, tmp_path, "bf16", lambda array: array.astype(mx.bfloat16))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sae.bind(model)
    assert verdicts(sae, model)["weights"] == "equivalent"
    with pytest.raises(CompatibilityError, match="weights"):
        sae.bind(model, check="strict")


def test_other_weights_of_the_same_shape_warn_with_how_far_they_are(sae, demo_folder, tmp_path):
    model = changed(demo_folder, tmp_path, "other", lambda array: array * 0.5)
    with pytest.warns(HubsaeWarning, match=r"activations of a fixed text: .* % away"):
        sae.bind(model)


def test_a_change_behind_the_dictionary_is_seen_at_the_last_layer(sae, demo_folder, demo_model):
    other = InterpretableModel(demo_folder)
    block = other.model.layers[2].mlp.down_proj
    block.weight = block.weight * 2
    found = {one.field: one for one in sae.compared_with(other)}
    assert found["activations of a fixed text"].verdict == "warning"


def test_a_head_that_predicts_something_else_is_seen(sae, demo_folder):
    other = InterpretableModel(demo_folder)
    norm = other.model.model.norm
    norm.weight = norm.weight * 0
    found = {one.field: one.verdict for one in sae.compared_with(other)}
    assert found["activations of a fixed text"] == "same"
    assert found["losses of a fixed text"] == "warning"


def test_what_is_not_finite_is_no_measurement_and_stops_no_training(known, demo_folder, demo_texts):
    other = InterpretableModel(demo_folder)
    norm = other.model.layers[3].input_layernorm
    norm.weight = norm.weight * mx.nan
    assert fingerprint(other, SITES) is None
    lost = replace(known.fingerprint, sites={"layers.1.residual": known.fingerprint.sites["layers.1.residual"]})
    assert known.fingerprint.difference(lost) == float("inf")
    trained = other.train_sae(0, demo_texts[:700], "residual", expansion_factor=1, progress=False, validation_split=0)
    assert trained.base_model.fingerprint is None


def test_a_tokenizer_file_that_changes_no_token_is_equivalent(sae, demo_folder, tmp_path):
    shutil.copytree(demo_folder, tmp_path / "m")
    path = tmp_path / "m" / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": "x"}))
    assert verdicts(sae, InterpretableModel(tmp_path / "m"))["tokenizer"] == "equivalent"


def test_tokens_that_differ_keep_the_doubt_about_the_tokenizer(known):
    files = {"tokenizer.json": ["b" * 40]}
    other = replace(known.fingerprint, own_tokens=[1, 2, 3])
    found = compared(
        replace(known, files={"tokenizer.json": ["a" * 40]}), replace(known, files=files, fingerprint=other)
    )
    assert [one.verdict for one in found if "token" in one.field] == ["warning", "warning"]


def test_signs_are_the_same_for_ever():
    signs = _signs(3, 8)
    assert signs.shape == (SIGNS, 24)
    assert set(np.unique(signs)) == {-1, 1}
    assert "".join("+-"[int(s < 0)] for s in signs[0]) == "++--+++++-+-++-++-+---++"


@pytest.mark.parametrize(
    "damage",
    [
        {"tokens": []},
        {"tokens": [1, -2]},
        {"tokens": [1, True]},
        {"tokens": list(range(300))},
        {"sites": {}},
        {"sites": {"layers.1.residual": {"norm": 1.0, "projected": [0.0]}}},
        {"sites": {"layers.1.residual": {"norm": float("nan"), "projected": [0.0] * SIGNS}}},
        {"sites": {"layers.1.residual": 3}},
        {"sites": {"layers.1.residual": {"norm": 10**400, "projected": [0.0] * SIGNS}}},
        {"sites": {"layers.1.residual": {"norm": 1.0, "projected": [1e200] * SIGNS}}},
        {"sites": {"layers.1.residual": {"norm": True, "projected": [0.0] * SIGNS}}},
        {"sites": {"foo": {"norm": 1.0, "projected": [0.0] * SIGNS}}},
        {"losses": [0.0]},
        {"losses": None},
    ],
)
def test_what_is_no_fingerprint_is_refused(known, damage):
    data = known.to_dict()
    data["fingerprint"] = {**data["fingerprint"], **damage}
    with pytest.raises(ConfigError, match="fingerprint"):
        BaseModel.from_dict(data)


def test_sites_or_tokens_that_the_model_has_not_are_no_measurement(demo_model):
    assert fingerprint(demo_model, [Site(99)]) is None
    assert fingerprint(demo_model, SITES, [10**6, 1]) is None
