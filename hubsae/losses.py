"""The loss of one batch of scaled rows, and the parameters it is a function of."""

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx

from hubsae import sparse
from hubsae.recipe import SAEConfig
from hubsae.sites import ranges
from hubsae.surrogates import Params, surrogate


@dataclass(frozen=True)
class Moment:
    """What the loss depends on beside the batch: k, the penalty's factor, prefixes, and ids of dead features (m,)."""

    k: int
    penalty: float
    prefixes: tuple[int, ...]
    dead: mx.array | None = None


@dataclass(frozen=True)
class Losses:
    """Parts of the loss of one batch, still lazy: `fvu` of the batch, `l0`, and which features fired (F,).

    `threshold` is what `Surrogate.threshold` says.
    """

    total: mx.array
    fvu: mx.array
    l0: mx.array
    fired: mx.array
    threshold: mx.array


def losses(
    params: Params, x: mx.array, y: mx.array, config: SAEConfig, widths: Sequence[int], moment: Moment
) -> Losses:
    """Loss of scaled rows x (n, d_in), y (n, d_out): FVU (mean over prefixes) + sparsity penalty + AuxK.

    The rows' mean squared norm is 1, so squared error per row is the fraction of the data's variance left unexplained.
    `widths` are those of the written sites. Gated dictionaries add the error of the gate's own code under a constant
    decoder (Rajamanoharan et al. 2024, eq. 8).
    """
    rule = surrogate(config, x.shape[1])
    pre, code, beside = encoded(params, x, config, moment.k)
    missing = y - beside
    squares, start = [], 0
    for end in moment.prefixes:  # nested: each prefix adds its part to the one before
        missing = missing - code[:, start:end] @ params["W_dec"][start:end]
        squares.append(mx.sum(mx.square(missing)) / len(y))
        start = end
    fvu = squares[-1]
    total = sum(squares[1:], squares[0]) / len(squares)
    penalty = rule.penalty(pre, code, params, site_norms(params["W_dec"], widths).sum(axis=1))
    if penalty is not None:
        total = total + moment.penalty * penalty
    if config.sparsity == "gated":
        held = {name: mx.stop_gradient(params[name]) for name in ("W_dec", "b_dec")}
        gate_error = y - mx.maximum(pre, 0) @ held["W_dec"] - held["b_dec"]
        if "W_skip" in params:
            gate_error = gate_error - x @ mx.stop_gradient(params["W_skip"])
        total = total + mx.sum(mx.square(gate_error)) / len(y)
    if moment.dead is not None:
        total = total + aux_loss(params, x, mx.stop_gradient(missing), config, moment.dead)
    active = code > 0
    fired, l0 = mx.any(active, axis=0), mx.mean(mx.sum(active, axis=1))
    return Losses(total, fvu, l0, fired, rule.threshold(mx.stop_gradient(code)))


def encoded(params: Params, x: mx.array, config: SAEConfig, k: int) -> tuple[mx.array, mx.array, mx.array]:
    """x (n, d_in) -> pre-code (n, F), code (n, F), and what is written beside the code: (n, d_out) or (d_out,)."""
    pre = x @ encoder(params) + params["b_enc"]
    beside = params["b_dec"] + (x @ params["W_skip"] if "W_skip" in params else 0)
    return pre, surrogate(config, x.shape[1]).code(pre, params, k), beside


def aux_loss(params: Params, x: mx.array, error: mx.array, config: SAEConfig, dead: mx.array) -> mx.array:
    """AuxK (Gao et al. 2024, A.2): the residual, held constant, rebuilt by `dead` features, aux_k of largest pre-code.

    They enter unrectified: a dead feature's pre-code is often negative, and would get no gradient.
    """
    aux_k = config.aux_k or max(1, x.shape[1] // 2)
    rebuilt = aux_code(params, x, dead, aux_k) @ mx.take(params["W_dec"], dead, axis=0)
    weight = config.aux_coefficient * min(dead.size / aux_k, 1.0)  # fewer dead than aux_k: weaker (EleutherAI)
    return weight * mx.sum(mx.square(error - rebuilt)) / len(error)


def aux_code(params: Params, x: mx.array, dead: mx.array, k: int) -> mx.array:
    """(n, m) pre-codes of the `dead` features with all but each row's k largest set to 0."""
    pre = x @ mx.take(encoder(params), dead, axis=1) + mx.take(params["b_enc"], dead)
    if k >= dead.size:
        return pre
    kth = mx.min(sparse.top_k(mx.stop_gradient(pre), k)[1], axis=-1, keepdims=True)
    return mx.where(pre >= kth, pre, 0)


def encoder(params: Params) -> mx.array:
    """(d_in, F) the encoder; the decoder's transpose where the two are tied."""
    return params["W_enc"] if "W_enc" in params else params["W_dec"].T


def site_norms(W_dec: mx.array, widths: Sequence[int]) -> mx.array:
    """(F, d_out) -> (F, sites) norms of each row's part for each written site; never quite 0, for the gradient."""
    parts = [mx.sum(mx.square(W_dec[:, part]), axis=1) for part in ranges(widths)]
    return mx.sqrt(mx.stack(parts, axis=1) + 1e-24)


def normalised(W_dec: mx.array, widths: Sequence[int]) -> mx.array:
    """Rows whose site norms sum to the root of the number of sites: unit rows for one site."""
    return W_dec * (len(widths) ** 0.5 / site_norms(W_dec, widths).sum(axis=1, keepdims=True))


def tangent(gradient: mx.array, W_dec: mx.array, widths: Sequence[int]) -> mx.array:
    """The gradient without the part that changes the sum of a row's site norms, which normalising would only undo."""
    norms = site_norms(W_dec, widths)
    normal = mx.concatenate([W_dec[:, part] / norms[:, i : i + 1] for i, part in enumerate(ranges(widths))], axis=1)
    return gradient - mx.sum(gradient * normal, axis=1, keepdims=True) / len(widths) * normal


def initial(
    d_in: int, widths: Sequence[int], n_features: int, same: bool, config: SAEConfig, skip: bool = False
) -> Params:
    """Parameters at the start. Biases are 0: rows are centred, so b_dec stands at the written rows' mean.

    Decoder rows point in random directions and the encoder is their transpose, scaled to norm 1, where reads are the
    writes; else the encoder's columns do, and the decoder is 0 unless its norm is fixed (Paulo et al. 2025).
    """
    key_dec, key_enc = mx.random.split(mx.random.key(config.seed))
    W_dec = normalised(mx.random.normal((n_features, sum(widths)), key=key_dec), widths)
    W_enc = _unit(W_dec if same else mx.random.normal((n_features, d_in), key=key_enc)).T
    params = {"W_enc": mx.contiguous(W_enc), "b_enc": mx.zeros(n_features), "W_dec": W_dec}
    params["b_dec"] = mx.zeros(sum(widths))
    if not same and not config.unit_norm:
        params["W_dec"] = mx.zeros_like(W_dec)
    if config.tied_weights:
        del params["W_enc"]
    if skip:
        params["W_skip"] = mx.zeros((d_in, sum(widths)))
    return params | surrogate(config, d_in).initial(n_features)


def _unit(rows: mx.array) -> mx.array:
    return rows / mx.maximum(mx.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
