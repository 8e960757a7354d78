"""Questions about two models, as a user asks them: `align`, `load_alignment`, `verify`, `Alignment`."""

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from hubsae import aligning, causal, chains, transfer
from hubsae.align_config import AlignConfig
from hubsae.alignment import StoredAlignment
from hubsae.api import BoundDictionary, as_model
from hubsae.causal import CausalConfig
from hubsae.chains import Chain, Cycle
from hubsae.dashboard.build import Dashboard
from hubsae.dashboard.page_data import Column, Pairs, Side
from hubsae.dictionary import Dictionary
from hubsae.errors import ConfigError, DataError, HubsaeError, warn
from hubsae.frames import Frame, stacked
from hubsae.identity import BaseModel, Check, compare
from hubsae.loading import load_sae
from hubsae.pair_tables import COLUMNS, kinds
from hubsae.sites import Site
from hubsae.sparse import as_numpy
from hubsae.verification import Verification, verify_on

_DASHBOARD_COLUMNS = {
    "corr_eval": "Correlation",
    "cos_map": "Cosine",
    "jaccard_eval": "Jaccard",
    "invariance": "Found again",
    "corr_withinword_q99": "Within words",
    "q_bh": "q",
}


class Alignment(StoredAlignment):
    """The map between two models and the pairs of features that it joins: what `align` and `load_alignment` give."""

    def transfer(self, dictionary: Any = None, *, method: str | None = None, back: bool = False) -> Any:
        """A's dictionary (by default the aligned one) as one of B, usable there like any other; `back`: B's in A."""
        if dictionary is None:
            dictionary = self._dictionaries()[back]
        elif not isinstance(dictionary, Dictionary):
            dictionary = load_sae(dictionary)
        source = self.sides[back]
        own, known = dictionary.base_model, BaseModel.from_dict(source["base_model"])
        wrong = [d for d in compare(known, own) if d.severity == "error"]
        if dictionary.config.reads != (source["site"],) or wrong:
            raise DataError(f"{dictionary.label}: these maps start at {source['site']} of {known.label}")
        there, other = self.map_of(method, back), self.map_of(method, not back)
        target = self.sides[not back]
        found = transfer.moved(dictionary, there, other, target["site"], target["base_model"])
        if self.models is not None:
            found.models = (self.models[not back],)
        return found

    def compose(self, other: StoredAlignment) -> Chain:
        """A -> C by way of B, for an alignment of B with C."""
        return chains.compose(self, _alignment(other))

    def cycle(self, other: StoredAlignment, direct: StoredAlignment) -> Cycle:
        """Whether A -> B -> C, by way of `other`, leads where `direct`, A -> C, does."""
        return chains.cycle(self, _alignment(other), _alignment(direct))

    def causal_transfer(self, texts: Any, config: CausalConfig | None = None, **settings: Any) -> Frame:
        """Steer B along A's mapped features and compare what happens with A, feature by feature, beside controls.

        Adds the effects, and their numbers with those of stitching A's activations into B, to the alignment, so that
        they are published with it. Texts: fresh ones, or those of the alignment; the eval split of them is used. Tested
        are the confirmed pairs with the highest correlation on the match split.
        Returns the numbers by condition.
        """
        config = replace(config or CausalConfig(), **settings)
        (a, b), models = aligning.at_hand(self)
        anchors = aligning.recorded_anchors(self, texts).of("eval")
        pairs = self.pairs.sorted_by("corr_match").where(np.arange(min(config.n_features, len(self.pairs))))
        ids = pairs["feature_a"], pairs["feature_b"]
        decoders = as_numpy(a.W_dec).astype(np.float64), as_numpy(b.W_dec).astype(np.float64)
        sites = Site.parse(self.sides[0]["site"]), Site.parse(self.sides[1]["site"])
        maps = {method: both[0] for method, both in self.maps.items()}
        main = self.settings.method
        rows, numbers = causal.measure_effects(models, sites, ids, decoders, maps, main, anchors, config)
        ordered = {main: maps[main], **maps}
        numbers += transfer.stitched(models, sites, ordered, anchors, self.settings)
        self._add(rows, numbers)
        return causal.by_condition(numbers, f"{len(ids[0])} features of A in B, dose {config.dose:g} nats")

    def _add(self, effects: list[dict[str, Any]], numbers: list[dict[str, Any]]) -> None:
        self.frames["effects"] = Frame(stacked(effects, kinds("effects")))
        old, new = self.frames["metrics"], stacked(numbers, kinds("metrics"))
        kept = old.where(~np.isin(old["name"].astype(str), new["name"].astype(str)))
        self.frames["metrics"] = Frame({n: np.concatenate([kept[n], new[n]]) for n in COLUMNS["metrics"]})
        self.metrics = aligning.summary(self.frames["metrics"])

    def verify(
        self, texts: Any, *, name: str | None = None, max_anchors: int | None = None, progress: bool = False
    ) -> Verification:
        """Its numbers and its pairs on texts that it has not seen: which lie inside their published intervals.

        As many anchors are read as the alignment was limited to, if it was (`max_anchors`: another limit). Texts that
        it has seen say less; only the very same, in the same order, are refused, since of parts nothing is kept. With
        a `name` for the texts the outcome is noted in the alignment, and saved and published with it.
        """
        dictionaries, models = aligning.at_hand(self)
        limit = {} if max_anchors is None else {"max_anchors": max_anchors}
        anchors = aligning.recorded_anchors(self, texts, "eval", **limit)
        if anchors.digest == self.config.anchors.get("digest"):
            raise DataError("these are the texts that were aligned; a verification needs others")
        found = verify_on(self, dictionaries, models, anchors, progress=progress)
        if name is not None:
            note = {"data": name, "date": datetime.now(UTC).date().isoformat(), **found.to_dict()}
            self.config = replace(self.config, verified_by=(*self.config.verified_by, note))
        return found

    def _dictionaries(self) -> tuple[Any, Any]:
        if self.dictionaries is None:
            raise ConfigError("the aligned dictionaries are not at hand; bind(sae_a, sae_b) gives them")
        return self.dictionaries

    def make_dashboard(self, title: str | None = None) -> Dashboard:
        """A site of both dictionaries in which the pairs stand beside each other: `.write(folder)` writes it.

        Needs what is known of their features (`feature_statistics`).
        """
        sides = [Side.of(dictionary, dictionary.features) for dictionary in self._dictionaries()]
        if sides[0].name == sides[1].name:
            sides = [replace(side, name=f"{side.name} ({which})") for side, which in zip(sides, "AB", strict=True)]
        pairs = self.pairs
        columns = [
            Column(name, label, pairs[name], COLUMNS["pairs"][name][1]) for name, label in _DASHBOARD_COLUMNS.items()
        ]
        shown = Pairs(pairs["feature_a"].tolist(), pairs["feature_b"].tolist(), columns, pairs.note)
        return Dashboard.of(sides, title=title, pairs=shown)


