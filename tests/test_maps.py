import numpy as np
import pytest
import scipy.linalg
from planted_pairs import planted_zero

from hubsae import maps
from hubsae.errors import ConfigError, DataError
from hubsae.joint_moments import JointMoments


def _rows(n: int = 600, p: int = 8, q: int = 8, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, p)) * np.linspace(0.3, 2, p) + 4
    return x, (x - 4) @ rng.standard_normal((p, q)) + 0.5 * rng.standard_normal((n, q)) - 7


def _centred(*rows: np.ndarray) -> list[np.ndarray]:
    return [part - part.mean(axis=0) for part in rows]


def _r2(found: maps.LinearMap, x: np.ndarray, y: np.ndarray) -> float:
    return 1 - float(np.square(y - found(x)).sum() / np.square(y - found.mean_y).sum())


def test_procrustes_is_scipys():
    x, y = _rows()
    found = maps.procrustes_fit(JointMoments.of(x, y))
    a, b = _centred(x, y)
    rotation, total = scipy.linalg.orthogonal_procrustes(a, b)
    assert np.allclose(found.rotation, rotation, atol=1e-9)
    assert np.isclose(found.scale, total / np.square(a).sum())
    assert np.isclose(found.rho, total / (np.linalg.norm(a) * np.linalg.norm(b)))


def test_what_procrustes_explains_is_the_square_of_rho():
    m = JointMoments.of(*_rows())
    assert np.isclose(maps.r2(maps.procrustes(m), m), maps.procrustes_fit(m).rho ** 2)


def test_rotating_or_scaling_either_side_leaves_rho():
    x, y = _rows()
    rng = np.random.default_rng(1)
    turn, other = maps.haar(rng, 8), maps.haar(rng, 8)
    one, two = (
        maps.procrustes_fit(JointMoments.of(x, y)),
        maps.procrustes_fit(JointMoments.of(2 * x @ turn, 5 * y @ other)),
    )
    assert np.isclose(one.rho, two.rho)
    assert np.isclose(two.scale, 5 / 2 * one.scale)
    assert np.allclose(turn @ two.rotation, one.rotation @ other)
    assert np.isclose(maps.procrustes_fit(JointMoments.of(y, x)).rho, one.rho)


@pytest.mark.parametrize(("p", "q"), [(8, 5), (5, 8)])
def test_of_unequal_widths_the_rotation_is_that_of_the_narrower_side_padded_with_zeros(p, q):
    x, y = _rows(p=p, q=q)
    found = maps.procrustes_fit(JointMoments.of(x, y))
    narrow = np.eye(min(p, q))
    assert np.allclose(found.rotation.T @ found.rotation if p > q else found.rotation @ found.rotation.T, narrow)
    a, b = (np.pad(rows, ((0, 0), (0, 8 - rows.shape[1]))) for rows in _centred(x, y))
    total = scipy.linalg.orthogonal_procrustes(a, b)[1]
    assert np.isclose(found.rho, total / (np.linalg.norm(a) * np.linalg.norm(b)))
    back = maps.procrustes_fit(JointMoments.of(y, x))
    assert np.allclose(back.rotation, found.rotation.T)


@pytest.mark.parametrize("penalty", [1e-6, 0.1, 10.0])
def test_ridge_is_the_solution_of_its_normal_equations(penalty):
    x, y = _rows(p=8, q=6)
    a, b = _centred(x, y)
    ballast = penalty * np.square(a).sum() / 8
    augmented = np.linalg.lstsq(np.r_[a, np.sqrt(ballast) * np.eye(8)], np.r_[b, np.zeros((8, 6))], rcond=None)[0]
    assert np.allclose(maps.ridge(JointMoments.of(x, y), penalty).matrix, augmented)


def test_the_penalty_is_the_one_that_does_best_on_other_data():
    d = planted_zero()
    early, rest = slice(0, 150), slice(5000, 9000)
    fit, other = JointMoments.of(d.x[early], d.y[early]), JointMoments.of(d.x[rest], d.y[rest])
    best = maps.best_penalty(fit, other)
    assert 1e-6 < best < 10
    scores = [maps.r2(maps.ridge(fit, 10.0**e), other) for e in range(-6, 2)]
    assert maps.r2(maps.fitted("ridge", fit, other), other) == max(scores)


def test_canonical_correlations_are_those_of_the_plain_route_by_qr_and_svd():
    x, y = _rows(p=8, q=5)
    a, b = _centred(x, y)
    rho = np.linalg.svd(np.linalg.qr(a)[0].T @ np.linalg.qr(b)[0], compute_uv=False)
    found = maps.canonical(JointMoments.of(x, y))
    assert found.dims == (8, 5)
    assert np.allclose(found.rho, rho)
    variates = a @ found.x, b @ found.y
    assert np.allclose(variates[0].T @ variates[0], np.eye(5), atol=1e-9)
    assert np.allclose(variates[0].T @ variates[1], np.diag(rho), atol=1e-9)


