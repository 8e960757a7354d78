"""NumPy's exponentials in the place of MLX's while a language model is read on an x86 processor.

MLX computes exp, tanh and what is made of them one number at a time there, 20 to 30 times slower than NumPy, and most
of the time of a small model goes into them. `exponentials` puts functions of the same meaning in their place for as
long as it is open. They evaluate what they are given, so it is for passes whose results are wanted at once, and no
gradient goes through them: what takes one is refused meanwhile.
"""

import os
import platform
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import get_ident
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from hubsae import backend, threads
from hubsae.errors import BackendError

_ROWS = 128  # of queries at once, so that their scores stay in the cache
_SCORES = 1 << 17
_SLICE_VALUES = 1 << 15
_ERF_SCALE, _ERF_SERIES = 0.3275911, (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592)
_GELU_SLOPE, _GELU_CUBE = (2 / np.pi) ** 0.5, 0.044715


def useful() -> bool:
    """Whether NumPy computes these functions faster: on x86 processors."""
    return backend.is_cpu() and platform.machine().lower() in ("x86_64", "amd64")


def _put_in_place() -> Callable[[], None]:
    """Put NumPy's functions in the place of MLX's; returns what puts them back."""
    kept = [(module, name, getattr(module, name)) for module, name in (*_REPLACED, *_REFUSED)]
    mx.disable_compile()  # a compiled function would keep the operations that it was made of
    for module, name, original in kept:
        new = _REPLACED.get((module, name))
        setattr(module, name, _in_place_of(original, new) if new else _refusing(original))

    def put_back() -> None:
        for module, name, original in kept:
            setattr(module, name, original)
        if "MLX_DISABLE_COMPILE" not in os.environ:
            mx.enable_compile()

    return put_back


_in_place = threads.Shared(_put_in_place)
_readers: Counter[int] = Counter()  # how often each thread is inside


@contextmanager
def exponentials() -> Iterator[None]:
    """While it is open NumPy computes exponentials, for this thread; what it cannot do is passed on to MLX.

    Nothing happens where it would be no use. Other threads go on with MLX's functions, but uncompiled.
    """
    if not useful():
        yield
        return
    me = get_ident()
    _readers[me] += 1
    try:
        with _in_place, threads.alone(), np.errstate(all="ignore"):
            yield
    finally:
        _readers[me] -= 1


