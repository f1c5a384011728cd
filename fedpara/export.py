"""Trained models for use elsewhere: plain layers, plain formats."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from .checkpoint import save_tensors
from .errors import ConfigError


def export_safetensors(model: nn.Module, output: Path) -> int:
    """Write a merged model's state_dict as a safetensors file; the number of tensors.

    Raises:
        ConfigError: the output's name does not end in .safetensors.
    """
    if output.suffix != ".safetensors":
        raise ConfigError(f"cannot export to {output}: the name must end in .safetensors")
    state = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in model.state_dict().items()}
    save_tensors(output, state)
    return len(state)
