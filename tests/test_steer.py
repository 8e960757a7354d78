"""Interventions: x + decode(z') - decode(z) and nothing else, at every kind's sites, in trace and in generate."""

import mlx.core as mx
import numpy as np
import pytest
from conftest import random_sae

from hubsae import Crosscoder, InterpretableModel, Transcoder
from hubsae.dictionary import DictionaryConfig
from hubsae.errors import ConfigError, DataError, SiteError
from hubsae.features import Features
from hubsae.firing import Firing

PROMPT = "The capital of France is"
SITE = "layers.1.residual"


def made(kind, reads, writes, widths=(128, 128), n=64, models=1):
    rng = np.random.default_rng(3)
    config = DictionaryConfig(
        reads=reads,
        read_widths=(widths[0],) * len(reads),
        writes=writes,
        write_widths=(widths[1],) * len(writes),
        n_features=n,
        sparsity={"name": "topk", "k": 4},
        base_models=({},) * models,
    )
    shapes = kind.array_shapes(config)
    return kind(config, {k: mx.array(0.3 * rng.standard_normal(s).astype(np.float32)) for k, s in shapes.items()})


def with_typical(dictionary, mean=2.0):
    firing = Firing(dictionary.n_features)
    firing.n_tokens = 10
    firing.n_active[:], firing.total[:], firing.maximum[:] = 5, 5 * mean, 3 * mean
    firing.n_active[63], firing.total[63], firing.maximum[63] = 0, 0, 0
    dictionary.features = Features.of_firing(firing, n_documents=1, data="nothing real")
    return dictionary


@pytest.fixture(scope="module")
def sae():
    return with_typical(random_sae(128, 64))


def read(model, sites, interventions=None):
    with model.trace(PROMPT, interventions) as trace:
        return [np.array(trace.activations[site]) for site in ([sites] if isinstance(sites, str) else sites)]


def test_every_change_is_x_plus_decode_of_the_new_code_less_decode_of_the_old(sae, demo_model):
    (x,) = read(demo_model, SITE)
    z = np.array(sae.encode(mx.array(x)))
    on = np.flatnonzero(z[0, 1:].max(axis=0))
    a, b, c, d = (int(i) for i in on[:4])
    off = int(np.flatnonzero(z.max(axis=(0, 1)) == 0)[0])
    direction = np.zeros(64)
    direction[[a, off]] = 1.5, -0.5
    changed = z.copy()
    changed[..., a] *= 3
    changed[..., b] = 2.5 * 2.0
    changed[..., c] = 0
    changed[..., d] += -1 * 2.0
    changed += 2 * direction
    change = {"amplify": {a: 3}, "set": {b: 2.5}, "ablate": [c], "add": {d: -1}}
    (found,) = read(demo_model, SITE, sae.intervene(**change, direction=direction, strength=2))
    decode = [np.array(sae.decode(mx.array(code.astype(np.float32)))) for code in (changed, z)]
    expected = x + decode[0] - decode[1]
    np.testing.assert_allclose(found[:, 1:], expected[:, 1:], atol=1e-3)
    assert (found[:, 0] == x[:, 0]).all()  # the dictionary leaves the first position out
    raw = read(demo_model, SITE, sae.intervene(set={b: 5.0}, units="raw"))[0]
    np.testing.assert_array_equal(raw, read(demo_model, SITE, sae.intervene(set={b: 2.5}))[0])


def test_ablating_what_does_not_fire_changes_nothing_bit_for_bit(sae, demo_model):
    (x,) = read(demo_model, SITE)
    z = np.array(sae.encode(mx.array(x)))[0]
    off = np.flatnonzero(z[1:].max(axis=0) == 0)
    change = sae.intervene(ablate=off.tolist(), amplify={})
    with demo_model.trace(PROMPT) as a, demo_model.trace(PROMPT, change) as b:
        assert (np.array(a.logits) == np.array(b.logits)).all()
    on = int(z[2].argmax())
    (found,) = read(demo_model, SITE, sae.intervene(ablate=[on]))
    silent = z[:, on] == 0
    assert (found[0, silent] == x[0, silent]).all()
    assert (found[0, 2] != x[0, 2]).any()