def _in_place_of(original: Callable[..., Any], function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` of NumPy arrays where all arrays are fp32, else `original`."""

    def call(*args: Any, **settings: Any) -> Any:
        arrays = [a for a in (*args, *settings.values()) if isinstance(a, mx.array)]
        fit = args and isinstance(args[0], mx.array) and all(a.dtype in (mx.float32, mx.bool_) for a in arrays)
        if not fit or not all(a.size for a in arrays) or not _readers[get_ident()]:
            return original(*args, **settings)
        given = [np.array(a, copy=None) if isinstance(a, mx.array) else a for a in args]
        named = {k: np.array(a, copy=None) if isinstance(a, mx.array) else a for k, a in settings.items()}
        found = function(*given, **named)
        return original(*args, **settings) if found is None else mx.array(found)

    return call


def _refusing(original: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **settings: Any) -> Any:
        if _readers[get_ident()]:
            raise BackendError("no gradient can be taken while NumPy computes a model's exponentials")
        return original(*args, **settings)

    return call


def _quiet(work: Callable[[slice], None]) -> Callable[[slice], None]:
    """Without NumPy's warnings of numbers that are not finite, of which MLX says nothing; each thread has its own."""

    def call(part: slice) -> None:
        with np.errstate(all="ignore"):
            work(part)

    return call


def _each(function: Callable[[np.ndarray, np.ndarray], Any]) -> Callable[..., np.ndarray | None]:
    """A function of one number for all of an array; `function` writes results for a slice of it to its second."""

    def call(x: np.ndarray, **settings: Any) -> np.ndarray | None:
        if settings.pop("stream", None) is not None or settings:
            return None
        flat = np.ascontiguousarray(x).reshape(-1)
        out = np.empty_like(flat)

        work = _quiet(lambda part: function(flat[part], out[part]))
        threads.in_slices(flat.size, _SLICE_VALUES, 8 * flat.size, work)
        return out.reshape(x.shape)

    return call


def _sigmoid(x: np.ndarray, out: np.ndarray) -> None:
    np.negative(x, out=out)
    np.exp(out, out=out)
    out += 1
    np.reciprocal(out, out=out)


def _gelu(x: np.ndarray, out: np.ndarray) -> None:
    """x (1 + erf(x / sqrt 2)) / 2 with erf from Abramowitz and Stegun 7.1.26, whose error is at most 1.5e-7."""
    near = np.abs(x)
    near *= 0.5**0.5
    np.multiply(near, -near, out=out)
    np.exp(out, out=out)
    near *= _ERF_SCALE
    near += 1
    np.reciprocal(near, out=near)
    series = near * _ERF_SERIES[0]
    for factor in _ERF_SERIES[1:]:
        series += factor
        series *= near
    out *= series
    np.subtract(1, out, out=out)
    np.copysign(out, x, out=out)
    out += 1
    out *= x
    out *= 0.5


def _gelu_approx(x: np.ndarray, out: np.ndarray) -> None:
    np.multiply(x, x, out=out)
    out *= _GELU_CUBE
    out += 1
    out *= x
    out *= _GELU_SLOPE
    np.tanh(out, out=out)
    out += 1
    out *= x
    out *= 0.5


def _softmax(x: np.ndarray, axis: Any = None, **settings: Any) -> np.ndarray | None:
    settings.pop("precise", None)
    if settings or axis not in (-1, x.ndim - 1):
        return None
    rows = np.ascontiguousarray(x).reshape(-1, x.shape[-1])
    out = np.empty_like(rows)

    work = _quiet(lambda part: _normalise(rows[part], out[part]))
    threads.in_slices(len(rows), _SLICE_VALUES // rows.shape[1], 8 * rows.size, work)
    return out.reshape(x.shape)


def _logsumexp(x: np.ndarray, axis: Any = None, keepdims: bool = False, **settings: Any) -> np.ndarray | None:
    if settings or axis not in (-1, x.ndim - 1):
        return None
    rows = np.ascontiguousarray(x).reshape(-1, x.shape[-1])
    out = np.empty((len(rows), 1), x.dtype)

    @_quiet
    def work(part: slice) -> None:
        most = rows[part].max(axis=1, keepdims=True)
        most[np.isinf(most)] = 0
        out[part] = np.log(np.exp(rows[part] - most).sum(axis=1, keepdims=True)) + most

    threads.in_slices(len(rows), _SLICE_VALUES // rows.shape[1], 8 * rows.size, work)
    return out.reshape(*x.shape[:-1], *([1] if keepdims else []))


def _normalise(scores: np.ndarray, out: np.ndarray) -> None:
    np.subtract(scores, scores.max(axis=-1, keepdims=True), out=out)
    np.exp(out, out=out)
    out /= out.sum(axis=-1, keepdims=True)


def _attention(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    *,
    scale: float,
    mask: Any = None,
    sinks: Any = None,
    stream: Any = None,
) -> np.ndarray | None:
    """q (b, h, n, d), k and v (b, h / r, m, d) -> (b, h, n, d); queries stand at the end of the keys."""
    causal = isinstance(mask, str)
    if sinks is not None or stream is not None or (causal and (mask != "causal" or q.shape[2] > k.shape[2])):
        return None
    (b, h, n, d), (groups, m) = q.shape, k.shape[1:3]
    q, k, v = q.reshape(b * h, n, d), k.reshape(b * groups, m, d), v.reshape(b * groups, m, -1)
    given = None if mask is None or causal else np.broadcast_to(mask, (b, h, n, m))
    shared = np.arange(b * h) // (h // groups)  # the keys that belong to each head
    out = np.empty((b * h, n, v.shape[-1]), np.float32)

    @_quiet
    def work(heads: slice) -> None:
        keys, values = k[shared[heads]], v[shared[heads]]
        for rows in threads.spans(n, _ROWS):
            stop = m - n + rows.stop if causal else m
            scores = (q[heads, rows] * np.float32(scale)) @ keys[:, :stop].swapaxes(1, 2)
            if causal:
                size = rows.stop - rows.start
                scores[..., stop - size :] += _LATER[:size, :size]
            elif given is not None:
                _apply(np.stack([given[divmod(i, h)][rows] for i in range(heads.start, heads.stop)]), scores)
            _normalise(scores, scores)
            np.matmul(scores, values[:, :stop], out=out[heads, rows])

    threads.in_slices(b * h, _SCORES // (min(n, _ROWS) * m), 8.0 * b * h * n * m, work)
    return out.reshape(b, h, n, -1)


_LATER = np.triu(np.full((_ROWS, _ROWS), -np.inf, np.float32), k=1)


def _apply(mask: np.ndarray, scores: np.ndarray) -> None:
    if mask.dtype == bool:
        scores[~mask] = np.finfo(np.float32).min
    else:
        scores += mask


_REPLACED: dict[tuple[Any, str], Callable[..., Any]] = {
    (mx, "exp"): _each(np.exp),
    (mx, "tanh"): _each(np.tanh),
    (mx, "sigmoid"): _each(_sigmoid),
    (mx, "softmax"): _softmax,
    (mx, "logsumexp"): _logsumexp,
    (mx.fast, "scaled_dot_product_attention"): _attention,
    (nn, "gelu"): _each(_gelu),
    (nn, "gelu_approx"): _each(_gelu_approx),
}
_REFUSED = [(mx, name) for name in ("grad", "value_and_grad", "vjp", "jvp")] + [(nn, "value_and_grad")]
