"""The optimizer against MLX's, and what a dictionary asks of it."""

import mlx.core as mx
import mlx.optimizers as optim
import numpy as np
import pytest

from hubsae import threads
from hubsae.adam import Adam
from hubsae.losses import normalised, site_norms, tangent

RATES = [1e-2, 3e-3, 5e-3, 1e-3]


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def parameters() -> dict[str, np.ndarray]:
    return {
        "W_in": draw(50, 8),
        "b_enc": draw(50),
        "W_dec": np.array(normalised(draw(50, 6), (2, 4))),
        "b_dec": draw(6),
    }


def gradients(step: int) -> dict[str, np.ndarray]:
    return {name: draw(*p.shape, seed=step + 1) * 10.0 ** (step - 2) for name, p in parameters().items()}


@pytest.mark.parametrize("on_device", [False, True])
def test_it_is_adam_with_bias_correction(on_device, monkeypatch):
    monkeypatch.setattr(threads, "SMALL", 0)
    place = mx.array if on_device else np.array
    params = {name: place(p) for name, p in parameters().items()}
    adam = Adam(params, None, None)
    reference = optim.Adam(learning_rate=0.1, bias_correction=True)
    expected = {name: mx.array(p) for name, p in parameters().items()}
    for step, rate in enumerate(RATES):
        given = gradients(step)
        norm = adam.update(params, {name: place(g) for name, g in given.items()}, rate)
        assert float(norm) == pytest.approx(np.sqrt(sum(np.square(g).sum() for g in given.values())), rel=1e-5)
        reference.learning_rate = rate
        expected = reference.apply_gradients({name: mx.array(g) for name, g in given.items()}, expected)
    for name, value in expected.items():
        assert np.allclose(np.array(params[name]), np.array(value), atol=1e-5), name


@pytest.mark.parametrize("on_device", [False, True])
def test_gradients_are_clipped_and_rows_keep_their_norm(on_device):
    place, widths = (mx.array if on_device else np.array), (2, 4)
    params = {name: place(p) for name, p in parameters().items()}
    adam, given = Adam(params, widths, 1.0), gradients(2)
    flat = {**given, "W_dec": tangent(given["W_dec"], parameters()["W_dec"], widths)}
    norm = np.sqrt(sum(np.square(g).sum() for g in flat.values()))
    assert norm > 1
    assert float(adam.update(params, {name: place(g) for name, g in given.items()}, 0.1)) == pytest.approx(
        norm, rel=1e-5
    )
    for name, g in flat.items():
        assert np.allclose(np.array(adam.first[name]), 0.1 * g / norm, atol=1e-6), name
    assert np.allclose(site_norms(np.array(params["W_dec"]), widths).sum(axis=1), 2**0.5, atol=1e-6)


def test_what_is_known_of_features_that_start_anew_is_forgotten():
    params = parameters()
    adam = Adam(params, None, None)
    adam.update(params, gradients(0), 0.1)
    mask = np.arange(50) == 7
    adam.forget(mask)
    for moments in (adam.first, adam.second):
        assert all(
            (moments[name][7] == 0).all() and (moments[name][8] != 0).any() for name in ("W_in", "W_dec", "b_enc")
        )
        assert (moments["b_dec"] != 0).all()
