import numpy as np
import pytest
import scipy.optimize
from planted_pairs import all_edges

from hubsae import matching
from hubsae.errors import ConfigError
from hubsae.matching import Edges


def _some(rng: np.random.Generator, n_a: int, n_b: int, share: float, rounded: bool) -> Edges:
    """Random scores of a share of all pairs; rounded, there are many ties."""
    scores = rng.standard_normal((n_a, n_b))
    edges = all_edges(np.round(scores, 1) if rounded else scores)
    return edges.where(rng.random(len(edges)) < share)


def _dense(edges: Edges, shape: tuple[int, int], threshold: float) -> float:
    """The best sum of (score - threshold) of any one-to-one pairing: Hungarian on the whole matrix, with reject."""
    worth = np.zeros(shape)
    worth[edges.a, edges.b] = np.maximum(edges.score - threshold, 0)
    return float(worth[scipy.optimize.linear_sum_assignment(worth, maximize=True)].sum())


@pytest.mark.parametrize("rounded", [False, True])
@pytest.mark.parametrize("share", [0.02, 0.1, 1.0])
def test_one_to_one_by_components_is_the_assignment_of_the_whole_matrix_with_reject(share, rounded):
    rng = np.random.default_rng(0)
    for shape in ((40, 60), (60, 40), (1, 30), (30, 30)):
        edges = _some(rng, *shape, share, rounded)
        for threshold in (-2.0, 0.0, 0.5, 1.9, 9.0):
            chosen = edges.where(matching.one_to_one(edges, threshold))
            assert len(np.unique(chosen.a)) == len(np.unique(chosen.b)) == len(chosen)
            assert (chosen.score > threshold).all()
            assert np.isclose(np.sum(chosen.score - threshold), _dense(edges, shape, threshold))


def test_without_ties_one_to_one_chooses_the_very_pairs_of_the_dense_assignment():
    rng = np.random.default_rng(1)
    edges = _some(rng, 50, 50, 1.0, False)
    worth = np.maximum(edges.score.reshape(50, 50) - 0.7, 0)
    rows, columns = scipy.optimize.linear_sum_assignment(worth, maximize=True)
    wanted = {(i, j) for i, j in zip(rows, columns, strict=True) if worth[i, j] > 0}
    chosen = edges.where(matching.one_to_one(edges, 0.7))
    assert set(zip(chosen.a.tolist(), chosen.b.tolist(), strict=True)) == wanted


def test_a_component_too_large_to_assign_takes_mutual_neighbours(monkeypatch):
    edges = _some(np.random.default_rng(2), 30, 30, 1.0, False)
    monkeypatch.setattr(matching, "_LARGEST", 100)
    above = edges.score > 0.1
    assert np.array_equal(matching.one_to_one(edges, 0.1), matching.mutual(edges) & above)


@pytest.mark.parametrize("rounded", [False, True])
def test_mutual_pairs_are_each_others_best(rounded):
    edges = _some(np.random.default_rng(3), 40, 30, 1.0, rounded)
    scores = edges.score.reshape(40, 30)
    chosen = edges.where(matching.mutual(edges))
    assert len(chosen)
    assert len(np.unique(chosen.a)) == len(np.unique(chosen.b)) == len(chosen)
    assert np.array_equal(scores.argmax(axis=1)[chosen.a], chosen.b)  # of equal ones the first, as argmax has it
    assert np.array_equal(scores.argmax(axis=0)[chosen.b], chosen.a)


def test_the_best_and_the_ranks_of_a_feature_are_those_of_its_scores():
    edges = _some(np.random.default_rng(4), 20, 25, 0.5, False)
    for of_b, own in ((False, edges.a), (True, edges.b)):
        rank = edges.rank(of_b)
        assert np.array_equal(rank == 0, edges.best(of_b))
        for feature in np.unique(own):
            mine = own == feature
            assert np.array_equal(np.argsort(rank[mine]), np.argsort(-edges.score[mine]))
            assert sorted(rank[mine]) == list(range(mine.sum()))


def _blocks(scores: np.ndarray, size: int):
    for start in range(0, scores.shape[1], size):
        part = slice(start, min(start + size, scores.shape[1]))
        yield part, scores[:, part]


