"""What a model has to offer, found out from the shapes of a pass that is never computed."""

from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from hubsae.errors import ModelError, SiteError
from hubsae.sites import COMPONENTS, Site
from hubsae.taps import Taps, find_module


@dataclass(frozen=True)
class Probe:
    """Widths of the sites that a model has, width of its logits, and whether a pass comes by a layer more than once."""

    widths: dict[Site, int]
    vocab_size: int
    looped: bool


def probe(model: Any) -> Probe:
    """Widths of all standard sites and of the logits, from the shapes of a forward pass that is never evaluated."""
    from mlx_lm.models.cache import make_prompt_cache

    tokens = mx.zeros((1, 2), mx.int32)
    wanted = [Site(i, c) for i, layer in enumerate(model.layers) for c in COMPONENTS if _has(layer, Site(i, c))]
    with Taps(model.layers, wanted) as taps:
        logits = model(tokens, cache=make_prompt_cache(model))
    if not any(site.component == "residual" for site in taps.values):
        raise ModelError(f"{type(model).__module__}: its forward pass never calls its layers, so they cannot be read")
    widths = {s: v.shape[-1] for s, v in taps.values.items() if v.ndim == 3 and v.shape[:2] == (1, 2)}
    if Site(0) not in widths:
        raise ModelError(
            f"{type(model).__module__}: its residual stream has shape {taps.values[Site(0)].shape} for 2 tokens, "
            "not one vector per token; dictionaries of this architecture are not supported"
        )
    looped = any(count > 1 for site, count in taps.visits.items() if site.component == "residual")
    return Probe({site: widths[site] for site in wanted if site in widths}, logits.shape[-1], looped)


def _has(layer: nn.Module, site: Site) -> bool:
    try:
        find_module(layer, site)
    except SiteError:
        return False
    return True
