"""Dictionaries of normalised activations read what goes into the module, with the norm's gain folded in."""

import architectures
import mlx.core as mx
import numpy as np
import pytest
from foreign import Case

from hubsae import load_sae
from hubsae.errors import ArtifactError, ModelError, SiteError
from hubsae.lm import LanguageModel
from hubsae.norms import norm_before
from hubsae.sites import Site

TOKENS = [[3, 7, 1, 9, 4, 4, 2]]
MODELS = ("llama", "gemma2", "gpt2", "gpt_neox")


def window(name: str) -> LanguageModel:
    return LanguageModel((architectures.build(name), object()))


def normalised(x: np.ndarray, centred: bool, epsilon: float = 1e-5) -> np.ndarray:
    """What a norm computes before its gain and bias, by its definition."""
    x = x.astype(np.float64)
    x = x - x.mean(axis=-1, keepdims=True) if centred else x
    return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + epsilon)


BEFORE = {  # what the norm before the MLP reads, and whether it takes the mean out
    "llama": ("post_attention_layernorm.in", False),
    "gemma2": ("pre_feedforward_layernorm.in", False),
    "gpt2": ("ln_2.in", True),
    "gpt_neox": ("residual_in", True),  # attention and MLP stand side by side
}


@pytest.mark.parametrize("name", MODELS)
def test_gain_and_bias_are_those_of_the_norm_before_the_module(name):
    model, site = window(name), Site(1, "mlp_in")
    gain, bias = norm_before(model, site)
    before, centred = BEFORE[name]
    found = model.run(TOKENS, read=[site, Site(1, before)]).activations
    expected = normalised(np.array(found[Site(1, before)]), centred) * gain + bias
    assert np.allclose(np.array(found[site]), expected, atol=2e-4)


def test_there_may_be_no_such_norm():
    with pytest.raises(ModelError, match="none of the norms"):
        norm_before(window("llama"), Site(1, "residual"))
    with pytest.raises(SiteError):
        norm_before(window("llama"), Site(9, "mlp_in"))


@pytest.mark.parametrize("name", ["saelens_jumprelu_skip_transcoder", "circuit_tracer_jumprelu_skip"])
def test_a_transcoder_of_normalised_activations_needs_the_model_and_folds_its_gain(name, tmp_path, monkeypatch):
    case = Case(name)
    folder, subfolder = case.copied(tmp_path), case.info["subfolder"]
    with pytest.raises(ArtifactError, match="give model= too"):
        load_sae(folder, subfolder=subfolder)
    d, rng = case.info["d_in"], np.random.default_rng(0)
    gain, bias = rng.uniform(0.5, 2, d).astype(np.float32), rng.standard_normal(d).astype(np.float32)
    monkeypatch.setattr("hubsae.loading.norm_before", lambda model, site: (gain, bias))
    monkeypatch.setattr("hubsae.api.BoundDictionary.bind", lambda *_: [])
    found = load_sae(folder, (architectures.build("llama"), object()), subfolder=subfolder)
    expected = case.expected
    read = mx.array(expected["x"] * gain + bias)
    assert found.config.reads[0].endswith("mlp_in")
    assert np.allclose(np.array(found.encode(read)), expected["code"], atol=1e-4)
    assert np.allclose(np.array(found(read)), expected["y"], atol=1e-4)
    assert "the norm's gain and bias" in found.statistics["imported"]["folded"]


def test_a_norm_of_another_width_or_without_gain_is_refused(tmp_path, monkeypatch):
    case = Case("saelens_transcoder")
    folder, model = case.copied(tmp_path), (architectures.build("llama"), object())
    wide = np.ones(32, np.float32)
    monkeypatch.setattr("hubsae.loading.norm_before", lambda model, site: (wide, wide))
    with pytest.raises(ArtifactError, match="has 32 columns"):
        load_sae(folder, model)
    flat = np.ones(12, np.float32)
    flat[3] = 0
    monkeypatch.setattr("hubsae.loading.norm_before", lambda model, site: (flat, flat))
    with pytest.raises(ArtifactError, match="1 of them with gain 0"):
        load_sae(folder, model)
