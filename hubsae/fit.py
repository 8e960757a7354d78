"""From what is wanted of some models and texts to trained, judged and saved dictionaries, in one pass of each model."""

import re
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from hubsae import backend, evaluate
from hubsae.activations import as_models, width
from hubsae.checkpoint import Checkpoints
from hubsae.dataset import ActivationDataset
from hubsae.dictionary import DictionaryConfig
from hubsae.distributed import ranks
from hubsae.errors import ConfigError, DataError, warn
from hubsae.fingerprint import of_sites, recorded
from hubsae.hub import check_target
from hubsae.hub_client import library_version
from hubsae.lm import LanguageModel
from hubsae.questions import Questions
from hubsae.recipe import SAEConfig
from hubsae.report import Reports, ReportTo, check_report
from hubsae.sites import Site, columns
from hubsae.survey import measured
from hubsae.tokens import TokenConfig
from hubsae.train import Job, train_jobs

_SHARED = ("batch_size", "num_epochs", "validation_split", "checkpoint_every")  # by all dictionaries of a pass
_TUPLES = ("matryoshka", "component_weights")


@dataclass(frozen=True)
class Wanted:
    """A dictionary to train: what it reads and writes, how, and the name that tells it from the others."""

    reads: tuple[Site, ...]
    writes: tuple[Site, ...]
    config: SAEConfig
    name: str


@dataclass(frozen=True)
class Run:
    """The circumstances of a pass, the same for all kinds; see `InterpretableModel.train_sae` for what they mean."""

    save_path: str | Path | None = None
    training_tokens: int | None = None
    tokens: TokenConfig | None = None
    dataset_name: str | None = None
    cache_dir: str | Path | None = None
    checkpoint_dir: str | Path | None = None
    report_to: ReportTo = None
    progress: bool = True


def swept(overrides: dict[str, Any]) -> dict[str, list]:
    """Those of the settings that are given as lists of values to try."""
    return {name: v for name, v in overrides.items() if isinstance(v, list) and name not in _TUPLES}


def variants(config: SAEConfig, overrides: dict[str, Any]) -> list[tuple[str, SAEConfig]]:
    """`config` with other values, once for each combination of those settings that are given as lists; with names."""
    lists = swept(overrides)
    for name, values in lists.items():
        if name in _SHARED:
            raise ConfigError(f"{name}={values}: dictionaries that are trained in one pass share {', '.join(_SHARED)}")
        if not values or len(set(map(str, values))) != len(values):
            raise ConfigError(f"{name}={values}: expected a list of different values")
    fixed = {name: value for name, value in overrides.items() if name not in lists}
    out = []
    for values in product(*lists.values()):
        chosen = dict(zip(lists, values, strict=True))
        out.append(("-".join(f"{n}{v}" for n, v in chosen.items()), config.updated(**fixed, **chosen)))
    return out


def wanted(
    sites: Sequence[tuple[Sequence[Site], Sequence[Site]]], config: SAEConfig, overrides: dict[str, Any]
) -> list[Wanted]:
    """A dictionary for every (reads, writes) and every variant of the settings."""
    out = []
    for (reads, writes), (suffix, variant) in product(sites, variants(config, overrides)):
        text = "+".join(map(str, reads)) + ("" if reads == writes else f"-to-{'+'.join(map(str, writes))}")
        name = re.sub(r"[^\w.+-]", "_", text + (f"-{suffix}" if suffix else ""))
        out.append(Wanted(tuple(reads), tuple(writes), variant, name))
    if not out or len({w.name for w in out}) < len(out):
        raise ConfigError(
            f"the dictionaries {', '.join(w.name for w in out) or '(none)'}: expected some, all different"
        )
    return out


