"""Factorise a model's weights in place, and merge them back (FedPara, Props. 1-3; pFedPara; plain low rank).

Built on torch.nn.utils.parametrize: `layer.weight` stays a tensor of the dense shape, composed from factors, which
are the trained parameters: `layer.parametrizations.weight.original0, 1, ...` in the order X1, Y1, X2, Y2, T1, T2.

Which weights are factorised: those of Linear, Conv, ConvTranspose, Embedding, RNN, LSTM, GRU and MultiheadAttention
layers (stacked gates or projections count as one matrix; a transposed convolution's (in, out, k...) is taken as it is).
A weight stays dense, and `describe` says why, where
  - filter_fn, or the model's `keep_dense` patterns when there is no filter_fn, exclude its module;
  - it is shared by several modules, frozen, pruned, of another type, or parametrized by something else;
  - it is thin: a side under 4 (RGB stems, depthwise kernels, binary heads), whose product would lose most of its rank;
  - its factors would not be strictly fewer than its own numbers.
Biases and norms always stay dense and have no row. The dense values are not kept: factors are drawn anew at the dense
weight's scale, so parametrize before training, and create the optimizer afterwards.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from . import compose
from .errors import ConfigError
from .rank import check_share, factor_parameters, largest_rank, pair_shapes, rank_for, rank_for_ratio

THIN = 4  # a weight with a side under this stays dense
TANH_RMS = 0.5  # |tanh ⊙ tanh| < 1: above this rms the factors would start saturated

FilterFn = Callable[[nn.Module, str], bool]


def _check_gamma_or_ratio(owner: str, gamma: float | None, ratio: float | None) -> None:
    if (gamma is None) == (ratio is None):
        raise ConfigError(
            f"{owner}(gamma={gamma!r}, ratio={ratio!r}): give exactly one, "
            f"{owner}(gamma=0.1) for the paper's rank rule or {owner}(ratio=0.1) for a share of the dense parameters"
        )
    if gamma is not None:
        check_share(owner, "gamma", gamma, zero=True)
    if ratio is not None:
        check_share(owner, "ratio", ratio, zero=False)


@dataclass(frozen=True)
class FedPara:
    """W = (X1 Y1ᵀ) ⊙ (X2 Y2ᵀ), (out, in), of rank up to R² (FedPara, Prop. 1; Prop. 3 for convolutions).

    `gamma` in [0, 1] sets R by the paper's rule (see rank_for), `ratio` in (0, 1] by a share of each layer's dense
    parameters; give one. activation="tanh" is the paper's W = tanh(W1) ⊙ tanh(W2). Raises ConfigError.
    """

    gamma: float | None = None
    ratio: float | None = None
    activation: str | None = None

    kind: ClassVar[str] = "fedpara"
    pairs: ClassVar[int] = 2
    degree: ClassVar[int] = 2
    local: ClassVar[tuple[int, ...]] = ()

    def __post_init__(self) -> None:
        _check_gamma_or_ratio("FedPara", self.gamma, self.ratio)
        if self.activation not in (None, "tanh"):
            raise ConfigError(f'FedPara: activation={self.activation!r} is not known; give None or "tanh"')

    @property
    def homogeneous(self) -> bool:
        """Whether scaling every pair X Yᵀ by c scales W by c to the `degree`, exactly."""
        return self.activation is None

    def rank(self, shape: tuple[int, ...]) -> int:
        """R of a weight of this dense shape."""
        return rank_for(shape, self.gamma) if self.gamma is not None else rank_for_ratio(shape, cast(float, self.ratio))

    def compose(self, *factors: Tensor) -> Tensor:
        """The dense weight; a 1 × 1 kernel as the matrix (out, in)."""
        return compose.fedpara(*factors, activation=self.activation)

    def pair_rms(self, rms: float) -> float:
        """The rms that each pair X Yᵀ needs for W to have this rms."""
        return math.sqrt(rms)


@dataclass(frozen=True)
class PFedPara:
    """W = W1 ⊙ (W2 + 1), (out, in): X1, Y1, T1 are shared; X2, Y2, T2 stay with the client (FedPara, pFedPara).

    `gamma` in [0, 1] sets the rank as in FedPara. Raises ConfigError.
    """

    gamma: float = 0.5

    kind: ClassVar[str] = "pfedpara"
    pairs: ClassVar[int] = 2
    degree: ClassVar[int] = 1
    homogeneous: ClassVar[bool] = False
    local: ClassVar[tuple[int, ...]] = (2, 3, 5)  # X2, Y2, T2

    def __post_init__(self) -> None:
        check_share("PFedPara", "gamma", self.gamma, zero=True)

    def rank(self, shape: tuple[int, ...]) -> int:
        """R of a weight of this dense shape."""
        return rank_for(shape, self.gamma)

    def compose(self, *factors: Tensor) -> Tensor:
        """The dense weight; a 1 × 1 kernel as the matrix (out, in)."""
        return compose.pfedpara(*factors)

    def pair_rms(self, rms: float) -> float:
        """The rms that each pair X Yᵀ needs for W to have this rms."""
        # Both pairs of variance v: Var W = v(1 + v), as E[W1] = 0.
        return math.sqrt((math.sqrt(1 + 4 * rms * rms) - 1) / 2)


@dataclass(frozen=True)
class LowRank:
    """W = X Yᵀ, (out, in); Tucker-2 for convolutions: the baseline of FedPara's Table 2.

    `ratio` in (0, 1] is a share of each layer's dense parameters. `gamma` in [0, 1] gives the layer at most as many
    numbers as FedPara(gamma) would (2R in place of R for a matrix): the paper's comparison at equal parameters. Give
    one. Raises ConfigError.
    """

    gamma: float | None = None
    ratio: float | None = None

    kind: ClassVar[str] = "lowrank"
    pairs: ClassVar[int] = 1
    degree: ClassVar[int] = 1
    homogeneous: ClassVar[bool] = True
    local: ClassVar[tuple[int, ...]] = ()

    def __post_init__(self) -> None:
        _check_gamma_or_ratio("LowRank", self.gamma, self.ratio)

    def rank(self, shape: tuple[int, ...]) -> int:
        """R of a weight of this dense shape."""
        if self.gamma is None:
            return rank_for_ratio(shape, cast(float, self.ratio), self.pairs)
        return largest_rank(shape, factor_parameters(shape, rank_for(shape, self.gamma)), self.pairs)

    def compose(self, *factors: Tensor) -> Tensor:
        """The dense weight; a 1 × 1 kernel as the matrix (out, in)."""
        return compose.low_rank(*factors)

    def pair_rms(self, rms: float) -> float:
        """The rms that each pair X Yᵀ needs for W to have this rms."""
        return rms


Config = FedPara | PFedPara | LowRank


@dataclass(frozen=True)
class LayerReport:
    """What parametrize_ did to one weight. `name` is its key in the dense state_dict; `shape` is (out, in, k...).

    `kind` is "fedpara", "pfedpara", "lowrank" or "dense"; a dense weight has no rank and a `reason`.
    `local_parameters` of the `parameters` stay with the client.
    """

    name: str
    layer: str
    kind: str
    shape: tuple[int, ...]
    rank: int | None
    parameters: int
    dense_parameters: int
    local_parameters: int = 0
    reason: str | None = None


class Factorised(nn.Module):
    """The parametrization of one weight: factors → dense weight of `shape`."""

    def __init__(
        self,
        config: Config,
        shape: tuple[int, ...],
        rank: int,
        order: tuple[str, ...],
        generator: torch.Generator | None,
    ) -> None:
        super().__init__()
        self.config = config
        self.shape = shape
        self.rank = rank
        self.order = order  # the owner's parameter names before anything was factorised: merge_ restores it
        self._generator = generator
        self._drawn = False

    def forward(self, *factors: Tensor) -> Tensor:
        device = factors[0].device.type
        if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
            # A dense weight is not rounded by autocast where it lies, only where an operation asks for it.
            with torch.autocast(device, enabled=False):
                return self.config.compose(*factors).reshape(self.shape)
        return self.config.compose(*factors).reshape(self.shape)

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, ...]:
        if self._drawn:
            raise ConfigError(
                f"a factorised weight {self.shape} cannot be assigned: load its factors from a state_dict, or merge_"
            )
        factors = draw_factors(self.config, weight, self.rank, self._generator)
        self._drawn, self._generator = True, None
        return factors

    def local_parameters(self) -> int:
        sizes = [math.prod(shape) for shape in pair_shapes(self.shape, self.rank)]
        return sum(sizes) if self.config.local else 0

    def extra_repr(self) -> str:
        return f"{self.config}, shape={self.shape}, rank={self.rank}"


# ---------------------------------------------------------------------------------------------------- initialisation


def _rms(tensor: Tensor) -> float:
    return math.sqrt(float(tensor.detach().to("cpu", torch.float64).square().mean()))


def _factor_std(pair_rms: float, rank: int, count: int) -> float:
    """Std of each of a pair's factors such that the pair's product has this rms (derived; see draw_factors)."""
    return math.sqrt(pair_rms / math.sqrt(rank)) if count == 2 else (pair_rms / rank) ** (1 / 3)


def draw_factors(
    config: Config, weight: Tensor, rank: int, generator: torch.Generator | None = None
) -> tuple[Tensor, ...]:
    """Normal factors whose composed weight has the rms s of `weight`, (out, in, k...).

    X Yᵀ of factors with std σ has variance R·σ⁴, the Tucker form R²·σ⁶; ⊙ multiplies the two pairs' variances. Hence
    σ = (s/R)^{1/4} and (s/R²)^{1/6} for FedPara; the draw's own deviation, and tanh, are then measured and corrected.
    Rows that are zero in `weight` (a padding index, a zero-initialised layer) stay zero through zero rows of X1, which
    still receive gradients. Drawn on the generator's device, else on the CPU, so that every device starts alike.
    """
    one_pair = pair_shapes(tuple(weight.shape), rank)
    # X1, Y1, X2, Y2, T1, T2
    shapes = one_pair[:2] * config.pairs + one_pair[2:] * config.pairs
    if weight.is_meta:
        return tuple(torch.empty(shape, dtype=weight.dtype, device="meta") for shape in shapes)
    rows = weight.detach().flatten(1)
    alive = rows.ne(0).any(1)
    rms = _rms(rows[alive]) if alive.any() else rows.shape[1] ** -0.5
    device = generator.device if generator is not None else torch.device("cpu")
    dtype = torch.promote_types(weight.dtype, torch.float32)
    units = [torch.randn(shape, generator=generator, dtype=dtype, device=device) for shape in shapes]
    std = _fitted_std(config, units, rms, rank)
    factors = [unit * std for unit in units]
    factors[0] = factors[0] * alive.to(device).unsqueeze(1)
    return tuple(factor.to(weight.device, weight.dtype) for factor in factors)


def _fitted_std(config: Config, units: list[Tensor], rms: float, rank: int) -> float:
    """The std to give standard normal factors so that their composition has this rms, to about 0.1 %."""
    # In float64, and four digits in the end: the order in which a machine's threads sum must not show in the factors.
    units = [unit.to("cpu", torch.float64) for unit in units]
    per_pair = len(units) // config.pairs
    pair_rms = config.pair_rms(rms)
    for _ in range(12):
        std = _factor_std(pair_rms, rank, per_pair)
        error = rms / _rms(config.compose(*(unit * std for unit in units)))
        pair_rms *= error ** (1 / config.degree)
        if config.homogeneous or abs(error - 1) < 1e-3:
            break
    return float(f"{_factor_std(pair_rms, rank, per_pair):.4g}")


# -------------------------------------------------------------------------------------------------- which weights


@dataclass(frozen=True)
class _Weight:
    """A parameter of two or more dimensions, factorised or not, and the module that owns it."""

    module: nn.Module
    module_name: str
    tensor_name: str

    @property
    def name(self) -> str:
        return f"{self.module_name}.{self.tensor_name}" if self.module_name else self.tensor_name

    @property
    def layer(self) -> str:
        return parametrize.type_before_parametrizations(self.module).__name__

    @property
    def dense(self) -> nn.Parameter:
        return cast(nn.Parameter, self.module._parameters[self.tensor_name])

    def factorised(self) -> Factorised | None:
        return factorised(self.module).get(self.tensor_name)


def factorised(module: nn.Module) -> dict[str, Factorised]:
    """This module's own factorised tensors, by name, without those of its children."""
    lists = module._modules.get("parametrizations")
    if not isinstance(lists, nn.ModuleDict):
        return {}
    firsts = {name: cast(nn.ModuleList, found)[0] for name, found in lists.items()}
    return {name: first for name, first in firsts.items() if isinstance(first, Factorised)}


