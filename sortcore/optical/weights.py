"""Weights of the networks that ship: .npz files of plain float32 arrays."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import nn

from sortcore.errors import ModelError

Network = TypeVar("Network", bound=nn.Module)


def load_weights(network: Network, path: Path, script: str) -> Network:
    """The network with the weights of a file, for inference. Raises ModelError where they do not fit, which names the training script."""
    own = network.state_dict()
    with np.load(path, allow_pickle=False) as stored:
        if {name: stored[name].shape for name in stored.files} != {name: tuple(value.shape) for name, value in own.items()}:
            raise ModelError(f"{path} does not hold this network's weights; train them again with {script}.")
        network.load_state_dict({name: torch.from_numpy(stored[name].astype(np.float32)) for name in stored.files})
    return network.eval().requires_grad_(False)


def save_weights(network: nn.Module, path: Path) -> None:
    """Write the weights of a network."""
    np.savez_compressed(path, **{name: value.detach().cpu().numpy() for name, value in network.state_dict().items()})
