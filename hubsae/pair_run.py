"""A whole comparison of two models from one file of settings: SAEs of both, alignments of layers, interventions."""

import csv
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hubsae.alignment import StoredAlignment
from hubsae.api import SAE
from hubsae.causal import CausalConfig
from hubsae.errors import ConfigError, DataError
from hubsae.frames import Frame
from hubsae.interventions import Intervention, steer_both
from hubsae.lm import LanguageModel
from hubsae.loading import load_sae
from hubsae.pair_config import PairRun, Side, pair_name
from hubsae.store import ALIGNMENT, CONFIG
from hubsae.tables import Table
from hubsae.tokens import TokenConfig
from hubsae.two_models import Alignment, align, load_alignment

__all__ = ["Aligned", "PairRun", "align_layers", "intervene", "train_saes"]

Say = Callable[[str], None]
_MADE_BY = "pair_run"
_REPORT = ("layer_a", "layer_b", "model_b", "metric", "method", "direction", "split", "value", "lo", "hi", "null")
_REPORT += ("null_name", "p", "n")
_TRAINED, _UNTRAINED = "trained", "untrained"


def train_saes(run: PairRun, say: Say) -> None:
    """SAEs of all layers of both models, a folder each under saes; those that are finished are not trained again.

    All layers of a model are trained in one pass of it. Raises `ConfigError` where a folder holds a dictionary that was
    trained with other settings.
    """
    todo = {side: [n for n in run.layers_of(side) if not _is_finished(run, side, n)] for side in run.sides}
    for side in run.sides:
        if done := [n for n in run.layers_of(side) if n not in todo[side]]:
            say(
                f"{side}: layers {_listed(done)} are finished in {run.folder / 'saes'}, with the same settings; "
                "not trained again"
            )
        if not todo[side]:
            continue
        model = run.load(side)
        say(
            f"{side}: SAEs of layers {_listed(todo[side])} of {_label(run, side)}, "
            f"{run.hook_point}, {run.recipe.rule()}"
        )
        found: list[SAE] = model.train_sae(
            todo[side],
            run.documents("train"),
            run.hook_point,
            config=run.recipe,
            training_tokens=run.training_tokens,
            tokens=TokenConfig(context_size=run.max_ctx),
            dataset_name=run.dataset_name,
        )
        for layer, sae in zip(todo[side], found, strict=True):
            sae.statistics[_MADE_BY] = _made_by(run, side, layer)
            sae.save(run.sae_folder(side, layer))
        say(str(_fidelity(side, dict(zip(todo[side], found, strict=True)))))


def _is_finished(run: PairRun, side: Side, layer: int) -> bool:
    folder = run.sae_folder(side, layer)
    if not (folder / CONFIG).is_file():
        return False
    made_by, wanted = load_sae(folder).statistics.get(_MADE_BY), _made_by(run, side, layer)
    if not isinstance(made_by, dict):
        raise ConfigError(f"{folder} holds a dictionary that no such run made; take another run_name, or delete it")
    other = [name for name in wanted if made_by.get(name) != wanted[name]]
    if other:
        name = other[0]
        raise ConfigError(
            f"{folder} holds a dictionary that was trained with {name}={made_by.get(name)!r}, these settings say "
            f"{name}={wanted[name]!r}" + (f" ({', '.join(other[1:])} differ too)" if other[1:] else "") + "; "
            "take another run_name, or delete the folder"
        )
    return True


def _made_by(run: PairRun, side: Side, layer: int) -> dict[str, Any]:
    """The settings that an SAE follows from."""
    model, revision = (run.model_a, run.revision_a) if side == "a" else (run.model_b, run.revision_b)
    data = ("dataset", "subset", "split", "text_column", "max_documents", "per_doc_words", "align_share")
    own = {"model": model, "revision": revision, "site": str(run.site(layer)), "max_ctx": run.max_ctx}
    own |= {"random_weights": run.seed if side == "b-untrained" else None, "training_tokens": run.training_tokens}
    return json.loads(json.dumps({**own, **{name: getattr(run, name) for name in data}, **asdict(run.recipe)}))


