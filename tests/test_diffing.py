"""Model diffing on planted data: what one side alone has comes out exclusive, what both have comes out shared."""

import mlx.core as mx
import numpy as np
import pytest

from hubsae.dictionary import DictionaryConfig
from hubsae.diffing import relative_norms
from hubsae.recipe import CrosscoderConfig
from hubsae.train import train

SITES = ("layers.0.residual", "1:layers.0.residual")
WIDTHS = (24, 32)
N_SHARED, N_ALONE = 24, 8


def planted(n: int, seed: int = 0) -> tuple[np.ndarray, list[np.ndarray]]:
    """Rows of two sites of other width and size, and the directions (m, d) at each; 0 where a feature is not there."""
    rng = np.random.default_rng(seed)
    m = N_SHARED + 2 * N_ALONE
    directions = [rng.standard_normal((m, d)) for d in WIDTHS]
    directions = [d / np.linalg.norm(d, axis=1, keepdims=True) for d in directions]
    directions[0][-N_ALONE:] = 0
    directions[1][-2 * N_ALONE : -N_ALONE] = 0
    strength = (rng.random((n, m)) < 3 / m) * rng.uniform(1, 2, (n, m))  # independent: nothing stands for another
    sides = [strength @ d * size + rng.standard_normal(d.shape[1]) for d, size in zip(directions, (1, 50), strict=True)]
    return np.concatenate(sides, axis=1).astype(np.float32), directions


@pytest.mark.parametrize("sparsity", ["topk", "batchtopk", "relu"])
def test_what_one_side_alone_has_is_exclusive_and_the_rest_is_shared(sparsity):
    rows, directions = planted(20_000)
    config = CrosscoderConfig(sparsity=sparsity, batch_size=256)
    config = config.updated(l1_coefficient=0.3) if sparsity == "relu" else config.updated(k=3)
    d = DictionaryConfig(SITES, WIDTHS, SITES, WIDTHS, 64, config.rule().to_dict(), base_models=({}, {}))
    batches = [mx.array(rows[i : i + 256]) for _ in range(5) for i in range(0, len(rows), 256)]
    found = train(batches, 5 * len(rows), d, config)
    norms = relative_norms(found)[:, 1]
    W_dec = np.array(found.W_dec) / np.repeat(found.config.write_scales, WIDTHS)
    truth = np.concatenate([directions[0], directions[1]], axis=1)
    cosines = (truth / np.linalg.norm(truth, axis=1, keepdims=True)) @ (
        W_dec / np.linalg.norm(W_dec, axis=1, keepdims=True)
    ).T
    best, matched = cosines.argmax(axis=1), cosines.max(axis=1) > 0.9
    assert matched.mean() > 0.85
    shared, only_a, only_b = np.split(np.where(matched, norms[best], np.nan), [N_SHARED, N_SHARED + N_ALONE])
    assert np.nanmean((shared > 0.3) & (shared < 0.7)) > 0.5
    assert np.nanmedian(shared) == pytest.approx(0.5, abs=0.1)
    assert (only_a[~np.isnan(only_a)] < 0.1).mean() > 0.8
    assert (only_b[~np.isnan(only_b)] > 0.9).mean() > 0.8
