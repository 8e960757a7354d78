"""One feature of A, steered in A and, through an alignment, in B: what both models say then, side by side."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from hubsae import aligning
from hubsae.alignment import Pair, StoredAlignment
from hubsae.causal import CausalConfig, Effects, Steered, chosen_chunks, conditions
from hubsae.errors import ConfigError
from hubsae.frames import Frame
from hubsae.lm import LanguageModel
from hubsae.matching import unit
from hubsae.sites import Site
from hubsae.sparse import as_numpy
from hubsae.tables import Shown, Table
from hubsae.tokens import token_texts
from hubsae.transfer import shared_tokens

_TOP = 5
_RANDOM = 19  # directions
_SHOWN = ("model", "condition", "length", "kl", "effect_corr", "promoted")
_COLUMNS = (*_SHOWN, "suppressed")


@dataclass(frozen=True, repr=False)
class Intervention(Shown):
    """What steering along a feature of A does in A, and in B under each condition.

    partner: the confirmed one. best: the feature of B that stands for it in "partner", the best candidate where none is
    confirmed, None without any. frame: model, condition, length added (in mean lengths of an activation), kl (nats),
    effect_corr (with the effect in A, on log-probabilities of shared tokens), promoted, suppressed (tokens).
    chance: the largest effect_corr of 19 random directions. n_anchors, n_tokens: places that were steered, and shared
    tokens.
    """

    feature: int
    fate: str
    partner: Pair | None
    best: int | None
    frame: Frame
    chance: float
    n_anchors: int
    n_tokens: int

    def tables(self) -> list[Table]:
        f = self.frame
        lowered = Frame(f.columns, "and what falls most", ("model", "condition", "suppressed"))
        return [*f.tables(), *lowered.tables()]


def steer_both(
    alignment: StoredAlignment,
    feature: int,
    texts: Any,
    *,
    alpha: float | None = None,
    dose: float | None = None,
    n_anchors: int = 256,
) -> Intervention:
    """What a feature of A does in A, and in B through the maps, through its partner, and along controls.

    alpha: length of what is added everywhere, in mean lengths of an activation. dose: instead, every direction is as
    long as it has to be for so many nats of KL (default: that of `CausalConfig`). Both models are steered at the same
    places of documents that neither fitted the map nor chose the pairs, if the texts are those of the alignment.
    """
    default = CausalConfig.dose if dose is None else dose
    config = CausalConfig(n_anchors=n_anchors, seed=alignment.settings.seed, dose=default)
    if alpha is not None and (dose is not None or not np.isfinite(alpha) or alpha == 0):
        raise ConfigError(f"alpha={alpha}, dose={dose}: expected one of them, and an alpha other than 0")
    models = aligning.at_hand(alignment)[1]
    partner = alignment.partner(feature)
    row = alignment.frames["features_a"].row(int(feature))
    best = partner.feature_b if partner else row["best_partner"] if row["best_partner"] >= 0 else None
    anchors = aligning.recorded_anchors(alignment, texts).of("eval")
    chunks = chosen_chunks(anchors, config.n_anchors, config.seed)
    tokens = shared_tokens(models)
    steered = [
        Steered(model, Site.parse(side["site"]), [chunk.of(m) for chunk in chunks], ids)
        for m, (model, side, ids) in enumerate(zip(models, alignment.sides, tokens, strict=True))
    ]
    own_row, directions = _directions(alignment, feature, best)
    own = _effects(steered[0], own_row, alpha, config.dose)
    other = _effects(steered[1], np.concatenate(list(directions.values())), alpha, config.dose)
    random = np.random.default_rng([config.seed, 7]).standard_normal((_RANDOM, alignment.sides[1]["width"]))
    by_chance = _effects(steered[1], random, alpha, config.dose)
    chance = max(_likeness(own.change[0], change) for change in by_chance.change)
    names = _Names(models[0], tokens[0])
    rows = [_described("A", "the feature itself", own, 0, own, names)]
    rows += [_described("B", name, other, i, own, names) for i, name in enumerate(directions)]
    n = sum(chunk.n_rows for chunk in chunks)
    frame = Frame(
        {
            name: np.array([row[name] for row in rows], object if isinstance(rows[0][name], str) else None)
            for name in _COLUMNS
        },
        _title(alignment, feature, partner, best, row["fate"]),
        _SHOWN,
        f"At {n:,} places. length: added, in mean lengths of an activation. kl: nats. effect_corr: with the effect in "
        f"A, on the log-probabilities of the {len(tokens[0]):,} tokens that both vocabularies have; what rises "
        f"whatever is added counts too: of {_RANDOM} random directions the highest is {chance:.3f}.",
    )
    return Intervention(int(feature), row["fate"], partner, best, frame, chance, n, len(tokens[0]))


def _directions(alignment: StoredAlignment, feature: int, best: int | None) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """(1, d_A) the feature's decoder row, and (1, d_B) by condition."""
    assert alignment.dictionaries is not None
    rows = [as_numpy(dictionary.W_dec).astype(np.float64) for dictionary in alignment.dictionaries]
    own = rows[0][[feature]]
    maps = {method: both[0] for method, both in alignment.maps.items()}
    found = conditions(own, rows[1][[best or 0]], maps, alignment.settings.method, alignment.settings.seed)
    if best is None:
        del found["partner"]
    return own, found


def _effects(model: Steered, directions: np.ndarray, alpha: float | None, dose: float) -> Effects:
    return model.effects(directions, dose) if alpha is None else model.effects_at(directions, alpha)


class _Names:
    """The texts of shared tokens that rise and fall most."""

    def __init__(self, model: LanguageModel, ids: np.ndarray):
        self._model, self._ids = model, ids

    def __call__(self, change: np.ndarray) -> str:
        """The tokens of the largest changes, the largest first."""
        ids = self._ids[np.argsort(-change, kind="stable")[:_TOP]].tolist()
        texts = token_texts(self._model.tokenizer, ids)
        return " ".join(repr(texts[i]) for i in ids)


def _described(model: str, name: str, effects: Effects, i: int, own: Effects, names: _Names) -> dict[str, Any]:
    change = effects.change[i]
    return {
        "model": model,
        "condition": name,
        "length": float(effects.length[i]),
        "kl": float(effects.kl[i]),
        "effect_corr": _likeness(own.change[0], change),
        "promoted": names(change),
        "suppressed": names(-change),
    }


def _likeness(a: np.ndarray, b: np.ndarray) -> float:
    """Correlation of two effects over tokens."""
    x, y = (unit((change - change.mean())[None])[0] for change in (a, b))
    return float(x @ y)


def _title(alignment: StoredAlignment, feature: int, partner: Pair | None, best: int | None, fate: str) -> str:
    site_a, site_b = (side["site"] for side in alignment.sides)
    who = f"feature {feature} of A ({site_a}), "
    if partner:
        low, high = partner.interval
        span = "" if np.isnan(low) else f" ({low:.3f} to {high:.3f})"
        likeness = f"correlation {partner.correlation:.3f}{span}"
        return f"{who}partner {partner.feature_b} of B ({site_b}): {likeness}"
    candidate = "" if best is None else f", best candidate {best}"
    return f"{who}no confirmed partner in B ({site_b}; {fate}){candidate}"