def test_steering_an_activation_moves_it_along_the_decoder_row(sae):
    x = mx.array(np.random.default_rng(0).standard_normal((2, 3, 128)).astype(np.float32))
    expected = np.array(x) + 1.5 * 2.0 * np.array(sae.W_dec[7])
    np.testing.assert_allclose(np.array(sae.steer(x, 7, 1.5)), expected, atol=1e-5)
    np.testing.assert_allclose(np.array(sae.steer(x, 7, 3.0, units="raw")), expected, atol=1e-5)
    assert sae.steer(x.astype(mx.bfloat16), 7).dtype == mx.bfloat16


def test_generation_is_that_of_the_whole_steered_text_at_every_step(sae, demo_model):
    change = sae.intervene(add={7: 3.0}, ablate=[1, 2])
    ids = demo_model.encode(PROMPT)
    for _ in range(6):
        run = demo_model.run([ids], edit=change)
        assert run.logits is not None
        ids.append(int(np.array(run.logits[0, -1]).argmax()))
    expected = demo_model.tokenizer.decode(ids[len(demo_model.encode(PROMPT)) :])
    found = demo_model.generate(PROMPT, interventions=change, max_tokens=6)
    assert found.strip() == expected.strip()
    assert found != demo_model.generate(PROMPT, max_tokens=6)


def test_a_transcoder_reads_one_site_and_changes_another(demo_model):
    across = with_typical(made(Transcoder, ("layers.1.mlp_in",), ("layers.1.mlp",)))
    x, y = read(demo_model, ["layers.1.mlp_in", "layers.1.mlp"])
    z = np.array(across.encode(mx.array(x)))
    f = int(z[0, 2].argmax())
    expected = y - z[..., [f]] * np.array(across.W_dec[f])
    found_x, found = read(demo_model, ["layers.1.mlp_in", "layers.1.mlp"], across.intervene(ablate=[f]))
    assert (found_x == x).all()
    np.testing.assert_allclose(found[:, 1:], expected[:, 1:], atol=1e-4)
    again = read(demo_model, "layers.1.mlp", across.intervene(add={f: 1.0}))[0]
    np.testing.assert_allclose(again[:, 1:], (y + 2.0 * np.array(across.W_dec[f]))[:, 1:], atol=1e-4)
    for reads, writes in (
        (("layers.2.mlp",), ("layers.1.mlp",)),
        (("layers.1.residual",), ("layers.0.residual", "layers.1.residual")),
    ):
        backwards = made(Transcoder, reads, writes)
        with pytest.raises(SiteError, match="written before"):
            backwards.intervene(ablate=[f])
        backwards.intervene(add={f: 1.0}, units="raw")


def test_a_crosscoder_adds_each_layers_part_once_and_changes_the_rest_at_its_last_site(demo_model):
    sites = ("layers.1.residual", "layers.2.residual")
    cross = with_typical(made(Crosscoder, sites, sites))
    first, second = np.array(cross.W_dec[5, :128]), np.array(cross.W_dec[5, 128:])
    x1, x2 = read(demo_model, sites)
    y1, y2 = read(demo_model, sites, cross.intervene(add={5: 1.0}))
    np.testing.assert_allclose(y1[:, 1:], (x1 + 2.0 * first)[:, 1:], atol=1e-4)
    carried = read(
        demo_model, sites, {sites[0]: lambda x: mx.concatenate([x[:, :1], x[:, 1:] + 2.0 * mx.array(first)], 1)}
    )
    np.testing.assert_allclose(y2[:, 1:], (carried[1] + 2.0 * (second - first))[:, 1:], atol=1e-3)
    z = np.array(cross.encode(mx.concatenate([mx.array(x1), mx.array(x2)], axis=-1)))
    f = int(z[0, 2].argmax())
    y1, y2 = read(demo_model, sites, cross.intervene(ablate=[f]))
    assert (y1 == x1).all()
    np.testing.assert_allclose(y2[:, 1:], (x2 - z[..., [f]] * np.array(cross.W_dec[f, 128:]))[:, 1:], atol=1e-3)