def _fidelity(side: Side, saes: dict[int, SAE]) -> Table:
    names = ("fvu", "l0", "dead_share", "ce_recovered")
    rows = [(n, sae.n_features, *(_cell(sae.metrics.get(name)) for name in names)) for n, sae in saes.items()]
    return Table(f"{side}: on texts held out", ("layer", "features", *names), rows)


@dataclass(frozen=True)
class Aligned:
    """What `align_layers` found: by (layer of A, layer of B) the mean corr_match of the chosen pairs, the same against
    B of random weights, the best layer pair by the first, None without any, and the rows of report.csv."""

    scores: dict[tuple[int, int], float]
    untrained: dict[tuple[int, int], float]
    best: tuple[int, int] | None
    report: list[dict[str, Any]] = field(repr=False)


def align_layers(run: PairRun, layers: Sequence[int] | None, say: Say, *, diagonal: bool = False) -> Aligned:
    """Alignments of layers of A with layers of B (None: all of the run), with tables and plots, under the run's folder.

    Every layer of A with every one of B, or with `diagonal` the first with the first and so on. The best layer pair,
    and the heat map, are chosen by the match split alone; what is reported comes from other documents.
    """
    chosen = _layer_pairs(run, layers, diagonal)
    sides: dict[Side, dict[int, SAE]] = {s: _loaded(run, s, {p[s != "a"] for p in chosen}) for s in run.sides}
    texts, rows = run.documents("align"), []
    report, scores = _earlier(run, chosen)
    plots = _Plots(run.folder / "plots", say)
    for pair in chosen:
        for side in run.sides[1:]:
            kind = _TRAINED if side == "b" else _UNTRAINED
            say(f"layer {pair[0]} of A with layer {pair[1]} of B, {kind}")
            found = align(
                sides["a"][pair[0]],
                sides[side][pair[1]],
                texts=texts,
                dataset_name=run.dataset_name,
                **run.align_settings,
            )
            found.save_pretrained(run.alignment_folder(pair, side))
            name = pair_name(pair, side)
            write_csv(run.folder / f"pairs-{name}.csv", found.frames["pairs"])
            plots.draw("match_scores", f"scores-{name}.png", found)
            scores[kind][pair] = match_score(found)
            report += _report_rows(pair, kind, found)
            rows.append(_summary_row(pair, kind, found))
            _write_rows(run.folder / "report.csv", _REPORT, report)
    for kind, values in scores.items():
        if values:
            title = "mean corr_match of the pairs" + ("" if kind == _TRAINED else ", B untrained")
            plots.draw("layer_heatmap", f"layers{'' if kind == _TRAINED else '-untrained'}.png", values, title=title)
    say(str(Table("layer pairs", _SUMMARY, rows, _SUMMARY_NOTE)))
    known = {pair: score for pair, score in scores[_TRAINED].items() if pair in chosen and np.isfinite(score)}
    best = max(known, key=lambda pair: known[pair], default=None)
    _say_best(best, known, say)
    if best is not None and run.causal:
        found = _causal(run, best, sides, say)
        if found is not None:
            plots.draw("effect_scatter", f"effects-{pair_name(best)}.png", found)
            report = [r for r in report if (r["layer_a"], r["layer_b"], r["model_b"]) != (*best, _TRAINED)]
            report += _report_rows(best, _TRAINED, found)
            _write_rows(run.folder / "report.csv", _REPORT, report)
    say(f"written to {run.folder}: report.csv, pairs-*.csv, alignments, plots")
    return Aligned(scores[_TRAINED], scores[_UNTRAINED], best, report)


