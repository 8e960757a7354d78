"""The loss of one batch of scaled rows and its gradients in closed form, and the parameters it is a function of.

Everything is written once for NumPy (CPUs) and MLX (accelerators). Where few entries are active nothing of size (n, F)
is made but pre-codes, and of those only a slice of rows at a time. Where many are, as under ReLU at the start, codes
and their derivatives are whole matrices.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import mlx.core as mx
import numpy as np

from hubsae import choose, sparse, threads
from hubsae.distributed import ALONE, Ranks
from hubsae.entries import Array, Entries, Ragged, Scratch, module_of, product, stacked
from hubsae.recipe import SAEConfig
from hubsae.sites import ranges
from hubsae.surrogates import Params, Surrogate, surrogate

_PRE_VALUES = 1 << 26
_AUX_SHARE = 1 / 30  # of the encoder's work, that each product of AuxK may cost


@dataclass(frozen=True)
class Moment:
    """What the loss depends on beside the batch: k, the penalty's factor, prefixes, and ids of dead features (m,)."""

    k: int
    penalty: float
    prefixes: tuple[int, ...]
    dead: np.ndarray | None = None


@dataclass(frozen=True)
class Losses:
    """Parts of the loss of one batch (lazy in MLX): `fvu` of the batch, `l0`, and which features fired (F,).

    `threshold` is what `Surrogate.threshold` says; `n_rows` counts the whole batch, `n_ranks` the processes that
    took part.
    """

    total: Array
    fvu: Array
    l0: Array
    fired: Array
    threshold: Array
    n_rows: int
    n_ranks: Array


def losses(
    params: Params,
    x: Array,
    y: Array,
    config: SAEConfig,
    widths: Sequence[int],
    moment: Moment,
    ranks: Ranks = ALONE,
    scratch: Scratch | None = None,
) -> tuple[Losses, Params]:
    """Loss of scaled rows x (n, d_in), y (n, d_out): FVU (mean over prefixes) + sparsity penalty + AuxK; its gradients.

    The rows' mean squared norm is 1, so squared error per row is the fraction of the data's variance left unexplained.
    `widths` are those of the written sites. Gated dictionaries add the error of the gate's own code under a constant
    decoder (Rajamanoharan et al. 2024, eq. 8). Several `ranks` each bring their rows of the batch and get the sums.
    """
    scratch = scratch or Scratch()
    rule, n = surrogate(config, x.shape[1]), ranks.total(len(x))
    entries = chosen(params, x, rule, moment.k, n, ranks, scratch)
    code = entries.holding(rule.code(entries, params))
    squares, error, by_code, grads = _rebuilt(params, x, y, code, moment.prefixes, n, scratch)
    total, by_pre = _sum(squares) / len(squares), 0.0
    if rule.penalised:
        norms = site_norms(params["W_dec"], widths).sum(axis=1)
        penalty = rule.penalty(entries, code.values, params, norms, n, ranks)
        total = total + moment.penalty * penalty.value
        by_code, by_pre = by_code + moment.penalty * penalty.by_code, moment.penalty * penalty.by_pre
        _add(grads, {name: moment.penalty * g for name, g in penalty.by_own.items()})
        if penalty.by_norms is not None:
            _add(grads, {"W_dec": moment.penalty * penalty.by_norms[:, None] * normal(params["W_dec"], widths)})
    if config.sparsity == "gated":
        gate = entries.holding(module_of(x).maximum(entries.values, 0))
        missing = gate.times(params["W_dec"], beside(params, x) - y)
        total = total + _squared(missing) / n
        by_pre = by_pre + 2 / n * gate.dots(missing, params["W_dec"]) * (entries.values > 0)
    through, by_own = rule.back(entries, by_code, params)
    by_pre = entries.holding(by_pre + through)
    _add(grads, {"W_in": _turned(by_pre, x, scratch), "b_enc": by_pre.per_feature()})
    _add(grads, by_own)
    if moment.dead is not None:
        total = total + _add_aux(grads, params, x, error, config, moment.dead, n, ranks)
    if "W_in" not in params:
        _add(grads, {"W_dec": grads.pop("W_in")})
    grads = {name: ranks.sum(grads[name]) for name in params}
    return _summed(code, total, squares[-1], rule.threshold(code.values), n, ranks), grads


