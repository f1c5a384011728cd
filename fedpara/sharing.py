"""Which tensors of a model's state are sent, and which stay with the client: one declaration for every method."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from .config import nearest
from .errors import ConfigError, UpdateError
from .layers import factorised_weights

GROUPS = ("all", "head", "body", "norms", "biases")
_KEPT = "_fedpara_local"  # where a model remembers what was declared
_NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)


def keep_local_(model: nn.Module, *what: str) -> nn.Module:
    """Declare what stays with each client, beside what its parametrization keeps there; in place, returns the model.

    Args:
        what: any of

            - "head": the last layer, so that all but it is shared (FedPer, Arivazhagan et al. 2019);
            - "body": all but the last layer (LG-FedAvg, Liang et al. 2020);
            - "norms": the normalisation layers (FedBN, Li et al. 2021);
            - "biases": every tensor called bias;
            - "all": everything, so that each client trains alone;
            - a layer's name ("fc1"; what is inside it is meant too), or a pattern of state_dict keys ("*.weight").

    Raises:
        ConfigError: a name that no layer has and no key matches.
    """
    names = list(model.state_dict())
    for pattern in what:
        if not _matched(model, names, pattern):
            layers = [name for name, module in model.named_modules() if name and module._parameters]
            raise ConfigError(
                f"local = '{pattern}' is none of {', '.join(GROUPS)}, and no layer or tensor is called so"
                f"{nearest(pattern, [*GROUPS, *layers])}; layers: {', '.join(layers[:12])}"
            )
    model.__dict__[_KEPT] = tuple(dict.fromkeys((*model.__dict__.get(_KEPT, ()), *what)))
    return model


def local_names(model: nn.Module) -> list[str]:
    """The state_dict keys that stay with the client, in state_dict order.

    X2, Y2 and T2 of PFedPara layers; the frozen W0 of residual ones, which every client has from the start; and what
    `keep_local_` declared.
    """
    local = _frozen(model)
    for place in factorised_weights(model, every_name=True):
        local |= {f"{place.key}.original{index}" for index in place.own.config.local}
    names = list(model.state_dict())
    for pattern in model.__dict__.get(_KEPT, ()):
        local |= _matched(model, names, pattern)
    return [name for name in names if name in local]


def personal_names(model: nn.Module) -> list[str]:
    """The `local_names` in which clients come to differ: all but the frozen W0 of residual layers."""
    frozen = _frozen(model)
    return [name for name in local_names(model) if name not in frozen]


def frozen_state(model: nn.Module) -> dict[str, Tensor]:
    """The frozen W0 of residual layers by name, in state_dict order: detached, not copied."""
    frozen = _frozen(model)
    return {name: tensor.detach() for name, tensor in model.state_dict().items() if name in frozen}


def _frozen(model: nn.Module) -> set[str]:
    places = factorised_weights(model, every_name=True)
    return {f"{place.key}.0.base" for place in places if place.own.base is not None}


def _matched(model: nn.Module, names: list[str], pattern: str) -> set[str]:
    """The keys that a word of `keep_local_` means."""
    head = _layer(names[-1]) if names else ""
    norms = [name for name, module in model.named_modules(remove_duplicate=False) if isinstance(module, _NORMS)]
    if pattern not in GROUPS:
        return {name for name in names if (pattern and _inside(name, pattern)) or fnmatchcase(name, pattern)}
    chosen: Callable[[str], bool] = {
        "all": lambda name: True,
        "head": lambda name: _inside(name, head),
        "body": lambda name: not _inside(name, head),
        "norms": lambda name: any(_inside(name, norm) for norm in norms),
        "biases": lambda name: "bias" in name.rpartition(".")[2],
    }[pattern]
    return set(filter(chosen, names))


def _layer(name: str) -> str:
    """The layer that a state_dict key belongs to, whether it is factorised or not."""
    return name.partition(".parametrizations.")[0] if ".parametrizations." in name else name.rpartition(".")[0]


def _inside(name: str, layer: str) -> bool:
    return not layer or name.startswith(f"{layer}.")


def shared_names(model: nn.Module) -> list[str]:
    """The state_dict keys that are sent, in state_dict order: all but the local ones.

    A tensor under several keys (tied weights) is sent once, under its first.
    """
    return list(own_tensors(model))


def shared_state(model: nn.Module) -> dict[str, Tensor]:
    """The sent tensors by name, in state_dict order: detached, not copied."""
    return {name: tensor.detach() for name, tensor in own_tensors(model).items()}


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The model's own parameters that are both sent and trained, under the names they are sent by.

    Federated optimisers act on these; buffers such as batch norm's statistics are averaged and nothing else.
    """
    return trained_of(own_tensors(model))


def trained_of(own: Mapping[str, Tensor]) -> dict[str, nn.Parameter]:
    """`trained_parameters` of a model whose `own_tensors` are known."""
    return {
        name: tensor
        for name, tensor in own.items()
        if isinstance(tensor, nn.Parameter) and tensor.requires_grad and tensor.is_floating_point()
    }


def load_shared_(model: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
    """Copy a shared_state into the model's own tensors, in place; local tensors are left as they are.

    Returns the model. Nothing is written when an error is raised. Raises UpdateError unless names, shapes and kinds
    (floating point or not) are the model's.
    """
    write_shared_(own_tensors(model), state)
    return model


def write_shared_(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    """`load_shared_` for a model whose `own_tensors` are known: finding them anew takes longer than copying few."""
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
    if own:
        with torch.no_grad():
            torch._foreach_copy_(list(own.values()), [state[name] for name in own])


def own_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The model's own parameters and buffers that are sent, by name, in state_dict order."""
    local = set(local_names(model))
    shared: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        # get_extra_state may put anything but a tensor there.
        if name not in local and isinstance(tensor, Tensor) and id(tensor) not in seen:
            seen.add(id(tensor))
            shared[name] = tensor
    return shared