def _weights(model: nn.Module) -> Iterator[_Weight]:
    """Each weight once, in the order of the dense state_dict; of a tied one the first name."""
    seen: set[int] = set()
    for module_name, module in model.named_modules():
        if isinstance(module, parametrize.ParametrizationList) and isinstance(module[0], Factorised):
            continue
        found = factorised(module)
        order = next((own.order for own in found.values()), tuple(module._parameters))
        for name in dict.fromkeys([*order, *module._parameters]):
            parameter = module._parameters.get(name)
            if name not in found and (parameter is None or parameter.ndim < 2 or id(parameter) in seen):
                continue
            seen.add(id(parameter))
            yield _Weight(module, module_name, name)


def _weight_names(module: nn.Module) -> list[str]:
    """The names of the tensors of this layer that can be factorised; none for layers of other types."""
    if isinstance(module, nn.RNNBase):
        return [name for name in module._flat_weights_names if name.startswith("weight")]
    if isinstance(module, nn.RNNCellBase):
        return ["weight_ih", "weight_hh"]
    if isinstance(module, nn.MultiheadAttention):
        return ["in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight"]
    plain = (nn.Linear, nn.modules.conv._ConvNd, nn.Embedding, nn.EmbeddingBag)
    return ["weight"] if isinstance(module, plain) else []


