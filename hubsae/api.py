"""What a user holds: `InterpretableModel`, the three kinds of dictionary, and `SAETrainer`."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from hubsae import diffing, evaluate
from hubsae.activations import site_product
from hubsae.activations import width as width_of
from hubsae.dashboard.methods import WithDashboard
from hubsae.diffing import LatentScaling
from hubsae.errors import ConfigError, SiteError
from hubsae.evaluate import Evaluation
from hubsae.fingerprint import measured
from hubsae.fit import Run, fit, swept, wanted
from hubsae.formats.writing import EXPORTS, export, export_features, exported, write_export
from hubsae.identity import BaseModel, Check, Compared, Difference
from hubsae.lm import LanguageModel
from hubsae.recipe import CrosscoderConfig, SAEConfig, TranscoderConfig
from hubsae.report import ReportTo
from hubsae.settings import as_type
from hubsae.sites import Site, parse_sites, reads_there
from hubsae.tokens import TokenConfig


class BoundDictionary(WithDashboard):
    """A dictionary with what can be asked of it together with its language model or models, `models` when bound."""

    models: tuple[LanguageModel, ...] = ()
    forms = tuple(EXPORTS)

    @property
    def model(self) -> LanguageModel | None:
        """The language model it is bound to; the first where there are several."""
        return self.models[0] if self.models else None

    def bind(self, model: Any, check: Check = "warn") -> list[Difference]:
        """Compare with `model` (an `InterpretableModel`, what makes one, or a list of them); returns all differences.

        Raises `CompatibilityError` as `check` says, and stays unbound then.
        """
        models = as_models(model)
        differences = self.check_models(models, check)
        self.models = models
        return differences

    def compared_with(self, model: Any) -> list[Compared]:
        """Every field by which `model` (or several) is compared with what was recorded, with its verdict."""
        models = as_models(model)
        return self.compared(self._measured(models), self._widths(models))

    def is_compatible(self, model: Any, layer: int | None = None, component: str | None = None) -> bool:
        """Whether it fits the model's structure (and reads at that layer and component, where they are given)."""
        models = as_models(model)
        here = reads_there(self.config.read_sites, layer, component)
        found = self.compare([m.identity for m in models], self._widths(models))
        return here and not any(d.severity == "error" for d in found)

    def _widths(self, models: Sequence[LanguageModel]) -> dict[Site, int]:
        found = {}
        for site in (*self.config.read_sites, *self.config.write_sites):
            try:
                found[site] = width_of(models, site)
            except SiteError:  # reported as a difference
                continue
        return found

    def _bound(self, model: Any) -> tuple[LanguageModel, ...]:
        if model is None and not self.models:
            raise ConfigError(f"this {self.config.kind} is bound to no model; call bind(model), or give the model here")
        if model is None:
            return self.models
        models = as_models(model)
        self.check_models(models)
        return models

    def check_models(self, models: Sequence[LanguageModel], check: Check = "warn") -> list[Difference]:
        """As `check`; only where files leave a doubt, what the models do with a fixed text is measured too."""
        identities, widths = [m.identity for m in models], self._widths(models)
        found = {difference.severity for difference in self.compare(identities, widths)}
        doubtful = check != "ignore" and "warning" in found and "error" not in found
        return self.check(self._measured(models) if doubtful else identities, widths, check)

    def _measured(self, models: Sequence[LanguageModel]) -> list[BaseModel]:
        if len(models) != len(self.base_models):
            return [model.identity for model in models]
        return [measured(recorded, model) for recorded, model in zip(self.base_models, models, strict=True)]

    def export(self, folder: str | Path, to: str = "saelens") -> Path:
        """Write it as another library loads it, `"saelens"` or `"sparsify"`; returns the folder.

        Raises `ArtifactError` where that library has nothing that would compute the same.
        """
        return export(self, folder, to)

    def export_features(self, folder: str | Path, *, model_id: str, source_set: str) -> Path:
        """Write the records of its features that Neuronpedia imports, from `feature_statistics`; returns the folder."""
        return export_features(self, self.features, folder, model_id=model_id, source_set=source_set)

    def _write_form(self, folder: Path, form: str) -> None:
        write_export(self, folder, form)

    def _forms_there(self, names: list[str], read: Callable[[str], dict]) -> dict[str, list[str]]:
        return exported(names, read)

    def evaluate(
        self, model: Any = None, texts: Any = None, *, max_rows: int = 50_000, text_column: str = "text"
    ) -> Evaluation:
        """Judge it on texts it was not trained on, with `model` or the model it is bound to (see `Evaluation`)."""
        if texts is None:
            raise ConfigError("evaluate needs texts: evaluate(model, texts), or evaluate(texts=...) when bound")
        return evaluate.evaluate(self, self._bound(model), texts, max_rows=max_rows, text_column=text_column)


