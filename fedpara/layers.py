"""Factorised weights inside torch's layers: the parametrization, and what each layer's class needs besides.

torch.nn.utils.parametrize gives each layer a class of its own, derived from the layer's, with a property per weight.
Here those classes learn to hold a composed weight for several forwards, to be pickled, and to do without a weight.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from .compose import autocasts, without_autocast
from .errors import ConfigError
from .fit import fit_factors
from .initialise import draw_factors
from .rank import pair_shapes

if TYPE_CHECKING:
    from .parametrize import Config


class Factorised(nn.Module):
    """The parametrization of one weight: factors → dense weight of `shape`.

    `base` is the frozen weight W0 that a residual configuration adds to, else None.
    """

    base: Tensor | None

    def __init__(
        self,
        config: Config,
        shape: tuple[int, ...],
        rank: int,
        *,
        order: tuple[str, ...],
        generator: torch.Generator | None,
        lowered: bool,
        fit: bool = False,
    ) -> None:
        super().__init__()
        self.register_buffer("base", None)
        self.config = config
        self.shape = shape
        self.rank = rank
        self.whole_rank = rank  # before any columns were cut off
        self.lowered = lowered  # whether autocast would lower the precision of this weight
        self.order = order  # the owner's parameter names before anything was factorised: merge_ restores it
        self.fit_error: float | None = None
        self._fit = fit
        self._generator = generator
        self._drawn = False

    def forward(self, *factors: Tensor) -> Tensor:
        device = factors[0].device.type
        if not autocasts(device):
            return self._compose(*factors, base=self.base)
        dtype = torch.get_autocast_dtype(device)
        # Autocast rounds a dense weight where a layer's operation asks for it: the others, embeddings, get it whole.
        lowered = self.lowered and factors[0].dtype == torch.float32
        base = self.base.to(dtype) if lowered and self.base is not None else self.base
        if lowered:
            factors = tuple(filled_up(factor.to(dtype)) if device == "cuda" else factor.to(dtype) for factor in factors)
        with without_autocast(device):
            return self._compose(*factors, base=base)

    def _compose(self, *factors: Tensor, base: Tensor | None) -> Tensor:
        given: dict[str, Any] = {} if base is None else {"base": base}  # only FedPara takes one
        return self.config.compose(*factors, **given).reshape(self.shape)

    def linear(self, inputs: Tensor, factors: list[Tensor], bias: Tensor | None) -> Tensor | None:
        """inputs Wᵀ + bias without a whole W, (..., in) → (..., out), where that is cheaper; None where it is not."""
        if autocasts(inputs.device.type):
            return None
        return self.config.linear(inputs, *factors, bias=bias, base=self.base)

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, ...]:
        if self._drawn:
            raise ConfigError(
                f"a factorised weight {self.shape} cannot be assigned: load its factors from a state_dict, or merge_"
            )
        seen = weight.reshape(self.config.seen(self.shape))
        if self._fit:
            factors, self.fit_error = fit_factors(self.config, seen, self.rank, self._generator)
        else:
            factors = draw_factors(self.config, seen, self.rank, self._generator)
        if self.config.residual:
            self.base = weight.detach().clone(memory_format=torch.contiguous_format)
            factors[0].zero_()  # ΔW = 0, and the gradient of X1 is not
        self._drawn, self._generator = True, None
        return factors

    def local_parameters(self) -> int:
        sizes = [math.prod(shape) for shape in pair_shapes(self.shape, self.rank)]
        return sum(sizes) if self.config.local else 0

    def extra_repr(self) -> str:
        return f"{self.config}, shape={self.shape}, rank={self.rank}"


def filled_up(factor: Tensor) -> Tensor:
    """X or Y (sides, R), or a core T (R, k..., R), with zeros up to a rank of which a GPU's half-precision products are
    made (a multiple of 8): others take it twice as long. What is composed is the same.
    """
    missing = -factor.shape[-1] % 8
    ends = (0, missing) if factor.dim() == 2 else (0, missing, *(0, 0) * (factor.dim() - 2), 0, missing)
    return nn.functional.pad(factor, ends) if missing else factor


def factorised(module: nn.Module) -> dict[str, Factorised]:
    """This module's own factorised tensors, by name, without those of its children."""
    lists = module._modules.get("parametrizations")
    if not isinstance(lists, nn.ModuleDict):
        return {}
    firsts = {name: cast(nn.ModuleList, found)[0] for name, found in lists.items()}
    return {name: first for name, first in firsts.items() if isinstance(first, Factorised)}


