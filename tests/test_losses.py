"""The loss: every term's gradient by finite differences, against definitions, and what must not get any."""

import mlx.core as mx
import numpy as np
import pytest

from hubsae import entries
from hubsae.losses import Moment, aux_code, chosen, encoder, initial, losses, normalised, site_norms, tangent
from hubsae.recipe import SAEConfig
from hubsae.surrogates import running_mean, surrogate

D, F, N = 6, 12, 40
ALL = (F,)


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).standard_normal(shape)


def parameters(config: SAEConfig, skip: bool = False) -> dict[str, np.ndarray]:
    params = {"W_in": draw(F, D), "b_enc": draw(F) * 0.1, "W_dec": draw(F, D), "b_dec": draw(D)}
    if config.tied_weights:
        del params["W_in"]
    if skip:
        params["W_skip"] = draw(D, D, seed=3)
    extra = {name: value.astype(np.float64) for name, value in surrogate(config, D).initial(F).items()}
    return params | {name: value + 0.1 * draw(F, seed=5) for name, value in extra.items()}


def gradients(params, x, y, config, moment, widths=(D,)) -> dict[str, np.ndarray]:
    return losses(params, x, y, config, widths, moment)[1]


def total(params, x, y, config, moment, widths=(D,)) -> float:
    return float(losses(params, x, y, config, widths, moment)[0].total)


def check(found, params, value, names=None) -> None:
    """Gradients against differences of `value`, in a random direction for each parameter."""
    assert set(found) == set(params)
    for name in names or params:
        direction, step = draw(*params[name].shape, seed=9), 1e-6
        up, down = ({**params, name: params[name] + s * direction} for s in (step, -step))
        numeric = (value(up) - value(down)) / (2 * step)
        assert np.sum(found[name] * direction) == pytest.approx(numeric, rel=1e-5, abs=1e-7), name


SETTINGS = [
    {"sparsity": "topk", "k": 3},
    {"sparsity": "batchtopk", "k": 3},
    {"sparsity": "relu", "l1_coefficient": 0.3},
    {"sparsity": "relu", "l1_coefficient": 0.3, "unit_norm": False},
    {"sparsity": "jumprelu", "l0_penalty": "tanh"},
    {"sparsity": "topk", "k": 3, "tied_weights": True},
]


@pytest.fixture(params=["few", "all"])
def share(request, monkeypatch):
    """Entries kept apart, and all of them in one matrix."""
    monkeypatch.setattr("hubsae.surrogates._SPARSE_ENOUGH", 1.0 if request.param == "few" else 0.0)


@pytest.mark.usefixtures("share")
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("prefixes", [ALL, (3, 7, 12)])
@pytest.mark.parametrize("skip", [False, True])
def test_gradients_agree_with_finite_differences(settings, prefixes, skip):
    config = SAEConfig(**settings)
    params, x, y = parameters(config, skip), draw(N, D, seed=1), draw(N, D, seed=2)
    smooth = [name for name in params if name != "log_threshold"]  # its gradient is a surrogate, see below
    moment = Moment(3, 0.7, prefixes)
    check(gradients(params, x, y, config, moment), params, lambda p: total(p, x, y, config, moment), smooth)


@pytest.mark.parametrize("widths", [(D,), (2, 4)])
@pytest.mark.parametrize("aux_k", [2, 9])
def test_aux_k_rebuilds_the_residual_that_is_held_constant(widths, aux_k, monkeypatch):
    monkeypatch.setattr("hubsae.losses._AUX_SHARE", 1.0)
    config = SAEConfig(k=3, aux_coefficient=0.5, aux_k=aux_k)
    params, x = parameters(config), draw(N, D, seed=1)
    dead, weight = np.array([1, 4, 7, 9]), 0.5 * min(1, 4 / aux_k)

    def y_hat(p):
        pre = x @ p["W_in"].T + p["b_enc"]
        code = np.maximum(pre, 0) * (pre >= np.sort(pre, axis=1)[:, [-3]])
        return code @ p["W_dec"] + p["b_dec"]

    held = x - y_hat(params)

    def expected(p):
        rebuilt = aux_code(p, x, dead, aux_k) @ p["W_dec"][dead]
        return np.sum(np.square(x - y_hat(p))) / N + weight * np.sum(np.square(held - rebuilt)) / N

    moment = Moment(3, 1.0, ALL, dead)
    assert total(params, x, x, config, moment, widths) == pytest.approx(expected(params))
    check(gradients(params, x, x, config, moment, widths), params, expected)


