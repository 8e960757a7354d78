"""Several processes that train one dictionary together, each with its share of every batch; one alone is the rule."""

from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np


@dataclass(frozen=True)
class Ranks:
    """The processes of a run, `size` in all, of which this one is number `rank`; `group` is MLX's."""

    size: int = 1
    rank: int = 0
    group: Any = None

    @classmethod
    def found(cls) -> "Ranks":
        """Those that `mlx.launch` (or MPI) started together with this process; one where it was started alone."""
        group = mx.distributed.init()
        return cls(group.size(), group.rank(), group) if group.size() > 1 else ALONE

    def sum(self, array: Any) -> Any:
        """The sum over all processes; NumPy for NumPy, MLX for MLX."""
        if self.size == 1:
            return array
        if isinstance(array, mx.array):
            return mx.distributed.all_sum(array, group=self.group)
        return np.array(mx.distributed.all_sum(mx.array(array), group=self.group)).astype(array.dtype)

    def total(self, n: int) -> int:
        """The sum of a whole number over all processes."""
        return n if self.size == 1 else int(self.sum(np.array(n, np.int32)))

    def gathered(self, array: Any) -> Any:
        """(n, ...) -> the arrays of all processes, one after the other; n may differ from process to process."""
        if self.size == 1:
            return array
        lengths = np.zeros(self.size, np.int32)
        lengths[self.rank] = len(array)
        lengths = np.array(mx.distributed.all_sum(mx.array(lengths), group=self.group))
        longest = int(lengths.max())
        given = mx.array(array)
        padded = mx.concatenate([given, mx.zeros((longest - len(given), *given.shape[1:]), given.dtype)])
        all_of_them = mx.distributed.all_gather(padded, group=self.group).reshape(self.size, longest, *given.shape[1:])
        parts = mx.concatenate([part[: int(n)] for part, n in zip(all_of_them, lengths, strict=True)])
        return parts if isinstance(array, mx.array) else np.array(parts)

    def share(self, n: int) -> slice:
        """This process's part of n things."""
        return slice(n * self.rank // self.size, n * (self.rank + 1) // self.size)


ALONE = Ranks()