def test_the_correlations_of_directions_on_other_data_are_numpys():
    x, y = _rows(p=8, q=5)
    found = maps.canonical(JointMoments.of(x[:300], y[:300]))
    u, v = x[300:] @ found.x, y[300:] @ found.y
    wanted = [np.corrcoef(u[:, i], v[:, i])[0, 1] for i in range(5)]
    assert np.allclose(found.correlations(JointMoments.of(x[300:], y[300:])), wanted)


def test_svcca_looks_at_the_directions_that_hold_most_of_the_variance():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((2000, 6)) * [5, 4, 3, 0.05, 0.05, 0.05], rng.standard_normal((2000, 6))
    y[:, 3:] = x[:, 3:]
    found = maps.canonical(JointMoments.of(x, y), 0.99)
    assert found.dims[0] == 3
    assert found.rho.max() < 0.1


def test_the_svcca_map_predicts_from_the_canonical_variates_by_least_squares():
    x, y = _rows(p=8, q=5)
    m = JointMoments.of(x, y)
    a, b = _centred(x, y)
    variates = a @ maps.canonical(m, 0.9).x
    kept = maps.whitener(m.scatters()[1], 0.9)
    span = b @ kept  # orthonormal columns
    wanted = variates @ (variates.T @ span) @ (span.T @ b)
    assert np.allclose(maps.svcca(m, 0.9)(x) - y.mean(axis=0), wanted)
    full = np.linalg.lstsq(a, b, rcond=None)[0]
    assert np.allclose(maps.svcca(m, 1.0).matrix, full)


def test_a_whitened_scatter_is_one():
    x, _ = _rows()
    scatter = JointMoments.of(x, x[:, :2]).scatters()[0]
    w = maps.whitener(scatter)
    assert np.allclose(w.T @ scatter @ w, np.eye(8))
    flat = np.diag([4.0, 1.0, 0.0])
    assert maps.whitener(flat).shape == (3, 2)
    with pytest.raises(DataError):
        maps.whitener(np.zeros((3, 3)))


def test_a_chain_of_maps_is_the_map_of_the_map():
    x, y = _rows(p=8, q=5)
    z = _rows(p=8, q=3, seed=4)[1]
    first, second = maps.procrustes(JointMoments.of(x, y)), maps.ridge(JointMoments.of(y, z), 0.01)
    assert np.allclose(first.then(second)(x), second(first(x)))
    with pytest.raises(DataError):
        second.then(first)


@pytest.mark.parametrize("method", maps.METHODS)
def test_what_moments_say_is_explained_is_what_rows_say(method):
    x, y = _rows(p=8, q=5)
    fit, held = JointMoments.of(x[:300], y[:300]), JointMoments.of(x[300:], y[300:])
    found = maps.fitted(method, fit, held)
    assert np.isclose(maps.r2(found, held), _r2(found, x[300:], y[300:]))
    assert np.isclose(maps.r2(found, fit), _r2(found, x[:300], y[:300]))


def test_a_map_keeps_single_precision_and_takes_its_own_columns_alone():
    x, y = _rows(p=8, q=5)
    found = maps.procrustes(JointMoments.of(x, y))
    assert found(x.astype(np.float32)).dtype == np.float32
    assert np.allclose(found(x.astype(np.float32)), found(x), atol=1e-4)
    with pytest.raises(DataError, match="8 columns"):
        found(y)


def test_a_map_followed_by_a_random_rotation_is_as_long_and_explains_nothing():
    d = planted_zero()
    m = JointMoments.of(d.x[:4000], d.y[:4000])
    found = maps.ridge(m, 1e-3)
    lost = found.rotated(np.random.default_rng(0))
    assert np.isclose(np.linalg.norm(lost.matrix), np.linalg.norm(found.matrix))
    assert maps.r2(found, m) > 0.4
    assert maps.r2(lost, m) < 0


def test_random_rotations_are_orthogonal_and_spread_evenly():
    rng = np.random.default_rng(0)
    draws = np.stack([maps.haar(rng, 4) for _ in range(4000)])
    assert np.allclose(draws @ draws.transpose(0, 2, 1), np.eye(4))
    assert np.abs(draws.mean(axis=0)).max() < 0.04
    assert np.abs(np.square(draws).mean(axis=0) - 1 / 4).max() < 0.02
    assert abs(np.trace(draws, axis1=1, axis2=2).mean()) < 0.08
    assert abs(np.square(np.trace(draws, axis1=1, axis2=2)).mean() - 1) < 0.12  # 2 without the signs' correction
    assert abs(np.mean(np.linalg.det(draws) > 0) - 0.5) < 0.04


def test_maps_of_what_does_not_vary_are_refused():
    x, y = _rows()
    still = np.ones_like(x)
    for bad in (JointMoments.of(still, y), JointMoments.of(x, still)):
        with pytest.raises(DataError):
            maps.procrustes_fit(bad)
    with pytest.raises(DataError):
        maps.ridge(JointMoments.of(still, y), 0.1)
    with pytest.raises(DataError):
        maps.ridge(JointMoments.of(x, y), 0.0)
    assert np.isnan(maps.r2(maps.procrustes(JointMoments.of(x, y)), JointMoments(8, 8)))
    with pytest.raises(ConfigError, match="procrustes, ridge, svcca"):
        maps.fitted("cca", JointMoments.of(x, y), JointMoments.of(x, y))
