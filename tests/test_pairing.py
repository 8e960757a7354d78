from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import scipy.sparse
from planted import Planted, planted
from planted_pairs import code_pair, hits, observed_of, planted_zero

from hubsae import pairing
from hubsae.align_config import CRITERIA, AlignConfig
from hubsae.cooccurrence import CodePair
from hubsae.errors import DataError
from hubsae.joint_moments import JointMoments
from hubsae.maps import fitted
from hubsae.matching import MATCHINGS, Edges
from hubsae.paired_rows import Observed
from hubsae.pairing import Paired, false_discovery_rates, pair_up

_FEW = AlignConfig(n_shuffles=9, n_bootstraps=50, n_refits=2)  # draws, where their number does not matter


def _paired(d: Planted, seen: Observed | None = None, **settings) -> Paired:
    seen, config = seen or observed_of(d), replace(_FEW, **settings)
    map_ = fitted(config.method, JointMoments.weighted(seen.fit), seen.match)
    return pair_up(seen, d.decoder_a, d.decoder_b, map_, config)


@cache
def _by_default() -> tuple[Observed, Paired]:
    """planted(0) with all draws."""
    seen = observed_of(planted_zero())
    return seen, _paired(planted_zero(), seen, n_shuffles=99, n_bootstraps=200, n_refits=50)


def _confirmed(found: Paired) -> tuple[np.ndarray, np.ndarray]:
    good = found.pairs["confirmed"]
    return found.pairs["feature_a"][good], found.pairs["feature_b"][good]


def _findable(d: Planted, seen: Observed, least: int = 30) -> np.ndarray:
    """Features of A that have a partner and fire often enough, as the partner does."""
    often_a, often_b = (counts >= least for counts in seen.codes["match"].firings)
    return np.flatnonzero((d.partner >= 0) & often_a & often_b[d.partner])


def test_planted_pairs_that_fire_often_enough_are_found_and_no_others():
    d, (seen, found) = planted_zero(), _by_default()
    a, b = _confirmed(found)
    assert hits(d, a, b).mean() >= 0.95
    assert np.isin(_findable(d, seen), a[hits(d, a, b)]).mean() >= 0.95
    assert len(_findable(d, seen)) >= 100


@pytest.mark.parametrize("matching", MATCHINGS)
@pytest.mark.parametrize("criterion", CRITERIA)
def test_every_criterion_and_matching_finds_the_planted_pairs(criterion, matching):
    d, seen = planted_zero(), _by_default()[0]
    a, b = _confirmed(_paired(d, seen, criterion=criterion, matching=matching))
    assert len(np.unique(a)) == len(np.unique(b)) == len(a)
    assert hits(d, a, b).mean() >= 0.95
    assert np.isin(_findable(d, seen), a[hits(d, a, b)]).mean() >= 0.95


def test_dead_and_rare_features_are_never_paired():
    d, (seen, found) = planted_zero(), _by_default()
    for ids, dead, counts, total, fate in (
        (found.pairs["feature_a"], d.dead_a, seen.codes["match"].firings[0], seen.fires()[0], found.fate_a),
        (found.pairs["feature_b"], d.dead_b, seen.codes["match"].firings[1], seen.fires()[1], found.fate_b),
    ):
        assert not np.isin(ids, dead).any()
        assert (counts[ids] >= 30).all()
        assert set(np.flatnonzero(fate == "dead")) == set(np.flatnonzero(total == 0))
        assert set(dead) <= set(np.flatnonzero(fate == "dead"))
        assert set(np.flatnonzero(fate == "too_rare")) == set(np.flatnonzero((counts < 30) & (total > 0)))


def test_every_feature_has_one_of_the_fates_and_matched_are_the_confirmed():
    _, found = _by_default()
    for fate, ids in zip((found.fate_a, found.fate_b), _confirmed(found), strict=True):
        assert set(fate) <= set(pairing.FATES)
        assert np.array_equal(np.flatnonzero(fate == "matched"), np.sort(ids))


