"""What a user holds: `InterpretableModel`, the three kinds of dictionary, and `load_sae`."""

import re
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

from hubsae import backend, evaluate
from hubsae.activations import ActivationDataset
from hubsae.dictionary import Dictionary, DictionaryConfig
from hubsae.errors import ConfigError, DataError, SiteError, warn
from hubsae.evaluate import Evaluation
from hubsae.hub import check_target
from hubsae.hub_client import library_version
from hubsae.identity import Check, Difference, check_policy
from hubsae.lm import LanguageModel
from hubsae.recipe import SAEConfig
from hubsae.settings import as_type
from hubsae.sites import Site
from hubsae.tokens import TokenConfig
from hubsae.train import train


class BoundDictionary(Dictionary):
    """A dictionary with what can be asked of it together with its language model; `model` is the one it is bound to."""

    model: LanguageModel | None = None

    def bind(self, model: Any, check: Check = "warn") -> list[Difference]:
        """Compare with `model` (an `InterpretableModel`, or what makes one) and keep it; returns all differences.

        Raises `CompatibilityError` as `check` says, and stays unbound then.
        """
        model = as_model(model)
        differences = self.check(model.identity, self._widths(model), check)
        self.model = model
        return differences

    def is_compatible(self, model: Any, layer: int | None = None, component: str | None = None) -> bool:
        """Whether it fits the model's structure (and reads at that layer and component, where they are given)."""
        model = as_model(model)
        first = self.config.read_sites[0]
        here = layer in (None, first.layer)
        if component is not None:
            here = here and Site(first.layer, component) == first
        return here and not any(d.severity == "error" for d in self.compare(model.identity, self._widths(model)))

    def _widths(self, model: LanguageModel) -> dict[Site, int]:
        found = model.sites()
        for site in (*self.config.read_sites, *self.config.write_sites):
            if site not in found and site.layer < model.n_layers:
                try:
                    found[site] = model.width(site)
                except SiteError:  # reported as a difference
                    continue
        return found

    def evaluate(
        self, model: Any = None, texts: Any = None, *, max_rows: int = 50_000, text_column: str = "text"
    ) -> Evaluation:
        """Judge it on texts it was not trained on, with `model` or the model it is bound to (see `Evaluation`)."""
        if texts is None:
            raise ConfigError("evaluate needs texts: evaluate(model, texts), or evaluate(texts=...) when bound")
        if model is None and self.model is None:
            raise ConfigError("this dictionary is bound to no model; give evaluate(model, texts)")
        return evaluate.evaluate(self, as_model(model or self.model), texts, max_rows=max_rows, text_column=text_column)

    @classmethod
    def taken_from(cls, other: Dictionary) -> Self:
        """The same dictionary as this class; raises `ArtifactError` where it is of another kind."""
        new = cls(other.config, other.arrays())
        new.statistics, new.metrics, new.source = other.statistics, other.metrics, other.source
        return new


class SAE(BoundDictionary):
    """A sparse autoencoder: reads one site and writes the same."""

    kind = "sae"


class Transcoder(BoundDictionary):
    """Reads some sites and writes others, such as `mlp_in` -> `mlp`, or one layer -> a later one."""

    kind = "transcoder"


class Crosscoder(BoundDictionary):
    """Reads several sites at once and writes the same ones from one code."""

    kind = "crosscoder"


_KINDS: dict[str, type[BoundDictionary]] = {"sae": SAE, "transcoder": Transcoder, "crosscoder": Crosscoder}


def as_model(source: Any) -> LanguageModel:
    """An `InterpretableModel` from itself, a repository id, a folder or a (model, tokenizer) pair."""
    return source if isinstance(source, LanguageModel) else InterpretableModel(source)


def load_sae(
    source: str | Path,
    model: Any = None,
    *,
    revision: str | None = None,
    subfolder: str | None = None,
    check: Check = "warn",
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
) -> Any:
    """The `SAE`, `Transcoder` or `Crosscoder` of a folder or Hub repository, compared with `model` where one is given.

    A structure that does not fit raises `CompatibilityError`; other weights, tokenizer, quantisation or repository than
    recorded warn (`check="strict"` raises, `"ignore"` does neither).
    """
    check_policy(check)
    found = Dictionary.from_pretrained(
        source,
        revision=revision,
        subfolder=subfolder,
        token=token,
        cache_dir=cache_dir,
        local_files_only=local_files_only,
    )
    dictionary = _KINDS[found.config.kind].taken_from(found)
    if model is not None:
        dictionary.bind(model, check)
    return dictionary


