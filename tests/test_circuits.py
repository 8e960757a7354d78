"""Circuits: gradients against finite differences and ablations, and a graph that shows what was found."""

import json
from xml.dom import minidom

import mlx.core as mx
import numpy as np
import pytest
from conftest import random_sae

from hubsae import Transcoder, find_feature_circuits
from hubsae.attribution import Passes, ablated, edge_attributions, node_effects
from hubsae.dictionary import DictionaryConfig
from hubsae.errors import ConfigError, DataError
from hubsae.graph_drawing import draw

PROMPTS = ["The capital of France is", "The capital of Japan is", "People in Egypt speak"]


def sae_at(layer: int, sparsity: dict | None = None):
    site = (f"layers.{layer}.residual",)
    found = random_sae(128, 96, sparsity or {"name": "topk", "k": 8}, reads=site, writes=site)
    found.W_dec = 0.05 * found.W_dec
    return found


@pytest.fixture(scope="module")
def saes():
    return {0: sae_at(0), 2: sae_at(2)}


@pytest.fixture(scope="module")
def passes(demo_model, saes):
    return Passes.of(demo_model, saes, PROMPTS)


@pytest.fixture(scope="module")
def circuit(demo_model, saes):
    return find_feature_circuits(demo_model, saes, 0, 2, PROMPTS, top_k=10, n_targets=4, n_random=5)


def active(passes, layer, n):
    return [int(i) for i in np.argsort(-passes.activation[layer])[:n]]


def scaled(demo_model, saes, layer, feature, factor):
    """The target codes and answers' logits with one feature of a layer scaled by hand."""
    codes, logits = [], []
    for text in PROMPTS:
        ids = [demo_model.encode(text)]
        x = demo_model.run(ids, read=["layers.0.residual"]).activations.popitem()[1]
        z = np.array(saes[layer].encode(x))
        z[:, 0] = 0
        delta = mx.array((factor - 1) * z[..., [feature]] * np.array(saes[layer].W_dec[feature]))
        run = demo_model.run(
            ids, read=["layers.2.residual"], edit={f"layers.{layer}.residual": lambda x, d=delta: x + d}
        )
        code = np.array(saes[2].encode(run.activations.popitem()[1]))[0]
        codes.append(code[1:].sum(axis=0))
        logits.append(np.array(run.logits[0, -1]))
    return np.mean(codes, axis=0), np.array(logits)


def test_gradients_are_those_of_finite_differences(demo_model):
    saes = {layer: sae_at(layer, {"name": "relu"}) for layer in (0, 2)}  # which has no jumps
    passes = Passes.of(demo_model, saes, PROMPTS)
    targets = active(passes, 2, 5)
    matrix = edge_attributions(passes, 0, 2, targets)
    effects = node_effects(passes, 0)
    answers, foils = passes.answer_ids, np.array(passes.foils)
    for feature in active(passes, 0, 4):
        step = 0.005
        (up, high), (down, low) = (scaled(demo_model, saes, 0, feature, 1 + s) for s in (step, -step))
        np.testing.assert_allclose(matrix[feature], (up - down)[targets] / (2 * step), rtol=0.05, atol=0.02)
        contrast = [
            np.mean(
                [row[a] - np.mean([row[f] for f in foils if f != a]) for row, a in zip(logits, answers, strict=True)]
            )
            for logits in (high, low)
        ]
        assert effects[feature] == pytest.approx((contrast[0] - contrast[1]) / (2 * step), rel=0.05, abs=0.01)


def test_ablation_is_what_taking_the_feature_away_by_hand_costs(demo_model, saes, passes):
    targets = active(passes, 2, 5)
    for feature in active(passes, 0, 3):
        found = ablated(passes, 0, [feature], 2, targets)
        code, logits = scaled(demo_model, saes, 0, feature, 0.0)
        np.testing.assert_allclose(found.lost, (passes.activation[2] - code)[targets], rtol=1e-3, atol=1e-3)
        log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        expected = [row[a] for row, a in zip(log_p, passes.answer_ids, strict=True)]
        np.testing.assert_allclose(found.log_probabilities, expected, rtol=1e-3, atol=1e-4)


def test_features_that_do_not_fire_have_edges_of_exactly_zero(passes, circuit):
    silent = passes.activation[0] == 0
    assert silent.sum() > 10
    assert (circuit.attributions[0, 2][silent] == 0).all()
    assert not {e.source for e in circuit.edges} & set(np.flatnonzero(silent))
    some = int(np.flatnonzero(silent)[0])
    assert (ablated(passes, 0, [some], 2, [1]).lost == 0).all()


