"""Charts as SVG text: the same numbers give the same bytes, so a picture that says nothing new is no new commit.

`histogram`, `bars`, `lines` and `scatter` draw on light paper, since an image on the Hub does not follow its dark
theme. Colours are those of Okabe and Ito, and dashes or markers tell series apart as well. What is no number is a gap.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from hubsae.axes import Axis, numbers, value_text
from hubsae.drawing import HEIGHT, SMALL, SOFT, Canvas, fill, px, stroke, text_width
from hubsae.errors import DataError

Numbers = Sequence[float | None] | Sequence[float] | Sequence[int] | np.ndarray

MOST_ROWS, MOST_BINS = 60, 400
_MOST_POINTS = 200  # of a scatter, some 50 bytes each
_POINTS = 1200  # of all lines in one picture, some 12 bytes each


@dataclass(frozen=True)
class Picture:
    """A chart, and the finding that it shows in a sentence, for those who do not see it."""

    svg: str
    alt: str


@dataclass(frozen=True)
class Point:
    """One point of `scatter`; points of one group look the same. The intervals are (low, high)."""

    x: float | None
    y: float | None
    label: str = ""
    group: str = ""
    x_interval: tuple[float, float] | None = None
    y_interval: tuple[float, float] | None = None


def histogram(
    edges: Numbers,
    series: Mapping[str, Numbers],
    *,
    x: Axis | str,
    y: Axis | str,
    title: str,
    alt: str,
    apart: tuple[str, float] | None = None,
    marks: Mapping[str, float] | None = None,
) -> Picture:
    """Counts (n,) of each series between n + 1 ascending edges, one series over the other.

    apart: (label, count) of a bar that lies left of the axis, of what has no place on it. marks: label -> where a
    vertical line stands.
    """
    x, y = _axis(x), replace(_axis(y), log=False)
    bins, counts = numbers(edges), {name: numbers(values) for name, values in series.items()}
    if len(bins) > MOST_BINS:
        raise DataError(f"{len(bins) - 1} bins: at most {MOST_BINS} can be told apart in one picture")
    if len(bins) < 2 or not (np.diff(bins) > 0).all():
        raise DataError("the edges of a histogram have to be ascending numbers, at least two")
    if bad := [name for name, values in counts.items() if len(values) != len(bins) - 1]:
        raise DataError(f"{bad[0]}: {len(bins) - 1} bins, and another number of counts")
    rest = numbers([apart[1]] if apart else [])
    if not all((values >= 0).all() for values in (*counts.values(), rest)):
        raise DataError("the counts of a histogram have to be numbers of at least 0")
    kind = "area" if len(counts) > 1 else "bar"
    canvas = Canvas(title, alt, _keys(kind, counts, marks), inset=84 if apart else 0)
    across, up = canvas.axes(x, [bins, numbers((marks or {}).values())], y, [*counts.values(), rest, np.zeros(1)])
    base, places = up.at(np.zeros(1))[0], across.at(bins)
    for i, values in enumerate(counts.values()):
        tops = up.at(values)
        steps = "".join(f"V{px(top)}H{px(right)}" for top, right in zip(tops, places[1:], strict=True))
        how = fill(kind, i) + (f" {stroke(i)}" if len(counts) > 1 else "")
        canvas.add(f'<path d="M{px(places[0])} {px(base)}{steps}V{px(base)}z" {how}/>')
    if apart:
        top, middle = up.at(rest)[0], canvas.left + 30
        canvas.box(middle - 18, top, 36, base - top, f'fill="{SOFT}"')
        canvas.text(middle, base + 16, apart[0], anchor="middle", size=SMALL, room=64)
        canvas.text(middle, top - 4, value_text(rest[0], y), anchor="middle", size=SMALL)
    canvas.marks(marks, across, up)
    return Picture(canvas.svg(), alt)


def bars(
    labels: Sequence[str],
    series: Mapping[str, Numbers],
    *,
    x: Axis | str,
    title: str,
    alt: str,
) -> Picture:
    """One row for each label with a bar from 0 and the number of each series; at most `MOST_ROWS` bars."""
    x = replace(_axis(x), log=False)
    values = {name: numbers(one) for name, one in series.items()}
    if bad := [name for name, one in values.items() if len(one) != len(labels)]:
        raise DataError(f"{bad[0]}: {len(labels)} labels, and another number of values")
    n = max(1, len(values))
    if len(labels) * n > MOST_ROWS:
        raise DataError(f"{len(labels) * n} bars: at most {MOST_ROWS} can be read in one picture")
    height = max(HEIGHT if len(labels) * n > 6 else 240, 110 + 15 * len(labels) * n + 6 * len(labels))
    canvas = Canvas(title, alt, _keys("bar", values), height=height)
    canvas.left += min(240, int(max([0, *(text_width(label, 12) for label in labels)]))) + 8
    canvas.right -= 48  # the numbers beside the bars
    across = canvas.axis_x(x, [*values.values(), np.zeros(1)])
    zero = across.at(np.zeros(1))[0]
    step = (canvas.bottom - canvas.top) / max(1, len(labels))
    thick = min(22.0, 0.78 * step / n)
    for row, label in enumerate(labels):
        middle = canvas.top + (row + 0.5) * step
        canvas.text(canvas.left - 8, middle + 4, label, anchor="end", room=240)
        for i, one in enumerate(values.values()):
            top = middle + (i - n / 2) * thick
            if not math.isfinite(one[row]):
                continue
            end = across.at(one[row : row + 1])[0]
            canvas.box(min(zero, end), top, abs(end - zero), thick - 1, f"{fill('bar', i)} {stroke(i)}")
            canvas.text(max(zero, end) + 5, top + thick / 2 + 3.5, value_text(one[row], x), size=SMALL)
    return Picture(canvas.svg(), alt)


def lines(
    series: Mapping[str, tuple[Numbers, Numbers]],
    *,
    x: Axis | str,
    y: Axis | str,
    title: str,
    alt: str,
    marks: Mapping[str, float] | None = None,
) -> Picture:
    """A line through the (x, y) of each series, in the order of x, broken where a number is missing.

    Of many points those are kept that are the first, last, lowest and highest of each step along x. marks: label ->
    where a horizontal line lies.
    """
    x, y = _axis(x), _axis(y)
    data = {name: _together(name, *both) for name, both in series.items()}
    canvas = Canvas(title, alt, _keys("line", data, marks))
    ys = [ys for _, ys in data.values()]
    across, up = canvas.axes(x, [xs for xs, _ in data.values()], y, [*ys, numbers((marks or {}).values())])
    for i, (xs, ys) in enumerate(data.values()):
        canvas.line(across.at(xs), up.at(ys), i, most=_POINTS // max(1, len(data)))
    canvas.marks(marks, across, up, lying=True)
    return Picture(canvas.svg(), alt)


def scatter(
    points: Sequence[Point],
    *,
    x: Axis | str,
    y: Axis | str,
    title: str,
    alt: str,
    joined: bool = True,
    marks: Mapping[str, float] | None = None,
) -> Picture:
    """Points with their labels and intervals, each group's joined by a line in the order of x (a frontier).

    A label that would cover another is left out, and of many points in one place one is shown. marks as in `lines`.
    """
    x, y = _axis(x), _axis(y)
    groups = list(dict.fromkeys(point.group for point in points))
    canvas = Canvas(title, alt, _keys("point", groups, marks))
    xs, ys = numbers(point.x for point in points), numbers(point.y for point in points)
    wide = numbers(v for point in points for v in _pair(point.x_interval))
    tall = numbers(v for point in points for v in _pair(point.y_interval))
    across, up = canvas.axes(x, [xs, wide], y, [ys, tall, numbers((marks or {}).values())])
    at_x, at_y, owner = across.at(xs), up.at(ys), np.array([groups.index(point.group) for point in points], int)
    flat, high = across.at(wide).reshape(-1, 2), up.at(tall).reshape(-1, 2)
    canvas.marks(marks, across, up, lying=True)
    shown = _apart(at_x, at_y, owner)
    for i in range(len(groups)):
        order = np.lexsort((at_y, at_x))
        order = order[(owner == i)[order] & np.isfinite(at_x + at_y)[order]]
        if joined:
            canvas.line(at_x[order], at_y[order], i, most=_POINTS // (2 * len(groups)), dots=False)
        mine = shown[owner[shown] == i]
        places = list(zip(at_x[mine].tolist(), at_y[mine].tolist(), strict=True))
        canvas.whiskers(places, flat[mine], high[mine], i)
        canvas.markers(places, i)
    canvas.labels([(at_x.item(k), at_y.item(k), points[k].label) for k in shown.tolist()])
    return Picture(canvas.svg(), alt)


def _axis(axis: Axis | str) -> Axis:
    return Axis(axis) if isinstance(axis, str) else axis


def _keys(kind: str, names: Iterable[str], marks: Mapping[str, float] | None = None) -> list[tuple[str, str, int]]:
    """What the legend explains: nothing where there is one series and no more, which the title names."""
    keys = [(name, kind, i) for i, name in enumerate(names)]
    more = [(name, "mark", i) for i, name in enumerate(marks or {})]
    return [*(key for key in keys if len(keys) > 1 or (more and key[0])), *more]


def _together(name: str, xs: Any, ys: Any) -> tuple[np.ndarray, np.ndarray]:
    """x and y of a series in the order of x; where x is no number there is no point."""
    xs, ys = numbers(xs), numbers(ys)
    if len(xs) != len(ys):
        raise DataError(f"{name}: {len(xs)} numbers along x, {len(ys)} along y")
    order = np.argsort(xs, kind="stable")
    order = order[np.isfinite(xs[order])]
    return xs[order], ys[order]


def _pair(interval: Any) -> Sequence[Any]:
    return interval if isinstance(interval, tuple | list) and len(interval) == 2 else (None, None)


def _apart(xs: np.ndarray, ys: np.ndarray, owner: np.ndarray) -> np.ndarray:
    """Places of points that have one; of many only one of each group in a square, and those at the ends."""
    known = np.flatnonzero(np.isfinite(xs) & np.isfinite(ys))
    every, size = known, 8
    while len(known) > _MOST_POINTS:
        ends = [every[f(v[every])] for v in (xs, ys) for f in (np.argmin, np.argmax)]
        cells = np.stack([owner[every], xs[every] // size, ys[every] // size], axis=1)
        first = np.unique(cells, axis=0, return_index=True)[1]
        known, size = np.unique([*ends, *every[first]]), 2 * size
    return known