class SAE(BoundDictionary):
    """A sparse autoencoder: reads one site and writes the same."""

    kind = "sae"


class Transcoder(BoundDictionary):
    """Reads some sites and writes others, such as `mlp_in` -> `mlp`, or one layer -> a later one."""

    kind = "transcoder"


class Crosscoder(BoundDictionary):
    """Reads several sites at once, of one or several models, and writes the same ones from one code."""

    kind = "crosscoder"

    def relative_norms(self) -> np.ndarray:
        """(F, sites) shares of each feature's decoder norm; see `diffing.relative_norms`."""
        return diffing.relative_norms(self)

    def latent_scaling(self, texts: Any, model: Any = None, *, max_rows: int = 50_000) -> LatentScaling:
        """How far each site really uses each feature, by least squares on texts; see `diffing.latent_scaling`."""
        return diffing.latent_scaling(self, self._bound(model), texts, max_rows=max_rows)


def as_model(source: Any) -> LanguageModel:
    """An `InterpretableModel` from itself, a repository id, a folder or a (model, tokenizer) pair."""
    return source if isinstance(source, LanguageModel) else InterpretableModel(source)


def as_models(source: Any) -> tuple[LanguageModel, ...]:
    """One model or a list of them, each as `as_model` takes it."""
    several = isinstance(source, tuple) and all(isinstance(s, LanguageModel | str | Path) for s in source)
    return tuple(map(as_model, source)) if several or isinstance(source, list) else (as_model(source),)


