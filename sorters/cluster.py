"""The Dask cluster that a sort is spread over: one that is there, or processes of this machine."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sortcore.errors import ConfigError

if TYPE_CHECKING:
    from sortcore.workers import InOrder

WAIT_S = 30


def check_cluster(workers: int | None, scheduler: str | None) -> None:
    """Raise ConfigError unless at most one of both is given, and can be used."""
    if workers is not None and scheduler is not None:
        raise ConfigError("Give either --workers, for processes of this machine, or --scheduler, for a cluster that is there.")
    if workers is not None and workers < 1:
        raise ConfigError(f"--workers must be at least 1, but it is {workers}.")
    if workers is not None or scheduler is not None:
        try:
            import distributed  # noqa: F401
        except ImportError as error:
            raise ConfigError('Dask is needed for --workers and --scheduler: pip install "sortcore[cluster]".') from error


@contextlib.contextmanager
def cluster(workers: int | None, scheduler: str | None) -> Iterator[InOrder | None]:
    """How work is spread: over `workers` processes that last as long as this, or over the cluster of a scheduler, given by its
    address or its scheduler file; None where neither is given."""
    if workers is None and scheduler is None:
        yield None
        return
    from distributed import Client, LocalCluster

    from sortcore.remote import cluster_of

    with contextlib.ExitStack() as stack:
        if workers is not None:
            local = stack.enter_context(LocalCluster(n_workers=workers, threads_per_worker=1, processes=True, dashboard_address=":0"))
            client = stack.enter_context(Client(local))
        else:
            client = stack.enter_context(connected(Client, str(scheduler)))
        yield cluster_of(client)


def connected(client: Any, scheduler: str) -> Any:
    """A client of the scheduler. Raises ConfigError where it does not answer."""
    try:
        return client(scheduler_file=scheduler, timeout=WAIT_S) if Path(scheduler).is_file() else client(scheduler, timeout=WAIT_S)
    except Exception as error:  # Dask raises anything at all
        cause = str(error) or type(error).__name__
        raise ConfigError(f"There is no Dask scheduler at {scheduler} ({cause}). Start one with `dask scheduler`, and workers with "
                          "`dask worker`.") from error
