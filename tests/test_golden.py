"""Reference values on planted data, computed by other implementations (scipy, statsmodels, ckatorch, rsatoolbox, netrep
and closed forms), each within its own tolerance."""

from collections.abc import Iterator
from functools import cache

import numpy as np
import pytest
import scipy.sparse
from planted import Planted, planted
from planted_pairs import all_edges, code_pair, hits, planted_zero

from hubsae import maps, matching
from hubsae import similarity as si
from hubsae.cooccurrence import CodePair, correlation_blocks
from hubsae.joint_moments import JointMoments

DIGEST = "3129540dd36a7127"
GOLDEN = {  # name: (value, tolerance)
    "procrustes.rel_err_Q": (0.21345395451903754, 1e-06),
    "procrustes.rho_fit": (0.5896970893576597, 1e-06),
    "procrustes.scale_fit": (1.140115390040995, 1e-06),
    "procrustes.r2_fit": (0.3477426571968958, 1e-06),
    "procrustes.r2_eval": (0.3449409033541295, 1e-06),
    "ridge_1e-3.r2_eval": (0.440023482925993, 1e-06),
    "procrustes_64to48.rho": (0.5475480662410374, 1e-06),
    "cka.linear.biased.n600": (0.4295434343660152, 1e-06),
    "cka.linear.debiased.n600": (0.3928326991832352, 1e-06),
    "cka.linear.biased.all": (0.40266539989999817, 1e-06),
    "cka.linear.debiased.all": (0.40126548665818784, 1e-06),
    "cka.rbf_median.biased.n600": (0.4432402705441347, 1e-06),
    "cka.rbf_median.debiased.n600": (0.38090471939595677, 1e-06),
    "cka.minibatch256": (0.40112494722409875, 0.005),
    "cca.mean_rho": (0.5740567838221977, 1e-06),
    "cca.mean_rho2": (0.392281584121945, 1e-06),
    "pwcca.paper": (0.5938677364668333, 1e-06),
    "svcca99.mean_rho": (0.5704642275482207, 1e-06),
    "svcca99.dims": (61.0, 0),
    "cca.mean_rho.fit": (0.5743267139569608, 1e-06),
    "cca.mean_rho.heldout": (0.571826322678271, 1e-06),
    "cos_aligned.true_pairs.mean": (0.9652693512005925, 1e-06),
    "cos_raw.true_pairs.mean": (0.004827267809759983, 1e-06),
    "act_corr.true_pairs.mean": (0.9374003911182079, 1e-06),
    "match.cos_raw.top1_many_to_one.precision": (0.008333333333333333, 1e-09),
    "match.cos_raw.top1_many_to_one.recall": (0.0125, 1e-09),
    "match.cos_raw.mnn.precision": (0.008064516129032258, 1e-09),
    "match.cos_raw.mnn.recall": (0.00625, 1e-09),
    "match.cos_raw.hungarian.precision": (0.004166666666666667, 1e-09),
    "match.cos_raw.hungarian.recall": (0.00625, 1e-09),
    "match.cos_raw.hungarian_reject.precision": (0.0, 1e-09),
    "match.cos_raw.hungarian_reject.recall": (0.0, 1e-09),
    "match.cos_aligned.top1_many_to_one.precision": (0.6666666666666666, 1e-09),
    "match.cos_aligned.top1_many_to_one.recall": (1.0, 1e-09),
    "match.cos_aligned.mnn.precision": (0.8938547486033519, 1e-09),
    "match.cos_aligned.mnn.recall": (1.0, 1e-09),
    "match.cos_aligned.hungarian.precision": (0.6666666666666666, 1e-09),
    "match.cos_aligned.hungarian.recall": (1.0, 1e-09),
    "match.cos_aligned.hungarian_reject.precision": (0.9937888198757764, 1e-09),
    "match.cos_aligned.hungarian_reject.recall": (1.0, 1e-09),
    "match.act_corr.top1_many_to_one.precision": (0.6666666666666666, 1e-09),
    "match.act_corr.top1_many_to_one.recall": (1.0, 1e-09),
    "match.act_corr.mnn.precision": (0.9467455621301775, 1e-09),
    "match.act_corr.mnn.recall": (1.0, 1e-09),
    "match.act_corr.hungarian.precision": (0.6666666666666666, 1e-09),
    "match.act_corr.hungarian.recall": (1.0, 1e-09),
    "match.act_corr.hungarian_reject.precision": (0.9937888198757764, 1e-09),
    "match.act_corr.hungarian_reject.recall": (1.0, 1e-09),
    "split.one_to_one_hits_a_half": (1.0, 1e-09),
    "split.backward_top1_finds_both": (1.0, 1e-09),
    "split.corr_single": (0.6610876126043345, 1e-06),
    "split.corr_sum_of_halves": (0.9419565065110669, 1e-06),
    "null_max_cos_q95.d64.m1024": (0.46369336967071384, 1e-06),
    "null_max_cos_q95.d128.m4096": (0.3619201214248835, 1e-06),
    "null_max_cos_q95.d512.m16384": (0.19795246828186008, 1e-06),
    "null_max_cos_q95.d768.m32768": (0.1672050591171077, 1e-06),
    "null_max_cos_q95.d1024.m4096": (0.13122593760084122, 1e-06),
    "null_max_cos_q95.d2048.m32768": (0.10278252485614596, 1e-06),
    "null.max_corr.rare3_of_20000_vs_2000": (0.6185, 0.1),
    "rsa.spearman_euclid.n150": (0.4301675774746074, 1e-06),
}