def fit(
    models: Sequence[LanguageModel], all_wanted: Sequence[Wanted], kind: type[Questions], dataset: Any, run: Run
) -> list[Any]:
    """Train, judge and save every dictionary; nothing long is done before all that can be checked is known to work."""
    models = as_models(models)
    check_report(run.report_to)
    first = ranks().first  # of several processes: it reports and writes
    targets = _targets(all_wanted, run)
    _check_folders(all_wanted[0].config, run)
    data = _data(models, all_wanted, dataset, run)
    all_wanted = [replace(w, config=_with_split(w.config, data)) for w in all_wanted]
    config = all_wanted[0].config
    jobs = [_job(models, data, w) for w in all_wanted]
    for w in all_wanted:
        w.config.steps_for(data.n_rows)
    checkpoints = _checkpoints(jobs, data, config, run)
    bases = recorded(models, data.sites)
    rows = data.rows(config.batch_for(data.n_rows * config.num_epochs), seed=config.seed, epochs=config.num_epochs)
    settings = {w.name: asdict(w.config) for w in all_wanted}
    settings = next(iter(settings.values())) if len(settings) == 1 else settings
    with Reports(
        run.report_to if first else None, [w.name for w in all_wanted], settings, run.progress and first
    ) as report:
        found = train_jobs(jobs, rows, kinds=[kind] * len(jobs), progress=report, checkpoints=checkpoints)
    name = run.dataset_name or _dataset_name(dataset)
    curated = {"curation": asdict(data.curation)} if data.curation else {}
    for dictionary, w, target in zip(found, all_wanted, targets, strict=True):
        known = tuple(of_sites(base, _of_model(w, number)).to_dict() for number, base in enumerate(bases))
        dictionary.config = replace(dictionary.config, base_models=known)
        dictionary.statistics |= {
            "recipe": asdict(w.config),
            "data": {"name": name, "epochs": w.config.num_epochs, **data.describe(), **curated},
            "environment": _environment(),
            **({"trained_together": len(found)} if len(found) > 1 else {}),  # in the seconds that each records
        }
        if target is not None and first:
            dictionary.save(target)  # kept, whatever happens while it is judged
    if data.held_out_share and _judge(found, models, data, name, _hub_id(run.dataset_name)) and first:
        for dictionary, target in zip(found, targets, strict=True):
            if target is not None:
                dictionary.save(target)
    return found


def _of_model(w: Wanted, number: int) -> list[Site]:
    return [site for site in (*w.reads, *w.writes) if site.model == number]


def _targets(all_wanted: Sequence[Wanted], run: Run) -> list[Path | None]:
    """Where each dictionary is saved: at the path itself, or in a folder under it where there are several."""
    if run.save_path is None:
        return [None] * len(all_wanted)
    root = Path(run.save_path)
    targets = [root / w.name for w in all_wanted] if len(all_wanted) > 1 else [root]
    for target in targets if ranks().first else ():
        check_target(target)
    return list(targets)


def _check_folders(config: SAEConfig, run: Run) -> None:
    if run.checkpoint_dir is None and config.checkpoint_every is not None:
        raise ConfigError(f"checkpoint_every={config.checkpoint_every}: give checkpoint_dir, where they are kept")
    given = {name: getattr(run, name) for name in ("save_path", "cache_dir", "checkpoint_dir")}
    paths = [Path(path).expanduser().absolute() for path in given.values() if path is not None]
    if len(set(paths)) < len(paths):
        raise ConfigError(f"{given}: expected different folders")
    if run.checkpoint_dir is not None:
        Checkpoints.check_folder(run.checkpoint_dir)


def _with_split(config: SAEConfig, data: ActivationDataset) -> SAEConfig:
    """The settings with the share that the data really holds out."""
    if config.validation_split not in (data.held_out_share, type(config).validation_split):
        raise ConfigError(
            f"validation_split={config.validation_split}: the ActivationDataset has held_out={data.held_out_share}; "
            "give it there"
        )
    if config.validation_split and not data.held_out_share:
        warn("the ActivationDataset holds nothing out (held_out=0), so the dictionary is trained but not judged")
    return config.updated(validation_split=data.held_out_share)


