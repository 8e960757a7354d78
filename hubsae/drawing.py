"""The paper of a chart: its SVG elements, with text that is safe and fits, axes, legend, lines and markers."""

import math
import unicodedata
from collections.abc import Mapping, Sequence

import numpy as np

from hubsae.axes import Axis, Scale, numbers
from hubsae.errors import DataError

WIDTH, HEIGHT = 640, 360
MOST_SERIES = 12
_MOST_LABELS = 40
_FEW_KEYS = 4  # of a legend, each of which may take a line of its own
_PAPER, _INK, _GRID = "#ffffff", "#26231d", "#e4e1da"
SOFT = "#6b665c"
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_DASHES = ("", "7 4", "2 3", "9 3 2 3", "14 4")
_MARKERS = (  # after a move to the point
    "m-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0z",
    "m-4-4h8v8h-8z",
    "m0-5l5 9h-10z",
    "m0-5l5 5l-5 5l-5-5z",
    "m0 5l5-9h-10z",
)
_SIDES = ((6, -6, "start"), (8, 4, "start"), (0, -9, "middle"), (0, 17, "middle"), (-8, 4, "end"))  # of a label
_OPACITY = {"bar": 0.75, "area": 0.2}  # areas lie over each other
_FONT = 12
SMALL = 11