def test_aux_k_takes_fewer_rows_where_many_features_are_dead(monkeypatch):
    config = SAEConfig(k=3, aux_coefficient=0.5)
    params, x = parameters(config), draw(N, D, seed=1)
    dead = np.arange(6)
    monkeypatch.setattr("hubsae.losses._AUX_SHARE", 1 / 8)  # 6 of 12 features: every fourth row
    with_aux, without = (total(params, x, x, config, Moment(3, 1.0, ALL, d)) for d in (dead, None))
    entry = chosen(params, x, surrogate(config, D), 3, N)
    held = x - entry.times(params["W_dec"], np.tile(params["b_dec"], (N, 1)))
    some = slice(0, N, 4)
    rebuilt = aux_code(params, x[some], dead, 3) @ params["W_dec"][dead]
    assert with_aux - without == pytest.approx(0.5 * np.sum(np.square(held[some] - rebuilt)) / 10)


@pytest.mark.parametrize("sparsity_name", ["topk", "batchtopk", "relu", "jumprelu", "gated"])
def test_aux_k_reaches_the_encoder_of_dead_features_even_where_their_pre_codes_are_negative(sparsity_name):
    x = draw(N, D, seed=1).astype(np.float32)
    config = SAEConfig(sparsity=sparsity_name)
    params = initial(D, (D,), F, True, config)
    params["b_enc"][4] = -100.0
    with_aux, without = (gradients(params, x, x, config, Moment(2, 1.0, ALL, dead)) for dead in (np.array([4]), None))
    assert np.abs(with_aux["W_in"][4]).max() > 0
    assert np.abs(with_aux["W_dec"][4]).max() > 0
    assert np.abs(without["W_in"][4]).max() == 0
    alive = np.arange(F) != 4
    assert np.allclose(with_aux["W_in"][alive], without["W_in"][alive], atol=1e-7)


@pytest.mark.usefixtures("share")
def test_the_gate_is_trained_through_a_decoder_that_is_held_constant():
    config = SAEConfig(sparsity="gated", l1_coefficient=0.3)
    params, x, y = parameters(config), draw(N, D, seed=1), draw(N, D, seed=2)
    held = {name: params[name] for name in ("W_dec", "b_dec")}

    def expected(p):
        pre = x @ p["W_in"].T + p["b_enc"]
        magnitude = np.maximum((pre - p["b_enc"]) * np.exp(p["r_mag"]) + p["b_mag"], 0)
        code, gate = np.where(pre > 0, magnitude, 0), np.maximum(pre, 0)
        decoders = ((code, p["W_dec"], p["b_dec"]), (gate, held["W_dec"], held["b_dec"]))
        errors = [y - z @ W_dec - b_dec for z, W_dec, b_dec in decoders]
        l1 = np.mean(gate @ np.linalg.norm(p["W_dec"], axis=1))
        return sum(np.square(e).sum() for e in errors) / N + 0.3 * l1

    moment = Moment(3, 1.0, ALL)
    assert total(params, x, y, config, moment) == pytest.approx(expected(params))
    check(gradients(params, x, y, config, moment), params, expected)


@pytest.mark.usefixtures("share")
@pytest.mark.parametrize("penalty", ["l0", "target"])
def test_thresholds_follow_the_rectangle_kernel(penalty):
    config = SAEConfig(sparsity="jumprelu", l0_penalty=penalty, l0_coefficient=0.7, bandwidth=0.5)
    params, x, y = parameters(config), draw(N, D, seed=1), draw(N, D, seed=2)
    gradient = gradients(params, x, y, config, Moment(3, 1.0, ALL))["log_threshold"]
    pre, t = x @ params["W_in"].T + params["b_enc"], np.exp(params["log_threshold"])
    code, W_dec = pre * (pre > t), params["W_dec"]
    error = code @ W_dec + params["b_dec"] - y
    kernel = (np.abs(pre - t) < 0.25) / 0.5  # K((z - t) / b) / b
    assert kernel.sum() > 10
    by_reconstruction = (2 * error @ W_dec.T / N * -t * kernel).sum(axis=0)
    l0 = (pre > t).sum() / N
    slope = 0.7 * (2 * (l0 / 32 - 1) / 32 if penalty == "target" else 1)
    by_penalty = slope * -kernel.sum(axis=0) / N
    assert np.allclose(gradient, (by_reconstruction + by_penalty) * t, rtol=1e-5)  # t: of the logarithm


def test_prefix_losses_are_the_mean_over_nested_dictionaries():
    config = SAEConfig(k=3)
    params, x = parameters(config), draw(N, D, seed=1)
    pre = x @ params["W_in"].T + params["b_enc"]
    code = np.maximum(pre, 0) * (pre >= np.sort(pre, axis=1)[:, [-3]])
    each = [np.sum(np.square(x - code[:, :m] @ params["W_dec"][:m] - params["b_dec"])) / N for m in (3, 7, 12)]
    found, _ = losses(params, x, x, config, (D,), Moment(3, 1.0, (3, 7, 12)))
    assert float(found.total) == pytest.approx(np.mean(each))
    assert float(found.fvu) == pytest.approx(each[-1])


