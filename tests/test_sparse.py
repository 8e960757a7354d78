import mlx.core as mx
import numpy as np
import pytest

from hubsae import sparse
from hubsae.errors import ConfigError
from hubsae.sparsity import ReLU, TopK, from_dict


def numpy_top_k(pre: np.ndarray, k: int) -> np.ndarray:
    return -np.sort(-pre, axis=-1)[..., :k]


@pytest.mark.parametrize("n_features", [1, 7, 64, 1000, 1024])
@pytest.mark.parametrize("k", [1, 5, 32, 2000])
def test_top_k_finds_the_k_largest_in_order(n_features, k):
    pre = np.random.default_rng(n_features + k).standard_normal((3, 4, n_features)).astype(np.float32)
    indices, values = sparse.top_k(mx.array(pre), k)
    assert np.array_equal(np.array(values), numpy_top_k(pre, k))
    assert np.array_equal(np.take_along_axis(pre, np.array(indices), -1), np.array(values))


def test_ties_give_exactly_k_different_features():
    indices, values = sparse.top_k(mx.ones((2, 1024)), 32)
    assert values.shape == (2, 32)
    assert all(len(set(row)) == 32 for row in np.array(indices).tolist())


@pytest.mark.parametrize("rule", [TopK(5), ReLU()])
def test_sparse_and_differentiable_codes_agree(rule):
    pre = mx.array(np.random.default_rng(0).standard_normal((6, 200)).astype(np.float32))
    assert mx.array_equal(rule.sparse(pre).dense(), rule(pre))


@pytest.mark.parametrize("rule", [TopK(3), TopK(200)])
def test_of_equal_entries_as_many_are_kept_as_make_k(rule):
    pre = mx.array(np.round(np.random.default_rng(0).standard_normal((20, 100))).astype(np.float32))
    kept = np.array(mx.sum(rule(pre) > 0, axis=1))
    assert np.array_equal(kept, np.minimum(rule.k, np.array(mx.sum(pre > 0, axis=1))))
    assert np.array_equal(kept, np.diff(rule.places(np.array(pre), np.zeros(100, np.float32), {}).starts))


def test_top_k_drops_what_is_negative():
    code = TopK(3).sparse(mx.array([[-1.0, 2.0, -3.0, -4.0]]))
    assert code.dense().tolist() == [[0.0, 2.0, 0.0, 0.0]]
    assert code.active_counts().tolist() == [0, 1, 0, 0]


def test_sparse_decode_is_the_dense_product():
    rng = np.random.default_rng(1)
    code = TopK(8).sparse(mx.array(rng.standard_normal((2, 5, 300)).astype(np.float32)))
    W_dec = mx.array(rng.standard_normal((300, 16)).astype(np.float32))
    assert np.allclose(np.array(sparse.decode(code, W_dec)), np.array(code.dense() @ W_dec), atol=1e-5)


def test_the_path_of_accelerators_decodes_the_same(monkeypatch):
    rng = np.random.default_rng(2)
    code = TopK(4).sparse(mx.array(rng.standard_normal((7, 64)).astype(np.float32)))
    W_dec = mx.array(rng.standard_normal((64, 9)).astype(np.float32))
    here = np.array(sparse.decode(code, W_dec))
    monkeypatch.setattr(sparse.backend, "is_cpu", lambda: False)
    assert np.allclose(np.array(sparse.decode(code, W_dec)), here, atol=1e-5)


def test_the_gradient_of_top_k_goes_through_the_chosen_entries_only():
    pre = mx.array(np.random.default_rng(3).standard_normal((4, 50)).astype(np.float32))
    gradient = mx.grad(lambda p: mx.sum(mx.square(TopK(5)(p))))(pre)
    assert np.allclose(np.array(gradient), 2 * np.array(TopK(5)(pre)), atol=1e-6)


@pytest.mark.parametrize("settings", [{"name": "topk"}, {"name": "topk", "k": 0}, {"name": "new"}, {"k": 3}])
def test_an_unknown_or_incomplete_rule_is_refused(settings):
    with pytest.raises(ConfigError, match=r"sparsity|k=0"):
        from_dict(settings)


def test_a_rule_survives_its_config():
    for rule in (TopK(7), ReLU()):
        assert from_dict(rule.to_dict()) == rule