class Canvas:
    """Parts of a picture, and the box inside it that the axes leave to the data; the legend stands above that."""

    def __init__(self, title: str, alt: str, keys: Sequence[tuple[str, str, int]], *, height: int = HEIGHT, inset=0):
        if len(keys) > MOST_SERIES:
            raise DataError(f"{len(keys)} series: at most {MOST_SERIES} can be told apart in one picture")
        self.title, self.alt, self.height, self.inset = title, alt, height, inset
        self.parts: list[str] = []
        self.left, self.right, self.top, self.bottom = 16, WIDTH - 20, 40, height - 44
        self.text(16, 24, title, size=15, more=' font-weight="600"', room=WIDTH - 32)
        self._legend(keys)

    def _legend(self, keys: Sequence[tuple[str, str, int]]) -> None:
        place, row = 16.0, 0
        is_short = len(keys) <= _FEW_KEYS and not any(kind in _OPACITY for _, kind, _ in keys)
        room = WIDTH - 64.0 if is_short else 280.0
        for name, kind, i in keys:
            long = 30 + min(room, text_width(name, _FONT)) + 16
            if place > 16 and place + long > WIDTH - 16:
                place, row = 16.0, row + 1
            y = self.top + 18 * row + 4
            if kind in _OPACITY:
                self.box(place, y - 6, 24, 12, f"{fill(kind, i)} {stroke(i)}")
            else:
                self.add(f'<path d="M{px(place)} {px(y)}h24" {stroke(i) if kind != "mark" else _mark_stroke(i)}/>')
            if kind == "point":
                self.markers([(place + 12, y)], i)
            self.text(place + 30, y + 4, name, room=room)
            place += long
        self.top += 18 * (row + 1) + 4 if keys else 0

    def add(self, part: str) -> None:
        self.parts += [part] if part else []

    def box(self, x: float, y: float, width: float, height: float, how: str) -> None:
        """A rectangle filled and edged as the attributes `how` say."""
        self.add(f'<rect x="{px(x)}" y="{px(y)}" width="{px(width)}" height="{px(height)}" {how}/>')

    def markers(self, places: Sequence[tuple[float, float]], i: int) -> None:
        """The marker of series i at each place, pixels."""
        path = "".join(f"M{px(x)} {px(y)}{_MARKERS[i % len(_MARKERS)]}" for x, y in places)
        self.add(f'<path d="{path}" fill="{colour(i)}" stroke="{_PAPER}" stroke-width="0.8"/>' if path else "")

    def text(self, x: float, y: float, text: str, *, anchor="start", size=_FONT, more="", room: float = 600) -> None:
        how = "" if anchor == "start" else f' text-anchor="{anchor}"'
        how += "" if size == _FONT else f' font-size="{size}"'
        self.add(f'<text x="{px(x)}" y="{px(y)}"{how}{more}>{_escaped(_cut(text, room, size))}</text>')

    def axes(self, x: Axis, xs: list[np.ndarray], y: Axis, ys: list[np.ndarray]) -> tuple[Scale, Scale]:
        """Gridlines, ticks and labels of both; the label of y stands above its axis, so that nobody turns the head."""
        self.text(16, self.top + 8, y.label, size=SMALL, room=WIDTH - 32)
        self.top += 22
        up = Scale.of(y, ys, self.bottom, self.top, most=5)
        texts = up.texts()
        self.left += math.ceil(max(text_width(text, SMALL) for text in texts)) + 8
        for place, text in zip(up.at(np.array(up.ticks)), texts, strict=True):
            self.add(f'<path d="M{self.left} {px(place)}H{self.right}" stroke="{_GRID}"/>')
            self.text(self.left - 8, place + 4, text, anchor="end", size=SMALL)
        return self.axis_x(x, xs, grid=False), up

    def axis_x(self, x: Axis, xs: list[np.ndarray], grid: bool = True) -> Scale:
        left = self.left + self.inset
        across = Scale.of(x, xs, left, self.right, most=6)
        self.add(f'<path d="M{left} {self.bottom}H{self.right}" stroke="{_INK}"/>')
        for place, text in zip(across.at(np.array(across.ticks)), across.texts(), strict=True):
            start = self.top if grid else self.bottom
            self.add(f'<path d="M{px(place)} {start}V{self.bottom + 4}" stroke="{_GRID if grid else _INK}"/>')
            self.text(place, self.bottom + 16, text, anchor="middle", size=SMALL)
        self.text((left + self.right) / 2, self.bottom + 36, x.label, anchor="middle", room=self.right - left)
        return across

    def line(self, xs: np.ndarray, ys: np.ndarray, i: int, *, most: int, dots: bool = True) -> None:
        """A line through pixels in the order of x, broken at NaN; a point alone is a dot."""
        path, alone = [], []
        kept = _kept(xs, ys, most)
        xs, ys = xs[kept], ys[kept]
        for run in _runs(xs, ys):
            places = [f"{px(x)} {px(y)}" for x, y in zip(xs[run], ys[run], strict=True)]
            if len(places) > 1:
                path.append("M" + "L".join(places))
            elif dots:
                alone.append(f"M{places[0]}h0")
        self.add(f'<path d="{"".join(path)}" fill="none" {stroke(i)}/>' if path else "")
        how = f'stroke="{colour(i)}" stroke-width="5" stroke-linecap="round"'
        self.add(f'<path d="{"".join(alone)}" {how}/>' if alone else "")

    def marks(self, marks: Mapping[str, float] | None, across: Scale, up: Scale, lying: bool = False) -> None:
        """A line across the picture for each number, standing or lying."""
        for i, value in enumerate(numbers((marks or {}).values())):
            place = (up if lying else across).at(np.array([value]))[0]
            if math.isfinite(place):
                d = f"M{self.left} {px(place)}H{self.right}" if lying else f"M{px(place)} {self.top}V{self.bottom}"
                self.add(f'<path d="{d}" {_mark_stroke(i)}/>')

    def whiskers(self, places: Sequence[tuple[float, float]], flat: np.ndarray, tall: np.ndarray, i: int) -> None:
        """The intervals (n, 2) of points of series i, all in pixels, as far as they are numbers."""
        path = ""
        for (x, y), (left, right), (low, high) in zip(places, flat, tall, strict=True):
            path += f"M{px(left)} {px(y)}H{px(right)}" if math.isfinite(left + right) else ""
            path += f"M{px(x)} {px(low)}V{px(high)}" if math.isfinite(low + high) else ""
        self.add(f'<path d="{path}" fill="none" stroke="{colour(i)}"/>' if path else "")

    def labels(self, wanted: Sequence[tuple[float, float, str]]) -> None:
        """Each label beside its point, on the first side where it covers nothing."""
        taken = [(x - 5, y - 5, x + 5, y + 5) for x, y, _ in wanted]
        halo = f' stroke="{_PAPER}" stroke-width="3" paint-order="stroke"'
        for x, y, label in wanted[:_MOST_LABELS]:
            label = _cut(label, 150, SMALL)
            wide = text_width(label, SMALL)
            for dx, dy, anchor in _SIDES:
                left = x + dx - {"start": 0, "end": wide, "middle": wide / 2}[anchor]
                box = (left, y + dy - 10, left + wide, y + dy + 3)
                inside = (
                    box[0] >= self.left and box[2] <= WIDTH - 4 and self.top - 8 <= box[1] and box[3] <= self.bottom
                )
                if label and inside and not any(_overlap(box, other) for other in taken):
                    taken.append(box)
                    self.text(x + dx, y + dy, label, anchor=anchor, size=SMALL, more=halo)
                    break

    def svg(self) -> str:
        """The picture as text."""
        size = f'width="{WIDTH}" height="{self.height}" viewBox="0 0 {WIDTH} {self.height}"'
        font = f'font-family="system-ui, sans-serif" font-size="{_FONT}" fill="{_INK}"'
        head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" {font}>'
        said = f"<title>{_escaped(self.title)}</title>\n<desc>{_escaped(self.alt)}</desc>"
        paper = f'<rect width="{WIDTH}" height="{self.height}" fill="{_PAPER}"/>'
        return "\n".join([head, said, paper, *self.parts, "</svg>"]) + "\n"


