"""What one model's features do in the other: dictionaries moved through a map, and its activations stitched in."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import mlx.core as mx
import numpy as np

from hubsae import evaluate, metrics, vectorised
from hubsae.align_config import AlignConfig
from hubsae.anchors import AnchorSet
from hubsae.dictionary import Dictionary
from hubsae.errors import DataError
from hubsae.lm import LanguageModel
from hubsae.map_quality import measured
from hubsae.maps import LinearMap
from hubsae.sites import Site
from hubsae.sparse import as_numpy
from hubsae.tokens import special_ids, take_rows, token_texts

D = TypeVar("D", bound=Dictionary)


def moved(dictionary: D, there: LinearMap, back: LinearMap, site: str, base_model: dict) -> D:
    """The same features in another model: it reads that model's activations through `back`, and writes through `there`.

    Exactly what `there(dictionary(back(y)))` computes, folded into the weights: W_enc' = T_back W_enc,
    b_enc' = b_enc + (mean - mean_y T_back) W_enc, W_dec' = W_dec T, b_dec' = (b_dec - mean_x) T + mean_y. Thresholds
    and biases behind the encoder stay.
    """
    c, arrays = dictionary.config, {name: as_numpy(a).astype(np.float64) for name, a in dictionary.arrays().items()}
    if c.kind != "sae" or c.d_in != there.matrix.shape[0] or c.d_in != back.matrix.shape[1]:
        raise DataError(
            f"{dictionary.label} has {c.d_in} columns; the maps lead from {there.matrix.shape[0]} columns to "
            f"{there.matrix.shape[1]} and back to {back.matrix.shape[1]}"
        )
    offset = back.mean_y - back.mean_x @ back.matrix
    arrays["b_enc"] = arrays["b_enc"] + offset @ arrays["W_enc"]
    arrays["W_enc"] = back.matrix @ arrays["W_enc"]
    arrays["b_dec"] = (arrays["b_dec"] - there.mean_x) @ there.matrix + there.mean_y
    arrays["W_dec"] = arrays["W_dec"] @ there.matrix
    width = (there.matrix.shape[1],)
    config = replace(
        c,
        reads=(site,),
        writes=(site,),
        read_widths=width,
        write_widths=width,
        write_scales=(),
        base_models=(base_model,),
    )
    found = type(dictionary)(config, {name: mx.array(a.astype(np.float32)) for name, a in arrays.items()})
    found.statistics = {"transferred_from": dictionary.label}
    return found


def stitched(
    models: tuple[LanguageModel, LanguageModel],
    sites: tuple[Site, Site],
    maps: Mapping[str, LinearMap],
    anchors: AnchorSet,
    config: AlignConfig,
    *,
    max_rows: int = 20_000,
) -> list[dict[str, Any]]:
    """Rows of metrics: the share of B's loss that is kept when its activations at the anchors are A's, mapped.

    1 where the next-token loss is B's own, 0 where it is that with the mean activation in their place. Controls: the
    mapped activations of other places, and whatever maps were given that mean nothing.
    """
    chunks = list(take_rows(anchors.chunks, max_rows))
    reads, writes = (sites[0].of(0),), {sites[1].of(1): slice(0, models[1].width(sites[1]))}
    parts = {name: _Rows(map_) for name, map_ in maps.items()}
    means = mx.array(next(iter(maps.values())).mean_y.astype(np.float32))[None]
    values = [*parts.values(), _Rows(next(iter(maps.values())), moved_on=True), lambda _: means]
    with vectorised.exponentials():
        sums = evaluate.spliced_sums(reads, writes, models, chunks, values)[0]
    names = [*parts, "other places"]
    out = []
    for column, name in enumerate(names):
        pick = [1, 2 + column, 2 + len(names)]
        low, high = metrics.bootstrap_interval(
            sums[:, pick], lambda s: metrics.recovered(*s), n_draws=config.n_bootstraps, seed=config.seed
        )
        value = metrics.recovered(*sums[:, pick].sum(axis=0))
        out.append(measured("stitched_loss_recovered", value, lo=low, hi=high, n=int(sums[:, 0].sum()), method=name))
    control = next(row["value"] for row in out if row["method"] == "other places")
    for row in out:
        row |= {"null_name": "mapped activations of other places", "null_mean": control}
    gap = sums[:, [2 + len(names), 1]].sum(axis=0)
    out.append(
        measured("stitched_gap", float((gap[0] - gap[1]) / sums[:, 0].sum()), method=None, n=int(sums[:, 0].sum()))
    )
    return out


class _Rows:
    """Rows of A as B would have them; `moved_on`: each where another one belongs."""

    def __init__(self, map_: LinearMap, moved_on: bool = False):
        self._map, self._moved_on = map_, moved_on

    def __call__(self, x: mx.array) -> mx.array:
        rows = self._map(as_numpy(x))
        return mx.array(np.roll(rows, len(rows) // 2, axis=0) if self._moved_on else rows)


def shared_tokens(models: Sequence[LanguageModel]) -> tuple[np.ndarray, np.ndarray]:
    """Ids of the tokens of two models that stand for the same text, in the same order; special tokens left out."""
    by_text = []
    for model in models:
        special = set(special_ids(model.tokenizer).tolist())
        size = min(model.vocab_size, len(model.tokenizer))
        texts = token_texts(model.tokenizer, (i for i in range(size) if i not in special))
        first: dict[str, int] = {}
        for i, text in texts.items():
            if text and "\N{REPLACEMENT CHARACTER}" not in text:
                first.setdefault(text, i)
        by_text.append(first)
    shared = sorted(by_text[0].keys() & by_text[1].keys())
    if len(shared) < 20:
        raise DataError(
            f"the two vocabularies share {len(shared)} tokens; effects of features are compared on at least 20"
        )
    return tuple(np.array([texts[text] for text in shared]) for texts in by_text)  # type: ignore[return-value]