def _data(models: tuple[LanguageModel, ...], all_wanted: Sequence[Wanted], dataset: Any, run: Run) -> ActivationDataset:
    sites = tuple(dict.fromkeys(site for w in all_wanted for site in (*w.reads, *w.writes)))
    if not isinstance(dataset, ActivationDataset):
        return ActivationDataset(
            models,
            sites,
            dataset,
            tokens_config=run.tokens,
            max_rows=run.training_tokens,
            held_out=all_wanted[0].config.validation_split,
            cache_dir=run.cache_dir,
        )
    for name in ("training_tokens", "tokens", "cache_dir"):
        if getattr(run, name) is not None:
            raise ConfigError(f"{name}: the ActivationDataset has its own; give it there")
    if dataset.models != models:
        raise ConfigError("the ActivationDataset was made with another model than the one to train on")
    if missing := [str(site) for site in sites if site not in dataset.sites]:
        raise ConfigError(f"the ActivationDataset holds {', '.join(map(str, dataset.sites))}, not {', '.join(missing)}")
    return dataset


def _job(models: tuple[LanguageModel, ...], data: ActivationDataset, w: Wanted) -> Job:
    where = columns(data.sites, data.widths)
    read_widths, write_widths = (tuple(width(models, site) for site in sites) for sites in (w.reads, w.writes))
    weights = getattr(w.config, "component_weights", None)
    if weights is not None and len(weights) != len(w.writes):
        raise ConfigError(f"component_weights {weights}: expected one for each of {', '.join(map(str, w.writes))}")
    description = DictionaryConfig(
        reads=tuple(map(str, w.reads)),
        read_widths=read_widths,
        writes=tuple(map(str, w.writes)),
        write_widths=write_widths,
        n_features=w.config.expansion_factor * max(read_widths),
        sparsity=w.config.rule().to_dict(),
        skip=getattr(w.config, "skip_connection", False),
        base_models=tuple(model.identity.to_dict() for model in models),
        tokens=data.describe(),
    )
    return Job(description, w.config, tuple(where[s] for s in w.reads), tuple(where[s] for s in w.writes))


def _checkpoints(jobs: Sequence[Job], data: ActivationDataset, config: SAEConfig, run: Run) -> Checkpoints | None:
    if run.checkpoint_dir is None:
        return None
    made_for = {"jobs": [job.to_dict() for job in jobs], "rows": data.n_rows, "buffer": data.capacity}
    return Checkpoints(run.checkpoint_dir, made_for)


def _judge(
    found: Sequence[Questions],
    models: tuple[LanguageModel, ...],
    data: ActivationDataset,
    name: str,
    dataset: str | None,
) -> bool:
    """Fill `metrics` and `features` (numbers only) from the texts held out; warns, False, where they are too few.

    Those of the same sites are judged together, in one pass of the model.
    """
    label = f"texts held out from {name}"
    groups: dict[tuple, list[Questions]] = {}
    for dictionary in found:
        groups.setdefault((dictionary.config.reads, dictionary.config.writes), []).append(dictionary)
    for group in groups.values():
        try:
            results = evaluate.evaluate_together(group, models, data.held_out_chunks)
        except DataError as error:
            warn(
                f"the dictionary is trained but not judged: of so few texts hardly any were held out ({error}). "
                "Call evaluate with other texts, or raise validation_split",
            )
            return False
        beside = [_beside(dictionary, result) for dictionary, result in zip(group, results, strict=True)]
        more = {"beside": sorted(beside, key=lambda one: (one["l0"], one["name"]))} if len(group) > 1 else {}
        for dictionary, result in zip(group, results, strict=True):
            dictionary.metrics = {**result.to_dict(), "data": {"name": label, "dataset": dataset}, **more}
            dictionary.features = measured(dictionary, result.firing, n_documents=result.n_documents, data=label)
    return True


def _beside(dictionary: Questions, result: evaluate.Evaluation) -> dict:
    """What the others of its sites, trained in the same pass, say of it: the frontier of sparsity and fidelity."""
    numbers = {name: result.to_dict()[name] for name in ("l0", "fvu", "ce_recovered")}
    return {"name": str(dictionary.rule), "n_features": dictionary.n_features, **numbers}


def _dataset_name(dataset: Any) -> str:
    if isinstance(dataset, ActivationDataset):
        if dataset.curation:
            return f"{dataset.n_rows:,} tokens chosen for diversity"
        dataset = dataset.texts
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