def _rebuilt(
    params: Params, x: Array, y: Array, code: Any, prefixes: Sequence[int], n: int, scratch: Scratch
) -> tuple[list[Array], Array, Array, Params]:
    """FVU of each prefix, y_hat - y (n, d_out), the derivative by the code, and those by the decoder's parameters."""
    W_dec, parts = params["W_dec"], code.split(prefixes)
    errors, error = [], beside(params, x) - y
    for part in parts:  # nested: each prefix adds its part to the one before
        error = part.times(W_dec, error.copy() if errors and isinstance(error, np.ndarray) else error)
        errors.append(error)
    weight, pulls = 2 / (n * len(parts)), list(accumulate(reversed(errors)))[::-1]  # a part is in all later errors too
    both = list(zip(parts, pulls, strict=True))
    grads = {
        "W_dec": _sum([_turned(part.holding(weight * part.values), pull, scratch) for part, pull in both]),
        "b_dec": weight * pulls[0].sum(axis=0),
    }
    if "W_skip" in params:
        grads["W_skip"] = weight * (x.T @ pulls[0])
    by_code = weight * code.joined(prefixes, [part.dots(pull, W_dec) for part, pull in both])
    return [_squared(e) / n for e in errors], errors[-1], by_code, grads


def _summed(code: Any, total: Array, fvu: Array, threshold: Array | float, n: int, ranks: Ranks) -> Losses:
    """The batch's numbers over all processes."""
    active, xp = code.values > 0, module_of(code.values)
    fired = ranks.sum(code.holding(active.astype(code.values.dtype)).per_feature()) > 0
    here = xp.array(1.0)  # counts the processes: one that is lost is not noticed otherwise
    numbers = ranks.sum(xp.stack([total, fvu, active.sum() / n, here]))
    return Losses(numbers[0], numbers[1], numbers[2], fired, ranks.least(xp.array(threshold)), n, numbers[3])


def _add(grads: Params, more: Params) -> None:
    for name, g in more.items():
        grads[name] = grads[name] + g if name in grads else g