@pytest.mark.parametrize("size", [1, 7, 64, 1000])
@pytest.mark.parametrize("threshold", [None, 1.5])
def test_candidates_are_all_above_the_threshold_and_the_best_few_of_either_side(size, threshold):
    rng = np.random.default_rng(5)
    scores = rng.standard_normal((50, 70)).astype(np.float32)
    scores[rng.random(scores.shape) < 0.3] = -np.inf
    scores[rng.random(scores.shape) < 0.1] = np.nan
    scores[3], scores[:, 9] = -np.inf, np.nan
    clean = np.where(np.isfinite(scores), scores, -np.inf)
    best = np.argsort(-clean, axis=1).argsort(axis=1) < 4
    best |= np.argsort(-clean, axis=0).argsort(axis=0) < 4
    wanted = (best | (clean > (np.inf if threshold is None else threshold))) & np.isfinite(clean)
    found = matching.gathered(_blocks(scores, size), 50, 70, n_best=4, threshold=threshold)
    assert np.array_equal(np.stack([found.a, found.b]), np.stack(np.nonzero(wanted)))
    assert np.array_equal(found.score, scores[wanted])


def test_more_candidates_than_there_are_features_are_all_pairs():
    scores = np.random.default_rng(6).random((3, 5)).astype(np.float32)
    found = matching.gathered(_blocks(scores, 2), 3, 5, n_best=8)
    assert len(found) == 15


@pytest.mark.parametrize("size", [1, 10, 4096])
def test_cosines_by_blocks_are_those_of_all_rows(size, monkeypatch):
    monkeypatch.setattr(matching, "_VALUES_AT_ONCE", 12 * size)
    rng = np.random.default_rng(7)
    a, b = rng.standard_normal((12, 6)), rng.standard_normal((35, 6))
    b[4] = 0
    found = np.concatenate([scores for _, scores in matching.cosine_blocks(a, b)], axis=1)
    wanted = a @ b.T / (np.linalg.norm(a, axis=1)[:, None] * np.maximum(np.linalg.norm(b, axis=1), 1e-300))
    assert np.allclose(found, wanted, atol=1e-6)
    assert not found[:, 4].any()


def test_scores_corrected_for_hubs_are_those_of_the_formula():
    scores = np.random.default_rng(8).standard_normal((30, 40))
    edges = all_edges(scores)
    mean_a = np.sort(scores, axis=1)[:, -10:].mean(axis=1, keepdims=True)
    mean_b = np.sort(scores, axis=0)[-10:].mean(axis=0)
    assert np.allclose(matching.hub_corrected(edges, 10).score.reshape(30, 40), 2 * scores - mean_a - mean_b, atol=1e-5)


def test_a_feature_that_is_close_to_everything_loses_by_the_correction():
    scores = np.full((5, 5), 0.1)
    scores[np.arange(5), np.arange(5)] = 0.5
    scores[:, 4] = 0.6
    edges = all_edges(scores)
    assert (edges.b[edges.best()] == 4).all()
    assert np.array_equal(edges.b[matching.hub_corrected(edges, 3).best()][:4], np.arange(4))


def test_the_pw_mcc_of_a_permuted_dictionary_is_one():
    rng = np.random.default_rng(9)
    rows = rng.standard_normal((20, 10))
    assert np.isclose(matching.pw_mcc(rows, -3 * rows[rng.permutation(20)]), 1)
    assert np.isclose(matching.pw_mcc(rows[:5], rows), 1)
    assert matching.pw_mcc(rows, rng.standard_normal((20, 10))) < 0.8


def test_every_feature_has_the_first_fate_that_holds_it():
    found = matching.fates(6, {"dead": [0], "matched": np.array([0, 2]), "lost": [2, 3], "other": []})
    assert found.tolist() == ["dead", "other", "matched", "lost", "other", "other"]


def test_no_pairs_make_no_trouble():
    empty = Edges(np.zeros(0, int), np.zeros(0, int), np.zeros(0, np.float32))
    for way in matching.MATCHINGS:
        assert matching.matched(empty, way, 0.1).shape == (0,)
    assert empty.rank().shape == (0,)
    assert len(matching.hub_corrected(empty)) == 0
    assert len(matching.gathered(iter([]), 3, 4)) == 0
    with pytest.raises(ConfigError, match="one_to_one, mutual"):
        matching.matched(empty, "greedy", 0.1)
