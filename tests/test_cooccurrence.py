import numpy as np
import pytest
import scipy.sparse
from planted_pairs import code_pair

from hubsae import cooccurrence
from hubsae.cooccurrence import CodePair, DocumentSums, correlation_blocks


def _codes(n: int = 600, n_a: int = 12, n_b: int = 15, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Sparse codes that go together here and there; feature 0 of either side is dead."""
    rng = np.random.default_rng(seed)
    a = np.where(rng.random((n, n_a)) < rng.uniform(0.02, 0.4, n_a), np.exp(0.5 * rng.standard_normal((n, n_a))), 0)
    b = np.where(rng.random((n, n_b)) < 0.15, np.exp(0.5 * rng.standard_normal((n, n_b))), 0)
    b[:, :n_a] += a * rng.random(n_a)
    a[:, 0], b[:, 0] = 0, 0
    return a.astype(np.float32), b.astype(np.float32)


def _numpys(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(F_A, F_B) Pearson correlations, -inf where one does not vary."""
    alive = np.outer(a.any(axis=0), b.any(axis=0))
    with np.errstate(invalid="ignore", divide="ignore"):
        found = np.corrcoef(a.T.astype(np.float64), b.T.astype(np.float64))[: a.shape[1], a.shape[1] :]
    return np.where(alive, found, -np.inf)


def _all(codes: CodePair, **guards: int) -> np.ndarray:
    return np.concatenate([scores for _, scores in correlation_blocks(codes, **guards)], axis=1)


@pytest.mark.parametrize("values_at_once", [1, 40, 1 << 25])
def test_correlations_by_blocks_are_numpys(values_at_once, monkeypatch):
    monkeypatch.setattr(cooccurrence, "_VALUES_AT_ONCE", values_at_once)
    a, b = _codes()
    found = _all(code_pair(a, b, np.zeros(len(a), int)))
    alive = np.isfinite(_numpys(a, b))
    assert np.array_equal(np.isfinite(found), alive)
    assert np.abs(found[alive] - _numpys(a, b)[alive]).max() < 1e-6


def test_pairs_that_fire_too_seldom_have_no_correlation():
    a, b = _codes()
    found = _all(code_pair(a, b, np.zeros(len(a), int)), min_firings=60, min_cofirings=25)
    fires, together = ((a > 0).sum(0), (b > 0).sum(0)), (a > 0).T.astype(int) @ (b > 0).astype(int)
    wanted = (fires[0] >= 60)[:, None] & (fires[1] >= 60) & (together >= 25)
    assert wanted.any()
    assert not wanted.all()
    assert np.array_equal(np.isfinite(found), wanted)
    assert np.allclose(found[wanted], _numpys(a, b)[wanted], atol=1e-6)


def test_of_features_that_fire_three_times_the_guards_leave_none_that_chance_made_alike():
    rng = np.random.default_rng(0)
    columns = [np.sort(rng.choice(20_000, 3, replace=False)) for _ in range(1100)]
    dense = scipy.sparse.csc_matrix(
        (np.ones(3300, np.float32), np.concatenate(columns), np.arange(0, 3301, 3)), shape=(20_000, 1100)
    )
    codes = CodePair(dense[:, :100], dense[:, 100:], np.zeros(20_000, int))
    assert np.mean(_all(codes).max(axis=1) > 0.3) > 0.2
    assert not np.isfinite(_all(codes, min_firings=30)).any()
    assert not np.isfinite(_all(codes, min_cofirings=10)).any()


def test_dead_features_correlate_with_nothing():
    a, b = _codes()
    codes = code_pair(a, b, np.arange(600) // 30)
    found = _all(codes)
    assert (found[0] == -np.inf).all()
    assert (found[:, 0] == -np.inf).all()
    ids = np.array([0, 0, 5]), np.array([0, 5, 0])
    sums = DocumentSums.of(codes).of_pairs(*ids)
    assert np.isnan(sums.correlations()).all()
    assert np.isnan(np.stack(sums.intervals(50, 0))).all()
    assert np.isnan(
        cooccurrence.rearranged(codes, *ids, cooccurrence.roll_orders(600, 3, np.random.default_rng(0)))
    ).all()


def test_features_that_always_fire_far_from_zero_correlate_as_numpy_says():
    rng = np.random.default_rng(0)
    a = (10 + rng.standard_normal((50_000, 3))).astype(np.float32)
    b = (10 + 0.5 * (a - 10) + rng.standard_normal((50_000, 3))).astype(np.float32)
    codes, ids = code_pair(a, b, np.arange(50_000) // 100), np.arange(3)
    wanted = _numpys(a, b)
    assert np.abs(_all(codes) - wanted).max() < 5e-3  # candidates alone are chosen by these
    assert np.abs(DocumentSums.of(codes).of_pairs(ids, ids).correlations() - np.diag(wanted)).max() < 1e-6
    order = np.arange(50_000)[None]
    assert np.abs(cooccurrence.rearranged(codes, ids, ids, order)[0] - np.diag(wanted)).max() < 1e-6


def test_documents_that_count_several_times_are_those_documents_repeated():
    a, b = _codes()
    document = np.arange(600) // 30
    pairs = np.array([1, 2, 3, 7]), np.array([1, 2, 9, 7])
    weights = np.random.default_rng(0).integers(0, 4, (5, 20))
    found = DocumentSums.of(code_pair(a, b, document)).of_pairs(*pairs).correlations(weights)
    for draw in range(5):
        rows = np.concatenate([np.flatnonzero(document == i) for i in range(20) for _ in range(weights[draw, i])])
        assert np.allclose(found[draw], _numpys(a[rows], b[rows])[pairs], atol=1e-6)


def test_grouped_documents_give_the_same_correlations():
    a, b = _codes()
    codes, ids = code_pair(a, b, np.random.default_rng(0).integers(0, 37, 600)), np.arange(1, 12)
    for groups in (None, 1, 5, 1000):
        assert np.allclose(
            DocumentSums.of(codes, groups).of_pairs(ids, ids).correlations(), np.diag(_numpys(a, b))[1:], atol=1e-6
        )


def test_many_pairs_at_once_are_those_one_by_one(monkeypatch):
    a, b = _codes()
    codes, (i, j) = code_pair(a, b, np.arange(600) // 30), np.indices((12, 15)).reshape(2, -1)
    whole, ends = DocumentSums.of(codes).of_pairs(i, j), DocumentSums.of(codes).of_pairs(i, j).intervals(60, 1)
    together = cooccurrence.counts(codes, i, j)
    monkeypatch.setattr(cooccurrence, "_PAIRS_AT_ONCE", 7)
    assert np.array_equal(DocumentSums.of(codes).of_pairs(i, j).ab.toarray(), whole.ab.toarray())
    assert np.allclose(np.stack(whole.intervals(60, 1)), np.stack(ends), equal_nan=True)
    assert np.array_equal(cooccurrence.counts(codes, i, j), together)
    assert np.array_equal(together, ((a > 0).T.astype(int) @ (b > 0).astype(int)).ravel())


def test_rearranged_correlations_are_those_of_the_permuted_codes():
    a, b = _codes()
    codes, ids = code_pair(a, b, np.arange(600) // 30), np.arange(1, 12)
    rng = np.random.default_rng(0)
    orders = np.stack([rng.permutation(600) for _ in range(4)] + [np.arange(600)])
    found = cooccurrence.rearranged(codes, ids, ids, orders)
    for draw, order in enumerate(orders):
        assert np.allclose(found[draw], np.diag(_numpys(a, b[order]))[1:], atol=1e-6)


def test_codes_moved_on_are_numpys_roll():
    a, b = _codes()
    moved = cooccurrence.rolled(code_pair(a, b, np.arange(600) // 30), 77)
    assert np.array_equal(moved.a.toarray(), a)
    assert np.array_equal(moved.b.toarray(), np.roll(b, -77, axis=0))


def test_orders_that_move_on_are_shifts_by_more_than_a_little():
    orders = cooccurrence.roll_orders(200, 300, np.random.default_rng(0))
    by = orders[:, 0]
    assert np.array_equal(orders, (np.arange(200)[None] + by[:, None]) % 200)
    assert by.min() >= 10
    assert by.max() <= 190
    assert len(np.unique(by)) > 100
    assert cooccurrence.roll_orders(1, 3, np.random.default_rng(0)).shape == (3, 1)


def test_orders_within_classes_exchange_places_of_one_class_alone():
    rng = np.random.default_rng(0)
    classes = rng.integers(0, 9, 300)
    classes[17] = 99
    orders = cooccurrence.class_orders(classes, 40, rng)
    assert (np.sort(orders, axis=1) == np.arange(300)).all()
    assert (classes[orders] == classes).all()
    assert (orders[:, 17] == 17).all()
    stays = np.mean(orders == np.arange(300))
    assert abs(stays - 10 / 300) < 0.01  # each class leaves one in its place on average
    assert len({tuple(order) for order in orders.tolist()}) == 40


def _clustered(rng: np.random.Generator, n_documents: int, m: int = 60, rows_each: int = 30) -> CodePair:
    """m independent pairs of features that fire by document, and agree in some documents more than in others."""
    document = np.repeat(np.arange(n_documents), rows_each)
    shape = (n_documents, m)
    activity, agreement = rng.gamma(1, 1, shape)[document], rng.random(shape)[document]
    fires = rng.random((len(document), m)) < np.minimum(0.2 * activity, 0.9)
    a = fires * np.exp(0.3 * rng.standard_normal(fires.shape))
    own = (rng.random(fires.shape) < 0.2) * np.exp(0.3 * rng.standard_normal(fires.shape))
    return code_pair(a, np.where(rng.random(fires.shape) < agreement, a, own), document)


def test_intervals_over_documents_hold_the_truth_where_those_over_tokens_do_not():
    rng, ids = np.random.default_rng(0), np.arange(60)
    truth = np.median(DocumentSums.of(_clustered(rng, 3000, 6)).of_pairs(ids[:6], ids[:6]).correlations())
    held, over_tokens, widths = [], [], []
    for _ in range(6):
        codes = _clustered(rng, 80)
        sums = DocumentSums.of(codes).of_pairs(ids, ids)
        low, high = sums.intervals(200, 0)
        z, half = np.arctanh(sums.correlations()), 1.96 / np.sqrt(codes.n - 3)
        held.append((low <= truth) & (truth <= high))
        over_tokens.append((np.tanh(z - half) <= truth) & (truth <= np.tanh(z + half)))
        widths.append((high - low) / (np.tanh(z + half) - np.tanh(z - half)))
    assert 0.88 <= np.mean(held) <= 0.99
    assert np.mean(over_tokens) < 0.8
    assert np.median(widths) > 1.3