def test_what_a_module_wrote_is_not_added_again_to_the_stream(demo_model):
    for module in ("mlp", "mlp.down_proj", "self_attn.o_proj"):
        sites = (f"layers.3.{module}", "layers.3.residual")
        cross = with_typical(made(Crosscoder, sites, sites))
        x = read(demo_model, sites)
        y = read(demo_model, sites, cross.intervene(add={5: 1.0}))
        expected = x[0] + 2.0 * np.array(cross.W_dec[5, :128])
        np.testing.assert_allclose(y[0][:, 1:], expected[:, 1:], atol=1e-4)
        if module.startswith("mlp"):  # what comes after attention changes with it
            expected = x[1] + 2.0 * np.array(cross.W_dec[5, 128:])
            np.testing.assert_allclose(y[1][:, 1:], expected[:, 1:], atol=1e-4)


def test_adding_is_the_same_beside_a_change_that_does_nothing(demo_model):
    sites = ("layers.1.residual", "layers.2.residual")
    across = with_typical(made(Transcoder, ("layers.0.residual",), sites))
    (x,) = read(demo_model, ["layers.0.residual"])
    z = np.array(across.encode(mx.array(x))).max(axis=(0, 1))
    silent = [int(i) for i in np.flatnonzero(z == 0) if i != 5][:1]
    alone = read(demo_model, sites, across.intervene(add={5: 1.0}))
    beside = read(demo_model, sites, across.intervene(add={5: 1.0}, ablate=silent))
    for one, other in zip(alone, beside, strict=True):
        np.testing.assert_array_equal(one, other)
    cross = with_typical(made(Crosscoder, sites, sites))
    with pytest.raises(ConfigError, match="in an intervention of their own"):
        cross.intervene(add={5: 1.0}, ablate=[6])
    assert len(cross.intervene(add={5: 1.0}) | cross.intervene(ablate=[6])) == 2


def test_joined_interventions_can_be_taken_apart_and_used_twice(demo_model):
    sites = ("layers.1.residual", "layers.2.residual")
    cross, sae = (
        with_typical(made(Crosscoder, sites, sites)),
        with_typical(random_sae(128, 64, reads=(sites[1],), writes=(sites[1],))),
    )
    xs = [mx.array(x) for x in read(demo_model, sites)]
    f = int(np.array(cross.encode(mx.concatenate(xs, axis=-1)))[0, 2].argmax())
    joined = cross.intervene(ablate=[f]) | sae.intervene(add={3: 0.5})
    expected = read(demo_model, sites, joined)[1]
    assert np.abs(expected - np.array(xs[1])).max() > 0.1
    for again in (joined, dict(joined), {**joined}):
        for _ in range(2):
            np.testing.assert_array_equal(read(demo_model, sites, again)[1], expected)
    other = read(demo_model, sites, {sites[0]: lambda x: x} | sae.intervene(add={3: 0.5}))[1]
    np.testing.assert_array_equal(other, read(demo_model, sites, sae.intervene(add={3: 0.5}))[1])


def test_a_change_of_the_code_is_carried_on_once_by_the_stream(demo_model):
    sites = ("layers.1.residual", "layers.2.residual")
    across = made(Transcoder, ("layers.0.residual",), sites)
    (x,) = read(demo_model, ["layers.0.residual"])
    z = np.array(across.encode(mx.array(x)))
    f = int(z[0, 2].argmax())
    first, second = (-z[..., [f]] * np.array(across.W_dec[f, part]) for part in (slice(0, 128), slice(128, 256)))
    first[:, 0] = second[:, 0] = 0
    y = read(demo_model, sites, across.intervene(ablate=[f]))
    by_hand = {sites[0]: lambda x: x + mx.array(first), sites[1]: lambda x: x + mx.array(second - first)}
    for found, expected in zip(y, read(demo_model, sites, by_hand), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-4)


def test_joined_interventions_act_one_after_the_other_where_they_meet(sae, demo_model):
    (x,) = read(demo_model, SITE)
    (y,) = read(demo_model, SITE, sae.intervene(add={1: 1.0}) | sae.intervene(add={2: 1.0}))
    both = 2.0 * np.array(sae.W_dec[1] + sae.W_dec[2])
    np.testing.assert_allclose(y[:, 1:], (x + both)[:, 1:], atol=1e-4)
    (z,) = read(demo_model, SITE, sae.intervene(add={1: 1.0}) | {SITE: lambda x: x + 1})
    np.testing.assert_allclose(z[:, 1:], (x + 2.0 * np.array(sae.W_dec[1]) + 1)[:, 1:], atol=1e-4)
    across = with_typical(made(Transcoder, (SITE,), ("layers.2.residual",)))
    read_site = sae.intervene(add={3: 5.0})
    (alone,) = read(demo_model, SITE, read_site)
    (joined,) = read(demo_model, SITE, read_site | across.intervene(ablate=[1]))
    np.testing.assert_array_equal(alone, joined)
    with pytest.raises(ConfigError, match=r"a \| b"):
        demo_model.trace(PROMPT, interventions=[read_site, read_site])


