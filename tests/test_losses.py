"""The loss: every term's gradient by finite differences, against definitions, and what must not get any."""

import mlx.core as mx
import numpy as np
import pytest

from hubsae import sparsity
from hubsae.losses import Moment, aux_code, initial, losses, normalised, site_norms, tangent
from hubsae.recipe import SAEConfig
from hubsae.surrogates import running_mean, surrogate

D, F, N = 6, 12, 40
ALL = (F,)


def draw(*shape: int, seed: int = 0) -> mx.array:
    return mx.array(np.random.default_rng([seed, *shape]).standard_normal(shape), dtype=mx.float64)


def parameters(config: SAEConfig, skip: bool = False) -> dict[str, mx.array]:
    params = {"W_enc": draw(D, F), "b_enc": draw(F) * 0.1, "W_dec": draw(F, D), "b_dec": draw(D)}
    if config.tied_weights:
        del params["W_enc"]
    if skip:
        params["W_skip"] = draw(D, D, seed=3)
    extra = {name: value.astype(mx.float64) for name, value in surrogate(config, D).initial(F).items()}
    return params | {name: value + 0.1 * draw(F, seed=5) for name, value in extra.items()}


def check(loss, params, names=None, expected=None) -> None:
    """Gradients of `loss` against differences of `expected`, in a random direction for each parameter."""
    gradients = mx.grad(loss)(params)
    for name in names or params:
        direction, step = draw(*params[name].shape, seed=9), 1e-6
        up, down = ({**params, name: params[name] + s * direction} for s in (step, -step))
        value = expected or loss
        numeric = (value(up) - value(down)).item() / (2 * step)
        assert mx.sum(gradients[name] * direction).item() == pytest.approx(numeric, rel=1e-5, abs=1e-7), name


SETTINGS = [
    {"sparsity": "topk", "k": 3},
    {"sparsity": "batchtopk", "k": 3},
    {"sparsity": "relu", "l1_coefficient": 0.3},
    {"sparsity": "jumprelu", "l0_penalty": "tanh"},
    {"sparsity": "topk", "k": 3, "tied_weights": True},
]


@pytest.fixture(autouse=True)
def on_the_cpu():
    with mx.stream(mx.cpu):  # float64 exists on CPUs only
        yield


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("prefixes", [ALL, (3, 7, 12)])
@pytest.mark.parametrize("skip", [False, True])
def test_gradients_agree_with_finite_differences(settings, prefixes, skip):
    config = SAEConfig(**settings)
    params, x, y = parameters(config, skip), draw(N, D, seed=1), draw(N, D, seed=2)
    smooth = [name for name in params if name != "log_threshold"]  # its gradient is a surrogate, see below
    check(lambda p: losses(p, x, y, config, (D,), Moment(3, 1.0, prefixes)).total, params, smooth)


@pytest.mark.parametrize("widths", [(D,), (2, 4)])
def test_aux_k_rebuilds_the_residual_that_is_held_constant(widths):
    config = SAEConfig(k=3, aux_coefficient=0.5, aux_k=2)
    params, x = parameters(config), draw(N, D, seed=1)
    dead = mx.array([1, 4, 7, 9])

    def y_hat(p):
        return config.rule()(x @ p["W_enc"] + p["b_enc"]) @ p["W_dec"] + p["b_dec"]

    held = x - y_hat(params)

    def expected(p):
        rebuilt = aux_code(p, x, dead, 2) @ mx.take(p["W_dec"], dead, axis=0)
        return mx.sum(mx.square(x - y_hat(p))) / N + 0.5 * mx.sum(mx.square(held - rebuilt)) / N

    check(lambda p: losses(p, x, x, config, widths, Moment(3, 1.0, ALL, dead)).total, params, expected=expected)


@pytest.mark.parametrize("sparsity_name", ["topk", "batchtopk", "relu", "jumprelu", "gated"])
def test_aux_k_reaches_the_encoder_of_dead_features_even_where_their_pre_codes_are_negative(sparsity_name):
    x = draw(N, D, seed=1).astype(mx.float32)
    config = SAEConfig(sparsity=sparsity_name)
    params = initial(D, (D,), F, True, config)
    params["b_enc"] = mx.where(mx.arange(F) == 4, -100.0, 0.0)
    with_aux, without = (
        mx.grad(lambda p, d=dead: losses(p, x, x, config, (D,), Moment(2, 1.0, ALL, d)).total)(params)
        for dead in (mx.array([4]), None)
    )
    assert np.abs(np.array(with_aux["W_enc"][:, 4])).max() > 0
    assert np.abs(np.array(with_aux["W_dec"][4])).max() > 0
    assert mx.abs(without["W_enc"][:, 4]).max().item() == 0
    alive = mx.arange(F) != 4
    assert mx.allclose(with_aux["W_enc"] * alive, without["W_enc"] * alive, atol=1e-7)


