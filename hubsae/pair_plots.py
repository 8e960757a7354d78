"""Pictures of what joins two models: correlations of pairs beside their nulls, layers by layers, effects of features.

They need matplotlib, the extra "plots". Colours are those of Okabe and Ito, which colour-blind readers tell apart.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hubsae.alignment import StoredAlignment
from hubsae.causal import CONTROLS
from hubsae.errors import ConfigError, DataError
from hubsae.graph_drawing import check_picture
from hubsae.metrics import bootstrap_interval

_FOUND, _SHIFTED, _WITHIN, _CONTROL, _INK = "#0072B2", "#999999", "#E69F00", "#D55E00", "#26231d"
_BINS = 40


def match_scores(alignment: StoredAlignment, path: str | Path) -> Path:
    """How the confirmed pairs' held-out correlations lie beside what 99 % of their two nulls stay below."""
    path = check_picture(path)
    figure = _figure(path, 7, 4)
    pairs = alignment.pairs
    if not len(pairs):
        raise DataError("no confirmed pairs, so there are no scores to show")
    series = (
        ("corr_docshift_q99", "99 % quantile, rows moved on", _SHIFTED, "-"),
        ("corr_withinword_q99", "99 % quantile, shuffled within words", _WITHIN, "--"),
        ("corr_eval", "the pairs", _FOUND, "-"),
    )
    values = {name: np.asarray(pairs[name], np.float64) for name, *_ in series}
    known = {name: column[np.isfinite(column)] for name, column in values.items()}
    low = min([0.0, *(column.min() for column in known.values() if len(column))])
    edges = np.linspace(low, 1, _BINS + 1)
    axes = figure.add_subplot()
    for name, label, colour, style in series:
        axes.hist(known[name], edges, color=colour, alpha=0.35)
        axes.hist(known[name], edges, color=colour, histtype="step", linestyle=style, linewidth=1.5, label=label)
    threshold = alignment.config.thresholds.get("correlation")
    if isinstance(threshold, int | float):
        axes.axvline(threshold, color=_INK, linestyle=":", linewidth=1.5, label=f"threshold, {threshold:.2g}")
    axes.set(xlabel="correlation of activations at held-out anchors", ylabel="confirmed pairs", xlim=(low, 1))
    beats = float(np.mean(values["corr_eval"] > values["corr_withinword_q99"]))
    axes.set_title(f"{len(pairs):,} confirmed pairs, {100 * beats:.0f} % above the shuffles within words", fontsize=11)
    axes.legend(frameon=False, fontsize=9)
    return _saved(figure, path)


def layer_heatmap(values: Mapping[tuple[int, int], float], path: str | Path, title: str = "") -> Path:
    """(layer of A, layer of B) -> value as a table in colours; pairs of layers that are not there stay empty."""
    path = check_picture(path)
    if not values:
        raise DataError("no values to show: expected (layer of A, layer of B) -> value")
    rows, columns = (sorted({pair[side] for pair in values}) for side in (0, 1))
    figure = _figure(path, 2.2 + 0.8 * len(columns), 1.8 + 0.6 * len(rows))
    table = np.array([[values.get((a, b), np.nan) for b in columns] for a in rows], np.float64)
    axes = figure.add_subplot()
    image = axes.imshow(table, cmap="cividis", aspect="auto")
    axes.set_xticks(range(len(columns)), [str(layer) for layer in columns])
    axes.set_yticks(range(len(rows)), [str(layer) for layer in rows])
    axes.set(xlabel="layer of B", ylabel="layer of A")
    known = table[np.isfinite(table)]
    middle = (known.min() + known.max()) / 2 if len(known) else 0.0
    for (i, j), value in np.ndenumerate(table):
        if np.isfinite(value):
            axes.text(j, i, f"{value:.2f}", ha="center", va="center", color="white" if value < middle else "black")
    if title:
        axes.set_title(_literal(title), fontsize=11)
    figure.colorbar(image, ax=axes)
    return _saved(figure, path)


