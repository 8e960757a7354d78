import numpy as np
import pytest
from planted_pairs import planted_zero

from hubsae import maps
from hubsae import similarity as si
from hubsae.errors import ConfigError
from hubsae.joint_moments import JointMoments


def _rows(n: int = 200, p: int = 6, q: int = 9, seed: int = 0, mean: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, p))
    return x + mean, x @ rng.standard_normal((p, q)) + 2 * rng.standard_normal((n, q)) + mean


def _independent(n: int, p: int, q: int, seed: int = 0) -> JointMoments:
    rng = np.random.default_rng(seed)
    return JointMoments.of(rng.standard_normal((n, p)), rng.standard_normal((n, q)))


def _hsic_1(k: np.ndarray, other: np.ndarray) -> float:
    """Song et al. 2012, equation 5, term by term."""
    n, one = len(k), np.ones(len(k))
    k, other = k * (1 - np.eye(n)), other * (1 - np.eye(n))
    third = 2 / (n - 2) * (one @ k @ other @ one)
    second = (one @ k @ one) * (one @ other @ one) / ((n - 1) * (n - 2))
    return float((np.trace(k @ other) + second - third) / (n * (n - 3)))


def _ratio(k: np.ndarray, other: np.ndarray) -> float:
    return _hsic_1(k, other) / np.sqrt(_hsic_1(k, k) * _hsic_1(other, other))


@pytest.mark.parametrize("mean", [0.0, 3.0])
def test_debiased_cka_is_the_ratio_of_songs_unbiased_estimators(mean):
    x, y = _rows(mean=mean)
    wanted = _ratio(x @ x.T, y @ y.T)
    assert np.isclose(si.linear_cka(JointMoments.of(x, y)), wanted, atol=1e-9)
    assert np.isclose(si.kernel_cka(x @ x.T, y @ y.T), wanted, atol=1e-9)


def test_biased_cka_is_its_formula_on_centred_kernels():
    x, y = _rows(mean=2.0)
    centre = np.eye(len(x)) - 1 / len(x)
    k, other = centre @ x @ x.T @ centre, centre @ y @ y.T @ centre
    wanted = np.sum(k * other) / (np.linalg.norm(k) * np.linalg.norm(other))
    assert np.isclose(si.linear_cka(JointMoments.of(x, y), False), wanted)
    assert np.isclose(si.kernel_cka(x @ x.T, y @ y.T, False), wanted)


def test_cka_knows_neither_rotations_nor_scales_nor_offsets():
    x, y = _rows()
    turn = maps.haar(np.random.default_rng(1), 6)
    moved = JointMoments.of(3 * x @ turn + 5, 0.1 * y - 2)
    assert np.isclose(si.linear_cka(moved), si.linear_cka(JointMoments.of(x, y)))
    assert np.isclose(si.linear_cka(JointMoments.of(x, 2 * x @ turn)), 1)


def test_debiased_cka_of_independent_data_is_about_nothing_where_the_biased_one_is_large():
    found = [si.linear_cka(_independent(200, 300, 150, seed)) for seed in range(8)]
    assert max(np.abs(found)) < 0.02
    assert min(found) < 0
    assert si.linear_cka(_independent(200, 300, 150), False) > 0.45


def test_cka_of_what_does_not_vary_is_not_a_number():
    x, y = _rows()
    assert np.isnan(si.linear_cka(JointMoments.of(np.ones_like(x), y)))
    assert np.isnan(si.linear_cka(JointMoments.of(x, np.ones_like(y)), False))
    assert np.isnan(si.kernel_cka(np.ones((9, 9)), np.eye(9)))


def test_gaussian_kernels_with_a_large_bandwidth_come_to_the_linear_ones():
    x, y = _rows()
    linear = si.linear_cka(JointMoments.of(x, y)), si.linear_cka(JointMoments.of(x, y), False)
    assert abs(si.rbf_cka(x, y, True, 200) - linear[0]) < 1e-3
    assert abs(si.rbf_cka(x, y, False, 200) - linear[1]) < 1e-3
    assert abs(si.rbf_cka(x, y, False) - linear[1]) > 1e-2
    with pytest.raises(ConfigError):
        si.rbf_cka(x, y, fraction=0)


