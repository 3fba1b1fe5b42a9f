"""Chunks worked on side by side.

Each chunk is computed by one thread from beginning to end, so its bytes do not depend on how many there are, and the parts
that no library runs in parallel keep all cores busy too. On a GPU one chunk at a time fills the card.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

Item = TypeVar("Item")
Out = TypeVar("Out")


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