@dataclass(frozen=True)
class Place:
    """Where a factorised weight stands in a model."""

    module: nn.Module
    name: str  # the weight's own, in its module
    own: Factorised
    key: str  # what its state_dict keys begin with, up to the dot before "original0"

    @property
    def stack(self) -> nn.Module:
        """The module whose parameters the factors are, by the names "original0", "original1" and on."""
        return self.module.get_submodule(f"parametrizations.{self.name}")

    @property
    def factors(self) -> dict[str, nn.Parameter]:
        """X1, Y1, X2, Y2, T1, T2, as many as there are, by state_dict key."""
        return {f"{self.key}.{name}": cast(nn.Parameter, own) for name, own in self.stack._parameters.items()}


def factorised_weights(model: nn.Module, *, every_name: bool = False) -> Iterator[Place]:
    """Every factorised weight of a model; with ``every_name``, one reached under two names under both."""
    for prefix, module in model.named_modules(remove_duplicate=not every_name):
        for name, own in factorised(module).items():
            yield Place(module, name, own, f"{prefix}.parametrizations.{name}".lstrip("."))


@contextmanager
def composed_once(model: nn.Module) -> Iterator[nn.Module]:
    """Compose every factorised weight once for all the forward passes inside, and yield the model.

    For the micro-batches of one optimiser step, or a whole evaluation. Gradients of the composed weights add up inside;
    on leaving they flow into the factors' .grad, once: step the optimiser after the block, not in it. Weights are
    composed in full precision, also under autocast, which rounds them where it uses them. Dense weights of the whole
    model, and their gradients, are in memory meanwhile. After an error inside, the factors get no gradients.
    """
    with ExitStack() as release:
        pairs = [pair for module in model.modules() for pair in _hold(module, release)]
        yield model
        reached = [(weight, leaf.grad) for weight, leaf in pairs if leaf.grad is not None]
        if reached:
            weights, grads = zip(*reached, strict=True)
            torch.autograd.backward(weights, grads)


def precise_weight(module: nn.Module, name: str) -> Tensor:
    """A module's composed weight, in the precision of its factors also under autocast."""
    with without_autocast(next(module.parameters()).device.type):
        return cast(Tensor, getattr(module, name))


def _hold(module: nn.Module, release: ExitStack) -> list[tuple[Tensor, Tensor]]:
    """Compose this module's weights and hold them until `release`: (weight with its graph, leaf that is held)."""
    names = [name for name in factorised(module) if name not in _held_weights(module)]
    if not names:
        return []
    weights = {name: precise_weight(module, name) for name in names}
    # Leaves gather the gradients of several backward passes, each of which may free its own graph.
    leaves = {name: weight.detach().requires_grad_(weight.requires_grad) for name, weight in weights.items()}
    module.__dict__["_fedpara_held"] = _Held(leaves)
    release.callback(module.__dict__.pop, "_fedpara_held", None)
    return [(weights[name], leaves[name]) for name in names]


class _Held(dict[str, Tensor]):
    """Composed weights that a module holds for a while, and that its copies do not."""

    def __deepcopy__(self, memo: dict[int, object]) -> _Held:
        return _Held()


def _held_weights(module: nn.Module) -> _Held:
    return cast(_Held, module.__dict__.get("_fedpara_held", _Held()))


