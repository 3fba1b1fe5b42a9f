"""Chunks worked on side by side.

Each chunk is computed by one thread from beginning to end, so its bytes do not depend on how many there are, and the parts
that no library runs in parallel keep all cores busy too. On a GPU one chunk at a time fills the card.

Work that is cut by time goes through `over_recording`: threads here, unless `spread_by` says where else (`cluster_of` a Dask
client). What is computed is the same bytes anywhere.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any, Protocol, TypeVar

import torch

try:
    from threadpoolctl import threadpool_limits
except ImportError:  # on a bare machine with a GPU: then OMP_NUM_THREADS=1 does what it would
    threadpool_limits = None

Item = TypeVar("Item")
Out = TypeVar("Out")


class InOrder(Protocol):
    """A way to compute function(item) for every item, and give the results in order."""

    def __call__(self, function: Callable[[Item], Out], items: Sequence[Item], /) -> Iterator[Out]: ...


def n_workers() -> int:
    """Cores this process may use, or OMP_NUM_THREADS where that is smaller."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    return max(1, min(cores, int(wanted))) if wanted.isdigit() and int(wanted) else cores


def in_order(function: Callable[[Item], Out], items: Sequence[Item], workers: int | None = None) -> Iterator[Out]:
    """Yield function(item) for every item, in order, computed a few ahead by threads that use one core each."""
    workers = workers or n_workers()
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        if min(workers, len(items)) < 2:  # a thread for one thing costs more than it saves
            yield from map(function, items)
            return
        with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            waiting: deque[Future[Out]] = deque()
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
    finally:
        torch.set_num_threads(before)


def threads_here(function: Callable[[Item], Out], items: Sequence[Item], /) -> Iterator[Out]:
    """`in_order`, with as many threads as there are cores."""
    return in_order(function, items)


_spread: ContextVar[InOrder] = ContextVar("spread", default=threads_here)


def over_recording(function: Callable[[Item], Out], items: Sequence[Item], /) -> Iterator[Out]:
    """As `in_order`, for pieces of a recording: on other machines, where `spread_by` says so.

    There function and items are copies, so what they change is lost; what they return is not. What function does over a
    recording itself stays where function is, with however many workers.
    """
    return spread_now()(partial(where_it_is, function), items)


def where_it_is(function: Callable[[Item], Out], item: Item) -> Out:
    """function(item), with threads here for all that it does over a recording."""
    with spread_by(threads_here):
        return function(item)


def spread_now() -> InOrder:
    """How `over_recording` works."""
    return _spread.get()


@contextmanager
def spread_by(how: InOrder | None) -> Iterator[None]:
    """While this lasts, `over_recording` works in this way; None leaves it as it is."""
    token = _spread.set(spread_now() if how is None else how)
    try:
        yield
    finally:
        _spread.reset(token)


class Limited:
    """The libraries' threads, limited for as long as anyone in this process wants it."""

    lock = threading.Lock()
    wanted = 0
    limits: Any = None


@contextmanager
def one_thread_each() -> Iterator[None]:
    """While this lasts, matrix products and factorisations use one thread: cores are kept busy by work side by side.

    A product cut among threads rounds differently with their number; and threads within threads wait for each other.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with Limited.lock:
        if not Limited.wanted and threadpool_limits is not None:
            Limited.limits = threadpool_limits(1)
        Limited.wanted += 1
    try:
        yield
    finally:
        with Limited.lock:
            Limited.wanted -= 1
            if not Limited.wanted and Limited.limits is not None:
                Limited.limits.restore_original_limits()
        torch.set_num_threads(before)