def _keep_dense_filter(model: nn.Module) -> FilterFn:
    """The filter that the model, or a model inside it, declares as `keep_dense`: glob patterns of module names."""
    patterns: list[str] = []
    for name, module in model.named_modules():
        declared = getattr(module, "keep_dense", ())
        if not isinstance(declared, tuple | list) or not all(isinstance(pattern, str) for pattern in declared):
            raise ConfigError(
                f"{type(module).__name__}.keep_dense={declared!r} is not a tuple of glob patterns; "
                'give for example keep_dense = ("classifier.*",)'
            )
        patterns += [f"{name}.{pattern}" if name else pattern for pattern in declared]
    return lambda _, name: not any(fnmatchcase(name, pattern) for pattern in patterns)


def _tied(model: nn.Module) -> set[int]:
    """ids of the parameters that several modules, or one module under several names, hold."""
    owners: dict[int, int] = {}
    for module in model.modules():
        for parameter in module._parameters.values():
            owners[id(parameter)] = owners.get(id(parameter), 0) + 1
    return {key for key, count in owners.items() if count > 1}


def _why_dense(weight: _Weight, config: Config, tied: set[int]) -> str | None:
    """Why this weight cannot or should not be factorised, None where it should. Looks at one rule after the other."""
    module, dense = weight.module, weight.dense
    shape = tuple(dense.shape)
    reason: str | None = None
    if weight.tensor_name not in _weight_names(module):
        reason = f"{weight.layer}.{weight.tensor_name} is of no supported kind"
    elif parametrize.is_parametrized(module):
        reason = "its layer is parametrized by something else"
    elif id(dense) in tied:
        reason = "tied: several layers share it"
    elif not dense.requires_grad:
        reason = "frozen: fresh factors would lose its values"
    elif not dense.is_floating_point() or dense.layout != torch.strided:
        reason = f"{dense.dtype} {dense.layout}, not a dense real weight"
    elif getattr(module, "sparse", False):
        reason = "sparse=True: factors have dense gradients"
    elif min(shape[:2]) < THIN:
        reason = f"thin: a side of {shape[:2]} is under {THIN}"
    elif (held := factor_parameters(shape, config.rank(shape), config.pairs)) >= dense.numel():
        reason = f"no gain: factors of rank {config.rank(shape)} hold {held} numbers, the weight {dense.numel()}"
    elif isinstance(config, FedPara) and config.activation == "tanh" and not dense.is_meta and _rms(dense) > TANH_RMS:
        reason = f"tanh keeps weights under 1: its rms {_rms(dense):.3g} is above {TANH_RMS}"
    return reason