def adapt_class(module: nn.Module) -> None:
    """Give the class that torch made for this parametrized layer what the layer's code needs beyond its properties."""
    own_class: Any = type(module)
    own_class.__reduce_ex__ = _reduce
    for name in factorised(module):
        setattr(own_class, name, _held(name, own_class.__dict__[name]))
    base = own_class.__bases__[0]
    if isinstance(module, nn.RNNBase | nn.MultiheadAttention):
        # Their forward reads a weight several times.
        own_class.forward = _forward_composing_once
    elif base.forward is nn.Linear.forward:
        own_class.forward = _linear_forward
    if isinstance(module, nn.RNNBase):
        # RNNBase keeps a list of its weights, which would be stale dense ones: read them anew instead.
        own_class._flat_weights = property(_read_flat_weights, _ignore)
        own_class._init_flat_weights = _ignore
        own_class._update_flat_weights = _ignore
        own_class.flatten_parameters = _ignore
        module.__dict__.pop("_flat_weights", None)


def _held(name: str, composed: property) -> property:
    def read(module: nn.Module) -> Tensor:
        held = _held_weights(module)
        if name in held:
            return held[name]
        own = _alone(module, name)
        return own[0](*own[1]) if own is not None else cast(Callable[[nn.Module], Tensor], composed.fget)(module)

    return property(read, composed.fset)


def _forward_composing_once(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    forward = cast(Any, type(module).__bases__[0]).forward
    if _held_weights(module):
        return forward(module, *args, **kwargs)
    # Held by the layer, not by torch's global parametrize.cached(), which is not safe between threads.
    module.__dict__["_fedpara_held"] = _Held({name: getattr(module, name) for name in factorised(module)})
    try:
        return forward(module, *args, **kwargs)
    finally:
        # Not a leaf: left behind it would break deepcopy and keep the graph alive.
        del module.__dict__["_fedpara_held"]


def _linear_forward(module: nn.Linear, inputs: Tensor) -> Tensor:
    own = None if _held_weights(module) else _alone(module, "weight")
    outputs = None if own is None else own[0].linear(inputs, own[1], module.bias)
    return nn.functional.linear(inputs, module.weight, module.bias) if outputs is None else outputs


def _alone(module: nn.Module, name: str) -> tuple[Factorised, list[Tensor]] | None:
    """This weight's factorisation and factors, where nothing else is to be done: no other parametrization, no cache.

    Read from the modules' dictionaries: a small layer would feel torch's way through properties and lists.
    """
    stack = cast(nn.Module, module._modules["parametrizations"])._modules[name]
    modules = cast(nn.Module, stack)._modules
    own = modules["0"]
    if len(modules) > 1 or parametrize._cache_enabled or not isinstance(own, Factorised):
        return None
    return own, cast(list[Tensor], list(cast(nn.Module, stack)._parameters.values()))


def _read_flat_weights(module: nn.RNNBase) -> list[Tensor | None]:
    return [getattr(module, name, None) for name in module._flat_weights_names]


def _ignore(module: nn.Module, *args: object) -> None:
    """A parametrized recurrent layer has no list of weights to set, update or flatten."""


def _reduce(module: nn.Module, protocol: Any) -> tuple[Any, ...]:
    """Pickle a factorised layer, whose class has no importable name, as its own class, state and factors."""
    state = {**module.__dict__, "_modules": dict(module._modules)}
    state.pop("_flat_weight_refs", None)
    state.pop("_fedpara_held", None)
    lists = dict(cast(nn.ModuleDict, state["_modules"].pop("parametrizations")).items())
    return _rebuild, (type(module).__bases__[0], state, lists)


def _rebuild(base: type[nn.Module], state: dict[str, Any], lists: dict[str, nn.Module]) -> nn.Module:
    module = base.__new__(base)
    module.__dict__.update(state)
    module._parameters = dict(module._parameters)  # copy.copy passes the original's own
    for name, factors in lists.items():
        # Any tensor will do to give the module its parametrized class; the pickled factors then take its place.
        module.register_parameter(name, nn.Parameter(torch.empty(0)))
        parametrize.register_parametrization(module, name, nn.Identity())
        cast(nn.ModuleDict, module.parametrizations)[name] = factors
    adapt_class(module)
    return module
