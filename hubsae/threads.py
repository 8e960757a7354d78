"""NumPy and SciPy work on all cores: they release the interpreter while they compute. MLX is never touched there.

OpenBLAS, which NumPy's wheels bring, keeps its own threads spinning after every product, and they take the cores from
all work between products. `alone` gives it one thread for that long, and `product` shares a product out instead.
"""

import os
import re
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from itertools import pairwise
from queue import Full, Queue
from threading import Event, RLock, Thread, current_thread
from typing import Any, TypeVar

import numpy as np
from threadpoolctl import ThreadpoolController

from hubsae import backend

Item = TypeVar("Item")

SMALL = 1 << 17  # operations below which handing work to other threads costs more than it saves


@cache
def n_threads() -> int:
    """Cores that this process may use, at most OMP_NUM_THREADS where that is set, as for the BLAS."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    wanted = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return min(available, int(wanted)) if re.fullmatch("[1-9][0-9]*", wanted) else available


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(n_threads(), thread_name_prefix="hubsae")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)  # its threads stay behind


def spans(n: int, size: int) -> Iterator[slice]:
    """Consecutive slices of at most `size` (at least 1) that make up range(n)."""
    size = max(1, size)
    return (slice(start, min(start + size, n)) for start in range(0, n, size))


@cache
def _openblas() -> Any:
    """NumPy's and SciPy's, but not a library that MLX computes with."""
    found = ThreadpoolController().select(internal_api="openblas")
    mine = [library.filepath for library in found.lib_controllers if library.filepath != backend.active_blas()]
    return found.select(filepath=mine)


class Shared:
    """A context that many may be inside of at once, in any thread: what it changes is undone when the last one leaves.

    `change` makes the change and returns what undoes it.
    """

    def __init__(self, change: Callable[[], Callable[[], Any]]):
        self._change, self._lock, self._inside = change, RLock(), 0
        self._undo: Callable[[], Any] | None = None

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._undo = self._change()
            self._inside += 1

    def __exit__(self, *exc: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside and self._undo is not None:
                self._undo()


def _limit() -> Callable[[], Any]:
    limiter = _openblas().limit(limits=1)
    return limiter.restore_original_limits


_alone = Shared(_limit)


def alone() -> Shared:
    """A context in which OpenBLAS has one thread, so that ours have the cores."""
    return _alone


def alone_if(small: bool) -> AbstractContextManager[Any]:
    """`alone` for factorisations of small matrices, which other threads only slow down; else nothing."""
    return alone() if small else nullcontext()


def product(x: np.ndarray, W: np.ndarray, out: np.ndarray) -> np.ndarray:
    """x (n, d) times W (d, F), written to `out` (n, F); the threads share the rows."""
    if _openblas().lib_controllers:
        in_parts(len(x), out.size * x.shape[1] / 8, lambda part: np.matmul(x[part], W, out=out[part]))
        return out
    return np.matmul(x, W, out=out)  # another BLAS knows how to share its cores


def in_parts(n: int, cost: float, work: Callable[[slice], Any]) -> list[Any]:
    """Results of `work` on consecutive slices of range(n), one a thread; all in one slice where `cost` is small."""
    if n_threads() == 1 or cost < SMALL or n < 2:
        return [work(slice(0, n))]
    return list(_pool().map(work, spans(n, -(-n // n_threads()))))


def in_slices(n: int, size: int, cost: float, work: Callable[[slice], Any]) -> list[Any]:
    """Results of `work` on all slices of range(n) of at most `size`, in order; every thread has its part of them."""

    def part_of(part: slice) -> list[Any]:
        inner = spans(part.stop - part.start, size)
        return [work(slice(part.start + s.start, part.start + s.stop)) for s in inner]

    return [result for results in in_parts(n, cost, part_of) for result in results]


def in_shares(starts: np.ndarray, cost: float, work: Callable[[slice], Any]) -> list[Any]:
    """As `in_parts` for items that begin at `starts` (n + 1,): slices of about as many entries each."""
    n = len(starts) - 1
    if n_threads() == 1 or cost < SMALL or n < 2:
        return [work(slice(0, n))]
    wanted = np.linspace(starts[0], starts[-1], n_threads() + 1)
    cuts = np.unique(np.r_[0, np.searchsorted(starts, wanted[1:-1]), n])
    return list(_pool().map(work, (slice(int(a), int(b)) for a, b in pairwise(cuts))))


def ahead(items: Iterable[Item], n: int = 256) -> Generator[Item, None, None]:
    """The same items, up to `n` of them made in advance by a thread; for work that MLX has no part in.

    An error is raised where its item would have come. Whoever stops early closes the iterator, or lets go of it.
    """
    waiting: Queue[tuple[bool, Any]] = Queue(n)
    stopped = Event()

    def put(entry: tuple[bool, Any]) -> bool:
        while not stopped.is_set():
            try:
                waiting.put(entry, timeout=0.1)
                return True
            except Full:
                continue
        return False

    def work() -> None:
        try:
            for item in items:
                if not put((True, item)):
                    return
            put((False, None))
        except BaseException as error:  # also what stops the interpreter: it belongs to whoever asked
            put((False, error))

    thread = Thread(target=work, name="hubsae-ahead", daemon=True)
    thread.start()
    try:
        while True:
            more, item = waiting.get()
            if more:
                yield item
            elif item is None:
                return
            else:
                raise item
    finally:
        stopped.set()
        if thread is not current_thread():  # the collector of garbage may be at work in it
            thread.join()
