"""How results look: tables in a terminal, HTML in a notebook, both from one description."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, ClassVar

import numpy as np

_WIDEST = 100
_BARS = " ▁▂▃▄▅▆▇█"
_INVISIBLE = (0x61C, 0x200E, 0x200F, 0x2028, 0x2029, 0xFEFF, *range(0x202A, 0x202F), *range(0x2066, 0x206A))
_HALVES = range(0xD800, 0xE000)  # of letters beyond 16 bits: alone they cannot be written
_CONTROL = dict.fromkeys((*range(32), *range(127, 160), *_INVISIBLE, *_HALVES), "�")
_BREAKS = {ord("\n"): "⏎", ord("\r"): "⏎", ord("\t"): "⇥"}
_TABLE_STYLE = "border-collapse:collapse;font-variant-numeric:tabular-nums"
_CELL_STYLE = "padding:2px 10px;text-align:left;vertical-align:top"


def plain(text: str) -> str:
    """Text that shows what it is: line breaks as signs, no control characters or marks that turn the direction."""
    return text.translate(_CONTROL | _BREAKS)


@dataclass(frozen=True)
class Marked:
    """Tokens of a text with a feature's value on each; what fires is marked."""

    tokens: tuple[str, ...]
    values: tuple[float, ...]

    def __str__(self) -> str:
        pairs = zip(self.tokens, self.values, strict=True)
        return "".join(f"«{plain(token)}»" if value > 0 else plain(token) for token, value in pairs).replace("»«", "")

    def html(self) -> str:
        """The same with a coloured ground, the stronger the larger, and the value as a tooltip."""
        top = max((*self.values, 0.0)) or 1.0
        return "".join(
            f'<span style="background:rgba(230,130,20,{0.15 + 0.65 * value / top:.2f})" title="{value:.3g}">'
            f"{escape(plain(token))}</span>"
            if value > 0
            else escape(plain(token))
            for token, value in zip(self.tokens, self.values, strict=True)
        )


@dataclass(frozen=True)
class Table:
    """Rows under headings; a cell is text, a number or `Marked`. `note` stands below."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[Any]]
    note: str = ""

    def __str__(self) -> str:
        lines = [plain(self.title)] if self.title else []
        cells = [
            tuple(plain(str(name)) for name in self.head),
            *(tuple(_text(cell) for cell in row) for row in self.rows),
        ]
        widths = [max(len(row[i]) for row in cells) for i in range(len(self.head))]
        right = [all(_is_number(row[i]) for row in self.rows) and bool(self.rows) for i in range(len(self.head))]
        if any(self.head):
            lines.append(_line(cells[0], widths, right))
        lines += [_line(row, widths, right) for row in cells[1:]]
        return "\n".join([*lines, plain(self.note)] if self.note else lines)

    def _repr_html_(self) -> str:
        return self.html()

    def html(self) -> str:
        """A table element; everything in it is escaped."""
        head = "".join(f'<th style="{_CELL_STYLE}">{_html(name)}</th>' for name in self.head)
        rows = "".join(
            "<tr>" + "".join(f'<td style="{_CELL_STYLE}">{_html(cell)}</td>' for cell in row) + "</tr>"
            for row in self.rows
        )
        title = f"<p><b>{_html(self.title)}</b></p>" if self.title else ""
        note = f"<p>{_html(self.note)}</p>" if self.note else ""
        return f'{title}<table style="{_TABLE_STYLE}"><tr>{head}</tr>{rows}</table>{note}'


@dataclass(frozen=True, repr=False)
class Shown:
    """A result that prints as its `tables` and shows as HTML in a notebook."""

    def tables(self) -> list[Table]:
        """What is shown, one below the other."""
        raise NotImplementedError(f"{type(self).__name__} has to say what its tables are")

    def __str__(self) -> str:
        return "\n\n".join(map(str, self.tables()))

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        return "\n".join(table.html() for table in self.tables())


@dataclass(frozen=True, repr=False)
class Listed(Shown):
    """A result that can be gone through: iteration, length and [i] are those of the field that `listed` names."""

    listed: ClassVar[str]

    def __iter__(self) -> Iterator[Any]:
        return iter(getattr(self, self.listed))

    def __len__(self) -> int:
        return len(getattr(self, self.listed))

    def __getitem__(self, index: Any) -> Any:
        return getattr(self, self.listed)[index]


def _is_number(cell: Any) -> bool:
    return isinstance(cell, int | float) and not isinstance(cell, bool)


def _text(cell: Any) -> str:
    if isinstance(cell, float):
        return number(cell)
    text = str(cell) if isinstance(cell, Marked) else plain(str(cell))
    return text if len(text) <= _WIDEST or isinstance(cell, Marked) else text[: _WIDEST - 1] + "…"


def _html(cell: Any) -> str:
    if isinstance(cell, Marked):
        return cell.html()
    return escape(number(cell) if isinstance(cell, float) else plain(str(cell)))


def _line(row: Sequence[str], widths: Sequence[int], right: Sequence[bool]) -> str:
    cells = [c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, right, strict=True)]
    return "  ".join(cells).rstrip()


def number(value: float) -> str:
    """Three or four digits, as a person would write them."""
    if value != value:
        return "-"
    if value == 0 or 0.001 <= abs(value) < 10_000:
        return f"{value:.4g}" if abs(value) >= 100 else f"{value:.3g}"
    return f"{value:.2e}"


def bars(counts: Any) -> str:
    """Counts as a line of little bars; what is not 0 is seen."""
    counts = np.asarray(counts, float)
    heights = np.ceil(counts / max(counts.max(initial=0), 1) * (len(_BARS) - 1)).astype(int)
    return "".join(_BARS[h] for h in heights)
