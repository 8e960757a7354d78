"""Which features of one layer drive which of a later one: by gradients, checked by ablation."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np

from hubsae.attribution import Passes, ablated, edge_attributions, node_effects
from hubsae.dictionary import Dictionary
from hubsae.errors import ConfigError, DataError
from hubsae.features import check_features
from hubsae.graph_drawing import Drawing, draw
from hubsae.lm import LanguageModel
from hubsae.settings import as_type
from hubsae.steer import place
from hubsae.tables import Shown, Table, number

_RANDOM_SOURCES = 16


@dataclass(frozen=True)
class CircuitNode:
    """A feature of a layer's dictionary: its activation summed over positions, and its effect on the answers.

    Both are means over the texts; the effect is the gradient's estimate of what the answer's logit, less the mean of
    the foils' logits, would lose without it.
    """

    layer: int
    feature: int
    activation: float
    effect: float
    name: str = ""


@dataclass(frozen=True)
class CircuitEdge:
    """From a feature to a later one: how much of the later one's summed activation is lost without the earlier.

    gradient: estimated by attribution; ablation: measured by taking the earlier one away. Means over texts, in units of
    the later feature's code; share: gradient over the later one's activation.
    """

    source_layer: int
    source: int
    target_layer: int
    target: int
    gradient: float
    ablation: float
    share: float


@dataclass(frozen=True)
class Agreement:
    """Spearman rank correlation of gradient and ablation: over the kept edges, and over all pairs of ablated sources
    (those of the kept edges and 16 chance ones a layer) and targets; same_sign: share of kept edges with equal sign."""

    kept: float
    n_kept: int
    all: float
    n_all: int
    same_sign: float


@dataclass(frozen=True)
class AblationEffect(Shown):
    """What the answers lose when all source features of a circuit are taken away, beside as many chance features.

    before, after: mean probability of the answer; drop: mean loss of its log-probability (nats); random_drops: the same
    for sets of as many other features that fire on these texts too, random_after the mean probability with them; none
    where fewer others fire than the circuit has sources.
    """

    n_ablated: int
    before: float
    after: float
    drop: float
    random_after: float
    random_drops: tuple[float, ...]

    @property
    def rank(self) -> float:
        """Share of the chance sets that cost at least as much; nan without any."""
        return float(np.mean(np.array(self.random_drops) >= self.drop)) if self.random_drops else float("nan")

    def tables(self) -> list[Table]:
        n = len(self.random_drops)
        rows = [
            ("nothing", self.before, 0.0),
            (f"the circuit's {self.n_ablated} sources", self.after, self.drop),
            (
                f"as many others, mean of {n} sets",
                self.random_after,
                float(np.mean(self.random_drops)) if n else np.nan,
            ),
        ]
        note = "" if n else "so few others fire on these texts that there is nothing to compare with"
        return [Table("answers with features ablated", ("ablated", "probability", "loss (nats)"), rows, note)]


@dataclass(frozen=True, repr=False)
class Circuit(Shown):
    """Features and edges between layers, strongest edges first; see `find_feature_circuits`.

    answers: the token that each text's effects refer to. attributions: for each pair of layers the
    (F, targets) gradients, and `targets` which features those are.
    """

    nodes: tuple[CircuitNode, ...]
    edges: tuple[CircuitEdge, ...]
    agreement: Agreement
    effect: AblationEffect
    texts: tuple[str, ...]
    answers: tuple[str, ...]
    attributions: dict[tuple[int, int], np.ndarray] = field(repr=False)
    targets: dict[int, tuple[int, ...]] = field(repr=False)
    model: LanguageModel = field(repr=False)
    saes: dict[int, Dictionary] = field(repr=False)

    @property
    def sources(self) -> tuple[int, ...]:
        """The features of the first layer."""
        first = min(self.saes)
        return tuple(node.feature for node in self.nodes if node.layer == first)

    def check(
        self, texts: Sequence[str], answers: Sequence[str] | None = None, n_random: int = 20, seed: int = 0
    ) -> AblationEffect:
        """What ablating the circuit's sources does on other texts, to `answers` or to what the model predicts there."""
        if as_type(n_random, int, "n_random") < 1:
            raise ConfigError(f"n_random={n_random}: expected at least 1")
        passes = Passes.of(self.model, self.saes, texts, answers)
        return _effect(passes, min(self.saes), self.sources, n_random, seed)

    def table(self) -> Table:
        """Edges with both estimates."""
        names = {(node.layer, node.feature): node.name for node in self.nodes}
        rows = [
            (
                f"{e.source_layer}:{e.source} {names[e.source_layer, e.source]}".strip(),
                f"{e.target_layer}:{e.target} {names[e.target_layer, e.target]}".strip(),
                e.gradient,
                e.ablation,
                f"{100 * e.share:.0f} %",
            )
            for e in self.edges
        ]
        a = self.agreement
        note = (
            f"gradient against ablation, rank correlation: {a.kept:.2f} on these {a.n_kept} edges, {a.all:.2f} on "
            f"{a.n_all} pairs; same sign {100 * a.same_sign:.0f} %"
        )
        return Table("edges", ("from", "to", "gradient", "ablation", "share of target"), rows, note)

    def tables(self) -> list[Table]:
        rows = [(n.layer, n.feature, n.activation, n.effect, n.name) for n in self.nodes]
        head = ("layer", "feature", "activation", "effect on answer", "label, or tokens it fires on")
        return [Table("features", head, rows), self.table(), *self.effect.tables()]

    def to_json(self) -> str:
        """Nodes, edges, agreement, effect, texts and answers."""
        data = {name: [asdict(item) for item in getattr(self, name)] for name in ("nodes", "edges")}
        data |= {"agreement": asdict(self.agreement), "effect": {**asdict(self.effect), "rank": self.effect.rank}}
        data |= {"texts": list(self.texts), "answers": list(self.answers)}
        data |= {"sites": {str(layer): list(d.config.reads) for layer, d in self.saes.items()}}
        return json.dumps(_finite(data), indent=2, ensure_ascii=False)

    def visualize(self, feature_labels: Mapping[Any, str] | None = None) -> Drawing:
        """The graph; shows in a notebook, and `.save("circuit.svg")` or `.png` writes it.

        feature_labels: names by (layer, feature), or by feature where one layer alone has it; others keep their own.
        """
        labels = dict(feature_labels or {})
        names, columns = {}, []
        for layer in sorted(self.saes):
            own = [n for n in self.nodes if n.layer == layer]
            columns.append((f"layer {layer}", [(layer, n.feature) for n in own]))
            for n in own:
                name = labels.get((layer, n.feature), labels.get(n.feature, n.name))
                names[layer, n.feature] = (f"{n.feature} {name}".strip(), f"effect on answer {number(n.effect)}")
        edges = [
            ((e.source_layer, e.source), (e.target_layer, e.target), e.share, f"{100 * e.share:.0f} %")
            for e in self.edges
        ]
        return draw(columns, names, edges)