def test_what_is_said_of_pairs_is_what_the_eval_split_says():
    seen, found = _by_default()
    pairs, codes = found.pairs, seen.codes["eval"]
    a, b = (m.toarray().astype(np.float64) for m in (codes.a, codes.b))
    assert len({len(column) for column in pairs.values()}) == 1
    for k in range(0, len(pairs["feature_a"]), 9):
        za, zb = a[:, pairs["feature_a"][k]], b[:, pairs["feature_b"][k]]
        together, either = np.sum((za > 0) & (zb > 0)), np.sum((za > 0) | (zb > 0))
        assert np.isclose(pairs["corr_eval"][k], np.corrcoef(za, zb)[0, 1], atol=1e-6)
        assert (pairs["n_fire_a"][k], pairs["n_fire_b"][k]) == (np.sum(za > 0), np.sum(zb > 0))
        assert pairs["n_cofire"][k] == together
        assert np.isclose(pairs["jaccard_eval"][k], together / either)
        assert np.isclose(pairs["gain"][k], za @ zb / (za @ za), atol=1e-5)
        assert pairs["corr_eval_lo"][k] <= pairs["corr_eval"][k] <= pairs["corr_eval_hi"][k]
    assert (pairs["p"] >= 1 / 200).all()
    assert (pairs["q_bh"] >= pairs["p"] - 1e-12).all()
    assert (pairs["corr_docshift_q99"] < 0.3).all()
    assert np.abs(pairs["cos_map"]).max() <= 1 + 1e-9
    assert (pairs["degree_a"] >= 1).all()
    assert (pairs["degree_b"] >= 1).all()


def _strangers(seed: int) -> Planted:
    """Two models that have nothing to do with each other, read at the same places."""
    one, other = (planted(s, n_documents=100, rows_each=60) for s in (seed, seed + 100))
    return replace(one, y=other.y, codes_b=other.codes_b, decoder_b=other.decoder_b)


@cache
def _seen_strangers(seed: int) -> tuple[Planted, Observed]:
    d = _strangers(seed)
    return d, observed_of(d)


@pytest.mark.parametrize("matching", MATCHINGS)
@pytest.mark.parametrize("criterion", CRITERIA)
def test_of_independent_dictionaries_hardly_a_pair_is_confirmed(criterion, matching):
    confirmed, features = 0, 0
    for seed in range(1, 3):
        d, seen = _seen_strangers(seed)
        found = _paired(d, seen, criterion=criterion, matching=matching, n_refits=1)
        confirmed += int(found.pairs["confirmed"].sum())
        features += int((seen.codes["match"].firings[0] >= 30).sum())
    assert features > 180
    assert confirmed <= 0.01 * features