class InterpretableModel(LanguageModel):
    """A language model to look inside: `trace`, `generate`, and dictionaries trained on it."""

    def train_sae(
        self,
        layer: int,
        dataset: Any,
        component: str = "mlp",
        save_path: str | Path | None = None,
        config: SAEConfig | None = None,
        *,
        training_tokens: int | None = None,
        tokens: TokenConfig | None = None,
        dataset_name: str | None = None,
        cache_dir: str | Path | None = None,
        progress: bool = True,
        **overrides: Any,
    ) -> SAE:
        """An `SAE` of one site, trained on `dataset` and judged on the share of it that was held out.

        dataset: a list of texts, any iterable, or a `datasets` dataset; one without a length (streaming) needs
        `training_tokens`. dataset_name: what the card calls it, a Hub id where it is one. `config` holds the settings;
        single ones can be given by name, as in `train_sae(..., k=64)`. With `save_path` the folder is written too.
        Nothing long is done before the settings, the site and the amount of data are known to work.
        """
        config = (config or SAEConfig()).updated(**overrides)
        layer = as_type(layer, int, "layer")
        if save_path is not None:
            check_target(save_path)
        data = ActivationDataset(
            self,
            Site(layer, component),
            dataset,
            tokens_config=tokens,
            max_rows=training_tokens,
            held_out=config.validation_split,
            cache_dir=cache_dir,
        )
        description = self._description(data, config)
        steps = config.steps_for(data.n_rows)
        total = data.n_rows * config.num_epochs
        batches = data.batches(config.batch_for(total), seed=config.seed, epochs=config.num_epochs)
        with _Bar(steps, progress) as bar:
            sae: SAE = train(batches, total, description, config, kind=SAE, progress=bar)
        sae.model = self
        name = dataset_name or _dataset_name(dataset)
        sae.statistics |= {
            "recipe": asdict(config),
            "data": {"name": name, "epochs": config.num_epochs, **data.describe()},
            "environment": _environment(),
        }
        if save_path is not None:
            sae.save(save_path)  # kept, whatever happens while it is judged
        if config.validation_split and self._judge(sae, data, name, _hub_id(dataset_name)) and save_path is not None:
            sae.save(save_path)
        return sae

    def _judge(self, sae: SAE, data: ActivationDataset, name: str, dataset_id: str | None) -> bool:
        """Fill `sae.metrics` from the texts held out; warns and returns False where they are too few."""
        try:
            result = evaluate.evaluate_chunks(sae, self, data.held_out_chunks)
        except DataError as error:
            warn(
                f"the dictionary is trained but not judged: of so few texts hardly any were held out ({error}). "
                "Call evaluate with other texts, or raise validation_split",
            )
            return False
        label = f"{name}: texts held out from training"
        sae.metrics = {**result.to_dict(), "data": {"name": label, "dataset": dataset_id}}
        return True

    def _description(self, data: ActivationDataset, config: SAEConfig) -> DictionaryConfig:
        sites = tuple(map(str, data.sites))
        return DictionaryConfig(
            reads=sites,
            read_widths=data.widths,
            writes=sites,
            write_widths=data.widths,
            n_features=config.expansion_factor * sum(data.widths),
            sparsity=config.rule().to_dict(),
            base_model=self.identity.to_dict(),
            tokens=data.describe(),
        )


def _dataset_name(dataset: Any) -> str:
    info = getattr(dataset, "info", None)
    name = getattr(info, "dataset_name", None)
    if name:
        return f"{name}, split {dataset.split}" if getattr(dataset, "split", None) else str(name)
    return f"{len(dataset):,} texts" if hasattr(dataset, "__len__") else "a stream of texts"


def _hub_id(name: str | None) -> str | None:
    """The name if it can be a dataset repository's id: only such a name may stand in the card's metadata."""
    return name if name and re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name) else None


def _environment() -> dict:
    found = backend.describe()
    return {
        "hubsae": library_version(),
        "mlx": found.mlx_version,
        "device": found.device_name,
        "blas": found.blas_name,
        "python": sys.version.split()[0],
    }


class _Bar:
    """A progress bar of training steps with fvu, l0 and dead share."""

    def __init__(self, steps: int, shown: bool):
        from tqdm import tqdm

        self._bar = tqdm(total=steps, disable=not shown, unit="step", desc="training")

    def __enter__(self) -> "_Bar":
        return self

    def __exit__(self, *exc: object) -> None:
        self._bar.close()

    def __call__(self, step: int, steps: int, numbers: dict) -> None:
        self._bar.update(step - self._bar.n)
        self._bar.set_postfix(
            fvu=f"{numbers['fvu']:.3f}", l0=f"{numbers['l0']:.0f}", dead=f"{numbers['dead_share']:.1%}"
        )