def _alignment(other: Any) -> StoredAlignment:
    if not isinstance(other, StoredAlignment):
        raise ConfigError(f"a {type(other).__name__}: expected an alignment; load_alignment(...) gives one")
    return other


def align(
    sae_a: Any,
    sae_b: Any,
    *,
    model_a: Any = None,
    model_b: Any = None,
    texts: Any,
    method: str | None = None,
    config: AlignConfig | None = None,
    dataset_name: str | None = None,
    progress: bool = True,
    **settings: Any,
) -> Alignment:
    """Which features of two models' SAEs mean the same: an `Alignment` of dictionaries, folders or repositories.

    Both models read the texts; their activations are compared at the tokens that end at the same character. The map is
    fitted on some documents, pairs are chosen on others, and every number comes from the rest, with its interval and
    what chance would give. method: "procrustes", "ridge" or "svcca". settings: any of `AlignConfig` and `AnchorConfig`
    by name. Models that are not given are those that the SAEs are bound to.
    """
    changes = {**({"method": method} if method is not None else {}), **settings}
    chosen, anchor_config = aligning.with_settings(config, changes)
    sides = tuple(_bound(sae, model, name) for sae, model, name in ((sae_a, model_a, "a"), (sae_b, model_b, "b")))
    models = sides[0].models[0], sides[1].models[0]
    parts = aligning.align_dictionaries(
        (sides[0], sides[1]), models, texts, chosen, anchor_config, data=dataset_name, progress=progress
    )
    found = Alignment(*parts)
    found.metrics = aligning.summary(found.frames["metrics"])
    found.dictionaries, found.models = (sides[0], sides[1]), models
    return found


def _bound(sae: Any, model: Any, name: str) -> BoundDictionary:
    sae = sae if isinstance(sae, BoundDictionary) else load_sae(sae)
    if model is not None:
        sae.bind(as_model(model))
    if not sae.models:
        raise ConfigError(f"sae_{name} is bound to no model; give model_{name}")
    return sae


def load_alignment(
    source: str | Path,
    sae_a: Any = None,
    sae_b: Any = None,
    *,
    model_a: Any = None,
    model_b: Any = None,
    revision: str | None = None,
    check: Check = "warn",
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
) -> Alignment:
    """The alignment of a folder or dataset repository, compared with the dictionaries and models at hand.

    Dictionaries that are not given are loaded from the repositories and commits that it names, if it names any; models
    are used where they are given. Other dictionaries raise `CompatibilityError`; other models as in `load_sae`.
    """
    found = Alignment.from_pretrained(
        source, revision=revision, token=token, cache_dir=cache_dir, local_files_only=local_files_only
    )
    given = [sae_a, sae_b]
    where = {"token": token, "cache_dir": cache_dir, "local_files_only": local_files_only}
    for i, (sae, side) in enumerate(zip(given, found.sides, strict=True)):
        if sae is None and side.get("repo_id"):
            given[i] = _recorded(side, where)
        elif sae is not None and not isinstance(sae, BoundDictionary):
            given[i] = load_sae(sae, **where)
    if all(sae is not None for sae in given):
        found.bind(given[0], given[1], model_a, model_b, check)
    elif model_a is not None or model_b is not None:
        raise ConfigError("the alignment names no repository of its dictionaries; give sae_a and sae_b too")
    return found


def _recorded(side: dict[str, Any], where: dict[str, Any]) -> Any:
    """The dictionary of a side from its repository and commit; None, with a warning, where it cannot be had."""
    try:
        return load_sae(side["repo_id"], revision=side["revision"], subfolder=side["subfolder"], **where)
    except HubsaeError as error:
        warn(f"a dictionary of this alignment cannot be loaded, so it is bound to none: {error}")
        return None


def verify(alignment: Any, texts: Any, *, progress: bool = True, **load: Any) -> Verification:
    """An `Alignment`'s numbers (or those of a folder or repository, loaded with `load`) on texts it has not seen."""
    if not isinstance(alignment, Alignment):
        alignment = load_alignment(alignment, **load)
    return alignment.verify(texts, progress=progress)
