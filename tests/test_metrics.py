import math

import numpy as np

from hubsae import metrics
from hubsae.metrics import Fidelity, Moments


def test_streamed_moments_are_those_of_all_rows_even_far_from_zero():
    rows = np.random.default_rng(0).standard_normal((1000, 7)).astype(np.float32) + 3000
    moments = Moments()
    for start in range(0, 1000, 130):
        moments.add(rows[start : start + 130])
    exact = rows.astype(np.float64)
    assert np.allclose(moments.mean, exact.mean(0))
    assert np.allclose(moments.scatter, np.square(exact - exact.mean(0)).sum(0), rtol=1e-6)


def test_fidelity_is_what_its_formulas_say():
    rng = np.random.default_rng(1)
    y = rng.standard_normal((300, 5)).astype(np.float32) + 2
    y_hat = y + 0.1 * rng.standard_normal(y.shape).astype(np.float32)
    active = rng.random((300, 11)) < 0.3
    active[:, 4] = False
    fidelity = Fidelity(11)
    for part in np.array_split(np.arange(300), 7):
        fidelity.add(y[part], y_hat[part], active[part].sum(0))
    assert math.isclose(fidelity.fvu, np.square(y - y_hat).sum() / np.square(y - y.mean(0)).sum(), rel_tol=1e-5)
    assert math.isclose(fidelity.explained_variance, 1 - fidelity.fvu)
    assert math.isclose(fidelity.l0, active.sum(1).mean())
    assert np.allclose(fidelity.density, active.mean(0))
    assert math.isclose(fidelity.dead_share, 1 / 11)
    cosines = (y * y_hat).sum(1) / np.linalg.norm(y, axis=1) / np.linalg.norm(y_hat, axis=1)
    assert math.isclose(fidelity.cosine, cosines.mean(), rel_tol=1e-5)


def test_predicting_the_mean_leaves_all_variance_unexplained():
    y = np.random.default_rng(2).standard_normal((50, 3)).astype(np.float32)
    fidelity = Fidelity(1)
    fidelity.add(y, np.broadcast_to(y.mean(0), y.shape), np.zeros(1))
    assert math.isclose(fidelity.fvu, 1.0, rel_tol=1e-6)


def test_rows_without_variance_give_no_number():
    fidelity = Fidelity(1)
    fidelity.add(np.ones((4, 2), np.float32), np.ones((4, 2), np.float32), np.zeros(1))
    assert math.isnan(fidelity.fvu)


def test_loss_recovered_runs_from_ablation_to_the_original():
    assert metrics.recovered(2.0, 2.0, 5.0) == 1.0
    assert metrics.recovered(2.0, 5.0, 5.0) == 0.0
    assert math.isnan(metrics.recovered(2.0, 2.0, 1.0))


def test_the_bootstrap_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(3)
    hits = 0
    for seed in range(200):
        sums = np.stack([np.full(40, 10.0), rng.standard_normal(40) * 3 + 10], axis=1)
        low, high = metrics.bootstrap_interval(sums, lambda s: s[1] / s[0], n_draws=300, seed=seed)
        hits += low <= 1.0 <= high
    assert 0.88 <= hits / 200 <= 0.99


def test_few_documents_have_no_interval():
    assert all(math.isnan(v) for v in metrics.bootstrap_interval(np.ones((9, 2)), lambda s: s[0]))


def test_a_statistic_that_is_never_defined_has_no_interval():
    assert all(math.isnan(v) for v in metrics.bootstrap_interval(np.ones((20, 2)), lambda s: float("nan")))
