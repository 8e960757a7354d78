"""What the card of a dictionary says beside its config: metadata, results, pictures, settings of the training.

statistics.json and metrics.json may be anybody's: what is not as it was written here makes no picture.
"""

import math
import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from huggingface_hub import EvalResult

from hubsae import charts, licences
from hubsae.axes import Axis
from hubsae.charts import Picture
from hubsae.recipe import CrosscoderConfig, SAEConfig, TranscoderConfig

CARD_METRICS = {
    "fvu": "Fraction of variance unexplained",
    "l0": "Active features per token",
    "ce_recovered": "Cross-entropy loss recovered, against zero ablation",
    "dead_share": "Features never active on held-out tokens (share)",
}
_MOST_BESIDE, _LONGEST_NAME = 60, 40
PICTURES = ("density", "training", "l0", "sites", "models", "frontier")
_PAPERS = {
    "topk": ("TopK", "Gao et al., Scaling and evaluating sparse autoencoders", "arXiv 2406.04093"),
    "batchtopk": ("BatchTopK", "Bussmann, Leask and Nanda, BatchTopK Sparse Autoencoders", "arXiv 2412.06410"),
    "jumprelu": ("JumpReLU", "Rajamanoharan et al., Jumping Ahead", "arXiv 2407.14435"),
    "gated": ("Gated", "Rajamanoharan et al., Improving Dictionary Learning with Gated SAEs", "arXiv 2404.16014"),
    "relu": (
        "ReLU and L1",
        "Bricken et al., Towards Monosemanticity",
        "https://transformer-circuits.pub/2023/monosemantic-features",
    ),
    "transcoder": (
        "Transcoders",
        "Dunefsky, Chlenski and Nanda, Transcoders Find Interpretable LLM Feature Circuits",
        "arXiv 2406.11944",
    ),
    "skip": (
        "Skip transcoders",
        "Paulo, Shabalin and Belrose, Transcoders Beat Sparse Autoencoders for Interpretability",
        "arXiv 2501.18823",
    ),
    "crosscoder": (
        "Crosscoders",
        "Lindsey et al., Sparse Crosscoders",
        "https://transformer-circuits.pub/2024/crosscoders",
    ),
}
_DATASET = re.compile(r"\w[\w.-]*/\w[\w.-]*")
_RECIPES = {recipe.kind: recipe for recipe in (SAEConfig, TranscoderConfig, CrosscoderConfig)}
_LONGEST_LOG = 100_000
_FEWEST = 3  # bars that say more than two numbers in the text


def metadata(
    kind: str, rule: str, tags: Sequence[str], bases: Sequence[str], statistics: Mapping, metrics: Mapping
) -> dict[str, Any]:
    """Entries of the front matter, of a dictionary of that kind and sparsity for the language models `bases`."""
    found: dict[str, Any] = {"tags": [*tags, {"sae": "sparse-autoencoder"}.get(kind, kind), rule]}
    if bases:
        found |= {"base_model": bases[0] if len(bases) == 1 else list(bases), "base_model_relation": "adapter"}
    if ids := _datasets(statistics, metrics):
        found["datasets"] = ids
    return found


def _datasets(*parts: Mapping) -> list[str]:
    """The names of data sets that can be ids of the Hub."""
    names = [part.get("data", {}).get(key) for part in parts for key in ("dataset", "name")]
    return [name for name in dict.fromkeys(n for n in names if isinstance(n, str)) if _DATASET.fullmatch(name)]


def results(metrics: Mapping) -> list[EvalResult]:
    """The model-index: those of `CARD_METRICS` that are known."""
    data = metrics.get("data", {})
    return [
        EvalResult(
            task_type="feature-extraction",
            task_name="Activation reconstruction",
            dataset_type=data.get("dataset") or "text",
            dataset_name=data.get("name") or "held-out texts",
            metric_type=name,
            metric_name=label,
            metric_value=float(f"{metrics[name]:.6g}"),
        )
        for name, label in CARD_METRICS.items()
        if metrics.get(name) is not None
    ]


def values(kind: str, rule: str, skip: bool, statistics: Mapping) -> dict[str, Any]:
    """What the template needs beside config, statistics and metrics.

    settings: of the training, each with its default, and whether another value was chosen. duration: of the training,
    which `n_beside` others shared. held_out: whether some of its texts were kept from it.
    """
    licence, made_by = statistics.get("licence"), (rule, kind, *(["skip"] if skip else []))
    recipe = _dict(statistics.get("recipe"))
    return {
        "papers": [_PAPERS[name] for name in made_by if name in _PAPERS],
        "licence": licence if licences.is_licence(licence) else None,
        "settings": _settings(kind, recipe),
        "duration": _duration(_number(statistics.get("seconds"))),
        "n_beside": max(0, int(_number(statistics.get("trained_together")) or 1) - 1),
        "held_out": (_number(recipe.get("validation_split")) or 0) > 0,
        "datasets": _datasets(statistics),
        "family": _family(statistics.get("family")),
        "examples": [],
        "features": None,
    }