def _earlier(
    run: PairRun, chosen: Sequence[tuple[int, int]]
) -> tuple[list[dict[str, Any]], dict[str, dict[tuple[int, int], float]]]:
    """The rows of report.csv and the scores of layer pairs that were aligned before and are not now."""
    path, known = run.folder / "report.csv", {str(n) for side in ("a", "b") for n in run.layers_of(side)}
    others = {p for p in _layer_pairs(run, None, False) if p not in chosen}
    report: list[dict[str, Any]] = []
    if path.is_file():
        with path.open(newline="", encoding="utf-8") as file:
            rows = [row for row in csv.DictReader(file) if {row.get("layer_a"), row.get("layer_b")} <= known]
        report = [row for row in rows if (int(row["layer_a"]), int(row["layer_b"])) in others]
    scores: dict[str, dict[tuple[int, int], float]] = {_TRAINED: {}, _UNTRAINED: {}}
    for pair in sorted(others):
        for side in run.sides[1:]:
            folder = run.alignment_folder(pair, side)
            if (folder / ALIGNMENT).is_file():
                kind = _TRAINED if side == "b" else _UNTRAINED
                scores[kind][pair] = match_score(Alignment.from_pretrained(folder))
    return report, scores


_SUMMARY = ("A", "B", "model B", "chosen", "corr_match", "confirmed", "corr_eval", "95 %", "by chance", "R2", "CKA")
_SUMMARY_NOTE = (
    "corr_match: mean of the chosen pairs on the match split. corr_eval: mean of the confirmed ones on the eval split, "
    "beside the 99 % quantile of moved rows. R2: of the map, A to B."
)


def _summary_row(pair: tuple[int, int], kind: str, found: StoredAlignment) -> tuple:
    mean, method = found.metric("mean_corr_eval"), found.settings.method
    numbers = (
        mean["value"],
        mean["null_mean"],
        found.metric("r2", method, "a->b")["value"],
        found.metric("cka")["value"],
    )
    value, null, r2, cka = (_cell(number) for number in numbers)
    span = "" if mean["lo"] is None else f"{mean['lo']:.3f} to {mean['hi']:.3f}"
    chosen = len(found.frames["pairs"])
    return (*pair, kind, chosen, _cell(match_score(found)), len(found.pairs), value, span, null, r2, cka)


def match_score(alignment: StoredAlignment) -> float:
    """Mean correlation, on the match split, of all pairs chosen there; nan without any."""
    column = alignment.frames["pairs"]["corr_match"]
    return float(np.mean(column)) if len(column) else float("nan")


def _say_best(best: tuple[int, int] | None, known: dict[tuple[int, int], float], say: Say) -> None:
    if best is None:
        say("no layer pair has any pair of features; more documents would help")
        return
    say(
        f"best on the match split: layer {best[0]} of A with layer {best[1]} of B (mean corr_match {known[best]:.3f}). "
        "Its reported numbers come from the eval split, other documents than those it was chosen on"
    )


def _causal(run: PairRun, pair: tuple[int, int], sides: dict[Side, dict[int, SAE]], say: Say) -> Alignment | None:
    """The alignment with its causal comparison, kept; None, after saying why, where there is nothing to compare."""
    found = load_alignment(run.alignment_folder(pair), sides["a"][pair[0]], sides["b"][pair[1]])
    say(f"steering B along the features of A, layers {pair[0]} and {pair[1]}, {run.dose:g} nats each")
    try:
        numbers = found.causal_transfer(run.documents("align"), CausalConfig(dose=run.dose, seed=run.seed))
    except DataError as error:
        say(f"not steered: {error}")
        return None
    found.save_pretrained(run.alignment_folder(pair))
    write_csv(run.folder / f"effects-{pair_name(pair)}.csv", found.frames["effects"])
    say(str(numbers))
    return found


def intervene(
    run: PairRun,
    layer: int,
    feature: int,
    say: Say,
    *,
    alpha: float | None = None,
    dose: float | None = None,
    layer_b: int | None = None,
) -> Intervention:
    """What a feature of A's layer does in A and, through the alignment with a layer of B, in B; written as CSV too.

    layer_b: the layer of B, by default the same, or the one at the same place of the run's list. Without alpha and dose
    those of the run.
    """
    if alpha is None and dose is None:
        alpha, dose = run.alpha, None if run.alpha is not None else run.dose
    pair = _partner_layers(run, layer, layer_b)
    folder = run.alignment_folder(pair)
    if not (folder / ALIGNMENT).is_file():
        raise ConfigError(f"{folder}: no alignment there yet; run scripts/align_and_eval.py first, with these layers")
    a, b = (_loaded(run, side, {n})[n] for side, n in zip(("a", "b"), pair, strict=True))
    found = steer_both(load_alignment(folder, a, b), feature, run.documents("align"), alpha=alpha, dose=dose)
    how = f"dose{dose:g}" if alpha is None else f"alpha{alpha:g}"
    path = run.folder / f"effects-{pair_name(pair)}-feature{feature}-{how}.csv"
    write_csv(path, found.frame)
    say(f"{found}\nwritten to {path}")
    return found