def effect_scatter(alignment: StoredAlignment, path: str | Path) -> Path:
    """Left: correlation of each feature's effects in A and in B, by condition, with means and their 95 % intervals
    over features. Right: how often the feature is told from all others by it. Raises `DataError` before
    `causal_transfer`."""
    path = check_picture(path)
    effects = alignment.frames.get("effects")
    if effects is None or not len(effects):
        raise DataError("no effects to show; causal_transfer(texts) measures them")
    names = list(dict.fromkeys(effects["condition"].tolist()))
    figure = _figure(path, 9, 1.6 + 0.5 * len(names))
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    rng, n_tested = np.random.default_rng(0), int(effects["n_tested"].max())
    for place, name in enumerate(names):
        colour = _CONTROL if name in CONTROLS else _FOUND
        column = effects["effect_corr"][effects["condition"] == name]
        column = column[np.isfinite(column)]
        height = place + rng.uniform(-0.2, 0.2, len(column))
        left.plot(column, height, "o", color=colour, alpha=0.4, markersize=4, markeredgewidth=0)
        if len(column):
            mean = float(column.mean())
            low, high = bootstrap_interval(np.stack([column, np.ones(len(column))], axis=1), lambda s: s[0] / s[1])
            _marked(left, place, mean, low, high)
        for measure, marker in (("causal_auc", "s"), ("causal_retrieval_at_1", "D")):
            row = _number(alignment, measure, name)
            if row is not None:
                _marked(right, place, row["value"], row["lo"], row["hi"], marker, colour)
    left.axvline(0, color=_INK, linestyle=":", linewidth=1)
    right.axvline(0.5, color=_INK, linestyle=":", linewidth=1)
    right.axvline(1 / max(n_tested, 1), color=_INK, linestyle="--", linewidth=1)
    labels = [_literal(f"{name} (control)" if name in CONTROLS else name) for name in names]
    left.set_yticks(range(len(names)), labels)
    left.set_ylim(len(names) - 0.5, -0.5)
    left.set(xlabel="correlation of effects on log-probabilities", xlim=(-1.02, 1.02), xticks=(-1, -0.5, 0, 0.5, 1))
    right.set(xlabel="share, mean and 95 % interval", xlim=(-0.02, 1.02))
    left.set_title(f"effects of {n_tested} features of A, in B", fontsize=11)
    right.set_title("squares: AUC (dotted: chance)\ndiamonds: retrieval@1 (dashed: chance)", fontsize=9)
    return _saved(figure, path)


def _number(alignment: StoredAlignment, name: str, method: str) -> dict[str, Any] | None:
    try:
        row = alignment.metric(name, method)
    except DataError:
        return None
    return row if row["value"] is not None else None


def _marked(axes: Any, place: int, mean: float, low: Any, high: Any, marker: str = "|", colour: str = _INK) -> None:
    if low is not None and high is not None and np.isfinite([low, high]).all():
        axes.plot([low, high], [place, place], color=colour, linewidth=2)
    axes.plot([mean], [place], marker, color=colour, markersize=14 if marker == "|" else 6, markeredgewidth=1.5)


def _figure(path: Path, width: float, height: float) -> Any:
    """An empty figure, inches, without the state of pyplot."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError(f"{path}: pictures need matplotlib; run pip install 'hubsae[plots]'") from error
    return Figure(figsize=(width, height), dpi=150, layout="constrained")


def _saved(figure: Any, path: Path) -> Path:
    """Written without dates and random ids, so that the same numbers give the same file."""
    from matplotlib import rc_context

    is_svg = path.suffix.lower() == ".svg"
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    with rc_context({"svg.hashsalt": "hubsae"}):
        figure.savefig(path, metadata={"Date": None} if is_svg else {"Software": None})
    return path


def _literal(text: str) -> str:
    return text.replace("$", r"\$")  # matplotlib would set it as mathematics
