"""Work in several threads gives what one gives."""

import os
import signal
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


def n_blas_threads() -> list[int]:
    return [library.num_threads for library in threads._openblas().lib_controllers]


def test_blas_has_its_threads_again_when_the_last_one_leaves():
    before = n_blas_threads()
    one, other = threads.alone(), threads.alone()
    one.__enter__()
    other.__enter__()
    one.__exit__(None, None, None)
    assert set(n_blas_threads()) <= {1}
    other.__exit__(None, None, None)
    assert n_blas_threads() == before
    work = [
        threading.Thread(target=lambda: [threads.alone().__enter__(), time.sleep(0.01), threads.alone().__exit__()])
    ]
    for thread in work:
        thread.start()
    with threads.alone():
        time.sleep(0.005)
    for thread in work:
        thread.join()
    assert n_blas_threads() == before


@pytest.mark.parametrize(("text", "n"), [("1", 1), ("1,8", 1), ("0", None), ("", None), ("²", None), ("many", None)])
def test_the_number_of_threads_is_read_as_openmp_does(text, n, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", text)
    available = threads.n_threads.__wrapped__()
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert available == (n or threads.n_threads.__wrapped__())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_process_has_threads_of_its_own(monkeypatch):
    monkeypatch.setattr(threads, "n_threads", lambda: 2)
    threads._pool.cache_clear()
    assert threads.in_parts(4, 1e9, lambda s: s.stop) == [2, 4]
    child = os.fork()
    if not child:
        signal.alarm(20)
        os._exit(0 if threads.in_parts(4, 1e9, lambda s: s.stop) == [2, 4] else 1)
    assert os.waitpid(child, 0)[1] == 0
    threads._pool.cache_clear()


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