def _family(family: Any) -> dict[str, str] | None:
    """The index and the collection that it is part of; see `family`."""
    names, given = ("index", "collection"), _dict(family)
    found = {name: value for name in names if isinstance(value := given.get(name), str)}
    return found if len(found) == len(names) else None


def _settings(kind: str, recipe: Mapping) -> list[dict[str, Any]]:
    """Lists and tuples are the same: a recipe that was read again says what the first one said."""
    default = _RECIPES[kind].defaults()
    plain = {str(name): [*value] if isinstance(value, tuple) else value for name, value in sorted(recipe.items())}
    return [
        {"name": name, "value": value, "default": default.get(name, "-"), "chosen": value != default.get(name, "-")}
        for name, value in plain.items()
    ]


def _duration(seconds: float | None) -> str:
    """`12 s`, `3.5 min`, `7.2 h`."""
    if seconds is None or seconds < 0:
        return "a time that was not recorded"
    size, unit = next(one for one in ((3600, "h"), (60, "min"), (0, "s")) if seconds >= 2 * one[0])
    return f"{seconds / (size or 1):.3g} {unit}" if unit != "s" else f"{seconds:.0f} s"


def pictures(writes: Sequence[str], n_features: int, statistics: Mapping, metrics: Mapping) -> dict[str, Picture]:
    """Those of `PICTURES` that can be made: features' densities, training, fidelity of sites, and of others."""
    found = {
        "density": _density(metrics, n_features),
        "training": _training(statistics, metrics),
        "l0": _l0(statistics),
        "sites": _sites(writes, metrics),
        "models": _models(metrics),
        "frontier": _frontier(n_features, metrics),
    }
    return {name: picture for name, picture in found.items() if picture is not None}


def _density(metrics: Mapping, n_features: int) -> Picture | None:
    given = _dict(metrics.get("density_log10_histogram"))
    edges, counts = _numbers(given.get("edges"), 200), _numbers(given.get("counts"), 200)
    never, n_tokens = _number(given.get("never")), _number(metrics.get("n_tokens"))
    if edges is None or counts is None or never is None or len(edges) != len(counts) + 1:
        return None
    ascends = all(a < b for a, b in pairwise(edges)) and edges[0] >= -20 and edges[-1] <= 0
    whole = all(count >= 0 and count.is_integer() for count in (*counts, never))
    if not (ascends and whole and sum(counts) + never == n_features):
        return None
    on = f"{n_tokens:,.0f} held-out tokens" if n_tokens else "the held-out tokens"
    alt = f"Of {n_features:,} features {never:,.0f} ({_share(never / n_features)}) never fire on {on}"
    alt = alt if never else f"All {n_features:,} features fire on {on}"
    median = _number(metrics.get("density_median")) or 0.0
    known = 0 < median <= 1 and sum(counts) > 0
    if known:
        alt += f"; half of {'those that fire' if never else 'them'} do so on at most {_share(median)} of the tokens"
    often = sum(count for edge, count in zip(edges, counts, strict=False) if edge >= -1)
    if often and -1 in edges:
        fires = "" if known else "fires " if often == 1 else "fire "
        alt += f"{',' if known else ';'} {often:,.0f} {fires}on 10 % or more"
    first = next((i for i, count in enumerate(counts) if count), 0)
    first = max(i for i, edge in enumerate(edges) if i == 0 or (i <= first and edge == math.floor(edge)))
    return charts.histogram(
        [10**edge for edge in edges[first:]],
        {"features": counts[first:]},
        x=Axis("share of the tokens on which a feature fires", log=True, percent=True),
        y="features",
        title="How often features fire",
        alt=alt + ".",
        apart=("never", never),
    )


def _training(statistics: Mapping, metrics: Mapping) -> Picture | None:
    rows, fvu = _logged(statistics, "fvu")
    if len(rows) < 2:
        return None
    alt = f"Over {rows[-1]:,.0f} tokens the fraction of variance unexplained went from {fvu[0]:.3g} to {fvu[-1]:.3g}"
    series, log = {"FVU of a batch": (rows, fvu)}, max(fvu) > 2
    y = "fraction of variance unexplained (FVU)"
    at, dead = _logged(statistics, "dead_share")
    if len(at) > 1 and max(dead) <= 1 and not log:
        series["features dead"] = (at, dead)
        y += ", and share of features that are dead"
        alt += f"; at most {_share(max(dead))} of the features were dead at once, {_share(dead[-1])} at the end"
    marks = {}
    held_out = _number(metrics.get("fvu"))
    if held_out is not None and 0 < held_out < 10:
        marks = {"FVU of held-out texts": held_out}
        alt += f". On held-out texts it is {held_out:.3g}"
    return charts.lines(
        series,
        x=Axis("tokens trained on", low=0),
        y=Axis(y, log=log, low=None if log else 0),
        title="Training",
        alt=alt + ".",
        marks=marks,
    )