@pytest.mark.parametrize("sparsity_name", ["topk", "batchtopk", "relu", "jumprelu", "gated"])
@pytest.mark.parametrize("prefixes", [ALL, (3, 7, 12)])
def test_accelerators_compute_the_same_as_cpus(sparsity_name, prefixes):
    config = SAEConfig(sparsity=sparsity_name, aux_k=2)
    params = {name: value.astype(np.float32) for name, value in parameters(config, skip=True).items()}
    x, y = draw(N, D, seed=1).astype(np.float32), draw(N, D, seed=2).astype(np.float32)
    moment = Moment(3, 0.7, prefixes, np.array([1, 5, 8]))
    here, gradients_here = losses(params, x, y, config, (2, 4), moment)
    placed = {name: mx.array(value) for name, value in params.items()}
    there, gradients_there = losses(placed, mx.array(x), mx.array(y), config, (2, 4), moment)
    for name in ("total", "fvu", "l0", "threshold"):
        assert float(getattr(there, name)) == pytest.approx(float(getattr(here, name)), rel=1e-5), name
    assert np.array_equal(np.array(there.fired), here.fired)
    for name, gradient in gradients_here.items():
        assert gradient.dtype == np.float32
        assert np.allclose(np.array(gradients_there[name]), gradient, atol=1e-5), name


@pytest.mark.usefixtures("share")
@pytest.mark.parametrize("sparsity_name", ["topk", "batchtopk", "relu", "jumprelu", "gated"])
def test_rows_that_are_encoded_in_slices_give_the_same(sparsity_name, monkeypatch):
    config = SAEConfig(sparsity=sparsity_name)
    params, x = parameters(config), draw(N, D, seed=1)
    moment = Moment(3, 1.0, ALL)
    whole, in_slices = [], []
    for out, values in ((whole, 1 << 20), (in_slices, 7 * F)):
        monkeypatch.setattr("hubsae.losses._PRE_VALUES", values)
        out += [losses(params, x, x, config, (D,), moment)]
    assert float(in_slices[0][0].total) == pytest.approx(float(whole[0][0].total), rel=1e-9)
    for name, gradient in whole[0][1].items():
        assert np.allclose(in_slices[0][1][name], gradient, atol=1e-9), name


def test_slices_of_different_kinds_are_put_together():
    few = entries.Ragged(surrogate(SAEConfig(k=2), D).candidates(draw(3, F), np.zeros(F), {}, 2, 3)._places)  # type: ignore[attr-defined]
    both = entries.stacked([few, entries.Dense(draw(4, F, seed=2))])
    assert both.values.shape == (7, F)
    assert (np.maximum(both.values[:3], 0) > 0).sum() == 6


def test_batch_top_k_keeps_k_entries_a_row_on_average():
    rule = surrogate(SAEConfig(sparsity="batchtopk", k=3), D)
    params, x = parameters(rule.config), draw(N, D, seed=4)
    pre = x @ encoder(params).T + params["b_enc"]
    code = rule.code(chosen(params, x, rule, 3, N), params)
    kept = np.sort(np.maximum(pre, 0).ravel())[-3 * N :]
    assert np.allclose(np.sort(code[code > 0]), kept)
    assert rule.threshold(code) == pytest.approx(kept[0])


def test_the_running_threshold_is_unbiased_from_the_first_batch_on():
    mean = 0.0
    for n, value in enumerate([2.0] * 5):
        mean = running_mean(mean, value, n)
        assert mean == pytest.approx(2.0)
    rng, late = np.random.default_rng(0), []
    for n in range(3000):
        mean = running_mean(mean, float(rng.uniform(1, 3)), n)
        late.append(mean)
    assert np.mean(late[1000:]) == pytest.approx(2.0, abs=0.05)


@pytest.mark.parametrize("widths", [(D,), (2, 4)])
def test_rows_are_normalised_over_sites_and_gradients_are_tangent(widths):
    W_dec = normalised(draw(F, D), widths)
    assert np.allclose(site_norms(W_dec, widths).sum(axis=1), len(widths) ** 0.5)
    flat = tangent(draw(F, D, seed=8), W_dec, widths)
    moved = site_norms(W_dec + 1e-7 * flat, widths).sum(axis=1) - site_norms(W_dec, widths).sum(axis=1)
    assert np.abs(moved).max() < 1e-11
