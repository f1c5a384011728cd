"""Factorise a model's weights in place, and merge them back (FedPara, Props. 1-3; pFedPara; plain low rank).

Built on torch.nn.utils.parametrize: `layer.weight` stays a tensor of the dense shape, composed from factors, which
are the trained parameters: `layer.parametrizations.weight.original0, 1, ...` in the order X1, Y1, X2, Y2, T1, T2.

Which weights are factorised: those of Linear, Conv, ConvTranspose, Embedding, RNN, LSTM, GRU and MultiheadAttention
layers (stacked gates or projections count as one matrix; a transposed convolution's (in, out, k...) is taken as it is).
A weight stays dense, and `describe` says why, where
  - filter_fn, or the model's `keep_dense` patterns when there is no filter_fn, exclude its module;
  - it is shared by several modules, frozen, pruned, of another type, or parametrized by something else;
  - it is thin: a side under 4 (RGB stems, depthwise kernels, binary heads), whose product would lose most of its rank;
  - its factors would not be strictly fewer than its own numbers;
  - it is worth its numbers within the budget of the whole model, if a ratio or payload_bytes sets one (see budget.py).
Biases and norms always stay dense and have no row. Create the optimizer afterwards. A model that is not trained yet
gets factors drawn anew at its weights' scale; those of a trained one are fitted with fit=True (see fit.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from . import compose, linear
from .errors import ConfigError
from .initialise import draw_factors, root_mean_square
from .layers import Factorised, adapt_class, composed_once, factorised, precise_weight
from .rank import check_share, factor_parameters, largest_rank, rank_for

__all__ = [
    "Config",
    "Factorised",
    "FedPara",
    "LayerReport",
    "LowRank",
    "PFedPara",
    "composed_once",
    "dense_parameters",
    "describe",
    "draw_factors",
    "factorised",
    "merge_",
    "parameter_count",
    "parametrize_",
]

THIN = 4  # a weight with a side under this stays dense
_WORTH = "worth its numbers: the model's budget allows them all"
TANH_RMS = 0.5  # |tanh ⊙ tanh| < 1: above this rms the factors would start saturated

FilterFn = Callable[[nn.Module, str], bool]


def _check_size(owner: str, gamma: float | None, ratio: float | None, payload_bytes: int | None) -> None:
    given = {"gamma": gamma, "ratio": ratio, "payload_bytes": payload_bytes}
    given = {name: value for name, value in given.items() if value is not None}
    if len(given) != 1:
        raise ConfigError(
            f"{owner}({', '.join(f'{name}={value!r}' for name, value in given.items())}): give exactly one, "
            f"{owner}(gamma=0.1) for the paper's rank rule, {owner}(ratio=0.1) for a share of the model's parameters "
            f"or {owner}(payload_bytes=200_000) for what it sends in fp32"
        )
    if gamma is not None:
        check_share(owner, "gamma", gamma, zero=True)
    if ratio is not None:
        check_share(owner, "ratio", ratio, zero=False)
    if payload_bytes is not None and (type(payload_bytes) is not int or payload_bytes < 1):
        raise ConfigError(f"{owner}: payload_bytes={payload_bytes!r} is not allowed; give a whole number of bytes")


@dataclass(frozen=True)
class FedPara:
    """W = (X1 Y1ᵀ) ⊙ (X2 Y2ᵀ), (out, in), of rank up to R² (FedPara, Prop. 1; Prop. 3 for convolutions).

    One of three sets R: `gamma` in [0, 1] the paper's rule for each layer (see rank_for); `ratio` in (0, 1] a share of
    the whole model's dense parameters; `payload_bytes` the most that fp.size(model).payload_bytes may be. The last two
    are spent where they help most (see budget.py), after all that stays dense. activation="tanh" is the paper's
    W = tanh(W1) ⊙ tanh(W2). reshape=True applies Prop. 1 to a convolution's weight reshaped to (out, in·k...) instead
    of Prop. 3. residual=True keeps the dense weight W0, frozen and never sent, and trains W = W0 + ΔW from ΔW = 0: for
    fine-tuning a pretrained model. Raises ConfigError.
    """

    gamma: float | None = None
    ratio: float | None = None
    activation: str | None = None
    reshape: bool = False
    residual: bool = False
    payload_bytes: int | None = None

    kind: ClassVar[str] = "fedpara"
    pairs: ClassVar[int] = 2
    degree: ClassVar[int] = 2
    local: ClassVar[tuple[int, ...]] = ()

    def __post_init__(self) -> None:
        _check_size("FedPara", self.gamma, self.ratio, self.payload_bytes)
        if self.activation not in (None, "tanh"):
            raise ConfigError(f'FedPara: activation={self.activation!r} is not known; give None or "tanh"')
        for name in ("reshape", "residual"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"FedPara: {name}={getattr(self, name)!r} is not allowed; give True or False")

    @property
    def homogeneous(self) -> bool:
        """Whether scaling every pair X Yᵀ by c scales W by c to the `degree`, exactly."""
        return self.activation is None

    def rank(self, shape: tuple[int, ...]) -> int:
        """R of a weight of this dense shape; where a budget sets R, the least that it can be."""
        return 1 if self.gamma is None else rank_for(self.seen(shape), self.gamma)

    def seen(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape that the factors are made for: the dense one, or with reshape=True (out, in·k...)."""
        return (shape[0], math.prod(shape[1:])) if self.reshape else shape

    def compose(self, *factors: Tensor, base: Tensor | None = None) -> Tensor:
        """The dense weight, plus `base`; a 1 × 1 kernel, and with reshape=True every kernel, as a matrix."""
        return compose.fedpara(*factors, activation=self.activation, base=base)

    def linear(
        self, inputs: Tensor, *factors: Tensor, bias: Tensor | None = None, base: Tensor | None = None
    ) -> Tensor | None:
        """inputs Wᵀ + bias, (..., in) → (..., out), without a whole W; None where composing W is cheaper."""
        return linear.hadamard("tanh" if self.activation else "product", inputs, factors, bias, base)

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
    homogeneous: ClassVar[bool] = True  # in W1, which alone is fitted to a weight's rms
    local: ClassVar[tuple[int, ...]] = (2, 3, 5)  # X2, Y2, T2
    residual: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_share("PFedPara", "gamma", self.gamma, zero=True)

    def rank(self, shape: tuple[int, ...]) -> int:
        """R of a weight of this dense shape."""
        return rank_for(shape, self.gamma)

    def compose(self, *factors: Tensor) -> Tensor:
        """The dense weight; a 1 × 1 kernel as the matrix (out, in)."""
        return compose.pfedpara(*factors)

    def seen(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape that the factors are made for: the dense one."""
        return shape

    def linear(
        self, inputs: Tensor, *factors: Tensor, bias: Tensor | None = None, base: Tensor | None = None
    ) -> Tensor | None:
        """inputs Wᵀ + bias, (..., in) → (..., out), without a whole W; None where composing W is cheaper."""
        return linear.hadamard("plus_one", inputs, factors, bias, base)

    def pair_rms(self, rms: float) -> float:
        """The rms that X1 Y1ᵀ needs for W to have this rms, W2 being nearly zero at first."""
        return rms


@dataclass(frozen=True)
class LowRank:
    """W = X Yᵀ, (out, in); Tucker-2 for convolutions: the baseline of FedPara's Table 2.

    `gamma` in [0, 1] gives each layer at most as many numbers as FedPara(gamma) would (2R in place of R for a matrix):
    the paper's comparison at equal parameters. `ratio` and `payload_bytes` are budgets of the whole model as FedPara's.
    Give one. Raises ConfigError.
    """

    gamma: float | None = None
    ratio: float | None = None
    payload_bytes: int | None = None

    kind: ClassVar[str] = "lowrank"
    pairs: ClassVar[int] = 1
    degree: ClassVar[int] = 1
    homogeneous: ClassVar[bool] = True
    local: ClassVar[tuple[int, ...]] = ()
    residual: ClassVar[bool] = False

    def __post_init__(self) -> None:
        _check_size("LowRank", self.gamma, self.ratio, self.payload_bytes)

    def rank(self, shape: tuple[int, ...]) -> int:
        """R of a weight of this dense shape; where a budget sets R, the least that it can be."""
        if self.gamma is None:
            return 1
        return largest_rank(shape, factor_parameters(shape, rank_for(shape, self.gamma)), self.pairs)

    def compose(self, *factors: Tensor) -> Tensor:
        """The dense weight; a 1 × 1 kernel as the matrix (out, in)."""
        return compose.low_rank(*factors)

    def seen(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape that the factors are made for: the dense one."""
        return shape

    def linear(
        self, inputs: Tensor, *factors: Tensor, bias: Tensor | None = None, base: Tensor | None = None
    ) -> Tensor | None:
        """inputs Wᵀ + bias, (..., in) → (..., out): the factors hold fewer numbers, so it is always cheaper."""
        outputs = inputs @ factors[1] @ factors[0].mT
        return outputs if bias is None else outputs + bias

    def pair_rms(self, rms: float) -> float:
        """The rms that each pair X Yᵀ needs for W to have this rms."""
        return rms


Config = FedPara | PFedPara | LowRank


@dataclass(frozen=True)
class LayerReport:
    """What parametrize_ did to one weight. `name` is its key in the dense state_dict; `shape` is (out, in, k...).

    `kind` is "fedpara", "pfedpara", "lowrank" or "dense"; a dense weight has no rank and a `reason`.
    `local_parameters` of the `parameters` stay with the client; `frozen_numbers`, a residual's W0, are kept beside them
    and neither trained nor sent. `fit_error` is ‖W − Ŵ‖ / ‖W‖ as fit=True left it (Frobenius norms).
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
    frozen_numbers: int = 0
    fit_error: float | None = None


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


def weight_names(module: nn.Module) -> list[str]:
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
    if weight.tensor_name not in weight_names(module):
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
    elif min(sides := config.seen(shape)[:2]) < THIN:
        reason = f"thin: a side of {sides} is under {THIN}"
    elif (held := factor_parameters(config.seen(shape), config.rank(shape), config.pairs)) >= dense.numel():
        reason = f"no gain: factors of rank {config.rank(shape)} hold {held} numbers, the weight {dense.numel()}"
    elif (
        getattr(config, "activation", None) == "tanh"
        and not dense.is_meta
        and (rms := root_mean_square(dense)) > TANH_RMS
    ):
        reason = f"tanh keeps weights under 1: its rms {rms:.3g} is above {TANH_RMS}"
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
    model: nn.Module,
    config: Config,
    filter_fn: FilterFn | None = None,
    *,
    generator: torch.Generator | None = None,
    fit: bool = False,
) -> nn.Module:
    """Replace the model's weights by factors, in place, and return the model (FedPara, Props. 1 and 3).

    Layers for which filter_fn(module, name) is False stay dense; without a filter_fn those that match the model's
    `keep_dense` glob patterns. What was done is read with `describe`. Factors are drawn from `generator`, else from the
    global one, in the order of the state_dict. fit=True fits them to the weights of a trained model instead, and
    `describe` has each layer's error. Nothing is changed when an error is raised. Raises ConfigError.
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
        if fit and weight.dense.is_meta:
            raise ConfigError(
                f"parametrize_: fit=True needs trained weights, and {weight.name} is on meta; load it first"
            )
    if fit and config.residual:
        raise ConfigError("parametrize_: a residual starts at the trained weights themselves; leave fit=True out")
    ranks = _ranks(model, config, chosen_weights, fit)
    plan = [(weight, _WORTH if ranks.get(weight, 0) is None else reason) for weight, reason in plan]
    for module in model.modules():
        module.__dict__.pop("_fedpara_dense", None)
    for weight, reason in plan:
        if reason is not None:
            weight.module.__dict__.setdefault("_fedpara_dense", {})[weight.tensor_name] = reason
    _factorise({weight: rank for weight, rank in ranks.items() if rank is not None}, config, generator, fit)
    return model


def _ranks(model: nn.Module, config: Config, weights: list[_Weight], fit: bool) -> dict[_Weight, int | None]:
    """A rank for each weight, None where the model's budget leaves it dense."""
    from .budget import budgeted_ranks

    tensors = [weight.dense for weight in weights]
    if isinstance(config, PFedPara) or config.gamma is not None:
        ranks: list[int | None] = [config.rank(tuple(tensor.shape)) for tensor in tensors]
    else:
        ranks = budgeted_ranks(model, config, tensors, trained=fit)
    return dict(zip(weights, ranks, strict=True))


def _factorise(ranks: dict[_Weight, int], config: Config, generator: torch.Generator | None, fit: bool) -> None:
    orders = {id(weight.module): tuple(weight.module._parameters) for weight in ranks}
    for weight, rank in ranks.items():
        shape = tuple(weight.dense.shape)
        order = orders[id(weight.module)]
        # The layers whose operations autocast runs in its low precision.
        lowered = isinstance(weight.module, nn.Linear | nn.modules.conv._ConvNd | nn.MultiheadAttention)
        form = Factorised(config, shape, rank, order=order, generator=generator, lowered=lowered, fit=fit)
        parametrize.register_parametrization(weight.module, weight.tensor_name, form)
    for module in dict.fromkeys(weight.module for weight in ranks):
        adapt_class(module)


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
            weight = precise_weight(module, name).clone(memory_format=torch.contiguous_format)
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
        parameters=factor_parameters(own.config.seen(own.shape), own.rank, own.config.pairs),
        dense_parameters=math.prod(own.shape),
        local_parameters=own.local_parameters(),
        frozen_numbers=0 if own.base is None else own.base.numel(),
        fit_error=own.fit_error,
    )


def parameter_count(model: nn.Module) -> int:
    """Number of parameters as they are now, factors counted as factors; a tied weight once."""
    return sum(parameter.numel() for parameter in model.parameters())


def dense_parameters(model: nn.Module) -> int:
    """Number of parameters the model has when merged; a tied weight once."""
    return parameter_count(model) + sum(row.dense_parameters - row.parameters for row in describe(model))