def test_the_gate_is_trained_through_a_decoder_that_is_held_constant():
    config = SAEConfig(sparsity="gated", l1_coefficient=0.3)
    params, x, y = parameters(config), draw(N, D, seed=1), draw(N, D, seed=2)
    held = {name: np.array(params[name]) for name in ("W_dec", "b_dec")}

    def expected(params):
        p = {name: np.array(value) for name, value in params.items()}  # mx.exp has fp32 precision only
        pre = np.array(x) @ p["W_enc"] + p["b_enc"]
        magnitude = np.maximum((pre - p["b_enc"]) * np.exp(p["r_mag"]) + p["b_mag"], 0)
        code, gate = np.where(pre > 0, magnitude, 0), np.maximum(pre, 0)
        decoders = ((code, p["W_dec"], p["b_dec"]), (gate, held["W_dec"], held["b_dec"]))
        errors = [np.array(y) - z @ W_dec - b_dec for z, W_dec, b_dec in decoders]
        l1 = np.mean(gate @ np.linalg.norm(p["W_dec"], axis=1))
        return sum(np.square(e).sum() for e in errors) / N + 0.3 * l1

    check(lambda p: losses(p, x, y, config, (D,), Moment(3, 1.0, ALL)).total, params, expected=expected)


@pytest.mark.parametrize("penalty", ["l0", "target"])
def test_thresholds_follow_the_rectangle_kernel(penalty):
    config = SAEConfig(sparsity="jumprelu", l0_penalty=penalty, l0_coefficient=0.7, bandwidth=0.5)
    params, x, y = parameters(config), draw(N, D, seed=1), draw(N, D, seed=2)
    gradient = mx.grad(lambda p: losses(p, x, y, config, (D,), Moment(3, 1.0, ALL)).total)(params)["log_threshold"]
    pre, t = np.array(x @ params["W_enc"] + params["b_enc"]), np.exp(np.array(params["log_threshold"]))
    code, W_dec = pre * (pre > t), np.array(params["W_dec"])
    error = code @ W_dec + np.array(params["b_dec"]) - np.array(y)
    kernel = (np.abs(pre - t) < 0.25) / 0.5  # K((z - t) / b) / b
    assert kernel.sum() > 10
    by_reconstruction = (2 * error @ W_dec.T / N * -t * kernel).sum(axis=0)
    l0 = (pre > t).sum() / N
    slope = 0.7 * (2 * (l0 / 32 - 1) / 32 if penalty == "target" else 1)
    by_penalty = slope * -kernel.sum(axis=0) / N
    assert np.allclose(np.array(gradient), (by_reconstruction + by_penalty) * t, rtol=1e-5)  # t: of the logarithm


def test_prefix_losses_are_the_mean_over_nested_dictionaries():
    config = SAEConfig(k=3)
    params, x = parameters(config), draw(N, D, seed=1)
    code = sparsity.TopK(3)(x @ params["W_enc"] + params["b_enc"])
    each = [mx.sum(mx.square(x - code[:, :m] @ params["W_dec"][:m] - params["b_dec"])).item() / N for m in (3, 7, 12)]
    found = losses(params, x, x, config, (D,), Moment(3, 1.0, (3, 7, 12)))
    assert found.total.item() == pytest.approx(np.mean(each))
    assert found.fvu.item() == pytest.approx(each[-1])


def test_batch_top_k_keeps_k_entries_a_row_on_average():
    pre = draw(N, F, seed=4)
    rule = surrogate(SAEConfig(sparsity="batchtopk", k=3), D)
    code = np.array(rule.code(pre, {}, 3))
    kept = np.sort(np.maximum(np.array(pre), 0).ravel())[-3 * N :]
    assert np.array_equal(np.sort(code[code > 0]), kept)
    assert rule.threshold(mx.array(code)).item() == pytest.approx(kept[0])


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
    assert np.allclose(np.array(site_norms(W_dec, widths).sum(axis=1)), len(widths) ** 0.5)
    flat = tangent(draw(F, D, seed=8), W_dec, widths)
    moved = site_norms(W_dec + 1e-7 * flat, widths).sum(axis=1) - site_norms(W_dec, widths).sum(axis=1)
    assert np.abs(np.array(moved)).max() < 1e-11
