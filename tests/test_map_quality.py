from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from conftest import random_sae
from planted_pairs import code_pair, observed_of, planted_zero

from hubsae import map_quality, maps
from hubsae.align_config import AlignConfig
from hubsae.joint_moments import JointMoments
from hubsae.map_quality import measure_map, top_k_overlap
from hubsae.maps import LinearMap
from hubsae.paired_rows import Rows
from hubsae.verification import _compared

CONFIG = AlignConfig(n_shifts=39, n_shuffles=9, n_bootstraps=50)


@cache
def _measured() -> dict[tuple, dict]:
    """Every metric of planted(0) in single precision, by name, method and direction."""
    d = planted_zero()
    seen = observed_of(d)
    x, y = (rows.astype(np.float32) for rows in (seen.rows.x, seen.rows.y))
    seen = replace(seen, rows=Rows(x, y, seen.rows.document, seen.rows.word))
    fit = JointMoments.weighted(seen.fit)
    forward = {name: maps.fitted(name, fit, seen.match) for name in maps.METHODS}
    backward = {name: maps.fitted(name, fit.swapped(), seen.match.swapped()) for name in maps.METHODS}
    rows = map_quality.measure_maps(seen, forward, backward, (random_sae(64), random_sae(64)), CONFIG)
    return {(row["name"], row.get("method"), row["direction"]): row for row in rows}


def _values(name: str) -> list[float]:
    return [row["value"] for key, row in _measured().items() if key[0] == name]


def test_every_number_of_a_map_has_a_meaning_and_lies_in_its_interval():
    assert {key[0] for key in _measured()} <= set(map_quality.MEASURES)
    assert sum(key[0] == "r2" for key in _measured()) == 6
    for row in _measured().values():
        if row.get("lo") is not None:
            assert row["lo"] <= row["value"] <= row["hi"]


def test_planted_activations_are_explained_as_far_as_the_reference_says():
    assert abs(_measured()["r2", "procrustes", "a->b"]["value"] - 0.345) < 0.02
    assert abs(_measured()["r2", "ridge", "a->b"]["value"] - 0.44) < 0.02
    assert abs(_measured()["cka", None, "both"]["value"] - 0.40) < 0.02
    assert all(value > 0.3 for value in _values("retrieval_at_1"))
    for key, row in _measured().items():
        if key[0] == "r2":
            assert row["p"] == 1 / 40
            assert row["null_q95"] < 0.05


def test_a_map_fitted_on_documents_that_do_not_belong_together_explains_nothing():
    assert len(_values("r2_shifted_fit")) == 6
    assert max(_values("r2_shifted_fit")) <= 0.02
    assert min(_values("r2_shifted_fit")) > -0.04  # procrustes and svcca, unlike ridge, do not shrink noise away
    assert abs(_measured()["r2_shifted_fit", "ridge", "a->b"]["value"]) < 0.02


def test_svcca_holds_on_other_documents_and_pwcca_weighs_it():
    fit, held = (_measured()[name, None, "both"] for name in ("svcca_fit", "svcca_held_out"))
    assert abs(fit["value"] - 0.5705) < 0.02
    assert abs(held["value"] - fit["value"]) < 0.03
    assert fit["null_mean"] < 0.2
    assert abs(_values("pwcca")[0] - 0.594) < 0.02


def test_going_there_and_back_explains_less_than_all_and_a_random_sae_less_still():
    for row in _measured().values():
        if row["name"] == "ev_round_trip":
            other = _measured()["ev_transferred", row["method"], row["direction"]]
            assert 0 < row["value"] < 1
            assert other["value"] < row["value"]


