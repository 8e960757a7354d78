"""Adam (Kingma and Ba 2015), with what a dictionary asks of it: gradients clipped, decoder rows kept at their norm."""

from collections.abc import Mapping, Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from hubsae import threads
from hubsae.entries import Array, module_of
from hubsae.losses import normalised, tangent

_MEMORY = (0.9, 0.999)
_EPSILON = 1e-8
_SLICE_VALUES = 1 << 15  # so that what is read and written stays in the cache


class Adam:
    """First and second moments of every parameter, in `first` and `second`; `n_done` updates were made.

    widths: those of the written sites if decoder rows keep their norm (`losses.normalised`), else None. clip: largest
    global norm of the gradients, None for any.
    """

    def __init__(self, params: Mapping[str, Array], widths: Sequence[int] | None, clip: float | None):
        self.first = {name: module_of(p).zeros_like(p) for name, p in params.items()}
        self.second = {name: module_of(p).zeros_like(p) for name, p in params.items()}
        self.n_done, self._widths, self._clip = 0, widths, clip

    def update(self, params: dict[str, Array], gradients: dict[str, Array], rate: float) -> Array:
        """Change the parameters (NumPy: in place), return the norm of the gradients before they were clipped."""
        self.n_done += 1
        if any(isinstance(p, mx.array) for p in params.values()):
            return self._update_lazily(params, gradients, rate)
        squares = sum(self._prepared(name, g, params[name]) for name, g in gradients.items())
        norm = float(np.sqrt(squares))
        factor = min(1.0, self._clip / (norm + 1e-12)) if self._clip is not None else 1.0
        for name, gradient in gradients.items():
            self._moved(name, gradient, params[name], rate, factor)
        return np.float32(norm)

    def _fixed(self, name: str) -> Sequence[int] | None:
        return self._widths if name == "W_dec" else None

    def _bias(self) -> tuple[float, float]:
        """What the moments have to be divided by, as they started from 0."""
        return 1 - _MEMORY[0] ** self.n_done, 1 - _MEMORY[1] ** self.n_done

    def _update_lazily(self, params: dict[str, Array], gradients: dict[str, Array], rate: float) -> mx.array:
        for name, g in gradients.items():
            if widths := self._fixed(name):
                gradients[name] = tangent(g, params[name], widths)
        norm = mx.sqrt(sum((mx.sum(g * g) for g in gradients.values()), mx.array(0.0)))
        factor = mx.minimum(self._clip / (norm + 1e-12), 1.0) if self._clip is not None else 1.0
        (b1, b2), (c1, c2) = _MEMORY, self._bias()
        for name, g in gradients.items():
            g = g * factor
            m = self.first[name] = b1 * self.first[name] + (1 - b1) * g
            v = self.second[name] = b2 * self.second[name] + (1 - b2) * g * g
            moved = params[name] - rate / c1 * m / (mx.sqrt(v) / c2**0.5 + _EPSILON)
            params[name] = normalised(moved, widths) if (widths := self._fixed(name)) else moved
        return norm

    def _prepared(self, name: str, gradient: np.ndarray, param: np.ndarray) -> float:
        """The gradient, made tangent in place where it has to be, and its squared norm."""
        widths = self._fixed(name)

        def work(rows: slice) -> float:
            g = gradient[rows]
            if widths:
                g[:] = tangent(g, param[rows], widths)
            return float(np.vdot(g, g))

        return sum(threads.in_slices(len(gradient), _SLICE_VALUES // gradient[0].size, gradient.size, work))

    def _moved(self, name: str, gradient: np.ndarray, param: np.ndarray, rate: float, factor: float) -> None:
        widths, m_all, v_all = self._fixed(name), self.first[name], self.second[name]
        (b1, b2), (c1, c2) = _MEMORY, self._bias()

        def work(rows: slice) -> None:
            g, m, v, p = (array[rows] for array in (gradient, m_all, v_all, param))
            if factor != 1:
                g *= factor
            change = g * (1 - b1)
            m *= b1
            m += change
            np.multiply(g, g, out=change)
            change *= 1 - b2
            v *= b2
            v += change
            np.sqrt(v, out=change)
            change *= 1 / c2**0.5
            change += _EPSILON
            np.divide(m, change, out=change)
            change *= rate / c1
            p -= change
            if widths:
                p[:] = normalised(p, widths)

        threads.in_slices(len(gradient), _SLICE_VALUES // gradient[0].size, gradient.size, work)

    def forget(self, features: Any) -> None:
        """Set to 0 what is known of some features (a mask, (F,)) in all parameters that have a row for each."""
        for moments in (self.first, self.second):
            for name, array in moments.items():
                if name not in ("b_dec", "W_skip"):
                    where = features[:, None] if array.ndim > 1 else features
                    moments[name] = module_of(array).where(where, 0, array)