def _correlations(codes: CodePair) -> np.ndarray:
    found = np.concatenate([scores for _, scores in correlation_blocks(codes)], axis=1)
    return np.where(np.isfinite(found), found, 0)


def _held_out(d: Planted) -> CodePair:
    late = d.document >= 120
    return code_pair(d.codes_a[late], d.codes_b[late], d.document[late])


def _maps(d: Planted) -> Iterator[tuple[str, float]]:
    early = d.document < 120
    fit, held = (JointMoments.of(d.x[rows], d.y[rows]) for rows in (early, ~early))
    found, map_ = maps.procrustes_fit(fit), maps.procrustes(fit)
    error = np.linalg.norm(found.rotation - d.rotation) / np.linalg.norm(d.rotation)
    yield from (("procrustes.rel_err_Q", float(error)), ("procrustes.rho_fit", found.rho))
    yield from (("procrustes.scale_fit", found.scale), ("procrustes.r2_fit", maps.r2(map_, fit)))
    yield from (
        ("procrustes.r2_eval", maps.r2(map_, held)),
        ("ridge_1e-3.r2_eval", maps.r2(maps.ridge(fit, 1e-3), held)),
    )
    narrow = planted(3, 64, 48)
    yield "procrustes_64to48.rho", maps.procrustes_fit(JointMoments.of(narrow.x, narrow.y)).rho
    canonical = maps.canonical(fit)
    yield "cca.mean_rho.fit", float(canonical.rho.mean())
    yield "cca.mean_rho.heldout", float(canonical.correlations(held).mean())


def _similarities(d: Planted) -> Iterator[tuple[str, float]]:
    every, few = JointMoments.of(d.x, d.y), JointMoments.of(d.x[:600], d.y[:600])
    for name, debiased in (("biased", False), ("debiased", True)):
        yield f"cka.linear.{name}.n600", si.linear_cka(few, debiased)
        yield f"cka.linear.{name}.all", si.linear_cka(every, debiased)
        yield f"cka.rbf_median.{name}.n600", si.rbf_cka(d.x[:600], d.y[:600], debiased)
    yield "cka.minibatch256", si.minibatch_cka(d.x, d.y, 256)
    rho = maps.canonical(every).rho
    yield from (("cca.mean_rho", float(rho.mean())), ("cca.mean_rho2", float(np.square(rho).mean())))
    yield from (("pwcca.paper", si.pwcca(every)), ("svcca99.mean_rho", si.mean_canonical(every, 0.99)))
    yield "svcca99.dims", maps.canonical(every, 0.99).dims[0]
    yield "rsa.spearman_euclid.n150", si.rsa(d.x[:150], d.y[:150])