def test_positions_are_counted_from_the_start_of_the_text_with_a_cache_too(sae, demo_model):
    from mlx_lm.models.cache import make_prompt_cache

    ids, change = demo_model.encode(PROMPT), sae.intervene(add={7: 3.0})
    whole = demo_model.run([ids], read=SITE, edit=change).activations.popitem()[1]
    cache = make_prompt_cache(demo_model.model)
    parts = [demo_model.run([part], read=SITE, edit=change, cache=cache) for part in (ids[:2], ids[2:])]
    joined = np.concatenate([np.array(run.activations.popitem()[1]) for run in parts], axis=1)
    np.testing.assert_allclose(joined, np.array(whole), atol=1e-3)


def test_of_two_models_one_can_be_steered_but_not_read(demo_model, demo_folder):
    sites = ("layers.1.residual", "1:layers.1.residual")
    cross = with_typical(made(Crosscoder, sites, sites, models=2))
    with pytest.raises(ConfigError, match="only add= and direction="):
        cross.intervene(ablate=[3])
    neox = InterpretableModel(demo_folder.parent / "atlas-neox")
    if neox.hidden_size == 128:
        (x,) = read(neox, SITE)
        (y,) = read(neox, SITE, cross.intervene(add={3: 1.0}, of_model=1))
        np.testing.assert_allclose(y[:, 1:], (x + 2.0 * np.array(cross.W_dec[3, 128:]))[:, 1:], atol=1e-4)
    with pytest.raises(ConfigError, match="model=2"):
        cross.intervene(add={3: 1.0}, of_model=2)


def test_interventions_of_several_dictionaries_go_together(sae, demo_model):
    other = with_typical(made(type(sae), ("layers.2.residual",), ("layers.2.residual",)))
    change = sae.intervene(add={3: 1.0}) | other.intervene(add={4: 1.0})
    both = read(demo_model, "layers.3.residual", change)[0]
    one = read(demo_model, "layers.3.residual", sae.intervene(add={3: 1.0}))[0]
    assert np.abs(both - one).max() > 1e-3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, "nothing to change"),
        ({"ablate": [64]}, "features 0 to 63"),
        ({"ablate": [-1]}, "features 0 to 63"),
        ({"add": {True: 1.0}}, "features 0 to 63"),
        ({"add": {3: 1.0}, "ablate": [3]}, "changed twice"),
        ({"add": {3: float("nan")}}, "finite"),
        ({"add": {63: 1.0}}, "feature 63 is dead"),
        ({"add": {3: 1.0}, "units": "volts"}, "typical"),
        ({"direction": np.zeros(3)}, r"finite numbers \(64,\)"),
        ({"direction": "x"}, "expected numbers"),
        ({"direction": np.zeros(64), "strength": float("nan")}, "strength=nan"),
        ({"add": {3: 1e39}, "units": "raw"}, "too large|overflow"),
        ({"add": [3]}, "expected {feature: number}"),
        ({"ablate": 5}, "expected a list of features"),
        ({"ablate": "356"}, "expected a list of features"),
        ({"add": {3: 1.0}, "of_model": "a"}, "of_model"),
    ],
)
def test_changes_that_make_no_sense_are_refused(sae, change, message):
    with pytest.raises((ConfigError, DataError), match=message):
        sae.intervene(**change)


def test_without_typical_activations_strengths_have_no_unit():
    with pytest.raises(DataError, match=r"units='raw'|feature_statistics"):
        random_sae(128, 64).intervene(add={3: 1.0})
    with pytest.raises(DataError, match="writes 128 columns"):
        random_sae(128, 64).steer(mx.zeros((2, 5)), 3, units="raw")