def _check_arguments(model: object, config: object, filter_fn: object) -> None:
    if not isinstance(model, nn.Module):
        raise ConfigError(f"parametrize_: a {type(model).__name__} was given as model; give a torch.nn.Module")
    if not isinstance(config, FedPara | PFedPara | LowRank):
        raise ConfigError(
            f"parametrize_: config={config!r} is not a configuration; give FedPara(...), PFedPara(...) or LowRank(...)"
        )
    if filter_fn is not None and not callable(filter_fn):
        raise ConfigError(
            f"parametrize_: filter_fn={filter_fn!r} cannot be called; give filter_fn(module, name) -> bool"
        )
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if nn.parameter.is_lazy(parameter):
            raise ConfigError(
                f"parametrize_: {name} has no shape yet (a lazy layer); run one batch through the model first"
            )


# ------------------------------------------------------------------------------------------------------- public


def parametrize_(
    model: nn.Module, config: Config, filter_fn: FilterFn | None = None, *, generator: torch.Generator | None = None
) -> nn.Module:
    """Replace the model's weights by factors, in place, and return the model (FedPara, Props. 1 and 3).

    Layers for which filter_fn(module, name) is False stay dense; without a filter_fn those that match the model's
    `keep_dense` glob patterns. What was done is read with `describe`. Factors are drawn from `generator`, else from the
    global one, in the order of the state_dict. Nothing is changed when an error is raised. Raises ConfigError.
    """
    _check_arguments(model, config, filter_fn)
    wanted = filter_fn if filter_fn is not None else _keep_dense_filter(model)
    tied = _tied(model)
    plan: list[tuple[_Weight, str | None]] = []
    for weight in _weights(model):
        chosen = wanted(weight.module, weight.module_name)
        if weight.factorised() is None:
            plan.append((weight, _why_dense(weight, config, tied) if chosen else "excluded by filter_fn or keep_dense"))
        elif chosen:
            raise ConfigError(
                f"parametrize_: {weight.name} is factorised already ({weight.factorised()}); "
                "merge_ the model first, or leave the layer out with filter_fn"
            )
    chosen_weights = [weight for weight, reason in plan if reason is None]
    for weight in chosen_weights:
        if not weight.dense.is_meta and not weight.dense.isfinite().all():
            raise ConfigError(f"parametrize_: {weight.name} holds values that are not finite; initialise it first")
    for module in model.modules():
        module.__dict__.pop("_fedpara_dense", None)
    for weight, reason in plan:
        if reason is not None:
            weight.module.__dict__.setdefault("_fedpara_dense", {})[weight.tensor_name] = reason
    _factorise(chosen_weights, config, generator)
    return model


