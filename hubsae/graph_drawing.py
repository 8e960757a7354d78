"""A layered graph as a picture: columns of named nodes, edges as wide as they are strong; SVG, or PNG by matplotlib."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from hubsae.errors import ConfigError
from hubsae.tables import plain

_WIDTH, _HEIGHT, _GAP_X, _GAP_Y, _MARGIN = 220, 40, 180, 18, 30
_POSITIVE, _NEGATIVE, _BOX, _LINE, _TEXT = "#2a6fb0", "#b5432a", "#f4f1ea", "#8a8374", "#26231d"
_LETTERS = 30


@dataclass(frozen=True)
class Box:
    """A node: its left upper corner, and two lines of text."""

    x: float
    y: float
    title: str
    note: str


@dataclass(frozen=True)
class Curve:
    """An edge from (x1, y1) to (x2, y2); strength from 0 to 1; hint: what a tooltip says."""

    x1: float
    y1: float
    x2: float
    y2: float
    strength: float
    positive: bool
    hint: str


@dataclass(frozen=True, repr=False)
class Drawing:
    """Boxes, curves and column headings on a page of the given size (pixels)."""

    width: float
    height: float
    headings: tuple[tuple[float, str], ...]
    boxes: tuple[Box, ...]
    curves: tuple[Curve, ...]

    def __repr__(self) -> str:
        return f"Drawing of {len(self.boxes)} nodes and {len(self.curves)} edges; save it as .svg or .png"

    def _repr_svg_(self) -> str:
        return self.svg()

    def svg(self) -> str:
        """The picture as SVG; all texts are escaped."""
        parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{self.width:.0f}" height="{self.height:.0f}" '
            f'viewBox="0 0 {self.width:.0f} {self.height:.0f}" font-family="system-ui, sans-serif" font-size="12">',
            '<rect width="100%" height="100%" fill="white"/>',
        ]
        parts += map(_svg_curve, self.curves)
        parts += [
            f'<text x="{x:.1f}" y="{_MARGIN - 8}" font-weight="600" fill="{_TEXT}">{escape(text)}</text>'
            for x, text in self.headings
        ]
        parts += map(_svg_box, self.boxes)
        return "\n".join([*parts, "</svg>\n"])

    def save(self, path: str | Path) -> Path:
        """Write it; .png needs matplotlib (`pip install "hubsae[plots]"`)."""
        path = check_picture(path)
        if path.suffix.lower() == ".svg":
            path.write_text(self.svg(), encoding="utf-8")
        else:
            self._png(path)
        return path

    def _png(self, path: Path) -> None:
        try:
            from matplotlib.backends.backend_agg import FigureCanvasAgg
            from matplotlib.figure import Figure
            from matplotlib.patches import FancyBboxPatch, PathPatch
            from matplotlib.path import Path as Line
        except ImportError as error:
            raise ConfigError(
                f"{path}: pictures as .png need matplotlib; install hubsae[plots], or save .svg"
            ) from error
        figure = Figure(figsize=(self.width / 72, self.height / 72), dpi=144)
        axes: Any = figure.add_axes((0, 0, 1, 1))
        axes.set(xlim=(0, self.width), ylim=(self.height, 0))
        axes.axis("off")
        for c in self.curves:
            middle = (c.x1 + c.x2) / 2
            points = [(c.x1, c.y1), (middle, c.y1), (middle, c.y2), (c.x2, c.y2)]
            line = Line(points, [Line.MOVETO, Line.CURVE4, Line.CURVE4, Line.CURVE4])
            colour, alpha = _POSITIVE if c.positive else _NEGATIVE, _opacity(c)
            axes.add_patch(PathPatch(line, fill=False, edgecolor=colour, alpha=alpha, linewidth=_stroke(c)))
        for x, text in self.headings:
            axes.text(x, _MARGIN - 8, _literal(text), fontsize=11, fontweight="bold", color=_TEXT)
        for b in self.boxes:
            shape = FancyBboxPatch((b.x, b.y), _WIDTH, _HEIGHT, "round,pad=0,rounding_size=6", fc=_BOX, ec=_LINE)
            axes.add_patch(shape)
            axes.text(b.x + 10, b.y + 17, _literal(_short(b.title)), fontsize=9, color=_TEXT)
            axes.text(b.x + 10, b.y + 32, _literal(_short(b.note)), fontsize=7.5, color=_LINE)
        FigureCanvasAgg(figure).print_png(path)


def check_picture(path: str | Path) -> Path:
    """The path of a picture that can be written; raises `ConfigError` for other kinds and folders that do not exist."""
    path = Path(path).expanduser()
    if path.suffix.lower() not in (".svg", ".png"):
        raise ConfigError(f"{path}: expected a name that ends with .svg or .png")
    if not path.parent.is_dir():
        raise ConfigError(f"{path}: there is no folder {path.parent}")
    return path


def draw(
    columns: Sequence[tuple[str, Sequence[Hashable]]],
    names: Mapping[Any, tuple[str, str]],
    edges: Sequence[tuple[Any, Any, float, str]],
) -> Drawing:
    """Columns of (heading, node keys) from left to right; names: key -> two lines; edges: (from, to, weight, hint)."""
    tallest = max(len(keys) for _, keys in columns)
    height = 2 * _MARGIN + tallest * (_HEIGHT + _GAP_Y)
    boxes, headings, where = [], [], {}
    for number, (heading, keys) in enumerate(columns):
        x = _MARGIN + number * (_WIDTH + _GAP_X)
        headings.append((float(x), heading))
        top = _MARGIN + (tallest - len(keys)) * (_HEIGHT + _GAP_Y) / 2
        for place, key in enumerate(keys):
            title, note = map(plain, names[key])
            y = top + place * (_HEIGHT + _GAP_Y)
            where[key] = (x, y)
            boxes.append(Box(x, y, title, note))
    largest = max((abs(weight) for *_, weight, _ in edges), default=1.0) or 1.0
    curves = []
    for source, target, weight, hint in edges:
        (x1, y1), (x2, y2) = where[source], where[target]
        hint = plain(f"{names[source][0]} -> {names[target][0]}: {hint}")
        strength = abs(weight) / largest
        curves.append(Curve(x1 + _WIDTH, y1 + _HEIGHT / 2, x2, y2 + _HEIGHT / 2, strength, weight >= 0, hint))
    width = 2 * _MARGIN + len(columns) * _WIDTH + (len(columns) - 1) * _GAP_X
    return Drawing(float(width), float(height), tuple(headings), tuple(boxes), tuple(curves))


def _svg_curve(c: Curve) -> str:
    middle, colour = (c.x1 + c.x2) / 2, _POSITIVE if c.positive else _NEGATIVE
    points = f"M{c.x1:.1f},{c.y1:.1f} C{middle:.1f},{c.y1:.1f} {middle:.1f},{c.y2:.1f} {c.x2:.1f},{c.y2:.1f}"
    return (
        f'<path d="{points}" fill="none" stroke="{colour}" stroke-opacity="{_opacity(c):.2f}" '
        f'stroke-width="{_stroke(c):.1f}"><title>{escape(c.hint)}</title></path>'
    )


def _svg_box(b: Box) -> str:
    left = b.x + 10
    return (
        f"<g><title>{escape(b.title)}</title>"
        f'<rect x="{b.x}" y="{b.y}" width="{_WIDTH}" height="{_HEIGHT}" rx="6" fill="{_BOX}" stroke="{_LINE}"/>'
        f'<text x="{left}" y="{b.y + 17}" fill="{_TEXT}">{escape(_short(b.title))}</text>'
        f'<text x="{left}" y="{b.y + 32}" font-size="10" fill="{_LINE}">{escape(_short(b.note))}</text></g>'
    )


def _opacity(curve: Curve) -> float:
    return 0.25 + 0.6 * curve.strength


def _stroke(curve: Curve) -> float:
    return 0.8 + 5 * curve.strength


def _short(text: str) -> str:
    return text if len(text) <= _LETTERS else text[: _LETTERS - 1] + "…"


def _literal(text: str) -> str:
    return text.replace("$", r"\$")  # matplotlib would set it as mathematics
