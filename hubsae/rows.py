"""Rows in batches: given ones, or shuffled through a buffer whose state can be kept and restored exactly."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

import mlx.core as mx
import numpy as np

from hubsae.checkpoint import State
from hubsae.entries import Array
from hubsae.errors import ConfigError, DataError

Batch = mx.array | tuple[mx.array, mx.array]


class Rows(Protocol):
    """What training asks of rows; `n_rows` counts those of all epochs together."""

    n_rows: int

    def sample(self, n: int) -> np.ndarray:
        """Some of the rows, (at most n, width); none of them is used up."""
        ...

    def __iter__(self) -> Iterator[Array]:
        """Batches (b, width) in fp32."""
        ...

    def state(self, whole: bool = True) -> State:
        """The position after the last batch; without `whole` only that all is read."""
        ...

    def restore(self, state: State) -> None:
        """Go on after that position."""
        ...


class GivenRows:
    """Batches x (b, d_in) or pairs (x, y) that a caller brings, side by side and checked; they have no state."""

    def __init__(self, batches: Iterable[Batch], n_rows: int, d_in: int, d_out: int | None = None):
        self.n_rows = n_rows
        self._widths = {"read": d_in} | ({"written": d_out} if d_out is not None else {})
        self._batches = self._checked(batches)
        self._first: list[mx.array] = []

    def sample(self, n: int) -> np.ndarray:
        while sum(map(len, self._first)) < n and (batch := next(self._batches, None)) is not None:
            self._first.append(batch)
        if (found := sum(map(len, self._first))) < 2:
            raise DataError(f"{found} rows of training data; check that the texts are not empty")
        return np.concatenate([np.array(batch) for batch in self._first])

    def __iter__(self) -> Iterator[mx.array]:
        while self._first:
            yield self._first.pop(0)
        yield from self._batches

    def state(self, whole: bool = True) -> State:
        raise ConfigError("batches that are given have no position to go on from; train from texts to keep checkpoints")

    def restore(self, state: State) -> None:
        self.state()

    def _checked(self, batches: Iterable[Batch]) -> Iterator[mx.array]:
        """One array in fp32 for each batch; refuses wrong widths and what is not finite."""
        seen = 0
        for batch in batches:
            sides: Sequence[mx.array] = batch if isinstance(batch, tuple) else (batch,)
            if len(sides) != len(self._widths):
                raise ConfigError(f"a batch of {len(sides)} arrays; expected {' and '.join(self._widths)} rows")
            for (name, width), rows in zip(self._widths.items(), sides, strict=True):
                if rows.ndim != 2 or rows.shape[1] != width:
                    raise ConfigError(f"{name} rows of shape {rows.shape}, expected (b, {width})")
                if not mx.all(mx.isfinite(rows)).item():
                    row, column = (int(i[0]) for i in np.nonzero(~np.isfinite(np.array(rows.astype(mx.float32)))))
                    raise DataError(f"{name} rows: row {seen + row}, column {column} is {rows[row, column].item()}")
            if len({len(rows) for rows in sides}) > 1:
                raise ConfigError(f"{len(sides[0])} read rows but {len(sides[-1])} written rows in one batch")
            seen += len(sides[0])
            parts = [rows.astype(mx.float32) for rows in sides]
            yield parts[0] if len(parts) == 1 else mx.concatenate(parts, axis=1)


class Source(Protocol):
    """Where rows come from, in blocks (n, width)."""

    def blocks(self, epoch: int, skip: int) -> Iterator[np.ndarray]:
        """The rows of an epoch in blocks, without the first `skip`."""
        ...

    def place(self) -> dict:
        """By what the data that has passed so far can be recognised."""
        ...

    def check_place(self, place: dict) -> None:
        """Raise `DataError` where other data has passed."""
        ...


class ShuffledRows:
    """Every row once an epoch, mixed through a buffer of `capacity` rows; the same seed gives the same batches.

    While blocks arrive, each batch is drawn at random from the full buffer and its places are filled again; after that,
    what is left is served in random order. Rows that all fit are kept, so that further epochs need no blocks. The last
    batch of all holds what is left.
    """

    def __init__(
        self,
        source: Source,
        *,
        epoch_rows: int,
        width: int,
        capacity: int,
        batch_size: int,
        seed: int = 0,
        epochs: int = 1,
    ):
        self.n_rows, self._epochs, self._batch_size, self._seed = epoch_rows * epochs, epochs, batch_size, seed
        self._source = source
        self._fits = epoch_rows <= capacity
        self._buffer = np.empty((epoch_rows if self._fits else max(capacity, batch_size + 1), width), np.float32)
        self._incoming = np.empty((0, width), np.float32)
        self._blocks: Iterator[np.ndarray] | None = None
        self._rng = np.random.default_rng(seed)
        self._filled = self._n_blocks = self._first_blocks = self._epoch = self._served = 0
        self._holes = np.empty(0, np.int64)
        self._order: np.ndarray | None = None  # set when no more blocks of this epoch arrive

    def sample(self, n: int) -> np.ndarray:
        self._fill()
        if self._filled < 2:
            raise DataError(f"{self._filled} rows of training data; check that the texts are not empty")
        some = np.random.default_rng(self._seed).permutation(self._filled)[:n]
        return self._buffer[np.sort(some)]

    def __iter__(self) -> Iterator[np.ndarray]:
        while True:
            parts, missing = [], self._batch_size
            while missing and (part := self._take(missing)) is not None:
                parts.append(part)
                missing -= len(part)
            if not parts:
                return
            yield parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _take(self, n: int) -> np.ndarray | None:
        """Up to n rows, None when all epochs are over."""
        self._fill()
        if self._order is None:
            self._holes = self._rng.choice(self._filled, n, replace=False)
            return self._buffer[self._holes]
        places = self._order[self._served : self._served + n]
        if len(places):
            self._served += len(places)
            return self._buffer[places]
        if self._epoch + 1 >= self._epochs or not self._filled:
            return None
        self._next_epoch()
        return self._take(n)

    def _next_epoch(self) -> None:
        self._epoch += 1
        self._served, self._order = 0, None
        if self._fits:
            self._order = self._permutation()
        else:
            self._blocks, self._n_blocks, self._filled = self._source.blocks(self._epoch, 0), 0, 0

    def _permutation(self) -> np.ndarray:
        return np.random.default_rng([self._seed, self._epoch]).permutation(self._filled)

    def _fill(self) -> None:
        """Fill empty places of the buffer; where no block is left, close the holes and set the order of the rest."""
        if self._order is not None:
            return
        if self._blocks is None:
            self._blocks = self._source.blocks(self._epoch, self._n_blocks)
        while self._filled < len(self._buffer) or len(self._holes) or self._fits:  # what fits is read to its end
            if not len(self._incoming):
                block = next(self._blocks, None)
                if block is None:
                    self._close()
                    return
                self._n_blocks += 1
                self._first_blocks += self._epoch == 0
                self._incoming = block
            if self._fits and len(self._incoming) > len(self._buffer) - self._filled:
                raise DataError(f"more rows arrived than the {len(self._buffer):,} that were announced")
            if len(self._holes):
                n = min(len(self._holes), len(self._incoming))
                self._buffer[self._holes[:n]] = self._incoming[:n]
                self._holes = self._holes[n:]
            else:
                n = min(len(self._buffer) - self._filled, len(self._incoming))
                self._buffer[self._filled : self._filled + n] = self._incoming[:n]
                self._filled += n
            self._incoming = self._incoming[n:]

    def _close(self) -> None:
        """Move the last rows into the holes, so that the rows left stand together."""
        left = self._filled - len(self._holes)
        low = self._holes[self._holes < left]
        tail = np.setdiff1d(np.arange(left, self._filled), self._holes, assume_unique=True)
        self._buffer[low] = self._buffer[tail]
        self._filled, self._holes = left, np.empty(0, np.int64)
        self._order = self._permutation()

    def state(self, whole: bool = True) -> State:
        values: dict[str, Any] = {
            "epoch": self._epoch,
            "served": self._served,
            "closed": self._order is not None,
            "n_blocks": self._n_blocks,
            "first_blocks": self._first_blocks,
            "place": self._source.place(),
            "rng": self._rng.bit_generator.state,
            "whole": whole,
        }
        if not whole:
            return State(values, {})
        kept = {"holes": self._holes, "buffer": self._buffer[: self._filled], "incoming": self._incoming}
        return State(values, {}, kept)

    def restore(self, state: State) -> None:
        values = state.values
        self._epoch, self._served = values["epoch"], values["served"]
        self._n_blocks, self._first_blocks = values["n_blocks"], values["first_blocks"]
        self._rng.bit_generator.state = values["rng"]
        if self._epoch and not self._fits:
            for _ in self._source.blocks(0, self._first_blocks):  # nothing is left: only to pass what is held out
                pass
        self._blocks = self._source.blocks(0 if self._fits else self._epoch, self._n_blocks)
        self._source.check_place(values["place"])
        if not values["whole"]:
            self._filled, self._order, self._epoch = 0, np.empty(0, np.int64), self._epochs
            return
        self._holes, self._incoming = state.rows["holes"], state.rows["incoming"]
        self._filled = len(state.rows["buffer"])
        self._buffer[: self._filled] = state.rows["buffer"]
        self._order = self._permutation() if values["closed"] else None
