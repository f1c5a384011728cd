"""Which tensors of a model's state are sent, and which stay with the client (FedPara; its pFedPara extension)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from .errors import UpdateError
from .parametrize import factorised


def local_names(model: nn.Module) -> list[str]:
    """The state_dict keys that stay with the client, in state_dict order.

    X2, Y2 and T2 of PFedPara layers; the frozen W0 of residual ones, which every client has from the start.
    """
    local: set[str] = set()
    # A layer reached under two names has its keys under both.
    for module_name, module in model.named_modules(remove_duplicate=False):
        prefix = f"{module_name}." if module_name else ""
        for tensor_name, own in factorised(module).items():
            stack = f"{prefix}parametrizations.{tensor_name}"
            local |= {f"{stack}.original{index}" for index in own.config.local}
            local |= {f"{stack}.0.base"} if own.base is not None else set()
    return [name for name in model.state_dict() if name in local]


def shared_names(model: nn.Module) -> list[str]:
    """The state_dict keys that are sent, in state_dict order: all but the local ones.

    A tensor under several keys (tied weights) is sent once, under its first.
    """
    return list(_shared(model))


def shared_state(model: nn.Module) -> dict[str, Tensor]:
    """The sent tensors by name, in state_dict order: detached, not copied."""
    return {name: tensor.detach() for name, tensor in _shared(model).items()}


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The model's own parameters that are both sent and trained, under the names they are sent by.

    Federated optimisers act on these; buffers such as batch norm's statistics are averaged and nothing else.
    """
    return {
        name: tensor
        for name, tensor in _shared(model).items()
        if isinstance(tensor, nn.Parameter) and tensor.requires_grad and tensor.is_floating_point()
    }


def load_shared_(model: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
    """Copy a shared_state into the model's own tensors, in place; local tensors are left as they are.

    Returns the model. Nothing is written when an error is raised. Raises UpdateError unless names, shapes and kinds
    (floating point or not) are the model's.
    """
    own = _shared(model)
    missing, unknown = [name for name in own if name not in state], [name for name in state if name not in own]
    if missing or unknown:
        raise UpdateError(
            f"load_shared_: the state lacks {missing[:3]} ({len(missing)} names) and has {unknown[:3]} "
            f"({len(unknown)} names) too many; give shared_state() of a model built and parametrized the same way"
        )
    for name, tensor in own.items():
        given = state[name]
        if given.shape != tensor.shape or given.is_floating_point() != tensor.is_floating_point():
            raise UpdateError(
                f"load_shared_: {name} is {given.dtype} {tuple(given.shape)}, the model's is {tensor.dtype} "
                f"{tuple(tensor.shape)}; both sides must use the same model, configuration and ranks"
            )
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(state[name])
    return model


def _shared(model: nn.Module) -> dict[str, Tensor]:
    local = set(local_names(model))
    shared: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        # get_extra_state may put anything but a tensor there.
        if name not in local and isinstance(tensor, Tensor) and id(tensor) not in seen:
            seen.add(id(tensor))
            shared[name] = tensor
    return shared
