"""Entries of a matrix: which are chosen, and that all kinds of `Entries` obey the laws of the matrix they stand for."""

from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from hubsae import choose, entries, threads

SHAPES = [(1, 3, 1, 2), (40, 64, 5, 7), (300, 1000, 30, 33), (5, 130, 200, 4)]  # rows, features, k, width


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def dense(places: choose.Places) -> np.ndarray:
    return entries.Ragged(places).dense(0.0)


@pytest.fixture(params=[1, 3])
def on_threads(request, monkeypatch):
    monkeypatch.setattr(threads, "SMALL", 0)
    monkeypatch.setattr(threads, "n_threads", lambda: request.param)


@pytest.mark.usefixtures("on_threads")
@pytest.mark.parametrize("n_features", [1, 2, 7, 64, 100, 1000, 1024, 8192])
@pytest.mark.parametrize("k", [1, 5, 32, 500, 10_000])
@pytest.mark.parametrize("kind", ["normal", "with ties", "hardly positive", "all the same"])
def test_the_k_largest_positive_entries_are_chosen(n_features, k, kind):
    pre = draw(23, n_features)
    if kind == "with ties":
        pre = np.round(pre)
    elif kind == "hardly positive":
        pre = np.where(np.arange(23)[:, None] == 3, pre, -np.abs(pre))
    elif kind == "all the same":
        pre = np.ones_like(pre)
    places = choose.largest(pre.copy(), k)
    assert np.diff(places.starts).max() <= min(k, n_features)
    expected = np.maximum(-np.sort(-pre, axis=1)[:, :k], 0)
    assert np.array_equal(-np.sort(-dense(places), axis=1)[:, :k], expected)
    assert all(
        (np.diff(places.indices[a:b]) > 0).all() for a, b in zip(places.starts[:-1], places.starts[1:], strict=True)
    )


@pytest.mark.usefixtures("on_threads")
def test_a_bias_is_added_on_the_way():
    pre, bias = draw(50, 300), draw(300, seed=1)
    choices = [lambda p, b: choose.largest(p, 9, b), lambda p, b: choose.above(p, 0.5, b)]
    choices += [lambda p, b, n=n: choose.kth_largest(p, n, b)[1] for n in (10, 100, 7000)]
    for choice in choices:
        given = pre.copy()
        assert np.array_equal(dense(choice(given, bias)), dense(choice(pre + bias, None)))
        assert np.array_equal(given, pre + bias)


@pytest.mark.parametrize("bound", [0.0, 1.0, draw(300, seed=2)], ids=["zero", "one", "each its own"])
def test_what_is_above_a_bound_is_found(bound):
    pre = draw(50, 300)
    assert np.array_equal(dense(choose.above(pre, bound)), np.where(pre > bound, pre, 0))


@pytest.mark.parametrize("total", [1, 50, 4000, 7000, 100_000])
@pytest.mark.parametrize("kind", ["normal", "one row has it all", "with ties"])
def test_the_kth_largest_of_a_whole_matrix_is_exact(total, kind):
    pre = draw(60, 250)
    if kind == "one row has it all":
        pre[:] = np.where(np.arange(60)[:, None] == 31, np.abs(pre) + 5, pre / 10)
    elif kind == "with ties":
        pre = np.round(pre)
    kth, places = choose.kth_largest(pre, total)
    positive = np.sort(pre[pre > 0])[::-1]
    expected = positive[min(total, len(positive)) - 1]
    assert kth == expected
    assert np.array_equal(dense(places), np.where(pre >= expected, pre, 0))


def test_values_that_are_not_finite_are_no_reason_to_fall():
    pre = draw(20, 200)
    pre[3] = np.nan
    pre[5, 7] = np.inf
    places = choose.largest(pre, 4)
    assert np.diff(places.starts)[[0, 5]].tolist() == [4, 4]
    assert np.isinf(dense(places)[5, 7])


