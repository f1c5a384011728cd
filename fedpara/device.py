"""Which device computes."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Mapping

import torch
from torch import Tensor

from .errors import ConfigError, DeviceError


def find_device(name: str) -> torch.device:
    """The device of this name: ``cpu``, ``cuda``, ``cuda:1``, ``mps``, or ``auto`` for the best one here.

    Raises:
        ConfigError: a word that names no device.
        DeviceError: no such device on this machine.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"device = '{name}' is no device: use one of {_available()}, or auto") from None
    if str(device.type) not in ("cpu", "cuda", "mps"):
        raise ConfigError(f"device = '{name}' is not supported: use one of {_available()}, or auto")
    missing = device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count()
    if missing or (device.type == "mps" and not torch.backends.mps.is_available()):
        raise DeviceError(f"device = '{name}' is not on this machine: use one of {_available()}, or auto")
    return device


def transferred(tensors: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """These tensors on the device, by one transfer for each type of number: a hundred small ones would wait for each.

    Tensors that are there already are returned themselves; what was moved lies in one memory.
    """
    apart = defaultdict(list)
    for name, own in tensors.items():
        if own.device.type != device.type:
            apart[own.device, own.dtype].append(name)
    found = dict(tensors)
    for names in apart.values():
        old = [tensors[name].detach() for name in names]
        whole = torch.cat([part.reshape(-1) for part in old]).to(device)
        new = torch.split(whole, [part.numel() for part in old])
        found |= {name: part.view(tensors[name].shape) for name, part in zip(names, new, strict=True)}
    return found


def cap_memory(device: torch.device, gib: float) -> None:
    """Let this process take at most so many GiB of a GPU; 0: all. Beyond, it is out of memory as on a smaller card."""
    if device.type == "cuda" and gib:
        total = torch.cuda.get_device_properties(device).total_memory
        index = torch.cuda.current_device() if device.index is None else device.index
        torch.cuda.set_per_process_memory_fraction(min(1.0, gib * 2**30 / total), index)


def set_precision(device: torch.device, precision: str) -> None:
    """Let this process's GPU round the factors of float32 products to TF32's 10 bits, or not.

    Where training is in half precision they may be: so networks are judged, and TF32 has the finer mantissa.
    """
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision != "fp32"


def _available() -> str:
    names = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    return ", ".join([*names, "mps"] if torch.backends.mps.is_available() else names)


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