def _runs(xs: np.ndarray, ys: np.ndarray) -> list[np.ndarray]:
    """The places without gaps between them."""
    known = np.flatnonzero(np.isfinite(xs) & np.isfinite(ys))
    return [run for run in np.split(known, np.flatnonzero(np.diff(known) > 1) + 1) if len(run)]


def _kept(xs: np.ndarray, ys: np.ndarray, most: int) -> np.ndarray:
    """About `most` places of a line at most: the first, last, lowest and highest of each equal step along x, and a gap
    for each step without numbers."""
    if len(xs) <= most:
        return np.arange(len(xs))
    edges = np.searchsorted(xs, np.linspace(xs[0], xs[-1], max(2, most // 4) + 1)[1:-1])
    kept = []
    for part in np.split(np.arange(len(xs)), edges):
        known = part[np.isfinite(ys[part])]
        if len(known):
            kept += [known[0], known[-1], known[np.argmin(ys[known])], known[np.argmax(ys[known])]]
        elif len(part):
            kept.append(part[0])
    return np.unique(kept)


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def colour(i: int) -> str:
    """The colour of series i."""
    return _COLOURS[i % len(_COLOURS)]


def fill(kind: str, i: int) -> str:
    """The attributes of what series i fills: a "bar", or an "area" through which others can be seen."""
    return f'fill="{colour(i)}" fill-opacity="{_OPACITY[kind]}"'


def stroke(i: int) -> str:
    """The attributes of series i's line."""
    dash = _DASHES[i % len(_DASHES)]
    return f'stroke="{colour(i)}" stroke-width="1.8"' + (f' stroke-dasharray="{dash}"' if dash else "")


def _mark_stroke(i: int) -> str:
    return f'stroke="{_INK}" stroke-width="1.4" stroke-dasharray="{_DASHES[1 + (i + 1) % (len(_DASHES) - 1)]}"'


def px(value: float) -> str:
    """Pixels, to a tenth."""
    return f"{round(float(value), 1) + 0.0:.1f}".removesuffix(".0")


def _escaped(text: str) -> str:
    """Text that shows as itself inside an element or attribute, whatever it holds."""
    shown = "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in str(text)[:1000])
    return shown.translate({38: "&amp;", 60: "&lt;", 62: "&gt;", 34: "&quot;", 39: "&#39;"})


def text_width(text: str, size: int) -> float:
    """About how wide a text is, pixels; no font is at hand to measure it."""
    return size * sum(1.0 if unicodedata.east_asian_width(c) in "WF" else 0.56 for c in str(text)[:400])


def _cut(text: str, room: float, size: int) -> str:
    """The text, its middle left out where it is wider than the room."""
    text = str(text)
    if text_width(text, size) <= room:
        return text
    keep = max(1, int(room / text_width(text[:400], size) * min(len(text), 400) / 2) - 1)
    return f"{text[:keep]}…{text[-keep:]}"
