"""Which tokens a feature raises and lowers, through the model's own final norm and unembedding."""

from collections.abc import Sequence

import mlx.core as mx
import numpy as np

from hubsae import choose
from hubsae.dictionary import Dictionary
from hubsae.lm import LanguageModel
from hubsae.sites import Site
from hubsae.sparse import as_numpy

_VALUES_AT_ONCE = 1 << 25
_INTO_RESIDUAL = ("residual_in", "residual", "attn", "mlp")


def residual_site(dictionary: Dictionary, models: Sequence[LanguageModel]) -> Site | None:
    """The deepest written site of the first model whose content is added to the residual stream; None without any."""
    c = dictionary.config
    fitting = [
        site
        for site, width in zip(c.write_sites, c.write_widths, strict=True)
        if site.component in _INTO_RESIDUAL and width == models[site.model].hidden_size
    ]
    return max(fitting, key=lambda s: (-s.model, s.layer, _INTO_RESIDUAL.index(s.component)), default=None)


def unembed(model: LanguageModel, residual: mx.array) -> mx.array:
    """(n, d) states of the residual stream after the last layer -> (n, V) logits, by the model's own last steps."""
    last = Site(model.n_layers - 1)
    run = model.run(np.zeros((len(residual), 1), np.int32), edit={last: lambda x: residual[:, None].astype(x.dtype)})
    assert run.logits is not None
    return run.logits[:, 0].astype(mx.float32)


def token_weights(
    dictionary: Dictionary, models: Sequence[LanguageModel], features: np.ndarray, n: int = 10
) -> dict[str, np.ndarray]:
    """(F, n) columns `promoted_ids`, `promoted_weights`, `suppressed_ids`, `suppressed_weights` for `features`.

    The direct path alone (nostalgebraist 2020, logit lens; Bloom and Lin 2024): logits of the decoder row, normalised
    as the model does it, less those of zero and less their mean over the vocabulary. Where the site is a module's
    output, a norm that the architecture puts behind it is not counted. Empty where nothing goes into the residual.
    """
    site = residual_site(dictionary, models)
    if site is None:
        return {}
    model = models[site.model]
    n = min(n, model.vocab_size)
    rows = dictionary.W_dec[:, dictionary.config.write_columns[site]]
    columns: dict[str, np.ndarray] = {}
    for kind in ("promoted", "suppressed"):
        columns[f"{kind}_ids"] = np.full((dictionary.n_features, n), -1, np.int32)
        columns[f"{kind}_weights"] = np.zeros((dictionary.n_features, n), np.float32)
    zero = unembed(model, mx.zeros((1, rows.shape[1])))
    step = max(1, _VALUES_AT_ONCE // model.vocab_size)
    for start in range(0, len(features), step):
        which = features[start : start + step]
        logits = unembed(model, mx.take(rows, mx.array(which.astype(np.int32)), axis=0)) - zero
        weights = as_numpy(logits - mx.mean(logits, axis=-1, keepdims=True))
        for kind, sign in (("promoted", 1), ("suppressed", -1)):
            ids, values = choose.largest(sign * weights, n).ranked(n)
            columns[f"{kind}_ids"][which] = np.where(values[:, :n] > 0, ids[:, :n], -1)
            columns[f"{kind}_weights"][which] = sign * values[:, :n]
    return columns