def test_pairs_that_never_fire_together_are_not_confirmed_however_rare_that_is():
    rng, n, m = np.random.default_rng(0), 100_000, 80

    def rare() -> scipy.sparse.csc_matrix:
        places = np.concatenate([rng.choice(n, 30, replace=False) for _ in range(m)])
        values = np.exp(0.5 * rng.standard_normal(30 * m)).astype(np.float32)
        return scipy.sparse.csc_matrix((values, (places, np.repeat(np.arange(m), 30))), shape=(n, m))

    codes, words = CodePair(rare(), rare(), np.arange(n) // 100), np.zeros(n, int)
    pairs = Edges(np.arange(m), np.arange(m), np.ones(m))
    found = pairing._judged(pairs, codes, codes, words, _FEW, rng)
    apart = found["n_cofire"] == 0
    assert apart.sum() > 60
    assert (found["p"][apart] == 1).all()
    assert not found["confirmed"][apart].any()


def _blurred(d: Planted, seed: int = 5) -> Planted:
    """Seven firings of ten lost on either side, as many others added."""
    rng = np.random.default_rng(seed)

    def lost(codes: np.ndarray) -> np.ndarray:
        extra = (rng.random(codes.shape) < 0.01) & codes.any(axis=0)
        return codes * (rng.random(codes.shape) > 0.7) + extra * np.exp(0.5 * rng.standard_normal(codes.shape))

    return replace(d, codes_a=lost(d.codes_a), codes_b=lost(d.codes_b))


def test_where_pairs_are_hard_to_see_two_criteria_that_agree_are_right_and_find_fewer():
    d = _blurred(planted(1, noise=2.0, n_documents=150))
    seen, found = observed_of(d), {}
    for criterion in CRITERIA:
        a, b = _confirmed(_paired(d, seen, criterion=criterion, n_refits=1))
        found[criterion] = hits(d, a, b).mean(), hits(d, a, b).sum() / (d.partner >= 0).sum()
    assert found["both"][0] >= 0.98
    assert 0.2 < found["both"][1] < min(found["correlation"][1], found["cosine"][1])
    assert found["both"][1] < 0.8


def _disordered(d: Planted, share: float, seed: int = 0) -> Planted:
    """B's codes and rows with a share of the places exchanged at random."""
    rng = np.random.default_rng(seed)
    order, moved = np.arange(len(d.x)), np.flatnonzero(rng.random(len(d.x)) < share)
    order[moved] = rng.permutation(moved)
    return replace(d, y=d.y[order], codes_b=d.codes_b[order])


@pytest.mark.parametrize("criterion", CRITERIA)
def test_invariance_is_a_share_that_falls_when_the_data_are_shuffled(criterion):
    d = planted(1, n_documents=60, rows_each=60, noise=0.5)
    settings = {"criterion": criterion, "n_refits": 6, "min_firings": 10, "min_cofirings": 3, "n_shifts": 39}
    clean, shuffled = (_paired(_disordered(d, share), **settings).pairs["invariance"] for share in (0, 0.9))
    for found in (clean, shuffled):
        assert ((found >= 0) & (found <= 1)).all()
    assert clean.mean() > 0.85
    assert shuffled.sum() < 0.2 * clean.sum()
    if len(shuffled):  # of the little that is left
        assert shuffled.mean() < clean.mean() - 0.1


def test_a_given_threshold_is_kept_and_the_same_seed_gives_the_same_pairs():
    d, (seen, _) = planted_zero(), _by_default()
    one, two = (_paired(d, seen, threshold=0.5, n_shifts=39) for _ in range(2))
    assert one.thresholds["correlation"] == 0.5
    assert (one.pairs["corr_match"] > 0.5).all()
    for name, column in one.pairs.items():
        assert np.array_equal(column, two.pairs[name], equal_nan=True)
    assert not len(_paired(d, seen, threshold=0.999, n_shifts=39).pairs["feature_a"])


def test_pairs_need_features_that_fire_often_enough():
    d = planted(2, n_documents=30, rows_each=20)
    with pytest.raises(DataError, match="give more texts"):
        _paired(d, min_firings=200)


@pytest.mark.parametrize("seed", range(3))
def test_false_discovery_rates_are_those_of_benjamini_and_hochberg(seed):
    from scipy.stats import false_discovery_control

    rng = np.random.default_rng(seed)
    p = np.ceil(rng.random(60) ** 3 * 200) / 200
    found = false_discovery_rates(p)
    direct = [min(1, min(x * 60 / np.sum(p <= x) for x in p[p >= own])) for own in p]
    assert np.allclose(found, direct)
    assert np.allclose(found, false_discovery_control(p))
    assert false_discovery_rates(np.zeros(0)).shape == (0,)


def test_codes_of_one_document_are_paired_without_intervals():
    a = (np.random.default_rng(0).random((400, 5)) < 0.2).astype(float)
    codes = code_pair(a, a, np.zeros(400, int))
    pairs = Edges(np.arange(5), np.arange(5), np.ones(5))
    found = pairing._judged(pairs, codes, codes, np.zeros(400, int), _FEW, np.random.default_rng(0))
    assert np.allclose(found["corr_eval"], 1)
    assert np.isnan([found["corr_eval_lo"], found["corr_eval_hi"]]).all()
