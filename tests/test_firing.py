"""Running sums of firing equal those of all values at once."""

import numpy as np
import scipy.sparse

from hubsae.choose import Places
from hubsae.firing import BINS, Firing


def places(code: np.ndarray) -> Places:
    matrix = scipy.sparse.csr_matrix(code)
    return Places(matrix.indptr, matrix.indices, matrix.data, code.shape[1])


def test_any_division_into_batches_gives_the_numbers_of_all_rows():
    rng = np.random.default_rng(0)
    code = np.where(rng.random((500, 12)) < 0.2, rng.lognormal(size=(500, 12)) * 10.0 ** np.arange(-3, 9), 0)
    code = code.astype(np.float32)
    code[:, 5] = 0
    code[:100] *= 1e-3  # so that ranges have to grow, by many doublings for some
    firing = Firing(12)
    for part in np.array_split(code, 7):
        firing.add(places(part))
    fires = code > 0
    assert firing.n_tokens == 500
    assert (firing.n_active == fires.sum(axis=0)).all()
    np.testing.assert_allclose(firing.maximum, code.max(axis=0))
    for f in range(12):
        values = code[fires[:, f], f].astype(np.float64)
        if not len(values):
            assert firing.mean[f] == firing.std[f] == firing.histogram[f].sum() == 0
            continue
        np.testing.assert_allclose([firing.mean[f], firing.std[f]], [values.mean(), values.std()], rtol=1e-6)
        assert firing.top[f] / 2 <= firing.maximum[f] < firing.top[f]
        expected, _ = np.histogram(values, BINS, (0, firing.top[f]))
        assert (firing.histogram[f] == expected).all()
