"""Relations of features against their definitions, and groups against planted ones."""

import numpy as np
import pytest
import scipy.sparse

from hubsae import relations
from hubsae.errors import DataError
from hubsae.relations import LEAST_TOGETHER


@pytest.fixture(scope="module")
def code():
    rng = np.random.default_rng(0)
    dense = np.where(rng.random((800, 30)) < 0.1, rng.random((800, 30)) + 0.1, 0)
    dense[:, 1] = np.where(rng.random(800) < 0.9, dense[:, 0], 0)
    dense[:, 7] = 0
    return scipy.sparse.csr_matrix(dense.astype(np.float32))


def correlations(code) -> np.ndarray:
    fires = code.toarray() > 0
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.nan_to_num(np.corrcoef(fires.T.astype(float)))


def test_phi_is_the_correlation_of_firing(code):
    fires = (code.toarray() > 0).astype(int)
    n1 = fires.sum(axis=0)
    np.testing.assert_allclose(
        relations.phi(fires.T @ fires, n1[:, None], n1[None], 800), correlations(code), atol=1e-12
    )


def test_cofiring_lists_the_largest_phi_with_their_counts(code, monkeypatch):
    monkeypatch.setattr(relations, "_BLOCK_VALUES", 30 * 8)  # several blocks
    columns = relations.cofiring(code, 5)
    fires = (code.toarray() > 0).astype(int)
    both, phi = fires.T @ fires, correlations(code)
    phi = np.where((both >= LEAST_TOGETHER) & ~np.eye(30, dtype=bool), phi, -1)
    for f in range(30):
        expected = [i for i in np.argsort(-phi[f], kind="stable")[:5] if phi[f, i] > 0]
        ids = columns["cofiring_ids"][f][: len(expected)]
        assert len(set(ids)) == len(expected) == (columns["cofiring_ids"][f] >= 0).sum()
        np.testing.assert_allclose(columns["cofiring_phi"][f][: len(expected)], phi[f, expected], rtol=1e-5)
        np.testing.assert_allclose(phi[f, ids], phi[f, expected], rtol=1e-9)  # some are equal
        assert columns["cofiring_counts"][f][: len(expected)].tolist() == both[f, ids].tolist()
    assert columns["cofiring_ids"][0][0] == 1
    assert (columns["cofiring_ids"][7] == -1).all()
    scores, counts = relations.phi_to(code, 0)
    assert counts[1] == both[0, 1]
    assert scores[1] == pytest.approx(phi[0, 1])


def test_similar_rows_are_those_with_the_largest_cosine(monkeypatch):
    monkeypatch.setattr(relations, "_BLOCK_VALUES", 40 * 7)
    rows = np.random.default_rng(0).standard_normal((40, 6)).astype(np.float32)
    rows[9] = 0
    columns = relations.similar(rows, 4)
    norms = np.linalg.norm(rows, axis=1)
    cosine = rows @ rows.T / np.maximum(norms[:, None] * norms, 1e-30)
    np.fill_diagonal(cosine, -1)
    for f in range(40):
        expected = [i for i in np.argsort(-cosine[f], kind="stable")[:4] if cosine[f, i] > 0]
        ids = columns["similar_ids"][f]
        assert ids[ids >= 0].tolist() == expected
        np.testing.assert_allclose(columns["similar_cosine"][f][: len(expected)], cosine[f, expected], atol=1e-6)
    np.testing.assert_allclose(relations.cosines_to(rows, 3)[:3], cosine[3, :3], atol=1e-6)


def test_planted_groups_are_found_with_their_centres_and_chains_are_not_joined():
    rng = np.random.default_rng(0)
    centres = np.linalg.qr(rng.standard_normal((20, 20)))[0][:3]
    rows = np.concatenate([centres, *(c + 0.08 * rng.standard_normal((5, 20)) for c in centres)]).astype(np.float32)
    rows = np.concatenate([rows, rng.standard_normal((4, 20)).astype(np.float32)])
    groups = relations.star_clusters(relations.decoder_pairs(rows, 0.8), np.arange(len(rows)))
    assert sorted(map(sorted, groups)) == [[i, *range(3 + 5 * i, 8 + 5 * i)] for i in range(3)]
    angles = np.arange(0, 6) * 0.4
    chain = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    pairs = relations.decoder_pairs(chain, 0.9)
    for group in relations.star_clusters(pairs, np.arange(6)):
        for member in group[1:]:
            assert chain[group[0]] @ chain[member] >= 0.9 - 1e-6
    assert not relations.star_clusters(pairs, np.array([0, 5]))


def test_groups_by_cofiring_come_from_phi(code):
    pairs = relations.cofiring_pairs(code, 0.5)
    found = relations.star_clusters(pairs, np.arange(30))
    assert [sorted(group) for group in found] == [[0, 1]]


def test_too_many_pairs_are_refused(monkeypatch):
    monkeypatch.setattr(relations, "_MAX_PAIRS", 10)
    with pytest.raises(DataError, match="raise min_similarity"):
        relations.decoder_pairs(np.ones((10, 3), np.float32), 0.5)
