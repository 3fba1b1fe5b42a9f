"""Progress of long work: stages report to a callable, by default a tqdm bar a stage with the time left."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from tqdm.auto import tqdm

Item = TypeVar("Item")
Track = Callable[[Iterable[Item], str, int], Iterable[Item]]


def bars(items: Iterable[Item], stage: str, total: int) -> Iterator[Item]:
    """Yield the items under a bar that names the stage and shows the time left."""
    yield from tqdm(items, desc=f"{stage:<12}", total=total, leave=True, mininterval=0.2)


def silent(items: Iterable[Item], stage: str, total: int) -> Iterator[Item]:
    """Yield the items and show nothing."""
    yield from items
