"""Dead features that start anew as directions of badly explained rows (Bricken et al. 2023, neuron resampling)."""

from collections.abc import Sequence

import numpy as np

from hubsae.losses import Moment, Params, beside, chosen, encoder, normalised
from hubsae.recipe import SAEConfig
from hubsae.surrogates import surrogate

_ENCODER_SHARE = 0.2  # of the mean norm of alive features' encoders


def revived(
    params: Params,
    x: np.ndarray,
    y: np.ndarray,
    config: SAEConfig,
    widths: Sequence[int],
    moment: Moment,
    dead: np.ndarray,
    *,
    seed: int,
) -> dict[str, np.ndarray]:
    """Parameters (NumPy) in which each dead feature took a row, drawn in proportion to its squared loss.

    Its decoder row is the direction of y, its encoder that of x at 0.2 of the alive features' mean norm, its bias 0.
    """
    rule = surrogate(config, x.shape[1])
    entries = chosen(params, x, rule, moment.k, len(x))
    code = entries.holding(rule.code(entries, params))
    error = code.times(params["W_dec"], beside(params, x) - y)
    loss = np.square(np.square(error).sum(axis=1, dtype=np.float64))
    picked = np.random.default_rng([config.seed, seed]).choice(len(loss), len(dead), p=loss / loss.sum())
    alive = np.ones(len(params["b_enc"]), bool)
    alive[dead] = False
    new = {name: array.copy() for name, array in params.items()}
    new["W_dec"][dead] = normalised(y[picked], widths)
    if "W_in" in params:
        length = _ENCODER_SHARE * np.linalg.norm(encoder(params)[alive], axis=1).sum() / max(1, alive.sum())
        new["W_in"][dead] = length * x[picked] / np.maximum(np.linalg.norm(x[picked], axis=1, keepdims=True), 1e-12)
    fresh = rule.initial(len(alive)) | {"b_enc": np.zeros(len(alive), np.float32)}
    for name, value in fresh.items():
        new[name][dead] = value[dead]
    return new
