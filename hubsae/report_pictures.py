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
        Point(
            row["l0"], row[by], _short(row, found) if len(shown) <= _FEW_LINES else "", name, None, _interval(row, by)
        )
        for name, found in series.items()
        if name in shown
        for row in found
    ]
    says = [
        f"{name}: {_value(found[0][by], axis)} at {number(found[0]['l0'])}, {_value(found[-1][by], axis)} at "
        f"{number(found[-1]['l0'])}"
        for name, found in list(shown.items())[:_MOST_SAID]
    ]
    more = f"; and {len(shown) - len(says)} more lines" if len(shown) > len(says) else ""
    more += f"; {left - len(shown)} shorter lines are not drawn" if left > len(shown) else ""
    title = f"{axis.label.capitalize()} against active features per token"
    alt = f"{title}, {len(known)} dictionaries. {'; '.join(says)}{more}."
    return scatter(points, x=Axis("active features per token (L0)", log=_is_wide(known)), y=axis, title=title, alt=alt)


def _by_layer(rows: Sequence[dict]) -> Picture | None:
    """FVU of each layer: bars for a few, points for many, with a series for each rule and width."""
    known = [row for row in rows if row["fvu"] is not None and " + " not in row["writes"]]
    layers = sorted({row["layer"] for row in known})
    places = {(row["base_model"], row["data"], row["n_tokens"], row["component"]) for row in known}
    if len(layers) < 2 or len(places) != 1:
        return None
    series: dict[str, dict[int, dict]] = {}
    for row in known:
        series.setdefault(_rule(row, known), {}).setdefault(row["layer"], row)
    if sum(map(len, series.values())) < len(known) or len(series) > MOST_SERIES:
        return None  # several of one kind at a layer are no line
    axis, component = Axis("fraction of variance unexplained", low=0.0), known[0]["component"]
    best = min(known, key=lambda row: row["fvu"])
    title = f"Variance unexplained by layer, {component}"
    alt = (
        f"Fraction of variance unexplained at {len(layers)} layers ({component}), {len(known)} dictionaries; lowest "
        f"{number(best['fvu'])} at layer {best['layer']} ({_rule(best, known)})."
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
    found: dict[str, list[dict]] = {}
    for row in sorted(rows, key=lambda row: row["l0"]):
        mine = [other for other in rows if other["group"] == row["group"]]
        told = {name: str(row[name]) for name in ("kind", "sparsity", "reads")}
        told["n_features"] = f"{row['n_features']:,} features"
        parts = [row["group"], *(text for name, text in told.items() if len({other[name] for other in mine}) > 1)]
        found.setdefault(", ".join(parts), []).append(row)
    order = list(dict.fromkeys(row["group"] for row in rows))
    return dict(sorted(found.items(), key=lambda item: (order.index(item[1][0]["group"]), item[0])))


def _rule(row: dict, rows: Sequence[dict]) -> str:
    """`"topk, k=8"`, with what else differs among the rows."""
    parts = [str(row["sparsity"]) + (f", k={row['k']}" if row["k"] is not None else "")]
    if len({other["n_features"] for other in rows}) > 1:
        parts.append(f"{row['n_features']:,} features")
    if len({other["kind"] for other in rows}) > 1:
        parts.append(row["kind"])
    return ", ".join(parts)


def _short(row: dict, mine: Sequence[dict]) -> str:
    """A label beside a point: k, where that tells the points of a line apart; else the name."""
    if row["k"] is not None and len({other["k"] for other in mine}) == len(mine):
        return f"k={row['k']}"
    return row["name"] if len(mine) > 1 else ""


def _interval(row: dict, by: str) -> tuple[float, float] | None:
    low, high = row[f"{by}_lo"], row[f"{by}_hi"]
    return None if low is None or high is None else (low, high)


def _is_wide(rows: Sequence[dict]) -> bool:
    values = [row["l0"] for row in rows if row["l0"] > 0]
    return len(values) == len(rows) and max(values) / min(values) >= 4


def _value(value: Any, axis: Axis) -> str:
    return f"{100 * value:.3g} %" if axis.percent else number(value)