def _factorise(weights: list[_Weight], config: Config, generator: torch.Generator | None) -> None:
    orders = {id(weight.module): tuple(weight.module._parameters) for weight in weights}
    for weight in weights:
        shape = tuple(weight.dense.shape)
        form = Factorised(config, shape, config.rank(shape), orders[id(weight.module)], generator)
        parametrize.register_parametrization(weight.module, weight.tensor_name, form)
    for module in dict.fromkeys(weight.module for weight in weights):
        _adapt_class(module)


def merge_(model: nn.Module) -> nn.Module:
    """Compose every factorised weight once and put plain layers back, in place; returns the model.

    Outputs, classes, state_dict keys and their order are those before parametrize_. A PFedPara layer keeps its own
    client's weight. Raises ConfigError where another parametrization was put onto a factorised layer.
    """
    owners = [(name, module) for name, module in model.named_modules() if factorised(module)]
    for name, module in owners:
        lists = cast(nn.ModuleDict, module.parametrizations)
        if set(lists) != set(factorised(module)) or any(len(cast(nn.ModuleList, own)) > 1 for own in lists.values()):
            raise ConfigError(
                f"merge_: layer {name!r} carries another parametrization as well; remove it first "
                "with torch.nn.utils.parametrize.remove_parametrizations"
            )
    for _, module in owners:
        _merge_layer(module)
    for module in model.modules():
        module.__dict__.pop("_fedpara_dense", None)
    return model