def _matchings(d: Planted) -> Iterator[tuple[str, float]]:
    early, shared = d.document < 120, np.flatnonzero(d.partner >= 0)
    rotation = maps.procrustes_fit(JointMoments.of(d.x[early], d.y[early])).rotation
    width, size_b = d.decoder_a.shape[1], len(d.decoder_b)
    by_chance = si.best_cosine_by_chance(width, size_b)
    scores = {
        "cos_raw": (matching.unit(d.decoder_a) @ matching.unit(d.decoder_b).T, by_chance),
        "cos_aligned": (matching.unit(d.decoder_a @ rotation) @ matching.unit(d.decoder_b).T, by_chance),
        "act_corr": (_correlations(_held_out(d)), 0.1),
    }
    for name, (matrix, threshold) in scores.items():
        edges = all_edges(matrix)
        yield f"{name}.true_pairs.mean", float(matrix[shared, d.partner[shared]].mean())
        for way, chosen in (
            ("top1_many_to_one", edges.best()),
            ("mnn", matching.mutual(edges)),
            ("hungarian", matching.one_to_one(edges, -2)),
            ("hungarian_reject", matching.one_to_one(edges, threshold)),
        ):
            right = int(hits(d, edges.a[chosen], edges.b[chosen]).sum())
            yield f"match.{name}.{way}.precision", right / max(1, chosen.sum())
            yield f"match.{name}.{way}.recall", right / len(shared)


def _split() -> Iterator[tuple[str, float]]:
    d = planted(12, n_split=40)
    halved = np.flatnonzero(d.second >= 0)
    edges = all_edges(_correlations(_held_out(d)))
    chosen = edges.where(matching.one_to_one(edges, 0.1))
    partner = np.full(len(d.partner), -1)
    partner[chosen.a] = chosen.b
    yield (
        "split.one_to_one_hits_a_half",
        float(np.mean((partner[halved] == d.partner[halved]) | (partner[halved] == d.second[halved]))),
    )
    backward = edges.where(edges.best(of_b=True))
    best = np.full(len(d.decoder_b), -1)
    best[backward.b] = backward.a
    both = (best[d.partner[halved]] == halved) & (best[d.second[halved]] == halved)
    yield "split.backward_top1_finds_both", float(both.mean())
    matrix = edges.score.reshape(len(d.partner), -1)
    yield "split.corr_single", float(matrix[halved, d.partner[halved]].mean())
    late = d.document >= 120
    sums = d.codes_b[late][:, d.partner[halved]] + d.codes_b[late][:, d.second[halved]]
    together = _correlations(code_pair(d.codes_a[late][:, halved], sums, d.document[late]))
    yield "split.corr_sum_of_halves", float(np.diag(together).mean())


def _chance() -> Iterator[tuple[str, float]]:
    for d, m in ((64, 1024), (128, 4096), (512, 16384), (768, 32768), (1024, 4096), (2048, 32768)):
        yield f"null_max_cos_q95.d{d}.m{m}", si.best_cosine_by_chance(d, m)
    rng = np.random.default_rng(0)
    a, b = (_rare(rng, size) for size in (400, 2000))
    best = _correlations(CodePair(a, b, np.zeros(20_000, int))).max(axis=1)
    yield "null.max_corr.rare3_of_20000_vs_2000", float(np.mean(best > 0.3))


def _rare(rng: np.random.Generator, size: int) -> scipy.sparse.csc_matrix:
    """Features that fire three times in 20,000 places, like nothing else."""
    places = np.concatenate([rng.choice(20_000, 3, replace=False) for _ in range(size)])
    return scipy.sparse.csc_matrix((np.ones(3 * size), (places, np.repeat(np.arange(size), 3))), shape=(20_000, size))


@cache
def figures() -> dict[str, float]:
    """All of them, by our functions."""
    d = planted_zero()
    return dict([*_maps(d), *_similarities(d), *_matchings(d), *_split(), *_chance()])


def test_the_planted_data_are_those_of_the_reference_values():
    assert planted_zero().digest() == DIGEST


def test_every_reference_value_is_looked_at():
    assert len(GOLDEN) == 60
    assert set(figures()) == set(GOLDEN)


@pytest.mark.parametrize("name", GOLDEN)
def test_a_figure_is_that_of_the_reference(name: str):
    value, tolerance = GOLDEN[name]
    assert abs(figures()[name] - value) <= tolerance
