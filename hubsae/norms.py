"""The gain and bias of the normalisation in front of a module, for dictionaries that were made to read before them."""

from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from hubsae.errors import ModelError
from hubsae.lm import LanguageModel
from hubsae.sites import Site

_LOUD = 1e3  # so that the epsilon inside the norm does not count


def norm_before(model: LanguageModel, site: Site) -> tuple[np.ndarray, np.ndarray]:
    """(d,) gain and (d,) bias of the norm whose output a site such as `layers.3.mlp_in` is.

    Raises `ModelError` where there is none, `SiteError` where the model has no such site.
    """
    block: Any = model.layers[site.layer] if site.layer < model.n_layers else {}
    names = [name for name, child in block.items() if isinstance(child, nn.Module) and _is_norm(child)]
    candidates = {Site(site.layer, name): block[name] for name in names}
    found = model.run([[0, 1, 2]], read=[site, *candidates], logits=False).activations
    for candidate, module in candidates.items():
        if candidate in found and mx.array_equal(found[candidate], found[site]):
            return _gain_and_bias(module, found[site].shape[-1])
    raise ModelError(
        f"{site}: none of the norms {', '.join(names) or '(there are none)'} of this layer gives what is read there, "
        "so what a dictionary of normalised activations would read cannot be told"
    )


def _is_norm(module: nn.Module) -> bool:
    weight = module.get("weight")
    return isinstance(weight, mx.array) and weight.ndim == 1


def _gain_and_bias(norm: Any, width: int) -> tuple[np.ndarray, np.ndarray]:
    """By rows of mean 0 and equal squares, which every kind of norm leaves as they are up to their length."""
    if width % 2:
        raise ModelError(f"a norm of {width} columns; an even number was expected")
    signs = np.tile(np.array([1.0, -1.0], np.float32), width // 2)
    up, down = (np.array(norm(mx.array(sign * _LOUD * signs[None])).astype(mx.float32))[0] for sign in (1, -1))
    return (up - down) / 2 * signs, (up + down) / 2