def test_cka_by_batches_agrees_with_that_of_all_rows():
    d = planted_zero()
    x, y = d.x[:6000], d.y[:6000]
    assert abs(si.minibatch_cka(x, y, 64) - si.linear_cka(JointMoments.of(x, y))) < 1e-2
    assert np.isnan(si.minibatch_cka(d.x[:20], d.y[:20]))


@pytest.mark.parametrize("mean", [30.0, 3000.0])
def test_in_single_precision_kernels_survive_a_large_mean(mean):
    x, y = (rows.astype(np.float32) for rows in _rows(600, mean=mean))
    exact = x.astype(np.float64), y.astype(np.float64)
    assert abs(si.rbf_cka(x, y) - si.rbf_cka(*exact)) < 1e-4
    assert abs(si.minibatch_cka(x, y, 100) - si.minibatch_cka(*exact, 100)) < 1e-4


def test_pwcca_weighs_by_what_the_variates_account_for():
    x, y = _rows(400)
    a, b = x - x.mean(axis=0), y - y.mean(axis=0)
    (ux, _, _), (uy, _, _) = (np.linalg.svd(rows, full_matrices=False) for rows in (a, b))
    left, rho, _ = np.linalg.svd(ux.T @ uy)
    weights = np.abs((ux @ left).T @ a).sum(axis=1)
    assert np.isclose(si.pwcca(JointMoments.of(x, y)), weights[: len(rho)] @ rho / weights.sum())


def test_distances_are_compared_by_their_ranks():
    from scipy.spatial.distance import pdist
    from scipy.stats import rankdata

    x, y = _rows(40)
    apart = rankdata(pdist(x)) - rankdata(pdist(y))
    m = len(apart)
    assert np.isclose(si.rsa(x, y), 1 - 6 * np.square(apart).sum() / (m * (m**2 - 1)))


@pytest.mark.parametrize(("n", "p", "q"), [(200, 300, 150), (1000, 50, 20)])
def test_biased_cka_by_chance_is_what_independent_data_give(n, p, q):
    found = np.mean([si.linear_cka(_independent(n, p, q, seed), False) for seed in range(4)])
    assert abs(si.cka_by_chance(n, p, q) / found - 1) < 0.03


def test_canonical_correlations_by_chance_are_those_of_independent_data():
    rho = np.stack([maps.canonical(_independent(1000, 60, 40, seed)).rho for seed in range(4)])
    middle, top = si.canonical_by_chance(1000, 60, 40)
    assert abs(np.sqrt(np.square(rho).mean()) / middle - 1) < 0.02
    assert abs(rho[:, 0].mean() / top - 1) < 0.04


def test_with_as_many_columns_as_rows_canonical_correlations_by_chance_are_one():
    assert maps.canonical(_independent(100, 70, 70)).rho[0] > 0.999
    assert si.canonical_by_chance(100, 70, 70)[1] == 1
    assert si.canonical_by_chance(100, 150, 20)[0] <= 1


def test_procrustes_by_chance_is_what_independent_data_give():
    found = np.mean([maps.procrustes_fit(_independent(4000, 40, 40, seed)).rho for seed in range(3)])
    assert abs(si.procrustes_by_chance(4000, 40) / found - 1) < 0.03


def test_the_best_cosine_by_chance_is_a_quantile_of_that_of_random_directions():
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((2000, 300, 8))
    best = (rows[..., 0] / np.linalg.norm(rows, axis=2)).max(axis=1)
    for quantile in (0.5, 0.95):
        assert abs(np.mean(best <= si.best_cosine_by_chance(8, 300, quantile)) - quantile) < 0.03


def test_a_row_is_retrieved_where_its_own_partner_is_closest():
    rng = np.random.default_rng(0)
    wanted = rng.standard_normal((500, 20))
    assert si.retrieval(3 * wanted + 7, wanted).all()
    near = si.retrieval(wanted + rng.standard_normal(wanted.shape), wanted).mean()
    assert 0.3 < near < 1
    assert si.retrieval(rng.standard_normal(wanted.shape), wanted).mean() < 0.02
    assert si.retrieval(np.zeros((3, 4)), np.eye(3, 4)).sum() <= 1