def find_feature_circuits(
    model: LanguageModel,
    saes: Mapping[int, Dictionary],
    source_layer: int,
    target_layer: int,
    dataset: Sequence[str],
    top_k: int = 20,
    *,
    n_targets: int = 8,
    target_features: Sequence[int] | None = None,
    answers: Sequence[str] | None = None,
    foils: Sequence[str] | None = None,
    n_random: int = 20,
    seed: int = 0,
) -> Circuit:
    """The strongest effects of features of `source_layer` on features of `target_layer`, on some texts.

    Texts are prompts; the answer of each is the first token of what `answers` gives, or what the model predicts. It is
    told from `foils`, by default the answers of the other texts, so features that all answers share count for little.
    Targets are the `n_targets` features with the largest effect on that, or `target_features`. An edge's gradient is
    sum over positions of z_i (d z_j / d x . W_dec_i), where reconstruction errors stay as they are (Marks et al. 2024,
    arXiv 2403.19647); of the edges, `top_k` a pair of layers are kept by share of the target times the target's effect.
    All their sources are ablated one by one, as a check. Dictionaries of layers between the two are steps on the way.
    """
    if not isinstance(model, LanguageModel):
        raise ConfigError(f"model is a {type(model).__name__}: expected an InterpretableModel")
    layers = _layers(saes, source_layer, target_layer)
    for name, value in (("top_k", top_k), ("n_targets", n_targets), ("n_random", n_random)):
        if as_type(value, int, name) < 1:
            raise ConfigError(f"{name}={value!r}: expected at least 1")
    chosen = {layer: saes[layer] for layer in layers}
    passes = Passes.of(model, chosen, dataset, answers, foils)
    effects = {layer: node_effects(passes, layer) for layer in layers}
    targets = {target_layer: _targets(passes, target_layer, effects[target_layer], n_targets, target_features)}
    rng = np.random.default_rng(seed)
    steps: dict[tuple[int, int], _Step] = {}
    for source, target in zip(layers[-2::-1], layers[:0:-1], strict=True):
        step = steps[source, target] = _step(passes, source, target, targets[target], effects[target], top_k, rng)
        targets[source] = tuple(sorted({edge.source for edge in step.edges}))
    edges = [edge for step in steps.values() for edge in step.edges]
    used = {(e.source_layer, e.source) for e in edges} | {(e.target_layer, e.target) for e in edges}
    nodes = tuple(
        CircuitNode(layer, i, float(passes.activation[layer][i]), float(effects[layer][i]), _name(chosen[layer], i))
        for layer, i in sorted(used)
    )
    return Circuit(
        nodes=nodes,
        edges=tuple(edges),
        agreement=_agreement(edges, [step.checked for step in steps.values()]),
        effect=_effect(passes, source_layer, targets[source_layer], n_random, seed),
        texts=passes.texts,
        answers=tuple(model.token_to_str(i) for i in passes.answer_ids),
        attributions={pair: step.matrix for pair, step in steps.items()},
        targets=targets,
        model=model,
        saes=chosen,
    )


