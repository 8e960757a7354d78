"""What a model does on one fixed text: files that differ may hold the same model, and this tells whether they do."""

import functools
import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import mlx.core as mx
import numpy as np

from hubsae.errors import HubsaeError
from hubsae.identity import LARGEST, SIGNS, BaseModel, Fingerprint
from hubsae.lm import LanguageModel
from hubsae.sites import Site
from hubsae.sparse import as_numpy

_TEXT = (
    "The capital of France is Paris, where she bought 3 books for 27.50 euros in 1984. "
    "def add(a, b):\n    return a + b\n"
    'Café, naïve, straße, 東京 and мир: "Yes," they said; it didn\'t rain (much).'
)
_MOST_TOKENS = 48


def fingerprint(model: LanguageModel, sites: Iterable[Site], tokens: list[int] | None = None) -> Fingerprint | None:
    """What `model` gives at `sites` for a fixed text, or for `tokens`, and how well it predicts them; None where it
    cannot read them, or gives nothing finite.

    Of each site: `norm`, the mean Euclidean norm of its rows, and `projected`, 16 sums over all positions but the
    first (where many models keep something huge) of the rows, scaled to norm 1, times fixed random signs, over the
    square root of their number. The root mean square of the differences between two such vectors estimates the
    relative difference between the rows themselves. `losses`: of each token but the first, in nats.
    """
    own = _own_tokens(model)
    tokens = own if tokens is None else tokens
    if own is None or tokens is None:
        return None
    local = sorted({site.of(0) for site in sites})
    try:
        run = model.run([tokens], read=local)
    except HubsaeError:  # other tokens or sites than it has, which is said elsewhere
        return None
    found = {}
    for site in local:
        rows = as_numpy(run.activations[site].astype(mx.float32)).reshape(len(tokens), -1)[1:]
        numbers = _numbers(rows.astype(np.float64))
        if numbers["norm"] < LARGEST and all(map(math.isfinite, numbers["projected"])):  # NaN is not less either
            found[str(site)] = numbers
    assert run.logits is not None
    logits = run.logits[0, :-1].astype(mx.float32)
    losses = mx.logsumexp(logits, axis=-1) - mx.take_along_axis(logits, mx.array(tokens[1:])[:, None], axis=-1)[:, 0]
    told = [round(float(value), 4) for value in as_numpy(losses)]
    if not found or not all(abs(value) < LARGEST for value in told):
        return None
    return Fingerprint(tokens=tokens, own_tokens=own, losses=told, sites=found)


def _own_tokens(model: LanguageModel) -> list[int] | None:
    try:
        ids = [int(i) for i in model.encode(_TEXT)]
    except HubsaeError:
        return None
    ids = ids[: min(_MOST_TOKENS, model.max_positions or _MOST_TOKENS)]
    return ids if len(ids) > 1 else None


def _numbers(rows: np.ndarray) -> dict[str, Any]:
    norms = np.linalg.norm(rows, axis=1)
    unit = rows / np.maximum(norms, np.finfo(np.float32).tiny)[:, None]
    projected = _signs(*rows.shape) @ unit.reshape(-1) / np.sqrt(len(rows))
    return {"norm": float(f"{norms.mean():.6g}"), "projected": [round(float(value), 5) for value in projected]}


@functools.lru_cache(maxsize=4)
def _signs(n_rows: int, width: int) -> np.ndarray:
    """(16, n_rows * width) of -1 and 1: the bits of SHAKE-256, so the same everywhere and for ever."""
    size = SIGNS * n_rows * width
    data = hashlib.shake_256(b"hubsae fingerprint").digest(-(-size // 8))
    return (np.unpackbits(np.frombuffer(data, np.uint8))[:size].astype(np.int8) * 2 - 1).reshape(SIGNS, -1)


def measured(recorded: BaseModel, model: LanguageModel) -> BaseModel:
    """The identity of `model`, with what it does on the recorded fixed text where there is one."""
    known = recorded.fingerprint
    if known is None:
        return model.identity
    return replace(model.identity, fingerprint=fingerprint(model, map(Site.parse, known.sites), known.tokens))


def recorded(models: Sequence[LanguageModel], sites: Sequence[Site]) -> list[BaseModel]:
    """The identity of each model with what it does on the fixed text: at those of the sites that are its own, and at
    the end of its last layer, where a change of any layer shows."""
    out = []
    for number, model in enumerate(models):
        own = [site for site in sites if site.model == number]
        out.append(replace(model.identity, fingerprint=fingerprint(model, [*own, Site(model.n_layers - 1)])))
    return out


def of_sites(base: BaseModel, sites: Iterable[Site]) -> BaseModel:
    """The same with what is recorded of these of its sites, and of its last layer, alone."""
    if base.fingerprint is None or base.n_layers is None:
        return base
    wanted = {str(site.of(0)) for site in (*sites, Site(base.n_layers - 1))}
    kept = {site: found for site, found in base.fingerprint.sites.items() if site in wanted}
    return replace(base, fingerprint=replace(base.fingerprint, sites=kept))