def test_the_circuit_holds_the_strongest_edges_checked_by_ablation(circuit, passes):
    assert len(circuit.edges) == 10
    effects = {n.feature: n.effect for n in circuit.nodes if n.layer == 2}
    weights = [abs(e.share * effects[e.target]) for e in circuit.edges]
    assert weights == sorted(weights, reverse=True)
    for e in circuit.edges:
        assert e.gradient == pytest.approx(circuit.attributions[0, 2][e.source, circuit.targets[2].index(e.target)])
        assert e.ablation == pytest.approx(
            float(ablated(passes, 0, [e.source], 2, [e.target]).lost[0]), rel=1e-3, abs=1e-4
        )
    assert circuit.agreement.n_all > circuit.agreement.n_kept == 10
    assert -1 <= circuit.agreement.all <= 1
    assert len(circuit.effect.random_drops) == 5
    assert 0 <= circuit.effect.rank <= 1
    again = circuit.check(PROMPTS, n_random=5)
    assert again.drop == pytest.approx(circuit.effect.drop, rel=1e-4)


def test_a_dictionary_between_two_layers_is_a_step_on_the_way(demo_model, saes):
    found = find_feature_circuits(demo_model, {**saes, 1: sae_at(1)}, 0, 2, PROMPTS, top_k=6, n_targets=3, n_random=2)
    assert {(e.source_layer, e.target_layer) for e in found.edges} == {(0, 1), (1, 2)}
    assert {e.target for e in found.edges if e.target_layer == 1} <= {
        e.source for e in found.edges if e.source_layer == 1
    }


def test_other_kinds_and_sparsities_can_be_sources_and_targets(demo_model, saes):
    config = DictionaryConfig(
        reads=("layers.1.mlp_in",),
        read_widths=(128,),
        writes=("layers.1.mlp",),
        write_widths=(128,),
        n_features=64,
        sparsity={"name": "relu"},
    )
    rng = np.random.default_rng(0)
    arrays = {
        k: mx.array(0.1 * rng.standard_normal(s).astype(np.float32)) for k, s in Transcoder.array_shapes(config).items()
    }
    found = find_feature_circuits(demo_model, {1: Transcoder(config, arrays), 2: saes[2]}, 1, 2, PROMPTS, n_random=2)
    assert found.agreement.kept > 0.5
    found = find_feature_circuits(demo_model, {0: saes[0], 1: Transcoder(config, arrays)}, 0, 1, PROMPTS, n_random=2)
    assert found.edges


def test_answers_foils_and_targets_can_be_given(demo_model, saes, passes):
    target = active(passes, 2, 1)
    found = find_feature_circuits(
        demo_model, saes, 0, 2, PROMPTS[:1], target_features=target, answers=[" Paris"], foils=[" Berlin"], n_random=2
    )
    assert found.answers == (" P",)
    assert {e.target for e in found.edges} == set(target)


def test_a_circuit_as_json_as_table_and_as_picture(circuit, tmp_path):
    data = json.loads(circuit.to_json())
    assert len(data["edges"]) == 10
    assert data["texts"] == PROMPTS
    assert "rank correlation" in str(circuit.table())
    drawing = circuit.visualize({(2, circuit.edges[0].target): "<script>&", circuit.edges[0].source: "source of all"})
    for name in ("circuit.svg", "circuit.png"):
        drawing.save(tmp_path / name)
    text = (tmp_path / "circuit.svg").read_text()
    minidom.parseString(text)
    assert "<script" not in text
    assert "source of all" in text
    assert (tmp_path / "circuit.png").read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(ConfigError, match=r"\.svg or \.png"):
        drawing.save(tmp_path / "circuit.bmp")


def test_dictionaries_under_the_number_of_another_layer_are_refused(demo_model, saes):
    with pytest.raises(ConfigError, match="which is another layer"):
        find_feature_circuits(demo_model, {0: saes[0], 1: saes[2]}, 0, 1, PROMPTS)