class InterpretableModel(LanguageModel):
    """A language model to look inside: `trace`, `generate`, and dictionaries trained on it."""

    def train_sae(
        self,
        layer: int | Sequence[int],
        dataset: Any,
        component: str | Sequence[str] = "mlp",
        save_path: str | Path | None = None,
        config: SAEConfig | None = None,
        *,
        training_tokens: int | None = None,
        tokens: TokenConfig | None = None,
        dataset_name: str | None = None,
        cache_dir: str | Path | None = None,
        checkpoint_dir: str | Path | None = None,
        report_to: ReportTo = None,
        progress: bool = True,
        **overrides: Any,
    ) -> Any:
        """An `SAE` of one site, trained on `dataset` and judged on the share of it that was held out.

        dataset: a list of texts, any iterable, a `datasets` dataset, or an `ActivationDataset`; one without a length
        (streaming) needs `training_tokens`. `config` holds the settings; single ones can be given by name, as in
        `train_sae(..., k=64)`. A list of layers, of components, or of values of a setting (`k=[16, 64]`, `seed=[1, 2]`)
        trains an SAE for each combination in one pass of the model, and returns them as a list in that order.

        With `save_path` the folder is written too (several: a folder for each under it). dataset_name: what the card
        calls the data, a Hub id where it is one. cache_dir keeps activations on disk; checkpoint_dir keeps the state
        of the run, so that the same call goes on where it was stopped and ends with the same weights. report_to: a
        function that takes log rows, or "trackio". Nothing long is done before the settings, the sites and the amount
        of data are known to work.
        """
        sites = [((site,), (site,)) for site in site_product(_layers(layer), component)]
        several = isinstance(layer, Sequence) or not isinstance(component, str)
        run = Run(save_path, training_tokens, tokens, dataset_name, cache_dir, checkpoint_dir, report_to, progress)
        found = _trained([self], sites, SAE, _settings(config, SAEConfig), dataset, overrides, run)
        return _one_or_all(found, several, overrides)

    def train_transcoder(
        self,
        from_layer: int,
        to_layer: int,
        dataset: Any,
        component: str = "mlp",
        from_component: str | None = None,
        to_component: str | None = None,
        save_path: str | Path | None = None,
        config: TranscoderConfig | None = None,
        *,
        training_tokens: int | None = None,
        tokens: TokenConfig | None = None,
        dataset_name: str | None = None,
        cache_dir: str | Path | None = None,
        checkpoint_dir: str | Path | None = None,
        report_to: ReportTo = None,
        progress: bool = True,
        **overrides: Any,
    ) -> Any:
        """A `Transcoder` that reads a component of `from_layer` and predicts one of `to_layer`.

        Without from_component and to_component both are `component`; within one layer what is read is then its input,
        so `train_transcoder(5, 5, texts)` goes from `mlp_in` to `mlp`, the usual sense (Dunefsky et al. 2024). The rest
        is as in `train_sae`; lists of values of settings give a list of transcoders.
        """
        same_layer = from_layer == to_layer
        if same_layer and from_component is None and to_component is None and Site(0, component).is_input:
            raise ConfigError(f"component={component!r} is an input; give to_component= too, or the component itself")
        read = from_component or (f"{component}_in" if same_layer and to_component is None else component)
        reads = Site(as_type(from_layer, int, "from_layer"), read)
        writes = Site(as_type(to_layer, int, "to_layer"), to_component or component)
        if reads == writes:
            raise ConfigError(
                f"a transcoder that reads and writes {reads} is an SAE; use train_sae, or other components"
            )
        settings = _settings(config, TranscoderConfig)
        sites = [((reads,), (writes,))]
        run = Run(save_path, training_tokens, tokens, dataset_name, cache_dir, checkpoint_dir, report_to, progress)
        found = _trained([self], sites, Transcoder, settings, dataset, overrides, run)
        return _one_or_all(found, False, overrides)

    def train_crosscoder(
        self,
        dataset: Any,
        layer: int | None = None,
        layers: Sequence[int] | None = None,
        component: str = "mlp",
        components: Sequence[str] | None = None,
        save_path: str | Path | None = None,
        config: CrosscoderConfig | None = None,
        *,
        training_tokens: int | None = None,
        tokens: TokenConfig | None = None,
        dataset_name: str | None = None,
        cache_dir: str | Path | None = None,
        checkpoint_dir: str | Path | None = None,
        report_to: ReportTo = None,
        progress: bool = True,
        **overrides: Any,
    ) -> Any:
        """A `Crosscoder` of several components of a layer, or of one component over several layers (or of all of both).

        The rest is as in `train_sae`; lists of values of settings give a list of crosscoders.
        """
        if (layer is None) == (layers is None):
            raise ConfigError("give either layer=, with several components=, or layers=[...]")
        sites = tuple(site_product(_layers(layers if layer is None else layer), components or component))
        run = Run(save_path, training_tokens, tokens, dataset_name, cache_dir, checkpoint_dir, report_to, progress)
        return _crosscoder([self], sites, dataset, config, overrides, run)


