"""Shuffled rows: each once an epoch, mixed, and exactly the same after they were stopped anywhere."""

import itertools

import mlx.core as mx
import numpy as np
import pytest

from hubsae.errors import ConfigError, DataError
from hubsae.rows import GivenRows, ShuffledRows

BLOCKS = [np.arange(i, min(i + 37, 370), dtype=np.float32)[:, None] for i in range(0, 370, 37)]


class Source:
    """The blocks, epoch after epoch, with a digest of how many have passed."""

    def __init__(self, blocks=BLOCKS):
        self.all, self.passed = blocks, 0

    def blocks(self, epoch: int, skip: int):
        self.passed = skip
        return self._rest(skip)

    def place(self) -> dict:
        return {"passed": self.passed}

    def check_place(self, place: dict) -> None:
        if place != self.place():
            raise DataError("other texts")

    def _rest(self, skip: int):
        for block in self.all[skip:]:
            self.passed += 1
            yield block

    def rows(self, capacity: int, batch_size: int = 16, epochs: int = 1, seed: int = 0) -> ShuffledRows:
        return ShuffledRows(
            self,
            epoch_rows=370,
            width=1,
            capacity=capacity,
            batch_size=batch_size,
            epochs=epochs,
            seed=seed,
        )


def served(rows) -> list[np.ndarray]:
    return [np.array(batch)[:, 0] for batch in rows]


@pytest.mark.parametrize("capacity", [17, 100, 369, 370, 5000])
@pytest.mark.parametrize("epochs", [1, 3])
def test_every_row_is_served_once_an_epoch(capacity, epochs):
    found = served(Source().rows(capacity, epochs=epochs))
    assert [len(b) for b in found[:-1]] == [16] * (len(found) - 1)
    everything = np.concatenate(found)
    assert np.array_equal(np.bincount(everything.astype(int), minlength=370), np.full(370, epochs))
    for start in range(0, 370 * epochs, 370):
        assert len(np.unique(everything[start : start + 370])) == 370


def test_the_buffer_mixes_and_the_seed_decides():
    one, same, other = (np.concatenate(served(Source().rows(100, seed=s))) for s in (0, 0, 1))
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)
    assert np.abs(np.corrcoef(one[:270], np.arange(270))[0, 1]) < 0.98
    assert np.abs(np.corrcoef(np.concatenate(served(Source().rows(5000))), np.arange(370))[0, 1]) < 0.2


@pytest.mark.parametrize("capacity", [17, 100, 370])
@pytest.mark.parametrize("epochs", [1, 3])
def test_stopped_after_any_batch_they_go_on_as_if_never_stopped(capacity, epochs):
    whole = served(Source().rows(capacity, epochs=epochs))
    for stop in range(0, len(whole) + 1, 5):
        first = Source().rows(capacity, epochs=epochs)
        begun = [np.array(batch)[:, 0] for batch in itertools.islice(first, stop)]
        if not stop:
            first.sample(10)
        state = first.state()
        kept = {name: array.copy() for name, array in state.rows.items()}
        for _ in itertools.islice(first, 3):  # what the stopped process did after its last checkpoint
            pass
        again = Source().rows(capacity, epochs=epochs)
        again.restore(type(state)(state.values, {}, kept))
        rest = served(again)
        assert len(begun) + len(rest) == len(whole)
        assert all(np.array_equal(a, b) for a, b in zip([*begun, *rest], whole, strict=True))


def test_other_blocks_than_those_of_the_state_are_refused():
    rows = Source().rows(100)
    next(iter(rows))
    state = rows.state()
    with pytest.raises(DataError, match="other texts"):
        Source(BLOCKS[:1]).rows(100).restore(type(state)({**state.values, "place": {"passed": 99}}, {}, state.rows))


def test_a_sample_uses_nothing_up():
    rows = Source().rows(100)
    assert rows.sample(30).shape == (30, 1)
    assert len(np.concatenate(served(rows))) == 370


def test_given_batches_are_checked():
    x, y = mx.ones((4, 3)), mx.ones((4, 2))
    assert next(iter(GivenRows([(x, y)], 4, 3, 2))).shape == (4, 5)
    for batches, message in [
        ([x], "expected read and written"),
        ([(x, y[:3])], "4 read rows but 3 written"),
        ([(y, y)], r"read rows of shape \(4, 2\)"),
    ]:
        with pytest.raises(ConfigError, match=message):
            next(iter(GivenRows(batches, 4, 3, 2)))
    with pytest.raises(DataError, match="1 rows"):
        GivenRows([x[:1]], 1, 3).sample(10)
