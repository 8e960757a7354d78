import math

import mlx.core as mx
import numpy as np
import pytest
from conftest import random_sae

from hubsae import tokens
from hubsae.api import SAE
from hubsae.dictionary import DictionaryConfig
from hubsae.errors import CompatibilityError, ConfigError, DataError
from hubsae.evaluate import density_histogram, evaluate, evaluate_chunks
from hubsae.sites import Site
from hubsae.tokens import TokenConfig


def linear_sae(d: int, W: np.ndarray, b_dec: np.ndarray, layer: int = 1) -> SAE:
    """A dictionary whose reconstruction is x W + b_dec for whatever x: features come in pairs of opposite sign."""
    config = DictionaryConfig(
        (f"layers.{layer}",), (d,), (f"layers.{layer}",), (d,), 2 * d, {"name": "relu"}, tokens={"context_size": 256}
    )
    arrays = {
        "W_enc": np.concatenate([np.eye(d), -np.eye(d)], axis=1),
        "b_enc": np.zeros(2 * d),
        "W_dec": np.concatenate([W, -W]),
        "b_dec": b_dec,
    }
    return SAE(config, {name: mx.array(array.astype(np.float32)) for name, array in arrays.items()})


def test_a_perfect_dictionary_costs_nothing(demo_model, demo_texts):
    d = demo_model.hidden_size
    result = evaluate(linear_sae(d, np.eye(d), np.zeros(d)), demo_model, demo_texts[:40])
    assert result.fvu < 1e-8
    assert result.ce_spliced == pytest.approx(result.ce_original, abs=1e-5)
    assert result.ce_recovered == pytest.approx(1, abs=1e-5)
    assert result.kl == pytest.approx(0, abs=1e-5)
    assert result.cosine == pytest.approx(1, abs=1e-5)


def test_a_dictionary_that_gives_zeros_equals_zero_ablation(demo_model, demo_texts):
    d = demo_model.hidden_size
    result = evaluate(linear_sae(d, np.zeros((d, d)), np.zeros(d)), demo_model, demo_texts[:40])
    assert result.ce_spliced == pytest.approx(result.ce_zero, rel=1e-5)
    assert result.ce_recovered == pytest.approx(0, abs=1e-5)
    assert result.fvu > 1


def test_losses_are_those_of_each_text_alone(demo_model, demo_texts):
    d, texts = demo_model.hidden_size, demo_texts[:6]
    result = evaluate(linear_sae(d, np.eye(d), np.zeros(d)), demo_model, texts)
    total, n = 0.0, 0
    for text in texts:
        ids = demo_model.encode(text)
        logits = np.array(demo_model.run([ids]).logits)[0, :-1].astype(np.float64)
        z = np.log(np.exp(logits - logits.max(1, keepdims=True)).sum(1)) + logits.max(1)
        total += (z - logits[np.arange(len(ids) - 1), ids[1:]]).sum()
        n += len(ids) - 1
    assert result.n_spliced_tokens == n
    assert result.ce_original == pytest.approx(total / n, rel=1e-5)


def test_positions_that_do_not_count_are_left_as_they_are(demo_model, demo_texts):
    d = demo_model.hidden_size
    zeros = linear_sae(d, np.zeros((d, d)), np.zeros(d))
    (chunk,) = tokens.chunks(demo_texts[:1], demo_model.tokenizer, TokenConfig(), 256)
    nothing = tokens.Chunk(chunk.ids, np.zeros(len(chunk.ids), bool), 0)
    nothing.keep[-1] = nothing.keep[-2] = True  # what the last position predicts is not scored
    result = evaluate_chunks(zeros, demo_model, [nothing])
    ids = chunk.ids[None]
    plain = demo_model.run(ids).logits
    edited = demo_model.run(
        ids, edit={Site(1): lambda x: mx.concatenate([x[:, :-2], mx.zeros_like(x[:, -2:])], axis=1)}
    ).logits
    scores = [
        -np.array(mx.take_along_axis(a - mx.logsumexp(a, -1, keepdims=True), mx.array(ids[:, 1:, None]), -1))
        for a in (plain[:, :-1], edited[:, :-1])
    ]
    assert result.ce_original == pytest.approx(float(scores[0].mean()), rel=1e-5)
    assert result.ce_spliced == pytest.approx(float(scores[1].mean()), rel=1e-5)


def test_numbers_fall_inside_their_intervals_and_survive_json(demo_model, demo_texts):
    import json

    rng, d = np.random.default_rng(0), demo_model.hidden_size
    noisy = linear_sae(d, np.eye(d) + 0.03 * rng.standard_normal((d, d)), np.zeros(d))
    result = evaluate(noisy, demo_model, demo_texts[:60])
    for name, (low, high) in result.intervals.items():
        assert low < getattr(result, name) < high
    assert {"fvu", "ce_recovered", "kl"} <= set(result.intervals)
    data = result.to_dict()
    assert json.loads(json.dumps(data, allow_nan=False))["fvu"] == result.fvu
    assert data["density_median"] == np.median([share for share in result.density if share])
    assert "fraction of variance unexplained" in str(result)


def test_the_histogram_counts_every_feature():
    density = np.array([0, 0, 1e-9, 1e-4, 0.01, 0.5, 1.0])
    found = density_histogram(density)
    assert found["never"] == 2
    assert sum(found["counts"]) == 5
    assert density_histogram(np.zeros(3))["never"] == 3


def test_texts_without_tokens_are_refused(demo_model):
    d = demo_model.hidden_size
    with pytest.raises(DataError, match="fewer than 2 tokens"):
        evaluate(linear_sae(d, np.eye(d), np.zeros(d)), demo_model, [""])


def test_a_dictionary_asks_for_what_it_needs(demo_model, demo_texts):
    sae = random_sae(demo_model.hidden_size)
    with pytest.raises(ConfigError, match="needs texts"):
        sae.evaluate(demo_model)
    with pytest.raises(ConfigError, match="bound to no model"):
        sae.evaluate(texts=demo_texts)
    assert sae.bind(demo_model)
    assert math.isfinite(sae.evaluate(texts=demo_texts[:5]).fvu)


def test_compatibility_is_a_question_of_structure_and_site(demo_model):
    sae = random_sae(demo_model.hidden_size)
    assert sae.is_compatible(demo_model)
    assert sae.is_compatible(demo_model, layer=1, component="residual")
    assert not sae.is_compatible(demo_model, layer=2)
    assert not sae.is_compatible(demo_model, component="mlp")
    narrow = random_sae(64)
    assert not narrow.is_compatible(demo_model)
    with pytest.raises(CompatibilityError, match="64 columns, found 128 columns"):
        narrow.bind(demo_model)
    assert narrow.model is None
    deep = random_sae(128, reads=("layers.40.mlp",), writes=("layers.40.mlp",))
    with pytest.raises(CompatibilityError, match="found no such site"):
        deep.bind(demo_model)