def _world(seed: int, context: float, n: int = 4000) -> tuple[Rows, LinearMap]:
    """Rows of 40 words in 50 documents; what is beyond the word is common to both sides so far as `context` says."""
    rng = np.random.default_rng(seed)
    word, document = rng.integers(0, 40, n), np.repeat(np.arange(50), n // 50)
    meaning, beyond = rng.standard_normal((40, 8))[word], rng.standard_normal((n, 8))
    x = meaning + beyond + 3
    y = meaning + context * beyond + (1 - context) * rng.standard_normal((n, 8)) - 2
    return Rows(x, y, document, word), maps.ridge(JointMoments.of(x, y), 1e-6)


def _number(rows: Rows, map_: LinearMap, name: str) -> dict:
    return next(row for row in measure_map(rows, map_, CONFIG, {}) if row["name"] == name)


def test_context_excess_is_nothing_where_rows_of_a_word_are_exchangeable():
    rows, map_ = _world(0, 0.0)
    found = _number(rows, map_, "context_excess")
    assert abs(found["value"]) < 0.02
    assert _number(rows, map_, "r2")["value"] > 0.25


def test_context_excess_is_what_the_rows_of_a_word_share_beyond_it():
    rows, map_ = _world(0, 1.0)
    found = _number(rows, map_, "context_excess")
    assert found["lo"] > 0.3
    whole, inside = _number(rows, map_, "r2"), _number(rows, map_, "r2_within_word")
    assert np.isclose(found["value"], whole["value"] - inside["value"], atol=0.01)


def test_words_that_occur_once_say_nothing_about_context():
    rows, map_ = _world(0, 1.0)
    alone = Rows(rows.x, rows.y, rows.document, np.arange(len(rows)))
    assert not map_quality.shared_words(alone).any()
    assert not {"context_excess", "r2_within_word"} & {row["name"] for row in measure_map(alone, map_, CONFIG, {})}


def test_a_row_is_never_paired_with_itself_but_always_with_one_of_its_word():
    rng = np.random.default_rng(0)
    words = np.repeat(rng.permutation(30), rng.integers(2, 9, 30))
    rng.shuffle(words)
    for _ in range(20):
        order = map_quality._moved_within(words, rng)
        assert np.array_equal(np.sort(order), np.arange(len(words)))
        assert (words[order] == words).all()
        assert (order != np.arange(len(words))).all()


def test_unrelated_rows_are_retrieved_as_often_as_chance_has_it():
    rng = np.random.default_rng(1)
    rows, map_ = _world(1, 1.0)
    other = Rows(rows.x, rng.standard_normal(rows.y.shape), rows.document, rows.word)
    found = _number(other, map_, "retrieval_at_1")
    assert found["null_mean"] == 1 / 1000
    assert found["value"] <= 0.005
    assert _number(rows, map_, "retrieval_at_1")["value"] > 0.9
    assert _number(other, map_, "r2")["p"] > 0.05 or _number(other, map_, "r2")["value"] < 0


def test_shifted_rows_explain_what_a_direct_computation_says():
    rows, map_ = _world(2, 0.5)
    found = map_quality._shifted_r2(rows, map_, 5, np.random.default_rng(7))
    by = np.random.default_rng(7).integers(200, 3800, 5)
    total = np.square(rows.y - map_.mean_y).sum()
    wanted = [1 - np.square(np.roll(rows.y, b, axis=0) - map_(rows.x)).sum() / total for b in by]
    assert np.allclose(found, wanted)


@pytest.mark.parametrize("identical", [True, False])
def test_the_largest_features_are_the_partners_where_codes_are_identical_and_chance_where_they_are_moved(identical):
    rng = np.random.default_rng(0)
    a = np.where(rng.random((2000, 60)) < 0.2, rng.random((2000, 60)) + 0.1, 0)
    order = rng.permutation(60)
    b = np.zeros_like(a)
    b[:, order] = a if identical else np.roll(a, 700, axis=0)
    found = top_k_overlap(code_pair(a, b, np.arange(2000) // 40), (np.arange(60), order), CONFIG)
    if identical:
        assert found["value"] == found["lo"] == found["hi"] == 1
        assert found["p"] == 1 / 20
    else:
        assert abs(found["value"] - found["null_mean"]) < 0.02
    assert 0.1 < found["null_mean"] < 0.25


def test_the_overlap_is_that_of_a_direct_count_and_missing_without_pairs():
    rng = np.random.default_rng(1)
    a, b = (np.where(rng.random((300, 20)) < 0.5, rng.random((300, 20)), 0) for _ in range(2))
    ids = np.arange(0, 20, 2), rng.permutation(20)[:10]
    partner, right, asked = dict(zip(*(i.tolist() for i in ids), strict=True)), 0, 0
    for za, zb in zip(a, b, strict=True):
        top_a, top_b = (set(np.argsort(-z)[: min(10, int((z > 0).sum()))].tolist()) for z in (za, zb))
        known = [partner[i] for i in top_a if i in partner]
        right, asked = right + sum(j in top_b for j in known), asked + len(known)
    codes = code_pair(a, b, np.arange(300) // 10)
    assert np.isclose(top_k_overlap(codes, ids, CONFIG)["value"], right / asked)
    none = np.zeros(0, int)
    assert top_k_overlap(codes, (none, none), CONFIG)["value"] is None


def test_leaving_groups_out_gives_intervals_that_hold_the_mean():
    rng, held, groups = np.random.default_rng(0), [], []
    for _ in range(60):
        x = rng.standard_normal((200, 2)) + 1
        groups = [JointMoments.of(x[i::10], x[i::10], np.zeros(4)) for i in range(10)]
        _, low, high = map_quality._jackknifed(groups, lambda m: float(m.mean[0]))
        held.append(low <= 1 <= high)
    assert 0.85 <= np.mean(held) <= 1
    assert np.isnan(map_quality._jackknifed(groups[:2], lambda m: m.n)[1:]).all()


def test_a_fresh_value_is_compatible_within_both_uncertainties_and_inside_within_one():
    value, low, high = np.array([0.5, 0.5, 0.5, 0.5]), np.full(4, 0.4), np.full(4, 0.55)
    fresh = np.array([0.54, 0.58, 0.36, np.nan])
    found = _compared(value, low, high, fresh, fresh - 0.1, fresh + 0.1)
    assert found["inside"].tolist() == [True, False, False, False]
    assert found["compatible"].tolist() == [True, True, True, False]
    assert not _compared(value, low, high, fresh + 0.3, fresh + 0.29, fresh + 0.31)["compatible"].any()
