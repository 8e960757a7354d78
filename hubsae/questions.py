"""What can be asked of a dictionary: each method is a thin call into the room that answers."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import mlx.core as mx
import numpy as np

from hubsae import label, neighbours, steer, survey, text_analysis
from hubsae.dictionary import Dictionary
from hubsae.errors import DataError, HubError, warn
from hubsae.feature_file import FEATURES
from hubsae.features import Features, FeatureView, Label
from hubsae.hub import check_target
from hubsae.label import Labels
from hubsae.labelers import as_labeler
from hubsae.lm import LanguageModel
from hubsae.neighbours import CoOccurrence, FeatureClusters, SimilarFeatures
from hubsae.steer import Intervention
from hubsae.survey import Survey, SurveyConfig
from hubsae.text_analysis import ActiveFeatures, FoundFeatures, Pool, TextAnalysis


class Questions(Dictionary):
    """A dictionary that knows its `features`, and answers with the model that it is bound to, or the one given."""

    more_files: ClassVar[tuple[str, ...]] = (FEATURES,)
    _features: Features | None = None
    _sample: Any = None
    _surveyed: Any = None

    def _bound(self, model: Any) -> tuple[LanguageModel, ...]:
        raise NotImplementedError("a kind of dictionary says how it is bound to a model")

    @property
    def features(self) -> Features:
        """What is known of all features: numbers after training, more after `feature_statistics`, or as published.

        Raises `DataError` where nothing is known.
        """
        known = self.known_features()
        if known is None:
            raise DataError("nothing is known of its features yet; call feature_statistics(texts)")
        return known

    @features.setter
    def features(self, features: Features) -> None:
        if features.n_features != self.n_features:
            raise DataError(f"these are {features.n_features} features, the dictionary has {self.n_features}")
        self._features = features

    def known_features(self) -> Features | None:
        """`features`, or None where nothing is known; a published features.parquet is fetched when first asked for."""
        if self._features is None and self.source is not None:
            path = self.source.file(FEATURES)
            if path is not None:
                self._features = Features.load(path, self.n_features)
        return self._features

    def _names(self) -> Features | None:
        """`known_features` for annotations: where the Hub cannot be reached, none."""
        try:
            return self.known_features()
        except HubError:
            return None

    def _save_pretrained(self, save_directory: Path) -> None:
        super()._save_pretrained(save_directory)
        if self._features is not None:
            self._features.save(save_directory)
            return
        try:
            path = self.source.file(FEATURES) if self.source else None
        except HubError as error:
            warn(f"{FEATURES} of {self.source} cannot be fetched and is not saved with it ({error})")
            return
        if path is not None:
            shutil.copyfile(path, save_directory / FEATURES)

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

        It is kept as `features`, saved and published with the dictionary as features.parquet. Labels are kept.
        `max_tokens` ends the pass early; `dataset_name` is what the result calls the texts.
        """
        found = survey.survey(
            self,
            self._bound(model),
            dataset,
            config,
            max_tokens=max_tokens,
            data=dataset_name,
            text_column=text_column,
            progress=progress,
        )
        return self._keep(found, dataset)

    def _keep(self, found: Survey, dataset: Any) -> Features:
        known = self._names()
        self._features = found.features.labelled(known.labels) if known and known.labels else found.features
        self._sample, self._surveyed = found.sample, dataset
        return self._features

    def _analysed(self, dataset: Any, model: Any) -> Features:
        """`features` with examples, from a pass over `dataset` where they come from elsewhere or are missing."""
        if dataset is not None and dataset is not self._surveyed:
            return self.feature_statistics(dataset, model)
        known = self.known_features()
        if known is None or not known.has_examples:
            raise DataError("no examples are known of its features; give dataset=texts, or call feature_statistics")
        return known

    def visualize_feature(self, feature_id: int, dataset: Any = None, model: Any = None) -> FeatureView:
        """One feature to look at: examples with marked tokens, promoted tokens, neighbours, histogram.

        With a dataset that is not the last one analysed, a pass over it is made, which then serves all features.
        Raises `DataError` for ids out of range and for dead features.
        """
        if not 0 <= feature_id < self.n_features:
            raise DataError(f"feature {feature_id}: this dictionary has features 0 to {self.n_features - 1}")
        features = self._analysed(dataset, model)
        return FeatureView(features.check(feature_id, alive=True), features)

    def analyze_text(self, text: str, model: Any = None, top_k: int = 10) -> TextAnalysis:
        """The strongest features of every token of a text."""
        return text_analysis.analyze_text(self, self._bound(model), text, top_k, self._names())

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
        return text_analysis.interpret_features(code, self.n_features, top_k, self._names())

    def find_feature_by_examples(
        self, texts: Sequence[str], against: Sequence[str] | None = None, model: Any = None, top_k: int = 10
    ) -> FoundFeatures:
        """The features that fire on all of `texts` rather than on others, best first.

        `against`: texts of all sorts; without them what is known of the features' values elsewhere is used. Examples
        should differ in everything but what is looked for: what else they share is found as well.
        """
        models = self._bound(model)
        return text_analysis.find_by_examples(self, models, texts, against, top_k, self._names())

    def similar_features(self, feature_id: int, by: str = "decoder", top_k: int = 10) -> SimilarFeatures:
        """Features that write the same way (`by="decoder"`, cosine) or fire together (`"coactivation"`, phi)."""
        return neighbours.similar_features(self, feature_id, by, top_k, self._names(), self._sample)

    def feature_clusters(
        self, by: str = "decoder", min_similarity: float = 0.5, dataset: Any = None, model: Any = None
    ) -> FeatureClusters:
        """Groups of features around a centre that each of them resembles by at least `min_similarity`.

        By decoder rows (cosine), or by `"coactivation"` (phi), which needs a pass over texts: `dataset`, or the last
        `feature_statistics`. Dead features take no part.
        """
        if dataset is not None and dataset is not self._surveyed:
            self.feature_statistics(dataset, model)
        return neighbours.feature_clusters(self, by, min_similarity, self._names(), self._sample)

    def co_occurrence(self, feature_ids: Sequence[int], dataset: Any = None, model: Any = None) -> CoOccurrence:
        """How often each two of some features fire on the same tokens, counted on a sample of the texts' tokens."""
        if dataset is not None and dataset is not self._surveyed:
            self.feature_statistics(dataset, model)
        return neighbours.co_occurrence(self, feature_ids, self._names(), self._sample)

    def steer(self, activation: mx.array, feature_id: int, strength: float = 1.0, units: str = "typical") -> mx.array:
        """(..., d_out) activations of the written sites, moved along a feature's decoder row.

        strength: in units of the feature's typical activation, or of the code (`units="raw"`). The rest of the
        activation, reconstruction error included, stays.
        """
        x = activation if isinstance(activation, mx.array) else mx.array(np.asarray(activation))
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
        where it fires; `units="raw"`: as they are), a direction's of itself. Those of several dictionaries go together
        as `{**a.intervene(...), **b.intervene(...)}`. of_model: which model, where there are several.
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
        `relabel`; so a run that was stopped goes on. With `save_path` the features.parquet of that folder is renewed
        after every 20 labels, and when a run ends or breaks off.
        """
        models = self._bound(model)
        known = self._analysed(dataset, models if model is not None else None)
        asked = label.chosen(known, features)
        todo = [i for i in asked if relabel or not known.label(i)]
        own = as_labeler(labeler)
        new: dict[int, Label] = {}

        def store() -> None:
            self._features = self.features.labelled(new)
            new.clear()
            if save_path is not None:
                self._features.save(check_target(save_path))

        def keep(feature: int, given: Label) -> None:
            new[feature] = given
            if len(new) >= 20:
                store()

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
                keep=keep,
                progress=progress,
            )
        finally:
            store()
        return Labels(found, unusable, len(asked) - len(todo))