def chosen(
    params: Params, x: Array, rule: Surrogate, k: int, n: int, ranks: Ranks = ALONE, scratch: Scratch | None = None
) -> Entries:
    """The entries that count of a batch of n rows, x (n, d_in) being those of this process, with the pre-code."""
    W_in, scratch, found = encoder(params), scratch or Scratch(), []
    scratch.free()
    for part in threads.spans(len(x), _PRE_VALUES // len(W_in)):
        pre = product(x[part], W_in.T, scratch)
        found.append(rule.candidates(pre, params["b_enc"], params, k, n))
        if all(isinstance(part, Ragged) for part in found):
            scratch.free()  # all that counts is copied out
    return rule.settled(stacked(found), k, n, ranks)


def beside(params: Params, x: Array) -> Array:
    """What is written beside the code: (n, d_out) or (d_out,)."""
    return params["b_dec"] + (x @ params["W_skip"] if "W_skip" in params else 0)


def _squared(error: Array) -> Array:
    return (error * error).sum() if isinstance(error, mx.array) else np.vdot(error, error)


def _turned(entries: Entries, rows: Array, scratch: Scratch) -> Array:
    """The transposed matrix times rows; in memory of `scratch` where few entries are added up in NumPy."""
    lent = isinstance(entries, Ragged) and rows.dtype == np.float32
    return entries.transposed_times(rows, scratch.array((entries.n_features, rows.shape[1])) if lent else None)


def _sum(arrays: list[Array]) -> Array:
    return sum(arrays[1:], arrays[0])


def _add_aux(
    grads: Params, params: Params, x: Array, error: Array, config: SAEConfig, dead: np.ndarray, n: int, ranks: Ranks
) -> Array:
    """AuxK (Gao et al. 2024, A.2): the residual, held constant, rebuilt by `dead` features, aux_k of largest pre-code.

    They enter unrectified: a dead feature's pre-code is often negative, and would get no gradient. `error` (n, d_out)
    is y_hat - y. Where many features are dead only every m-th row is taken, so that the term stays cheap. Adds to
    `grads`, returns the term.
    """
    every = max(1, math.ceil(len(dead) / (_AUX_SHARE * len(params["b_enc"]))))
    first = -ranks.share(n).start % every
    x, error = x[first::every], error[first::every]
    n_rows = -(-n // every)
    aux_k = config.aux_k or max(1, x.shape[1] // 2)
    ids = mx.array(dead.astype(np.int32)) if isinstance(x, mx.array) else dead
    code, W_dec = aux_code(params, x, ids, aux_k), params["W_dec"][ids]
    missing = code @ W_dec + error
    weight = config.aux_coefficient * min(len(dead) / aux_k, 1.0)  # fewer dead than aux_k: weaker (EleutherAI)
    by_code = (2 * weight / n_rows) * (missing @ W_dec.T) * (code != 0)
    grads["W_dec"][ids] += (2 * weight / n_rows) * (code.T @ missing)
    grads["W_in"][ids] += by_code.T @ x
    grads["b_enc"][ids] += by_code.sum(axis=0)
    return weight * _squared(missing) / n_rows


def aux_code(params: Params, x: Array, dead: Array, k: int) -> Array:
    """(n, m) pre-codes of the `dead` features with all but each row's k largest set to 0."""
    pre = x @ encoder(params)[dead].T + params["b_enc"][dead]
    if k >= pre.shape[1]:
        return pre
    if isinstance(pre, mx.array):
        kth = mx.min(sparse.top_k(pre, k)[1], axis=-1, keepdims=True)
    else:
        kth = np.concatenate(threads.in_parts(len(pre), pre.size, lambda rows: choose.kth(pre[rows], k)))[:, None]
    return module_of(pre).where(pre >= kth, pre, 0)


def encoder(params: Params) -> Array:
    """(F, d_in) the encoder, a row for each feature; the decoder where the two are tied."""
    return params.get("W_in", params["W_dec"])


def site_norms(W_dec: Array, widths: Sequence[int]) -> Array:
    """(F, d_out) -> (F, sites) norms of each row's part for each written site; never quite 0, for the gradient."""
    xp = module_of(W_dec)
    return xp.sqrt(xp.stack([row_dots(W_dec[:, part], W_dec[:, part]) for part in ranges(widths)], axis=1) + 1e-24)


def normalised(W_dec: Array, widths: Sequence[int]) -> Array:
    """Rows whose site norms sum to the root of the number of sites: unit rows for one site."""
    return W_dec * (len(widths) ** 0.5 / site_norms(W_dec, widths).sum(axis=1)[:, None])


def normal(W_dec: Array, widths: Sequence[int]) -> Array:
    """(F, d_out) the derivative of the sum of each row's site norms."""
    norms = site_norms(W_dec, widths)
    parts = [W_dec[:, part] / norms[:, i : i + 1] for i, part in enumerate(ranges(widths))]
    return parts[0] if len(parts) == 1 else module_of(W_dec).concatenate(parts, axis=1)


def tangent(gradient: Array, W_dec: Array, widths: Sequence[int]) -> Array:
    """The gradient without the part that changes the sum of a row's site norms, which normalising would only undo."""
    across = normal(W_dec, widths)
    return gradient - row_dots(gradient, across)[:, None] / len(widths) * across


def row_dots(a: Array, b: Array) -> Array:
    """(n, d), (n, d) -> (n,) the product of each row with the other's."""
    return (a * b).sum(axis=1) if isinstance(a, mx.array) else np.einsum("nd,nd->n", a, b)


def initial(
    d_in: int, widths: Sequence[int], n_features: int, same: bool, config: SAEConfig, skip: bool = False
) -> dict[str, np.ndarray]:
    """Parameters at the start: `W_in` (F, d_in) is W_enc, a row for each feature; the others stand as in the folder.

    Biases are 0: rows are centred, so b_dec stands at the written rows' mean. Decoder rows point in random directions
    and the encoder is the same, scaled to norm 1, where reads are the writes; else the encoder's rows do, and the
    decoder is 0 unless its norm is fixed (Paulo et al. 2025).
    """
    key_dec, key_enc = mx.random.split(mx.random.key(config.seed))
    W_dec = normalised(mx.random.normal((n_features, sum(widths)), key=key_dec), widths)
    W_in = _unit(W_dec if same else mx.random.normal((n_features, d_in), key=key_enc))
    params = {"W_in": W_in, "b_enc": mx.zeros(n_features), "W_dec": W_dec, "b_dec": mx.zeros(sum(widths))}
    if not same and not config.unit_norm:
        params["W_dec"] = mx.zeros_like(W_dec)
    if config.tied_weights:
        del params["W_in"]
    if skip:
        params["W_skip"] = mx.zeros((d_in, sum(widths)))
    return {name: np.array(array) for name, array in params.items()} | surrogate(config, d_in).initial(n_features)


def _unit(rows: mx.array) -> mx.array:
    return rows / mx.maximum(mx.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