@dataclass(frozen=True)
class _Step:
    """Between two layers: kept edges, all gradients (F, targets), and (gradients, ablations) of the ablated sources."""

    edges: list[CircuitEdge]
    matrix: np.ndarray
    checked: tuple[np.ndarray, np.ndarray]


def _step(
    passes: Passes,
    source: int,
    target: int,
    wanted: Sequence[int],
    effects: np.ndarray,
    top_k: int,
    rng: np.random.Generator,
) -> _Step:
    wanted = list(wanted)
    matrix, totals = edge_attributions(passes, source, target, wanted), passes.activation[target][wanted]
    rows, columns = _strongest(matrix, totals, effects[wanted], top_k)
    sources = np.unique(rows)
    if not len(sources):
        raise DataError(f"no feature of layer {source} has any effect on the targets in layer {target} on these texts")
    others = np.setdiff1d(np.flatnonzero(passes.activation[source] > 0), sources)
    drawn = rng.choice(others, min(_RANDOM_SOURCES, len(others)), replace=False)
    lost = {int(i): ablated(passes, source, [int(i)], target, wanted).lost for i in (*sources, *drawn)}
    edges = [
        CircuitEdge(
            source_layer=source,
            source=int(i),
            target_layer=target,
            target=wanted[j],
            gradient=float(matrix[i, j]),
            ablation=float(lost[int(i)][j]),
            share=float(matrix[i, j] / totals[j]),
        )
        for i, j in zip(rows, columns, strict=True)
    ]
    return _Step(edges, matrix, (np.stack([matrix[i] for i in lost]), np.stack(list(lost.values()))))


