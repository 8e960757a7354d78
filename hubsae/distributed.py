"""Several processes that train one dictionary together, each with its share of every batch; one alone is the rule.

`mlx.launch` or `mpirun` starts them. All run the same program on the same texts: they share out the language model's
work and the rows of every batch, exchange rows and gradients, and so hold the same parameters after every step.
"""

import hashlib
import os
from dataclasses import dataclass
from functools import cache
from typing import Any

import mlx.core as mx
import numpy as np

_LAUNCHED = ("MLX_RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK")


@dataclass(frozen=True)
class Ranks:
    """The processes of a run, `size` in all, of which this one is number `rank`; `group` is MLX's.

    All of its methods but `share` have to be called by all processes, in the same order.
    """

    size: int = 1
    rank: int = 0
    group: Any = None

    @property
    def first(self) -> bool:
        """Whether this process writes files and reports, for all of them."""
        return self.rank == 0

    def share(self, n: int) -> slice:
        """This process's part of n things."""
        return slice(n * self.rank // self.size, n * (self.rank + 1) // self.size)

    def sum(self, array: Any) -> Any:
        """The sum over all processes; NumPy for NumPy, MLX for MLX."""
        return array if self.size == 1 else self._like(array, mx.distributed.all_sum)

    def least(self, array: Any) -> Any:
        """The smallest of what the processes have."""
        return array if self.size == 1 else self._like(array, mx.distributed.all_min)

    def _like(self, array: Any, function: Any) -> Any:
        if isinstance(array, mx.array):
            return function(array, group=self.group)
        array = np.asarray(array)
        return np.array(function(mx.array(array), group=self.group)).astype(array.dtype)

    def total(self, n: int) -> int:
        """The sum of a whole number over all processes."""
        return n if self.size == 1 else int(self.sum(np.array(n, np.int32)))

    def gathered(self, array: Any) -> Any:
        """(n, ...) -> the arrays of all processes, one after the other; n may differ from process to process."""
        if self.size == 1:
            return array
        lengths = np.zeros(self.size, np.int32)
        lengths[self.rank] = len(array)
        lengths = self.sum(lengths)
        longest, given = int(lengths.max()), mx.array(array)
        padded = mx.concatenate([given, mx.zeros((longest - len(given), *given.shape[1:]), given.dtype)])
        found = mx.distributed.all_gather(padded, group=self.group).reshape(self.size, longest, *given.shape[1:])
        parts = mx.concatenate([part[: int(n)] for part, n in zip(found, lengths, strict=True)])
        return parts if isinstance(array, mx.array) else np.array(parts)

    def agree(self, text: str) -> bool:
        """Whether all processes have the same text."""
        digest = np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint8).astype(np.int32)
        return bool((self.gathered(digest[None]) == digest).all())


ALONE = Ranks()


@cache
def ranks() -> Ranks:
    """The processes that were started together with this one; `ALONE` where it was started by itself."""
    if not any(name in os.environ for name in _LAUNCHED):
        return ALONE
    group = mx.distributed.init()
    return Ranks(group.size(), group.rank(), group) if group.size() > 1 else ALONE
