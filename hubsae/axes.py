"""Axes of charts: which numbers they show, where those lie, and how the round ones among them are written."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
class Axis:
    """What an axis shows: its label with the unit, and from where to where at least.

    log: only positive numbers are shown. percent: shares are written as per cent.
    """

    label: str
    log: bool = False
    percent: bool = False
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Scale:
    """Where the numbers between `low` and `high` lie between the pixels `start` and `end`."""

    axis: Axis
    low: float
    high: float
    start: float
    end: float
    ticks: tuple[float, ...]

    @classmethod
    def of(cls, axis: Axis, values: Sequence[np.ndarray], start: float, end: float, most: int) -> "Scale":
        """One that holds all `values`, and ends at round numbers."""
        known = np.concatenate([*values, numbers([axis.low, axis.high])])
        known = known[np.isfinite(known) & ((known > 0) if axis.log else True)]
        known = known if len(known) else np.array([1.0, 10.0] if axis.log else [0.0, 1.0])
        low, high = float(known.min()), float(known.max())
        if high - low <= 1e-4 * max(abs(low), abs(high)):
            low, high = (low / 2, high * 2) if axis.log else (low - abs(low) / 2, high + (abs(high) / 2 or 1.0))
        ticks = _log_ticks(low, high, most) if axis.log and high / low >= 3 else _round_ticks(low, high, most)
        inside = tuple(tick for tick in ticks if tick[1])
        return cls(axis, ticks[0][0], ticks[-1][0], start, end, tuple(value for value, _ in inside))

    def at(self, values: np.ndarray) -> np.ndarray:
        """(n,) numbers -> pixels; NaN where there is no place."""
        low, high = self.low, self.high
        if self.axis.log:
            with np.errstate(divide="ignore", invalid="ignore"):
                values = np.where(values > 0, np.log10(np.where(values > 0, values, 1.0)), np.nan)
            low, high = math.log10(low), math.log10(high)
        return self.start + (values - low) / (high - low) * (self.end - self.start)

    def texts(self) -> list[str]:
        """How the ticks are written."""
        top = max(abs(tick) for tick in self.ticks)
        return [tick_text(tick, top, self.axis) for tick in self.ticks]


def _round_ticks(low: float, high: float, most: int) -> list[tuple[float, bool]]:
    """(number, True) at equal steps of 1, 2 or 5 times a power of ten, from below `low` to above `high`."""
    raw = (high - low) / most
    size = 10.0 ** math.floor(math.log10(raw))
    step = next(m * size for m in (1, 2, 5, 10) if m * size >= raw * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [(float(f"{i * step:.12g}"), True) for i in range(first, last + 1)]


def _log_ticks(low: float, high: float, most: int) -> list[tuple[float, bool]]:
    """(number, whether it is marked) at 1, 2 and 5 times powers of ten around both; over many decades fewer marks."""
    decades = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 2)
    grid = [float(f"{m}e{decade}") for decade in decades for m in (1, 2, 5)]
    first = max(i for i, value in enumerate(grid) if value <= low * (1 + 1e-9))
    last = min(i for i, value in enumerate(grid) if value >= high * (1 - 1e-9))
    grid = grid[first : last + 1]
    if len(grid) <= most + 3:
        return [(value, True) for value in grid]
    every = math.ceil(math.log10(high / low) / most)
    marked = {float(f"1e{decade}") for decade in decades if decade % every == 0}
    return [(value, value in marked) for value in grid]


def tick_text(value: float, top: float, axis: Axis) -> str:
    """A number of an axis whose largest one is `top`: `0.25`, `2,000`, `150k`, `12 %`, `10⁻⁷`."""
    if axis.percent:
        return tick_text(100 * value, 100 * top, Axis("", axis.log)) + " %"
    size = abs(value) if axis.log else top
    if value == 0:
        return "0"
    if size >= 1e15 or size < 0.99e-4:
        power = math.floor(math.log10(abs(value)) + 1e-12)
        front = f"{value / 10.0**power:.6g}"
        return ("" if front == "1" else f"{front}·") + "10" + str(power).translate(_SUPERSCRIPTS)
    for unit, name in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if top >= 1e4 and size >= unit:
            return f"{value / unit:.6g}{name}"
    return f"{value:,.6g}" if abs(value) < 1e4 else f"{value:,.0f}"


def value_text(value: float, axis: Axis) -> str:
    """A number beside its bar, three digits long."""
    if axis.percent:
        return f"{100 * value:.3g} %"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def numbers(values: Any) -> np.ndarray:
    """(n,) float64 of an iterable: NaN for what is no number, and for what is beyond 1e100."""
    values = values if isinstance(values, np.ndarray) else list(values)
    found = np.array([float(v) if _is_number(v) and abs(v) < 1e100 else math.nan for v in values], np.float64)
    return np.where(np.abs(found) < 1e-100, 0.0, found)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