def _layers(saes: Mapping[int, Dictionary], source: int, target: int) -> list[int]:
    if not isinstance(saes, Mapping) or not all(isinstance(layer, int) for layer in saes):
        raise ConfigError(f"saes is a {type(saes).__name__}: expected {{layer: dictionary}}")
    if missing := [layer for layer in (source, target) if layer not in saes]:
        raise ConfigError(f"saes has no dictionary of layer {missing[0]}, only of {', '.join(map(str, sorted(saes)))}")
    if source >= target:
        raise ConfigError(f"source_layer={source}, target_layer={target}: effects go from earlier layers to later ones")
    layers = sorted(layer for layer in saes if source <= layer <= target)
    for early, late in pairwise(layers):
        written, read = (saes[early].config.write_sites, saes[late].config.read_sites)
        if min(map(place, written)) > max(map(place, read)):
            raise ConfigError(f"what layer {early} writes comes after what the dictionary of layer {late} reads")
    return layers


def _targets(
    passes: Passes, layer: int, effects: np.ndarray, n_targets: int, given: Sequence[int] | None
) -> tuple[int, ...]:
    n = passes.saes[layer].n_features
    if given is None:
        order = np.argsort(-np.abs(effects), kind="stable")[:n_targets]
        return tuple(int(i) for i in order if passes.activation[layer][i] > 0)
    given = check_features(given, n)
    if not given:
        raise DataError("target_features: expected at least one")
    if silent := [i for i in given if not passes.activation[layer][i]]:
        raise DataError(f"target features {silent} of layer {layer} fire on none of these texts")
    return tuple(dict.fromkeys(given))


def _strongest(matrix: np.ndarray, totals: np.ndarray, effects: np.ndarray, top_k: int) -> Any:
    """Places (sources, targets) of the edges that carry most of the targets' effect, strongest first."""
    weight = np.abs(matrix) / totals * np.abs(effects)
    flat = np.argsort(-weight, axis=None, kind="stable")[:top_k]
    flat = flat[weight.reshape(-1)[flat] > 0]
    return np.unravel_index(flat, matrix.shape)


def _agreement(edges: Sequence[CircuitEdge], checks: Sequence[tuple[np.ndarray, np.ndarray]]) -> Agreement:
    gradient, ablation = np.array([[e.gradient, e.ablation] for e in edges]).T
    pairs = [np.concatenate([np.ravel(check[i]) for check in checks]) for i in (0, 1)]
    same = float(np.mean(np.sign(gradient) == np.sign(ablation)))
    return Agreement(_spearman(gradient, ablation), len(edges), _spearman(*pairs), len(pairs[0]), same)


def _spearman(a: np.ndarray, b: np.ndarray) -> float:
    if len(a) < 3 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return float("nan")
    from scipy.stats import spearmanr  # takes half a second to import

    found: Any = spearmanr(a, b)
    return float(found.statistic)


def _effect(passes: Passes, layer: int, sources: Sequence[int], n_random: int, seed: int) -> AblationEffect:
    rng = np.random.default_rng(seed)
    others = np.setdiff1d(np.flatnonzero(passes.activation[layer] > 0), sources)
    clean = passes.log_probabilities
    own = ablated(passes, layer, list(sources)).log_probabilities
    draws = n_random if len(others) >= len(sources) else 0
    drawn = [ablated(passes, layer, rng.choice(others, len(sources), replace=False).tolist()) for _ in range(draws)]
    return AblationEffect(
        n_ablated=len(sources),
        before=float(np.exp(clean).mean()),
        after=float(np.exp(own).mean()),
        drop=float((clean - own).mean()),
        random_after=float(np.mean([np.exp(d.log_probabilities).mean() for d in drawn])) if drawn else float("nan"),
        random_drops=tuple(float((clean - d.log_probabilities).mean()) for d in drawn),
    )


def _name(dictionary: Any, feature: int) -> str:
    known = dictionary.annotations() if hasattr(dictionary, "annotations") else None
    return known.name(feature) if known else ""


def _finite(data: Any) -> Any:
    if isinstance(data, dict):
        return {key: _finite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_finite(value) for value in data]
    return None if isinstance(data, float) and not np.isfinite(data) else data