def test_a_picture_of_a_single_edge_stands_on_its_page():
    drawing = draw([("a", [1]), ("b", [2, 3])], {1: ("$x$", ""), 2: ("y", ""), 3: ("z", "")}, [(1, 2, -0.5, "half")])
    assert not drawing.curves[0].positive
    assert all(0 <= box.x <= drawing.width and 0 <= box.y <= drawing.height for box in drawing.boxes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"source_layer": 1}, "no dictionary of layer 1"),
        ({"source_layer": 2, "target_layer": 0}, "earlier layers to later"),
        ({"dataset": []}, "needs texts"),
        ({"dataset": ["", "x"]}, "none of them empty"),
        ({"top_k": 0}, "top_k"),
        ({"target_features": [96]}, "features 0 to 95"),
        ({"answers": ["a"]}, "one for each of the 3"),
        ({"foils": " Berlin"}, "expected a list of texts"),
        ({"foils": []}, "expected a list of texts"),
        ({"target_features": []}, "at least one"),
        ({"saes": [1, 2]}, "expected {layer: dictionary}"),
        ({"dataset": ["<s>"]}, "no tokens that the dictionaries read"),
        ({"model": "somewhere"}, "expected an InterpretableModel"),
    ],
)
def test_what_cannot_work_is_refused(demo_model, saes, change, message):
    given = {"model": demo_model, "saes": saes, "source_layer": 0, "target_layer": 2, "dataset": PROMPTS}
    with pytest.raises((ConfigError, DataError), match=message):
        find_feature_circuits(**{**given, **change})


def test_silent_targets_and_dictionaries_of_another_width_are_refused(demo_model, saes, passes):
    silent = int(np.flatnonzero(passes.activation[2] == 0)[0])
    with pytest.raises(DataError, match="fire on none of these texts"):
        find_feature_circuits(demo_model, saes, 0, 2, PROMPTS, target_features=[silent])
    with pytest.raises(ConfigError, match="16 columns"):
        find_feature_circuits(demo_model, {1: random_sae(16, 8), 2: saes[2]}, 1, 2, PROMPTS)


def test_a_crosscoder_is_ablated_in_circuits_as_by_an_intervention(demo_model):
    sites = ("layers.0.mlp", "layers.0.residual")
    cross = crosscoder(sites)
    passes = Passes.of(demo_model, {0: cross}, PROMPTS[:1])
    for feature in active(passes, 0, 3):
        own = ablated(passes, 0, [feature]).log_probabilities
        code = np.array(
            cross.encode(mx.concatenate([demo_model.trace(PROMPTS[0]).activations[s] for s in sites], axis=-1))
        )
        by_hand = {}
        rows = {
            site: np.array(cross.W_dec[feature, part])
            for site, part in zip(sites, (slice(0, 128), slice(128, 256)), strict=True)
        }
        code[:, 0] = 0
        for site, row in ((sites[0], rows[sites[0]]), (sites[1], rows[sites[1]] - rows[sites[0]])):
            delta = mx.array(-code[..., [feature]] * row)
            by_hand[site] = lambda x, delta=delta: x + delta
        run = demo_model.run([demo_model.encode(PROMPTS[0])], edit=by_hand)
        logits = np.array(run.logits[0, -1]).astype(np.float64)
        expected = logits[passes.answer_ids[0]] - np.log(np.exp(logits).sum())
        assert own[0] == pytest.approx(expected, abs=1e-4)


def crosscoder(sites):
    from hubsae import Crosscoder

    config = DictionaryConfig(
        reads=sites,
        read_widths=(128, 128),
        writes=sites,
        write_widths=(128, 128),
        n_features=64,
        sparsity={"name": "topk", "k": 6},
    )
    rng = np.random.default_rng(1)
    shapes = Crosscoder.array_shapes(config)
    return Crosscoder(config, {k: mx.array(0.1 * rng.standard_normal(s).astype(np.float32)) for k, s in shapes.items()})


def test_with_too_few_other_features_nothing_is_said_about_chance(demo_model):
    small = {0: sae_at(0, {"name": "topk", "k": 2}), 2: sae_at(2)}
    found = find_feature_circuits(demo_model, small, 0, 2, PROMPTS[:1], top_k=60, n_random=3)
    assert found.effect.n_ablated == len(found.sources)
    assert found.effect.random_drops == ()
    assert np.isnan(found.effect.rank)
    assert "nothing to compare with" in str(found)
    assert json.loads(found.to_json())["effect"]["rank"] is None


def test_a_check_on_other_prompts_can_be_told_the_answers(circuit, demo_model):
    told = circuit.check(PROMPTS[:1], answers=[" Berlin"], n_random=2)
    assert told.before < 0.01
    assert circuit.check(PROMPTS[:1], n_random=2).before > 0.9
