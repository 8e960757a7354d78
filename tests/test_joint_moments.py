from collections.abc import Sequence

import numpy as np
import pytest

from hubsae import similarity
from hubsae.joint_moments import JointMoments


def _rows(n: int = 500, p: int = 7, q: int = 5, mean: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((n, p)) * np.exp(rng.standard_normal(p)) + mean
    return x, (x - mean) @ rng.standard_normal((p, q)) + rng.standard_normal((n, q)) + mean


def _two_pass(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(mean, scatter, sums of the products of squared lengths) of [x | y], by definition."""
    z = np.concatenate([x, y], axis=1).astype(np.float64)
    centred = z - z.mean(axis=0)
    lengths = np.stack([np.square(part).sum(axis=1) for part in (centred[:, : x.shape[1]], centred[:, x.shape[1] :])])
    return z.mean(axis=0), centred.T @ centred, lengths @ lengths.T


def _far(found: JointMoments, x: np.ndarray, y: np.ndarray) -> float:
    """The largest relative error of all that moments tell."""
    mean, scatter, fourths = _two_pass(x, y)
    made = np.array([[found.fourth(i, j) for j in (0, 1)] for i in (0, 1)])
    pairs = ((found.mean, mean), (found.scatter(), scatter), (made, fourths))
    return max(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in pairs)


def _in_batches(x: np.ndarray, y: np.ndarray, cuts: Sequence[int]) -> JointMoments:
    found = JointMoments(x.shape[1], y.shape[1])
    for rows in np.split(np.arange(len(x)), cuts):
        found.add(x[rows], y[rows])
    return found


@pytest.mark.parametrize("mean", [0.0, 30.0])
def test_streamed_moments_are_those_of_two_passes_however_the_rows_are_cut(mean):
    x, y = _rows(mean=mean)
    rng = np.random.default_rng(1)
    for n_cuts in (0, 1, 3, 40):
        cuts = np.sort(rng.integers(0, len(x), n_cuts)).tolist()  # some batches are empty
        assert _far(_in_batches(x, y, cuts), x, y) < 1e-9


def test_shards_about_one_shift_add_up_to_the_whole():
    x, y = _rows(mean=3.0)
    shift = np.r_[x.mean(axis=0), y.mean(axis=0)]
    rng = np.random.default_rng(2)
    for n_shards in (1, 2, 17):
        of = rng.integers(0, n_shards, len(x))
        shards = [JointMoments.of(x[of == i], y[of == i], shift) for i in range(n_shards)]
        assert _far(JointMoments.weighted(shards), x, y) < 1e-9
    assert _far(JointMoments.weighted([JointMoments(7, 5), *shards]), x, y) < 1e-9


def test_more_rows_than_are_taken_at_once_make_no_difference():
    x, y = _rows(20_000, 3, 2, mean=5.0)
    assert _far(JointMoments.of(x, y), x, y) < 1e-9


def test_in_single_precision_a_large_mean_costs_nothing_where_raw_sums_lose_everything():
    rng = np.random.default_rng(3)
    common = rng.standard_normal((10_000, 4))
    x, y = ((np.c_[common, rng.standard_normal((10_000, more))] + 3000).astype(np.float32) for more in (2, 3))
    found = _in_batches(x, y, [100, 1000, 5000])
    variance = np.diag(found.scatter()) / len(x)
    assert np.allclose(variance, 1, atol=0.05)
    assert np.abs(variance - np.var(np.c_[x, y].astype(np.float64), axis=0)).max() < 1e-5
    assert np.abs(found.mean - np.c_[x, y].mean(axis=0, dtype=np.float64)).max() < 1e-6
    exact = similarity.linear_cka(JointMoments.of(x.astype(np.float64), y.astype(np.float64)))
    assert abs(similarity.linear_cka(found) - exact) < 1e-5
    raw = np.square(x).sum(axis=0) / len(x) - np.square(x.mean(axis=0))
    assert np.abs(raw - 1).max() > 1


def test_weights_are_how_often_the_rows_of_a_shard_count():
    x, y = _rows(120)
    shift = np.zeros(12)
    parts = [slice(0, 30), slice(30, 70), slice(70, 120)]
    shards = [JointMoments.of(x[part], y[part], shift) for part in parts]
    found = JointMoments.weighted(shards, [2, 0, 3])
    rows = np.concatenate(
        [np.arange(120)[part] for part, times in zip(parts, (2, 0, 3), strict=True) for _ in range(times)]
    )
    assert found.n == len(rows) == 210
    assert _far(found, x[rows], y[rows]) < 1e-9


def test_moments_about_different_shifts_are_not_added():
    x, y = _rows(50)
    with pytest.raises(ValueError, match="different shifts"):
        JointMoments.weighted([JointMoments.of(x[:20], y[:20]), JointMoments.of(x[20:], y[20:])])


def test_swapped_moments_are_those_of_the_rows_swapped():
    x, y = _rows(mean=2.0)
    found = JointMoments.of(x, y).swapped()
    assert (found.p, found.q) == (5, 7)
    assert _far(found, y, x) < 1e-9
    assert np.allclose(found.mean_x, y.mean(axis=0))
    assert np.allclose(found.mean_y, x.mean(axis=0))


def test_moments_of_no_rows_are_empty():
    found = JointMoments(3, 2)
    found.add(np.zeros((0, 3)), np.zeros((0, 2)))
    assert found.n == 0
    assert not found.scatter().any()
    assert JointMoments.weighted([found, JointMoments(3, 2)]).n == 0
