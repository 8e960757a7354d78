"""NumPy's exponentials mean the same as MLX's, in every place where a model uses them, and leave nothing behind."""

from threading import Event, Thread

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from architectures import SETTINGS, VOCAB, build

from hubsae import vectorised
from hubsae.errors import BackendError, DataError

x = mx.array(np.random.default_rng(0).standard_normal((3, 50, 70)).astype(np.float32) * 4)
FUNCTIONS = {
    "exp": lambda: mx.exp(x),
    "tanh": lambda: mx.tanh(x),
    "sigmoid": lambda: mx.sigmoid(x),
    "softmax": lambda: mx.softmax(x, axis=-1),
    "precise softmax": lambda: mx.softmax(x, axis=-1, precise=True),
    "softmax of all": lambda: mx.softmax(x),
    "softmax of the first axis": lambda: mx.softmax(x, axis=0),
    "logsumexp": lambda: mx.logsumexp(x, axis=-1),
    "logsumexp kept": lambda: mx.logsumexp(x, axis=-1, keepdims=True),
    "gelu": lambda: nn.gelu(x),
    "gelu_approx": lambda: nn.gelu_approx(x),
    "silu": lambda: nn.silu(x),
    "of a strided array": lambda: mx.exp(x[:, ::2].swapaxes(0, 2)),
    "of a number": lambda: mx.exp(mx.array(1.5)),
    "half precision": lambda: mx.tanh(x.astype(mx.float16)),
    "whole numbers": lambda: mx.exp(mx.arange(4)),
}


@pytest.fixture(autouse=True)
def everywhere(monkeypatch):
    monkeypatch.setattr(vectorised, "useful", lambda: True)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_agree(name):
    expected = FUNCTIONS[name]()
    with vectorised.exponentials():
        found = FUNCTIONS[name]()
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    assert np.allclose(np.array(found), np.array(expected), rtol=4e-6, atol=1e-6 if "gelu" in name else 1e-30)


@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (4, 1)])
@pytest.mark.parametrize("lengths", [(7, 7), (300, 300), (1, 9), (130, 200)])
@pytest.mark.parametrize("mask", [None, "causal", "bool", "added"])
def test_attention_agrees(heads, lengths, mask):
    rng = np.random.default_rng(1)
    (h, groups), (n, m) = heads, lengths
    q, k, v = (
        mx.array(rng.standard_normal(shape).astype(np.float32))
        for shape in ((2, h, n, 8), (2, groups, m, 8), (2, groups, m, 6))
    )
    if mask == "bool":
        mask = (mx.array(rng.random((n, m))) < 0.7) | (mx.arange(m) == 0)
    elif mask == "added":
        mask = mx.array(rng.standard_normal((2, 1, n, m)).astype(np.float32))

    def attention():
        return mx.fast.scaled_dot_product_attention(q, k, v, scale=0.3, mask=mask)

    expected = attention()
    with vectorised.exponentials():
        found = attention()
    assert np.allclose(np.array(found), np.array(expected), atol=2e-6)


@pytest.mark.parametrize("name", SETTINGS)
def test_every_architecture_computes_the_same(name):
    model = build(name)
    tokens = mx.array(np.random.default_rng(2).integers(0, VOCAB, (2, 20)))
    expected = np.array(model(tokens).astype(mx.float32))
    with vectorised.exponentials():
        found = np.array(model(tokens).astype(mx.float32))
    assert np.allclose(found, expected, atol=1e-4 * np.abs(expected).max())


def test_no_gradient_is_taken_through_them():
    with vectorised.exponentials(), pytest.raises(BackendError, match="gradient"):
        mx.grad(lambda a: mx.sum(mx.exp(a)))(x)
    assert mx.grad(lambda a: mx.sum(mx.exp(a)))(mx.array(0.0)).item() == pytest.approx(1)


def test_everything_is_put_back_also_after_an_error():
    def functions() -> list:
        return [getattr(module, name) for module, name in (*vectorised._REPLACED, *vectorised._REFUSED)]

    before = functions()
    with pytest.raises(DataError):
        fail_inside(before, functions)
    assert functions() == before


def test_they_can_be_used_twice_at_once_and_by_several_threads():
    def functions() -> list:
        return [getattr(module, name) for module, name in (*vectorised._REPLACED, *vectorised._REFUSED)]

    before, compiled = functions(), mx.compile(lambda a: mx.exp(a) + 1)
    entered, leave, found = Event(), Event(), []

    def other() -> None:
        with vectorised.exponentials():
            entered.set()
            leave.wait(10)

    with vectorised.exponentials(), vectorised.exponentials():
        assert mx.exp is not before[0]
    assert functions() == before
    thread = Thread(target=other)
    thread.start()
    entered.wait(10)
    found.append(mx.grad(lambda a: mx.sum(mx.exp(a)))(mx.array(0.0)).item())  # of this thread nothing is refused
    with vectorised.exponentials():
        found.append(compiled(mx.array(0.0)).item())
        leave.set()
        thread.join()
        found.append(compiled(mx.array(0.0)).item())
    assert found == [pytest.approx(1), pytest.approx(2), pytest.approx(2)]
    assert functions() == before


@pytest.mark.filterwarnings("error")
def test_extreme_numbers_are_as_quiet_and_as_exact_as_in_mlx():
    far = mx.array([-np.inf, -100.0, -80.0, -20.0, -1e-3, 0.0, 30.0, 100.0, np.inf], dtype=mx.float32)
    rows = mx.array([[-np.inf, -np.inf], [1.0, -np.inf], [np.inf, 0.0]], dtype=mx.float32)
    functions = [
        lambda: mx.sigmoid(far),
        lambda: mx.exp(far),
        lambda: mx.tanh(far),
        lambda: mx.logsumexp(rows, axis=-1),
    ]
    functions += [lambda: mx.softmax(rows[1:2], axis=-1), lambda: mx.softmax(mx.zeros((3, 0)), axis=-1)]
    functions += [lambda: mx.exp(mx.zeros((0, 4)))]
    for function in functions:
        expected = np.array(function())
        with vectorised.exponentials():
            found = np.array(function())
        assert np.allclose(found, expected, rtol=2e-6, atol=1e-38, equal_nan=True)


def fail_inside(before, functions) -> None:
    with vectorised.exponentials():
        assert not set(functions()) & set(before)
        raise DataError("stop")