def _l0(statistics: Mapping) -> Picture | None:
    rows, l0 = _logged(statistics, "l0")
    if len(rows) < 2 or max(l0) - min(l0) <= 0.05 * max(l0):
        return None
    wide = max(l0) > 10 * max(1.0, min(l0))
    return charts.lines(
        {"l0": (rows, l0)},
        x=Axis("tokens trained on", low=0),
        y=Axis("active features per token" + (", log scale" if wide else ""), log=wide, low=None if wide else 0),
        title="Sparsity while training",
        alt=f"Over {rows[-1]:,.0f} tokens the active features per token went from {l0[0]:.3g} to {l0[-1]:.3g}.",
    )


def _sites(writes: Sequence[str], metrics: Mapping) -> Picture | None:
    given = _dict(metrics.get("fvu_per_site"))
    fvu = {site: value for site in writes if (value := _number(given.get(site))) is not None and 0 <= value < 1e6}
    if len(writes) < _FEWEST or len(fvu) < len(writes) or len(fvu) > charts.MOST_ROWS:
        return None
    best, worst = min(fvu, key=lambda site: fvu[site]), max(fvu, key=lambda site: fvu[site])
    return charts.bars(
        list(fvu),
        {"fvu": list(fvu.values())},
        x=Axis("fraction of variance unexplained (0: all is explained)", low=0),
        title="How well each site is explained",
        alt=f"Over {len(fvu)} sites the fraction of variance unexplained lies between {fvu[best]:.3g} ({best}) and "
        f"{fvu[worst]:.3g} ({worst}).",
    )


def _models(metrics: Mapping) -> Picture | None:
    given = _numbers(metrics.get("ce_recovered_per_model"), 10)
    if given is None or len(given) < _FEWEST or max(map(abs, given)) > 10:
        return None
    return charts.bars(
        [f"model {number}" for number in range(len(given))],
        {"recovered": given},
        x=Axis("loss recovered, against zeros", percent=True, low=0, high=1),
        title="What each model keeps of its predictions",
        alt="Loss recovered: " + ", ".join(f"{_share(v)} of model {i}" for i, v in enumerate(given)) + ".",
    )


def _frontier(n_features: int, metrics: Mapping) -> Picture | None:
    """Loss recovered against active features, beside those of its sites that were trained in the same pass."""
    given = metrics.get("beside")
    given = [_dict(one) for one in given] if isinstance(given, list) and 1 < len(given) <= _MOST_BESIDE else []
    found = [(one, _number(one.get("l0")), _number(one.get("ce_recovered"))) for one in given]
    known = [(one, l0, share) for one, l0, share in found if l0 and share is not None and l0 > 0 and abs(share) < 10]
    own = (n_features, _number(metrics.get("l0")), _number(metrics.get("ce_recovered")))
    is_own = [(one.get("n_features"), l0, share) == own for one, l0, share in known]
    if len(known) < 2 or sum(is_own) != 1:
        return None
    points = [
        charts.Point(
            l0, share, str(one.get("name"))[:_LONGEST_NAME], "this dictionary" if mine else "trained beside it"
        )
        for (one, l0, share), mine in zip(known, is_own, strict=True)
    ]
    others = ", ".join(
        f"{100 * (p.y or 0):.3g} % at {p.x:.3g}" for p, mine in zip(points, is_own, strict=True) if not mine
    )
    return charts.scatter(
        points,
        x=Axis("active features per token (L0)", log=True),
        y=Axis("loss recovered, against zeros", percent=True),
        title="Loss recovered against active features per token",
        alt=f"Loss recovered {100 * (own[2] or 0):.3g} % at {own[1]:.3g} active features; of those beside it {others}.",
        joined=False,
    )


def _logged(statistics: Mapping, name: str) -> tuple[list[float], list[float]]:
    """Tokens and a number at each logged step that has both."""
    log = statistics.get("log")
    log = log if isinstance(log, list) and len(log) <= _LONGEST_LOG else []
    both = ((_number(_dict(row).get("rows")), _number(_dict(row).get(name))) for row in log)
    found = sorted((rows, value) for rows, value in both if rows and value is not None and 0 < rows < 1e15 > value >= 0)
    return [rows for rows, _ in found], [value for _, value in found]


def _share(value: float) -> str:
    """`3.1 %`, two digits long; `100 %` for what is all but one in a million."""
    return f"{100 * value:.2g} %" if value < 0.095 else f"{100 * value:.0f} %"


def _dict(value: Any) -> dict:
    return value if isinstance(value, dict) else {}


def _number(value: Any) -> float | None:
    found = float(charts.numbers([value])[0])
    return found if math.isfinite(found) else None


def _numbers(values: Any, most: int) -> list[float] | None:
    """Numbers of a list, if it holds nothing else, and some, and at most so many."""
    if not isinstance(values, list | tuple) or not 0 < len(values) <= most:
        return None
    found = charts.numbers(values).tolist()
    return found if all(map(math.isfinite, found)) else None
