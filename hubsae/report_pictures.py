"""The pictures of a report: fidelity against active features, and by layer."""

from collections.abc import Sequence
from typing import Any

from hubsae.axes import Axis
from hubsae.charts import MOST_ROWS, Picture, Point, bars, scatter
from hubsae.drawing import MOST_SERIES
from hubsae.frontier import Group
from hubsae.tables import number

NAMES = ("frontier", "fvu", "layers")
_FEW_LAYERS = 5  # up to so many apart they stand one below the other
_FEW_LINES = 4  # whose points have labels
_MOST_SAID = 3


def drawn(rows: Sequence[dict], groups: Sequence[Group]) -> dict[str, Picture]:
    """Those of `NAMES` that the rows give: a frontier needs two dictionaries of a group, layers need two layers."""
    found = {
        "frontier": _against_l0(rows, groups, "ce_recovered", Axis("loss recovered", percent=True)),
        "fvu": _against_l0(rows, groups, "fvu", Axis("fraction of variance unexplained")),
        "layers": _by_layer(rows),
    }
    return {name: picture for name, picture in found.items() if picture is not None}


def _against_l0(rows: Sequence[dict], groups: Sequence[Group], by: str, axis: Axis) -> Picture | None:
    known = [row for row in rows if row[by] is not None and row["l0"] is not None]
    series = _series(known)
    left, shown = len(series), dict(sorted(series.items(), key=lambda item: -len(item[1]))[:MOST_SERIES])
    if not any(len(found) > 1 for found in shown.values()):
        return None
    points = [
        Point(row["l0"], row[by], label, name, None, _interval(row, by))
        for name, found in series.items()
        if name in shown
        for row, label in zip(found, _short(found, len(shown) <= _FEW_LINES), strict=True)
    ]
    says = [f"{name}: {_ends(found, by, axis)}" for name, found in list(shown.items())[:_MOST_SAID]]
    if more := len(shown) - len(says):
        says.append(f"and {more} more {'line' if more == 1 else 'lines'}")
    if more := left - len(shown):
        says.append(f"{more} shorter {'line is' if more == 1 else 'lines are'} not drawn")
    title = f"{axis.label.capitalize()} against active features per token"
    alt = f"{title}, {len(known)} dictionaries. {'; '.join(says)}."
    return scatter(points, x=Axis("active features per token (L0)", log=_is_wide(known)), y=axis, title=title, alt=alt)


def _by_layer(rows: Sequence[dict]) -> Picture | None:
    """FVU of each layer: bars for a few, points for many, with a series for each rule and width."""
    known = [row for row in rows if row["fvu"] is not None and " + " not in row["writes"]]
    layers = sorted({row["layer"] for row in known})
    places = {(row["base_model"], row["data"], row["n_tokens"], row["component"]) for row in known}
    if len(layers) < 2 or len(places) != 1:
        return None
    series: dict[str, dict[int, dict]] = {}
    rules = _rules(known)
    for row, rule in zip(known, rules, strict=True):
        series.setdefault(rule, {}).setdefault(row["layer"], row)
    if sum(map(len, series.values())) < len(known) or len(series) > MOST_SERIES:
        return None  # several of one kind at a layer are no line
    axis, component = Axis("fraction of variance unexplained", low=0.0), known[0]["component"]
    best, rule = min(zip(known, rules, strict=True), key=lambda pair: pair[0]["fvu"])
    title = f"Variance unexplained by layer, {component}"
    alt = (
        f"Fraction of variance unexplained at {len(layers)} layers ({component}), {len(known)} dictionaries; lowest "
        f"{number(best['fvu'])} at layer {best['layer']} ({rule})."
    )
    if layers[-1] - layers[0] < _FEW_LAYERS and len(layers) * len(series) <= MOST_ROWS:
        values = {name: [found.get(i, {}).get("fvu") for i in layers] for name, found in series.items()}
        return bars([f"layer {i}" for i in layers], values, x=axis, title=title, alt=alt)
    points = [
        Point(i, row["fvu"], "", name, y_interval=_interval(row, "fvu"))
        for name, found in series.items()
        for i, row in found.items()
    ]
    return scatter(points, x="layer", y=axis, title=title, alt=alt)


def _series(rows: Sequence[dict]) -> dict[str, list[dict]]:
    """The rows of each line, in order of l0: of one group, kind, rule and width."""
    groups: dict[str, list[dict]] = {}
    for row in rows:
        groups.setdefault(row["group"], []).append(row)
    found: dict[str, list[dict]] = {}
    for group, mine in groups.items():
        told = [name for name in ("kind", "sparsity", "reads", "n_features") if _differs(mine, name)]
        lines: dict[str, list[dict]] = {}
        for row in sorted(mine, key=lambda row: row["l0"]):
            texts = [f"{row[name]:,} features" if name == "n_features" else str(row[name]) for name in told]
            lines.setdefault(", ".join((group, *texts)), []).append(row)
        found |= dict(sorted(lines.items()))
    return found


def _rules(rows: Sequence[dict]) -> list[str]:
    """`"topk, k=8"` for each, with what else differs among the rows."""
    told = [name for name in ("n_features", "kind") if _differs(rows, name)]
    found = []
    for row in rows:
        parts = [str(row["sparsity"]), *([f"k={row['k']}"] if row["k"] is not None else [])]
        parts += [f"{row[name]:,} features" if name == "n_features" else row[name] for name in told]
        found.append(", ".join(parts))
    return found


def _differs(rows: Sequence[dict], name: str) -> bool:
    return len({row[name] for row in rows}) > 1


def _ends(line: Sequence[dict], by: str, axis: Axis) -> str:
    """Its first point and, where it has another, its last: `"91.2 % at 32, 95 % at 64"`."""
    ends = (line[0], line[-1]) if len(line) > 1 else line
    return ", ".join(f"{_value(row[by], axis)} at {number(row['l0'])}" for row in ends)


def _short(line: Sequence[dict], wanted: bool) -> list[str]:
    """Labels beside the points of a line: k, where that tells them apart; else the names."""
    if not wanted:
        return [""] * len(line)
    tells = len({row["k"] for row in line}) == len(line)
    names = [row["name"] if len(line) > 1 else "" for row in line]
    return [f"k={row['k']}" if tells and row["k"] is not None else name for row, name in zip(line, names, strict=True)]


def _interval(row: dict, by: str) -> tuple[float, float] | None:
    low, high = row[f"{by}_lo"], row[f"{by}_hi"]
    return None if low is None or high is None else (low, high)


def _is_wide(rows: Sequence[dict]) -> bool:
    values = [row["l0"] for row in rows if row["l0"] > 0]
    return len(values) == len(rows) and max(values) / min(values) >= 4


def _value(value: Any, axis: Axis) -> str:
    return f"{100 * value:.3g} %" if axis.percent else number(value)
