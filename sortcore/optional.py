"""Packages that only some formats need: imported when a file asks for them."""

from __future__ import annotations

import importlib
from typing import Any

from sortcore.errors import MissingPackageError

EXTRAS = {"h5py": "optical", "pynwb": "optical", "pynapple": "optical", "tifffile": "optical", "zarr": "optical", "skimage": "optical"}


def require(package: str) -> Any:
    """The imported package. Raises MissingPackageError, which says how to install it."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise MissingPackageError(f'{package} is needed here and cannot be imported ({error}). Install it: '
                                  f'pip install "sortcore[{EXTRAS[package]}]"') from error
