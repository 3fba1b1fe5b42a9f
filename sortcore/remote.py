"""Pieces of a recording worked on by the processes of a Dask cluster.

Dask itself is not needed here, only a client of it that the user has. What all pieces share (the function, with the filters and
templates in it) is sent to every worker once, and a piece is as little as its first and last sample: workers read the recording
themselves, by the path that it has here. Dask gives the pieces of a worker that dies to others; where what they share was lost
with it, it is sent again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from sortcore.errors import ClusterError
from sortcore.steps import code
from sortcore.workers import InOrder, Item, one_thread_each

Out = TypeVar("Out")

AHEAD = 4  # pieces given out for each thread of the cluster
HEAVY = 100_000  # bytes
ATTEMPTS = 5  # times that lost work is given out again


def cluster_of(client: Any) -> InOrder:
    """A way to work on the pieces of a recording: on the workers of a `distributed.Client`.

    A recording that is a file must lie at the same path for all of them. Raises ClusterError where a worker has another sortcore.
    """
    try:
        others = sorted(address for address, theirs in client.run(code).items() if theirs != code())
    except ImportError as error:
        raise ClusterError(f"A worker of the cluster has no sortcore ({error}); install the same version everywhere.") from error
    if others:
        raise ClusterError(f"Workers of the cluster have another version of sortcore than this process ({', '.join(others)}); "
                           "install the same everywhere, or the result would depend on who did what.")

    def in_order(function: Callable[[Item], Out], items: Sequence[Item], /) -> Iterator[Out]:
        lost, done = 0, 0
        while done < len(items):
            try:
                for result in given_out(client, function, items[done:]):
                    yield result
                    done += 1
            except Exception as error:
                if not was_lost(error):
                    raise
                lost += 1
                if lost >= ATTEMPTS:
                    raise ClusterError(f"The cluster lost work {lost} times ({type(error).__name__}: {error}). "
                                       "Are its workers ended for want of memory? Give them more, or fewer threads each.") from error
    return in_order


def was_lost(error: Exception) -> bool:
    """Whether it is Dask that could not do the work, not the work that went wrong."""
    return type(error).__module__.partition(".")[0] in ("distributed", "concurrent", "asyncio")


def given_out(client: Any, function: Callable[[Item], Out], items: Sequence[Item]) -> Iterator[Out]:
    """Yield function(item) for every item, in order, a few for each worker under way at once."""
    shared = client.scatter(function, broadcast=True, hash=False)
    most = AHEAD * max(1, sum(client.nthreads().values()))
    waiting: deque[Any] = deque()
    for item in items:
        waiting.append(client.submit(call, shared, client.scatter(item, hash=False) if heavy(item) else item, pure=False))
        if len(waiting) > most:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def heavy(item: Any) -> bool:
    """Whether an item holds samples, which should not pass through the scheduler."""
    return isinstance(item, tuple) and any(getattr(part, "nbytes", 0) > HEAVY for part in item)


def call(function: Callable[[Item], Out], item: Item) -> Out:
    """function(item) in a worker, with one thread as everywhere."""
    with one_thread_each():
        return function(item)