def _partner_layers(run: PairRun, layer: int, layer_b: int | None) -> tuple[int, int]:
    layers_a, layers_b = run.layers_of("a"), run.layers_of("b")
    if layer not in layers_a:
        raise ConfigError(f"layer={layer}: the run has the layers {_listed(layers_a)} of A")
    if layer_b is None:
        same_place = layers_a.index(layer)
        layer_b = layer if layer in layers_b else layers_b[same_place] if same_place < len(layers_b) else None
    if layer_b not in layers_b:
        raise ConfigError(f"layer_b={layer_b}: the run has the layers {_listed(layers_b)} of B")
    return layer, layer_b


def _layer_pairs(run: PairRun, layers: Sequence[int] | None, diagonal: bool) -> list[tuple[int, int]]:
    every = run.layers_of("a"), run.layers_of("b")
    if unknown := [n for n in layers or () if n not in every[0] and n not in every[1]]:
        raise ConfigError(f"layers={unknown}: the run has {_listed(every[0])} of A and {_listed(every[1])} of B")
    a, b = ([n for n in own if not layers or n in layers] for own in every)
    if not a or not b or (diagonal and len(a) != len(b)):
        raise ConfigError(
            f"layers={list(layers or ())}: {len(a)} of A and {len(b)} of B; expected some of both"
            + (", and as many" if diagonal else "")
        )
    return list(zip(a, b, strict=True)) if diagonal else [(i, j) for i in a for j in b]


def _loaded(run: PairRun, side: Side, layers: set[int]) -> dict[int, SAE]:
    """The SAEs of a side, bound to its model."""
    model: LanguageModel | None = None
    found = {}
    for layer in sorted(layers):
        folder = run.sae_folder(side, layer)
        if not (folder / CONFIG).is_file():
            raise ConfigError(
                f"{folder}: no dictionary there yet; run scripts/train_saes.py first, with the same --config"
            )
        model = model or run.load(side)
        found[layer] = load_sae(folder, model=model)
    return found


class _Plots:
    """Draws into a folder; what cannot be drawn is said, and without matplotlib only once."""

    def __init__(self, folder: Path, say: Say):
        self._folder, self._say, self._possible = folder, say, True

    def draw(self, name: str, file: str, what: Any, **options: Any) -> None:
        """One picture by the function of `pair_plots` of that name."""
        from hubsae import pair_plots

        if not self._possible:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        try:
            getattr(pair_plots, name)(what, self._folder / file, **options)
        except (ConfigError, DataError) as error:
            self._possible = not isinstance(error.__cause__, ImportError)
            self._say(f"{file} was not drawn: {error}")


def _report_rows(pair: tuple[int, int], kind: str, found: StoredAlignment) -> list[dict[str, Any]]:
    table = found.frames["metrics"]
    rows = (table.row(i) for i in range(len(table)))
    own = {"layer_a": pair[0], "layer_b": pair[1], "model_b": kind}
    return [{**own, **row, "metric": row["name"], "null": row["null_mean"]} for row in rows]


def write_csv(path: Path, frame: Frame) -> None:
    """A table as a CSV file; what is missing is empty."""
    _write_rows(path, tuple(frame.columns), [frame.row(i) for i in range(len(frame))])


def _write_rows(path: Path, columns: tuple[str, ...], rows: Sequence[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)


def _listed(layers: Sequence[int]) -> str:
    return ", ".join(map(str, layers))


def _label(run: PairRun, side: Side) -> str:
    return run.model_a if side == "a" else run.model_b + (" with random weights" if side == "b-untrained" else "")


def _cell(value: Any) -> Any:
    return "" if value is None or not np.isfinite(value) else float(value)