def train_crosscoder(
    models: Sequence[Any],
    dataset: Any,
    sites: Sequence[str | Site] | None = None,
    save_path: str | Path | None = None,
    config: CrosscoderConfig | None = None,
    *,
    layers: int | Sequence[int] | None = None,
    component: str = "residual",
    training_tokens: int | None = None,
    tokens: TokenConfig | None = None,
    dataset_name: str | None = None,
    cache_dir: str | Path | None = None,
    checkpoint_dir: str | Path | None = None,
    report_to: ReportTo = None,
    progress: bool = True,
    **overrides: Any,
) -> Any:
    """A `Crosscoder` of several models on the same texts, at the tokens that end at the same character in all of them.

    layers: one for each model, or one number for all. Or `sites` says it in full: `["layers.1.residual",
    "1:layers.2.residual"]` reads model 0 and model 1. Widths and tokenizers may differ. The rest is as in
    `InterpretableModel.train_sae`.
    """
    if not isinstance(models, list | tuple) or len(models) < 2:
        raise ConfigError("give a list of at least two models; one model has its own train_crosscoder")
    found = [as_model(model) for model in models]
    if (layers is None) == (sites is None):
        raise ConfigError("give either layers=, one for each model, or sites=")
    if sites is None:
        each = [layers] * len(found) if isinstance(layers, int) else list(layers or ())
        if len(each) != len(found):
            raise ConfigError(f"layers={each}: expected one for each of the {len(found)} models")
        sites = [Site(as_type(layer, int, "layers"), component, i) for i, layer in enumerate(each)]
    run = Run(save_path, training_tokens, tokens, dataset_name, cache_dir, checkpoint_dir, report_to, progress)
    return _crosscoder(found, parse_sites(sites), dataset, config, overrides, run)


class SAETrainer:
    """Trains SAEs with one set of settings: `SAETrainer(config).train(model=..., layer=..., dataset=...)`."""

    def __init__(self, config: SAEConfig | None = None):
        self.config = config or SAEConfig()

    def train(
        self,
        *,
        model: Any,
        layer: int | Sequence[int],
        dataset: Any,
        component: str | Sequence[str] = "mlp",
        config: SAEConfig | None = None,
        **options: Any,
    ) -> Any:
        """As `InterpretableModel.train_sae`; `options` are its other arguments, single settings too."""
        model = model if isinstance(model, InterpretableModel) else InterpretableModel(model)
        return model.train_sae(layer, dataset, component, config=config or self.config, **options)


def _crosscoder(
    models: list[LanguageModel], sites: tuple[Site, ...], dataset: Any, config: Any, overrides: dict, run: Run
) -> Any:
    if len(sites) < 2 or {site.model for site in sites} != set(range(len(models))):
        raise ConfigError(
            f"a crosscoder of {len(models)} models reads {', '.join(map(str, sites))}: expected at least two sites, "
            "and one of each model"
        )
    settings = _settings(config, CrosscoderConfig)
    found = _trained(models, [(sites, sites)], Crosscoder, settings, dataset, overrides, run)
    return _one_or_all(found, False, overrides)


def _trained(models: Any, sites: Any, kind: Any, config: Any, dataset: Any, overrides: dict, run: Run) -> list[Any]:
    found = fit(models, wanted(sites, config, overrides), kind, dataset, run)
    for dictionary in found:
        dictionary.models = tuple(models)
    return found


def _settings(config: SAEConfig | None, kind: type[SAEConfig]) -> SAEConfig:
    """The settings of a kind; those of a plain `SAEConfig` are taken over, other kinds' are refused."""
    if config is None or type(config) is kind:
        return config or kind()
    if type(config) is not SAEConfig:
        raise ConfigError(f"config is a {type(config).__name__}; a {kind.kind} takes a {kind.__name__}")
    return kind(**asdict(config))


def _layers(layer: Any) -> Any:
    """A layer or several, as whole numbers."""
    if isinstance(layer, list | tuple | range):
        return [as_type(one, int, "layer") for one in layer]
    return as_type(layer, int, "layer")


def _one_or_all(found: list[Any], several: bool, overrides: dict) -> Any:
    """The only dictionary, or the list where lists were asked for."""
    return found if several or swept(overrides) else found[0]