def _merge_layer(module: nn.Module) -> None:
    lists = cast(nn.ModuleDict, module.parametrizations)
    order = next(iter(factorised(module).values())).order
    dense: dict[str, nn.Parameter | None] = {}
    with torch.no_grad():
        for name, factors in lists.items():
            weight = getattr(module, name).clone(memory_format=torch.contiguous_format)
            dense[name] = nn.Parameter(weight, any(factor.requires_grad for factor in factors.parameters()))
    del module.parametrizations
    # torch's remove_parametrizations would delete properties from the class, which deep copies of this layer share.
    module.__class__ = type(module).__bases__[0]
    own = module._parameters
    dense |= own
    own.clear()
    own.update({name: dense[name] for name in dict.fromkeys([*order, *dense])})
    if isinstance(module, nn.RNNBase):
        module._init_flat_weights()


def describe(model: nn.Module) -> list[LayerReport]:
    """One row for each weight of two or more dimensions, factorised or dense, in the order of the dense state_dict.

    A tied weight has one row, under its first name. Biases and norms have none.
    """
    return [_report(weight) for weight in _weights(model)]


def _report(weight: _Weight) -> LayerReport:
    own = weight.factorised()
    if own is None:
        shape = tuple(weight.dense.shape)
        reason = weight.module.__dict__.get("_fedpara_dense", {}).get(weight.tensor_name, "not parametrized")
        numbers = weight.dense.numel()
        return LayerReport(weight.name, weight.layer, "dense", shape, None, numbers, numbers, reason=reason)
    return LayerReport(
        name=weight.name,
        layer=weight.layer,
        kind=own.config.kind,
        shape=own.shape,
        rank=own.rank,
        parameters=factor_parameters(own.shape, own.rank, own.config.pairs),
        dense_parameters=math.prod(own.shape),
        local_parameters=own.local_parameters(),
    )


def parameter_count(model: nn.Module) -> int:
    """Number of parameters as they are now, factors counted as factors; a tied weight once."""
    return sum(parameter.numel() for parameter in model.parameters())


def dense_parameters(model: nn.Module) -> int:
    """Number of parameters the model has when merged; a tied weight once."""
    return parameter_count(model) + sum(row.dense_parameters - row.parameters for row in describe(model))


# ------------------------------------------------------------------------- adapting torch's parametrized classes
# register_parametrization gives each layer a class of its own, derived from the layer's: it is the place for what that
# layer's code needs beyond a property per weight.


def _adapt_class(module: nn.Module) -> None:
    own_class: Any = type(module)
    own_class.__reduce_ex__ = _reduce
    if isinstance(module, nn.RNNBase | nn.MultiheadAttention):
        # Their forward reads a weight several times.
        for name in factorised(module):
            setattr(own_class, name, _held(name, own_class.__dict__[name]))
        own_class.forward = _forward_composing_once
    if isinstance(module, nn.RNNBase):
        # RNNBase keeps a list of its weights, which would be stale dense ones: read them anew instead.
        own_class._flat_weights = property(_read_flat_weights, _ignore)
        own_class._init_flat_weights = _ignore
        own_class._update_flat_weights = _ignore
        own_class.flatten_parameters = _ignore
        module.__dict__.pop("_flat_weights", None)


def _held(name: str, composed: property) -> property:
    def read(module: nn.Module) -> Tensor:
        held: dict[str, Tensor] = module.__dict__.get("_fedpara_held", {})
        return held[name] if name in held else cast(Callable[[nn.Module], Tensor], composed.fget)(module)

    return property(read, composed.fset)


def _forward_composing_once(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    # Held by the layer, not by torch's global parametrize.cached(), which is not safe between threads.
    module.__dict__["_fedpara_held"] = {name: getattr(module, name) for name in factorised(module)}
    try:
        return cast(Any, type(module).__bases__[0]).forward(module, *args, **kwargs)
    finally:
        # Not a leaf: left behind it would break deepcopy and keep the graph alive.
        del module.__dict__["_fedpara_held"]


def _read_flat_weights(module: nn.RNNBase) -> list[Tensor | None]:
    return [getattr(module, name, None) for name in module._flat_weights_names]


def _ignore(module: nn.Module, *args: object) -> None:
    """A parametrized recurrent layer has no list of weights to set, update or flatten."""


def _reduce(module: nn.Module, protocol: Any) -> tuple[Any, ...]:
    """Pickle a factorised layer, whose class has no importable name, as its own class, state and factors."""
    state = {**module.__dict__, "_modules": dict(module._modules)}
    state.pop("_flat_weight_refs", None)
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
    _adapt_class(module)
    return module
