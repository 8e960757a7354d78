"""Dead features that start anew as directions of badly explained rows (Bricken et al. 2023, neuron resampling)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np

from hubsae.losses import Moment, Params, encoded, encoder, normalised
from hubsae.recipe import SAEConfig
from hubsae.surrogates import surrogate

_ENCODER_SHARE = 0.2  # of the mean norm of alive features' encoders


@dataclass(frozen=True)
class Revival:
    """Parameters after resampling, and which features (F,) were resampled."""

    params: Params
    chosen: mx.array

    def moments(self, state: Any) -> dict[str, dict[str, mx.array]]:
        """Adam's state for the parameters, 0 where it belongs to a resampled feature."""
        return {
            name: {m: mx.where(_shaped(self.chosen, name), 0, value) for m, value in state[name].items()}
            for name in self.params
            if name not in ("b_dec", "W_skip")
        }


def revived(
    params: Params,
    x: mx.array,
    y: mx.array,
    config: SAEConfig,
    widths: Sequence[int],
    moment: Moment,
    dead: np.ndarray,
    *,
    seed: int,
) -> Revival:
    """Each dead feature takes a row of the batch, drawn with probability proportional to its squared loss.

    Its decoder row is the direction of y, its encoder that of x at 0.2 of the alive features' mean norm, its bias 0.
    """
    _, code, beside = encoded(params, x, config, moment.k)
    y_hat = code @ params["W_dec"] + beside
    loss = np.square(np.array(mx.sum(mx.square(y - y_hat), axis=1), dtype=np.float64))
    picked = np.random.default_rng([config.seed, seed]).choice(len(loss), len(dead), p=loss / loss.sum())
    chosen = np.zeros(params["b_enc"].size, bool)
    chosen[dead] = True
    source = np.zeros(len(chosen), np.int32)
    source[dead] = picked
    mask, rows = mx.array(chosen), mx.array(source)
    norms = mx.linalg.norm(encoder(params), axis=0)
    n_alive = max(1, len(chosen) - len(dead))
    length = _ENCODER_SHARE * mx.sum(mx.where(mask, 0, norms)) / n_alive
    new = dict(params)
    targets = normalised(mx.take(y, rows, axis=0), widths)
    new["W_dec"] = mx.where(mask[:, None], targets, params["W_dec"])
    if "W_enc" in params:
        picked_x = mx.take(x, rows, axis=0)
        directions = picked_x / mx.maximum(mx.linalg.norm(picked_x, axis=1, keepdims=True), 1e-12)
        new["W_enc"] = mx.where(mask, length * directions.T, params["W_enc"])
    fresh = surrogate(config, x.shape[1]).initial(len(chosen)) | {"b_enc": mx.zeros(len(chosen))}
    for name, value in fresh.items():
        new[name] = mx.where(mask, value, params[name])
    return Revival(new, mask)


def _shaped(chosen: mx.array, name: str) -> mx.array:
    return chosen[:, None] if name == "W_dec" else chosen
