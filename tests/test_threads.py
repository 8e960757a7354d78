"""Work in several threads gives what one gives."""

import threading
import time

import numpy as np
import pytest

from hubsae import threads
from hubsae.errors import DataError


def test_slices_make_up_the_whole_and_have_their_size():
    assert [(s.start, s.stop) for s in threads.spans(10, 4)] == [(0, 4), (4, 8), (8, 10)]
    assert list(threads.spans(0, 4)) == []
    assert list(threads.spans(2, 0)) == [slice(0, 1), slice(1, 2)]


@pytest.mark.parametrize("n", [1, 2, 3])
def test_parts_and_shares_cover_everything_once(n, monkeypatch):
    monkeypatch.setattr(threads, "n_threads", lambda: n)
    starts = np.array([0, 0, 50, 51, 52, 52, 100])
    for cost in (0.0, 1e9):
        for found in (threads.in_parts(6, cost, lambda s: s), threads.in_shares(starts, cost, lambda s: s)):
            assert sorted(i for s in found for i in range(s.start, s.stop)) == list(range(6))


def test_products_agree_with_numpy():
    rng = np.random.default_rng(0)
    x, W = rng.standard_normal((400, 60), dtype=np.float32), rng.standard_normal((60, 900), dtype=np.float32)
    with threads.alone():
        assert np.allclose(threads.product(x, W, np.empty((400, 900), np.float32)), x @ W, atol=1e-4)


def test_items_that_are_made_ahead_come_in_order():
    assert list(threads.ahead(iter(range(1000)), 3)) == list(range(1000))
    assert list(threads.ahead(iter(()), 3)) == []


def test_an_error_comes_where_its_item_would_have_come():
    def items():
        yield 1
        raise DataError("broken")

    found = threads.ahead(items(), 3)
    assert next(found) == 1
    with pytest.raises(DataError, match="broken"):
        next(found)


def test_the_thread_ends_when_nobody_wants_more():
    def endless():
        while True:
            yield 0

    found = threads.ahead(endless(), 3)
    next(found)
    assert [t for t in threading.enumerate() if t.name == "hubsae-ahead"]
    found.close()
    time.sleep(0.01)
    assert not [t for t in threading.enumerate() if t.name == "hubsae-ahead"]
