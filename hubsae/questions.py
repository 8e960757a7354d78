"""What can be asked of a dictionary: each method is a thin call into the room that answers."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import mlx.core as mx
import numpy as np

from hubsae import feature_search, label, neighbours, steer, survey, text_analysis
from hubsae.dictionary import Dictionary
from hubsae.errors import ArtifactError, DataError, HubError, warn
from hubsae.feature_file import FEATURES
from hubsae.feature_search import FoundFeatures
from hubsae.feature_view import FeatureView
from hubsae.features import Features, Label, check_feature
from hubsae.hub import Source, check_target
from hubsae.label import Labels
from hubsae.labelers import as_labeler
from hubsae.lm import LanguageModel
from hubsae.neighbours import CoOccurrence, FeatureClusters, SimilarFeatures
from hubsae.steer import Intervention
from hubsae.store import CONFIG
from hubsae.survey import SurveyConfig
from hubsae.text_analysis import ActiveFeatures, Pool, TextAnalysis

_ON_CARD = 10


class Questions(Dictionary):
    """A dictionary that knows its `features`, and answers with the model that it is bound to, or the one given."""

    more_files: ClassVar[tuple[str, ...]] = (FEATURES,)
    _features: Features | None = None
    _sought: bool = False  # whether it was looked for, and found or not, where the dictionary comes from
    _unread: bool = False  # whether it could not be read there
    _features_source: Source | None = None  # where that is, if no longer `source`
    _sample: Any = None
    _surveyed: tuple[Any, int | None, Any] | None = None  # dataset, its length and the models of the last pass over all

    def _bound(self, model: Any) -> tuple[LanguageModel, ...]:
        raise NotImplementedError("a kind of dictionary says how it is bound to a model")

    @property
    def features(self) -> Features:
        """What is known of all features: numbers after training, more after `feature_statistics`, or as published.

        Raises `DataError` where nothing is known. Setting it to None forgets what is known, and saves none of it;
        `features.numbers_only()` is without pieces of text.
        """
        known = self.known_features()
        if known is None:
            raise DataError("nothing is known of its features yet; call feature_statistics(texts)")
        return known

    @features.setter
    def features(self, features: Features | None) -> None:
        if features is not None and not isinstance(features, Features):
            raise DataError(f"features is a {type(features).__name__}: expected Features, or None")
        if features is not None and not survey.belongs(features, self):
            raise DataError("these are the features of another dictionary; call feature_statistics(texts) for its own")
        self._features, self._sample, self._surveyed = features, None, None
        self._sought, self._unread, self._features_source = True, False, None

    def known_features(self) -> Features | None:
        """`features`, or None where nothing is known; a published features.parquet is fetched when first asked for.

        Raises `HubError` where it cannot be fetched, and `ArtifactError` where it is damaged or of another dictionary.
        """
        source = self._features_source or self.source
        if self._features is None and not self._sought and source is not None:
            try:
                path = source.file(FEATURES)
            except HubError as error:
                raise HubError(f"{FEATURES} of {source}, which is read when it is first used: {error}") from error
            found = None if path is None else Features.load(path, self.n_features)
            if found is not None and not survey.belongs(found, self):
                raise ArtifactError(f"{path} is of another dictionary; call feature_statistics(texts) for a new one")
            self._features, self._sought, self._unread = found, True, False
        return self._features

    @classmethod
    def taken_from(cls, other: Dictionary) -> Self:
        """The same dictionary as this class, with what is known of it; `ArtifactError` where it is of another kind."""
        new = cls(other.config, other.arrays())
        names = ("statistics", "metrics", "source")
        if isinstance(other, Questions):
            names += ("_features", "_sought", "_unread", "_features_source", "_sample", "_surveyed")
        for name in names:
            setattr(new, name, getattr(other, name))
        return new

    def relabel(self, labels: Mapping[int, Label]) -> None:
        """Add or replace labels of features."""
        self._features = self.features.labelled(labels)

    def annotations(self) -> Features | None:
        """`known_features` for names beside numbers: with one warning instead of errors where they cannot be had."""
        try:
            return self.known_features()
        except (HubError, ArtifactError) as error:
            if not self._unread:
                warn(f"going on without what is known of its features ({error})")
            self._unread = True
            return None

    def _save_pretrained(self, save_directory: Path) -> None:
        super()._save_pretrained(save_directory)
        known = self.annotations()
        if known is None:
            return
        if survey.belongs(known, self):
            known.save(save_directory)
        else:
            warn("its weights have changed since its features were analysed; they are not saved with it")

    def own_files(self) -> tuple[str, ...]:
        self.annotations()
        return tuple(name for name in super().own_files() if name != FEATURES or not self._unread)  # nothing is lost

    def _published_at(self, source: Source) -> None:
        before = self._features_source or self.source
        super()._published_at(source)
        self._features_source = before if self._unread else None

    def save(self, path: str | Path) -> None:
        """Write the folder `path`: config, weights, numbers, card, and features.parquet where features are known."""
        before = self._features_source or self.source
        super().save(path)
        self._features_source = before if self._unread else None

    def card_values(self) -> dict:
        known = self.annotations()
        known = known if known and survey.belongs(known, self) else None
        return {**super().card_values(), "features": known, "examples": _examples(known)}

    def feature_statistics(
        self,
        dataset: Any,
        model: Any = None,
        *,
        config: SurveyConfig | None = None,
        max_tokens: int | None = None,
        dataset_name: str | None = None,
        text_column: str = "text",
        progress: bool = False,
    ) -> Features:
        """What all features do on texts, from one pass: numbers, examples, neighbours, promoted tokens (`Features`).

        It is kept as `features`; `save` and `push_to_hub` write it as features.parquet, pieces of the texts included.
        Labels that are known are kept. `max_tokens` ends the pass early; `dataset_name` is what the result calls the
        texts.
        """
        models, known = self._bound(model), self.annotations()
        found = survey.survey(
            self,
            models,
            dataset,
            config,
            max_tokens=max_tokens,
            data=dataset_name,
            text_column=text_column,
            progress=progress,
        )
        self.features = found.features.labelled(known.labels) if known and known.labels else found.features
        self._sample = found.sample
        self._surveyed = (dataset, _length(dataset), models) if max_tokens is None else None
        return self.features

    def _analysed(self, dataset: Any, model: Any, *, examples: bool = True) -> Features | None:
        """`features`, after a pass over `dataset`, if one is given and was not the last one analysed.

        Raises `DataError` where examples are wanted and none are known.
        """
        if dataset is not None:
            before, length, models = self._surveyed or (None, None, None)
            same = before is dataset and length == _length(dataset)
            if not same or (model is not None and self._bound(model) != models):
                return self.feature_statistics(dataset, model)
        known = self.known_features()
        if examples and (known is None or not known.has_examples):
            raise DataError("no examples are known of its features; give dataset=texts, or call feature_statistics")
        return known

    def visualize_feature(self, feature_id: int, dataset: Any = None, model: Any = None) -> FeatureView:
        """One feature to look at: examples with marked tokens, promoted tokens, neighbours, histogram.

        With a dataset that is not the last one analysed, a pass over it is made, which then serves all features.
        Raises `DataError` for ids out of range and for dead features.
        """
        feature_id = check_feature(feature_id, self.n_features)
        features = self._analysed(dataset, model)
        assert features is not None
        return FeatureView(features.check(feature_id, alive=True), features)

    def analyze_text(self, text: str, model: Any = None, top_k: int = 10) -> TextAnalysis:
        """The strongest features of every token of a text."""
        return text_analysis.analyze_text(self, self._bound(model), text, top_k, self.annotations())

    def find_top_features(self, text: str, model: Any = None, top_k: int = 10) -> ActiveFeatures:
        """The features with the largest values anywhere in a text."""
        return self.analyze_text(text, model, top_k).strongest()

    def encode_text(self, text: str, model: Any = None, pool: Pool | None = "max") -> mx.array:
        """(F,) one code for a text: "max", "mean", "sum" or "last" over its tokens; None: all of them, (tokens, F).

        Sums and differences of such codes are directions: `intervene(direction=a - b)`.
        """
        return text_analysis.encode_text(self, self._bound(model), text, pool)

    def interpret_features(self, code: Any, top_k: int = 10) -> ActiveFeatures:
        """What is active in a code (..., F), dense or sparse, with what is known of it."""
        return text_analysis.interpret_features(code, self.n_features, top_k, self.annotations())

    def find_feature_by_examples(
        self, texts: Sequence[str], against: Any = None, model: Any = None, top_k: int = 10
    ) -> FoundFeatures:
        """The features that fire on all of `texts` rather than on others, best first.

        `against`: texts of all sorts, a list or a `datasets` dataset; without them what is known of the features'
        values elsewhere is used. Examples should differ in everything but what is looked for: what else they share is
        found as well.
        """
        models = self._bound(model)
        return feature_search.find_by_examples(self, models, texts, against, top_k, self.annotations())

    def similar_features(self, feature_id: int, by: str = "decoder", top_k: int = 10) -> SimilarFeatures:
        """Features that write the same way (`by="decoder"`, cosine) or fire together (`"coactivation"`, phi)."""
        return neighbours.similar_features(self, feature_id, by, top_k, self.annotations(), self._sample)

    def feature_clusters(
        self, by: str = "decoder", min_similarity: float = 0.5, dataset: Any = None, model: Any = None
    ) -> FeatureClusters:
        """Groups of features around a centre that each of them resembles by at least `min_similarity`.

        By decoder rows (cosine), or by `"coactivation"` (phi), which needs a pass over texts: `dataset`, or the last
        `feature_statistics`. Dead features take no part.
        """
        self._analysed(dataset, model, examples=False)
        return neighbours.feature_clusters(self, by, min_similarity, self.annotations(), self._sample)

    def co_occurrence(self, feature_ids: Sequence[int], dataset: Any = None, model: Any = None) -> CoOccurrence:
        """How often each two of some features fire on the same tokens, counted on a sample of the texts' tokens."""
        self._analysed(dataset, model, examples=False)
        return neighbours.co_occurrence(self, feature_ids, self.annotations(), self._sample)

    def steer(self, activation: mx.array, feature_id: int, strength: float = 1.0, units: str = "typical") -> mx.array:
        """(..., d_out) activations of the written sites, moved along a feature's decoder row.

        strength: in units of the feature's typical activation, or of the code (`units="raw"`). The rest of the
        activation, reconstruction error included, stays.
        """
        try:
            x = activation if isinstance(activation, mx.array) else mx.array(np.asarray(activation, np.float32))
        except (TypeError, ValueError) as error:
            raise DataError(f"activation is a {type(activation).__name__}: expected numbers") from error
        x = x if mx.issubdtype(x.dtype, mx.floating) else x.astype(mx.float32)
        if x.shape[-1:] != (self.config.d_out,):
            raise DataError(
                f"activations have shape {x.shape}; this {self.config.kind} writes {self.config.d_out} columns "
                f"({', '.join(self.config.writes)})"
            )
        known = None if units == "raw" else self.known_features()
        change = steer.change(self, known, add={feature_id: strength}, units=units)
        return (x.astype(mx.float32) + change.shift @ self.W_dec.astype(mx.float32)).astype(x.dtype)

    def intervene(
        self,
        *,
        add: Mapping[int, float] | None = None,
        amplify: Mapping[int, float] | None = None,
        set: Mapping[int, float] | None = None,
        ablate: Sequence[int] = (),
        direction: Any = None,
        strength: float = 1.0,
        units: str = "typical",
        of_model: int = 0,
    ) -> Intervention:
        """What `trace` and `generate` take as `interventions`: changes of the code, the reconstruction error kept.

        add {feature: strength}: everywhere. amplify {feature: factor}: where it fires. set {feature: strength}:
        everywhere, whatever it was. ablate [features]: to zero. direction (F,), times `strength`: a difference or sum
        of `encode_text` codes, added everywhere. Strengths are in units of each feature's typical activation (its mean
        where it fires; `units="raw"`: as they are), a direction's of itself. Several, of other dictionaries too, go
        together as `a.intervene(...) | b.intervene(...)`. of_model: which model, where there are several.
        """
        needs = units == "typical" and bool(add or set)
        known = self.known_features() if needs else None
        change = steer.change(
            self,
            known,
            add=add,
            amplify=amplify,
            set_to=set,
            ablate=ablate,
            direction=direction,
            strength=strength,
            units=units,
        )
        return Intervention(self, change, of_model)

    def auto_label_features(
        self,
        labeler: Any,
        features: Sequence[int] | None = None,
        *,
        num_examples: int = 20,
        num_scored: int = 20,
        scorer: Any = None,
        dataset: Any = None,
        model: Any = None,
        relabel: bool = False,
        save_path: str | Path | None = None,
        seed: int = 0,
        progress: bool = True,
    ) -> Labels:
        """Labels of features, and how well each predicts where its feature fires, from examples not shown before.

        labeler: a function from prompt to text, an mlx-lm model's repository or folder, or the URL of an
        OpenAI-compatible endpoint (`EndpointLabeler` takes a key). It is shown `num_examples` examples, and then
        (`scorer`, if another shall judge) its label and `num_scored` other texts: half of them held-out examples, a
        quarter near misses, a quarter any text. Features (default: all that fire) that have a label keep it, unless
        `relabel`, so a run that was stopped goes on. With `save_path` the features.parquet in that folder is renewed
        after every 20 labels, and when a run ends or breaks off; labels that are there already count as had.
        """
        models = self._bound(model)
        known = self._analysed(dataset, models if model is not None else None)
        assert known is not None
        there = None if save_path is None else self._there(check_target(save_path))
        if there is not None:
            known = known.labelled({i: found for i, found in there.labels.items() if not known.label(i)})
            self._features = known
        asked = label.chosen(known, features)
        todo = [i for i in asked if relabel or not known.label(i)]
        own = as_labeler(labeler)
        kept = label.Kept(self, save_path, there)
        try:
            found, unusable = label.label_features(
                self,
                models,
                known,
                todo,
                own,
                own[0] if scorer is None else as_labeler(scorer)[0],
                num_examples=num_examples,
                num_scored=num_scored,
                seed=seed,
                keep=kept.add,
                progress=progress,
            )
        finally:
            kept.store()
        return Labels(found, unusable, len(asked) - len(todo))

    def _there(self, folder: Path) -> Features | None:
        """The features in a folder that labels are to be kept in; `ArtifactError` where it is another dictionary's."""
        if (folder / CONFIG).is_file():
            there = Dictionary.from_pretrained(folder)
            if not survey.same_dictionary(there, self):
                raise ArtifactError(f"{folder} holds another dictionary; give another save_path")
        if not (folder / FEATURES).is_file():
            return None
        found = Features.load(folder, self.n_features)
        if not survey.belongs(found, self):
            raise ArtifactError(f"{folder / FEATURES} is of another dictionary; give another save_path")
        return found


def _length(dataset: Any) -> int | None:
    return len(dataset) if hasattr(dataset, "__len__") else None


def _examples(known: Features | None) -> list[dict]:
    """Ten features of all frequencies for a card, labelled ones first in choice, the most often active on top."""
    if known is None or not known.has_examples:
        return []
    labels = known.labels
    alive = np.flatnonzero(~known.dead)
    is_labelled = np.isin(alive, list(labels))
    chosen = _spread(alive[is_labelled], known.density, _ON_CARD)
    chosen += _spread(alive[~is_labelled], known.density, _ON_CARD - len(chosen))
    return [
        {
            "feature": i,
            "density": float(known.density[i]),
            "tokens": known.top_tokens(i),
            "label": labels[i].text if i in labels else "",
        }
        for i in sorted(chosen, key=lambda i: (-known.density[i], i))
    ]


def _spread(features: np.ndarray, density: np.ndarray, n: int) -> list[int]:
    """At most n of them, at equal steps of their rank by density."""
    order = features[np.argsort(-density[features], kind="stable")]
    n = min(n, len(order))
    return order[((np.arange(n) + 0.5) * len(order) / max(1, n)).astype(int)].tolist()