def kinds(places: choose.Places) -> list[tuple[Any, Any]]:
    """The same matrix as every kind, with what brings an array to it."""
    whole = dense(places)
    indices, values = places.ranked()
    return [
        (entries.Ragged(places), np.asarray),
        (entries.Dense(whole), np.asarray),
        (entries.Dense(mx.array(whole)), mx.array),
        (entries.Fixed(mx.array(indices), mx.array(values), places.n_features), mx.array),
    ]


@pytest.mark.usefixtures("on_threads")
@pytest.mark.parametrize(("n", "n_features", "k", "d"), SHAPES)
@pytest.mark.parametrize("number", range(4))
@pytest.mark.parametrize("stops", ["one", "three"])
def test_products_are_those_of_the_matrix(n, n_features, k, d, number, stops):
    places = choose.largest(draw(n, n_features), k)
    whole, W, rows = dense(places), draw(n_features, d, seed=1), draw(n, d, seed=2)
    some, to = kinds(places)[number]
    cuts = (n_features,) if stops == "one" else (max(1, n_features // 3), max(2, n_features // 2), n_features)
    parts = some.split(cuts)

    def as_matrix(values) -> np.ndarray:
        """(n, F) with values at the entries that are not 0."""
        held = some.holding(values * (some.values != 0))
        return np.array(held.times(to(np.eye(n_features, dtype=np.float32)), to(np.zeros((n, n_features), np.float32))))

    assert np.allclose(np.array(some.times(to(W), to(np.ones((n, d), np.float32)))), 1 + whole @ W, atol=1e-4)
    assert np.allclose(np.array(some.transposed_times(to(rows))), whole.T @ rows, atol=1e-4)
    assert np.allclose(np.array(some.per_feature()), whole.sum(axis=0), atol=1e-4)
    assert np.allclose(as_matrix(some.dots(to(rows), to(W))), (rows @ W.T) * (whole != 0), atol=1e-4)
    assert np.allclose(as_matrix(some.values * 0 + some.at(to(W[:, 0]))), W[:, 0] * (whole != 0), atol=1e-6)
    for part, start, stop in zip(parts, (0, *cuts), cuts, strict=False):
        product = part.times(to(W), to(np.zeros((n, d), np.float32)))
        assert np.allclose(np.array(product), whole[:, start:stop] @ W[start:stop], atol=1e-4)
    joined = some.joined(cuts, [part.dots(to(rows * (i + 1)), to(W)) for i, part in enumerate(parts)])
    factor = np.searchsorted(cuts, np.arange(n_features), side="right") + 1
    assert np.allclose(as_matrix(joined), (rows @ W.T) * factor * (whole != 0), atol=2e-3)


def test_without_scipys_inner_function_the_product_is_the_same(monkeypatch):
    some, W = entries.Ragged(choose.largest(draw(40, 64), 5)), draw(64, 7, seed=1)
    expected = some.times(W, np.zeros((40, 7), np.float32))
    monkeypatch.setattr(entries, "csr_matvecs", None)
    assert np.allclose(some.times(W, np.zeros((40, 7), np.float32)), expected, atol=1e-5)


def test_scratch_memory_is_used_again_and_never_twice_at_once():
    scratch = entries.Scratch()
    one, other = scratch.array((10, 20)), scratch.array((10, 20))
    assert not np.shares_memory(one, other)
    scratch.free()
    assert np.shares_memory(scratch.array((5, 20)), one) or np.shares_memory(scratch.array((5, 20)), other)


def test_padding_puts_the_largest_first():
    places = choose.above(np.array([[0.5, -1, 2, 0], [0, 0, 0, 0], [1, 3, 2, 0.1]], np.float32), 0.0)
    indices, values = places.ranked()
    assert values.tolist() == [[2, 0.5, 0, 0], [0, 0, 0, 0], [3, 2, 1, pytest.approx(0.1)]]
    assert indices[0, :2].tolist() == [2, 0]
    assert indices[2].tolist() == [1, 2, 0, 3]
