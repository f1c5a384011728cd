"""parametrize_ and merge_ over every kind of layer: what they compute, keep, refuse and leave alone."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune
from torch.nn.utils import parametrize as torch_parametrize

from fedpara import compose
from fedpara.errors import ConfigError
from fedpara.layers import filled_up
from fedpara.models import CNN, VGG16
from fedpara.parametrize import (
    FedPara,
    LayerReport,
    LowRank,
    PFedPara,
    composed_once,
    dense_parameters,
    describe,
    draw_factors,
    factorised,
    merge_,
    parameter_count,
    parametrize_,
)
from fedpara.rank import factor_parameters, rank_for
from fedpara.sharing import local_names, shared_names
from tests import reference

# By gamma, which has a rank for every layer: a budget may leave the dearest to factorise dense.
CONFIGS = [
    FedPara(gamma=0.2),
    FedPara(gamma=0.4, activation="tanh"),
    FedPara(gamma=0.2, reshape=True),
    FedPara(gamma=0.2, residual=True),
    PFedPara(gamma=0.2),
    LowRank(gamma=0.4),
]


def _images(channels: int, dims: int) -> Callable[[], tuple[Tensor, ...]]:
    return lambda: (torch.randn(2, channels, *([7] * dims)),)


def _tokens(*shape: int) -> Callable[[], tuple[Tensor, ...]]:
    return lambda: (torch.randint(0, 60, shape),)


def _small(embedding: nn.Module) -> nn.Module:
    """Embeddings start with std 1, which is out of the tanh variant's reach."""
    with torch.no_grad():
        embedding.weight.mul_(0.1)
    return embedding


def _sequence(features: int) -> Callable[[], tuple[Tensor, ...]]:
    return lambda: (torch.randn(5, 3, features),)


def _features(*features: int) -> Callable[[], tuple[Tensor, ...]]:
    return lambda: tuple(torch.randn(5, 3, size) for size in features)


# name: (make the layer, make its input, the weights that are factorised)
ZOO: dict[str, tuple[Callable[[], nn.Module], Callable[[], tuple[Tensor, ...]], list[str]]] = {
    "linear": (lambda: nn.Linear(40, 64), lambda: (torch.randn(3, 40),), ["weight"]),
    "linear-nobias": (lambda: nn.Linear(200, 40, bias=False), lambda: (torch.randn(3, 200),), ["weight"]),
    "conv1d": (lambda: nn.Conv1d(40, 48, 5), _images(40, 1), ["weight"]),
    "conv2d": (lambda: nn.Conv2d(24, 40, 3, padding=1, stride=2), _images(24, 2), ["weight"]),
    "conv2d-wide-kernel": (lambda: nn.Conv2d(32, 32, (1, 5), padding_mode="circular"), _images(32, 2), ["weight"]),
    "conv2d-1x1": (lambda: nn.Conv2d(48, 64, 1), _images(48, 2), ["weight"]),
    "conv2d-grouped": (lambda: nn.Conv2d(64, 128, 3, groups=2), _images(64, 2), ["weight"]),
    "conv3d": (lambda: nn.Conv3d(16, 24, 3), _images(16, 3), ["weight"]),
    "transposed1d": (lambda: nn.ConvTranspose1d(40, 48, 5, stride=2), _images(40, 1), ["weight"]),
    "transposed2d": (lambda: nn.ConvTranspose2d(24, 40, 3, output_padding=1, stride=2), _images(24, 2), ["weight"]),
    "transposed2d-grouped": (lambda: nn.ConvTranspose2d(64, 128, 3, groups=2), _images(64, 2), ["weight"]),
    "transposed3d": (lambda: nn.ConvTranspose3d(16, 24, 3), _images(16, 3), ["weight"]),
    "embedding": (lambda: _small(nn.Embedding(60, 40)), _tokens(4, 6), ["weight"]),
    "embedding-padding": (lambda: _small(nn.Embedding(60, 40, padding_idx=3)), _tokens(4, 60), ["weight"]),
    "embedding-bag": (lambda: _small(nn.EmbeddingBag(60, 40)), _tokens(4, 6), ["weight"]),
    "rnn": (lambda: nn.RNN(48, 48), _sequence(48), ["weight_ih_l0", "weight_hh_l0"]),
    "gru": (
        lambda: nn.GRU(32, 32, num_layers=2),
        _sequence(32),
        ["weight_ih_l0", "weight_hh_l0", "weight_ih_l1", "weight_hh_l1"],
    ),
    "lstm": (lambda: nn.LSTM(32, 32), _sequence(32), ["weight_ih_l0", "weight_hh_l0"]),
    "lstm-two-ways": (
        lambda: nn.LSTM(32, 32, bidirectional=True, bias=False, batch_first=True),
        _sequence(32),
        ["weight_ih_l0", "weight_hh_l0", "weight_ih_l0_reverse", "weight_hh_l0_reverse"],
    ),
    "lstm-projected": (
        lambda: nn.LSTM(32, 64, proj_size=40),
        _sequence(32),
        ["weight_ih_l0", "weight_hh_l0", "weight_hr_l0"],
    ),
    # One tensor of the layer is too thin: the others are factorised, their order is kept.
    "lstm-thin-input": (lambda: nn.LSTM(2, 48), _sequence(2), ["weight_hh_l0"]),
    "gru-cell": (
        lambda: nn.GRUCell(32, 32),
        lambda: (torch.randn(3, 32), torch.randn(3, 32)),
        ["weight_ih", "weight_hh"],
    ),
    "attention": (lambda: nn.MultiheadAttention(32, 4), _features(32, 32, 32), ["in_proj_weight", "out_proj.weight"]),
    "attention-dims": (
        lambda: nn.MultiheadAttention(32, 4, kdim=40, vdim=48, add_bias_kv=True),
        _features(32, 40, 48),
        ["q_proj_weight", "k_proj_weight", "v_proj_weight", "out_proj.weight"],
    ),
    "transformer-layer": (
        lambda: nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True),
        _sequence(32),
        ["self_attn.in_proj_weight", "self_attn.out_proj.weight", "linear1.weight", "linear2.weight"],
    ),
}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(params=ZOO)
def case(request: pytest.FixtureRequest) -> tuple[nn.Module, tuple[Tensor, ...], list[str]]:
    make, inputs, names = ZOO[request.param]
    return make(), inputs(), names


def flat(output: Any) -> list[Tensor]:
    """The tensors in a layer's output, whatever it nests them in."""
    if isinstance(output, Tensor):
        return [output]
    return [] if output is None else [tensor for part in output for tensor in flat(part)]


def assert_same(first: Any, second: Any, tolerance: float = 2e-6) -> None:
    """Equal up to a share of the largest output: float32 sums of some hundred products in another order."""
    assert len(flat(first)) == len(flat(second)) > 0
    for one, other in zip(flat(first), flat(second), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=tolerance * other.abs().max().item())


def composed(model: nn.Module, name: str) -> Tensor:
    owner, _, tensor = name.rpartition(".")
    return getattr(model.get_submodule(owner), tensor)


def rms(tensor: Tensor) -> float:
    return tensor.detach().square().mean().sqrt().item()


def gradients(model: nn.Module, inputs: tuple[Tensor, ...]) -> dict[str, Tensor]:
    model.zero_grad()
    sum(part.float().square().sum() for part in flat(model(*inputs))).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


# ----------------------------------------------------------------------------------------------- every layer


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_a_layer_computes_with_its_composed_weight(case: Any, config: Any) -> None:
    model, inputs, names = case
    keys = list(model.state_dict())
    plain = copy.deepcopy(model)
    assert parametrize_(model, config) is model
    rows = {row.name: row for row in describe(model)}
    assert [name for name, row in rows.items() if row.kind == config.kind] == [key for key in keys if key in names]
    # The plain layer, given the composed weights, is the yardstick.
    state = {key: composed(model, key) if key in names else model.state_dict()[key] for key in keys}
    plain.load_state_dict(state)
    assert_same(model(*inputs), plain(*inputs))


def test_gradients_reach_every_factor_and_training_moves_the_output(case: Any) -> None:
    model, inputs, _ = case
    parametrize_(model, FedPara(gamma=0.2))
    before = flat(model(*inputs))[0].detach()
    for _ in range(2):
        for name, gradient in gradients(model, inputs).items():
            assert gradient is not None, name
            assert gradient.isfinite().all(), name
            if "parametrizations" in name:
                assert gradient.abs().max() > 0, name
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.sub_(parameter.grad, alpha=1e-3)
    # A stale dense copy, as RNNs keep, would not move.
    assert not torch.allclose(before, flat(model(*inputs))[0], rtol=1e-6, atol=1e-8)


def test_merge_gives_the_plain_layer_back(case: Any) -> None:
    model, inputs, _ = case
    classes = [type(module) for module in model.modules()]
    keys, parameters = list(model.state_dict()), [name for name, _ in model.named_parameters()]
    attributes = {name: set(vars(module)) for name, module in model.named_modules()}
    parametrize_(model, FedPara(gamma=0.2))
    model.eval()
    before = model(*inputs)
    assert merge_(model) is model
    assert [type(module) for module in model.modules()] == classes
    assert list(model.state_dict()) == keys
    assert [name for name, _ in model.named_parameters()] == parameters
    assert {name: set(vars(module)) for name, module in model.named_modules()} == attributes
    for parameter in model.parameters():
        assert parameter.is_leaf
        assert parameter.requires_grad
        assert parameter.is_contiguous()
    assert_same(model(*inputs), before)
    with torch.no_grad():
        assert_same(model(*inputs), before)
    assert_same(copy.deepcopy(model)(*inputs), before)
    assert_same(pickle.loads(pickle.dumps(model))(*inputs), before)
    if isinstance(model, nn.RNNBase):
        for name, weight in zip(model._flat_weights_names, model._flat_weights, strict=True):
            assert weight is getattr(model, name)
    # And again: a merged model can be factorised anew.
    assert any(row.rank for row in describe(parametrize_(model, LowRank(ratio=0.6))))


def test_no_dense_weight_is_kept_in_memory(case: Any) -> None:
    model, _, names = case
    dense = [weakref.ref(parameter) for name, parameter in model.named_parameters() if name in names]
    parametrize_(model, FedPara(gamma=0.2))
    gc.collect()
    assert [weight() for weight in dense] == [None] * len(names)


def test_deepcopy_after_a_forward_is_independent(case: Any) -> None:
    model, inputs, _ = case
    parametrize_(model, FedPara(gamma=0.2))
    before = model(*inputs)
    twin = copy.deepcopy(model)
    assert_same(twin(*inputs), before)
    gradients(model, inputs)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1)
    assert_same(twin(*inputs), before)
    # torch lets the copies share one class: merging one must not reach the other.
    merge_(model)
    assert_same(twin(*inputs), before)
    assert_same(merge_(twin)(*inputs), before)


def test_pickle_and_state_dict_round_trips(case: Any) -> None:
    model, inputs, _ = case
    other = copy.deepcopy(model)
    parametrize_(model, PFedPara(gamma=0.2))
    before = model(*inputs)
    loaded = pickle.loads(pickle.dumps(model))
    assert list(loaded.state_dict()) == list(model.state_dict())
    assert describe(loaded) == describe(model)
    assert_same(loaded(*inputs), before)
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    buffer.seek(0)
    parametrize_(other, PFedPara(gamma=0.2)).load_state_dict(torch.load(buffer, weights_only=True))
    assert_same(other(*inputs), before)
    assert_same(merge_(loaded)(*inputs), before)


@pytest.mark.parametrize("name", ["linear", "lstm"])
def test_merging_a_shallow_copy_leaves_the_original(name: str) -> None:
    make, inputs, _ = ZOO[name]
    model, arguments = parametrize_(make(), FedPara(gamma=0.2)), inputs()
    before, keys = model(*arguments), list(model.state_dict())
    assert_same(merge_(copy.copy(model))(*arguments), before)
    assert list(model.state_dict()) == keys
    assert_same(model(*arguments), before)


def test_functional_call_uses_the_given_factors(case: Any) -> None:
    model, inputs, _ = case
    parametrize_(model, FedPara(gamma=0.2))
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.1)
    before = model(*inputs)
    assert_same(torch.func.functional_call(model, dict(other.named_parameters()), inputs), other(*inputs))
    assert_same(model(*inputs), before)


RECURRENT = [name for name, (_, _, names) in ZOO.items() if "weight_hh_l0" in names]


# Outside of grad the recurrent kernels have no batching rule on the CPU, dense or factorised: see the next test.
@pytest.mark.parametrize("name", [name for name in ZOO if name not in RECURRENT])
def test_vmap_over_stacked_models(name: str) -> None:
    make, inputs, _ = ZOO[name]

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = make()

        def forward(self, *arguments: Tensor) -> Any:
            return self.layer(*arguments)

    models = [parametrize_(Network(), FedPara(gamma=0.2)) for _ in range(3)]
    arguments = inputs()
    stacked, buffers = torch.func.stack_module_state(models)
    meta = copy.deepcopy(models[0]).to("meta")
    call = torch.vmap(lambda state, own: torch.func.functional_call(meta, (state, own), arguments))
    for batched, *looped in zip(
        flat(call(stacked, buffers)), *(flat(model(*arguments)) for model in models), strict=True
    ):
        torch.testing.assert_close(batched, torch.stack(looped), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["linear", "conv2d", *RECURRENT])
def test_vmap_over_the_gradients_of_stacked_models(name: str) -> None:
    make, inputs, _ = ZOO[name]
    models = [parametrize_(nn.Sequential(make()), FedPara(gamma=0.2)) for _ in range(3)]
    arguments = inputs()
    stacked, buffers = torch.func.stack_module_state(models)

    def loss(state: dict[str, Tensor]) -> Tensor:
        return sum(
            part.square().sum() for part in flat(torch.func.functional_call(models[0], (state, buffers), arguments))
        )

    batched = torch.vmap(torch.func.grad(loss))(stacked)
    looped = [gradients(model, arguments) for model in models]
    for key, gradient in batched.items():
        assert_same(gradient, torch.stack([own[key] for own in looped]), 1e-5)


def test_to_double_and_half_change_factors_and_outputs(case: Any) -> None:
    model, inputs, _ = case
    parametrize_(model, FedPara(gamma=0.2))
    before = [part.double() for part in flat(model(*inputs))]
    model.double()
    inputs = tuple(tensor.double() if tensor.is_floating_point() else tensor for tensor in inputs)
    after = flat(model(*inputs))
    assert all(part.dtype == torch.float64 for part in after)
    assert_same(after, before, 1e-4)
    assert all(factor.dtype == torch.bfloat16 for factor in model.bfloat16().parameters())


def test_autocast_gives_the_dtypes_of_the_dense_layer(case: Any) -> None:
    model, inputs, names = case
    plain = copy.deepcopy(model)
    parametrize_(model, FedPara(gamma=0.2))
    # Autocast lowers these layers' operations; recurrent ones and embeddings stay whole.
    low = isinstance(model, nn.Linear | nn.modules.conv._ConvNd | nn.MultiheadAttention | nn.TransformerEncoderLayer)
    with torch.autocast("cpu", torch.bfloat16):
        assert {composed(model, name).dtype for name in names} == {torch.bfloat16 if low else torch.float32}
        try:
            theirs = flat(plain(*inputs))
        except RuntimeError as error:
            pytest.skip(f"torch's own layer has no half precision on this processor: {error}")
        ours = flat(model(*inputs))
    assert [part.dtype for part in ours] == [part.dtype for part in theirs]
    assert_same([part.float() for part in ours], model(*inputs), 0.1)
    assert all(gradient.dtype == torch.float32 for gradient in gradients(model, inputs).values())


@pytest.mark.parametrize("name", ["lstm", "gru", "rnn", "attention"])
def test_a_weight_is_composed_once_a_forward(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make, inputs, names = ZOO[name]
    model = parametrize_(make(), FedPara(gamma=0.2))
    calls = []
    monkeypatch.setattr(FedPara, "compose", lambda self, *factors: (calls.append(1), _compose(self, *factors))[1])
    model(*inputs())
    assert len(calls) == len(names)
    assert not any("held" in key for key in vars(model))
    # Moving a recurrent layer, or asking it to flatten its weights, composes nothing.
    model.to(torch.float64)
    if isinstance(model, nn.RNNBase):
        model.flatten_parameters()
    assert len(calls) == len(names)


_compose = FedPara.compose


@pytest.mark.parametrize("gradient", [True, False])
@pytest.mark.parametrize("name", ["attention", "transformer-layer"])
def test_the_features_fast_path_sees_composed_weights(name: str, gradient: bool) -> None:
    make, inputs, _ = ZOO[name]
    model = parametrize_(make(), FedPara(gamma=0.2)).eval()
    arguments = inputs()
    with torch.set_grad_enabled(gradient):
        ours = model(*arguments)
        assert_same(ours, merge_(copy.deepcopy(model))(*arguments), 1e-5)
    if name == "transformer-layer":
        # Training without dropout takes the slow path: both must agree.
        assert_same(ours, model.train()(*arguments), 1e-5)


def test_a_transformer_encoder_with_padding_in_its_nested_tensor_path() -> None:
    layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True)
    model = parametrize_(nn.TransformerEncoder(layer, 2), FedPara(gamma=0.2)).eval()
    inputs, padding = torch.randn(3, 5, 32), torch.zeros(3, 5, dtype=torch.bool)
    padding[0, 3:] = True
    with torch.no_grad():
        ours = model(inputs, src_key_padding_mask=padding)
        merged = merge_(copy.deepcopy(model))(inputs, src_key_padding_mask=padding)
    assert_same(ours[~padding], merged[~padding], 1e-5)


def test_packed_sequences() -> None:
    model = parametrize_(nn.LSTM(32, 32), FedPara(gamma=0.2))
    packed = nn.utils.rnn.pack_padded_sequence(torch.randn(5, 3, 32), [5, 3, 2])
    ours, _ = model(packed)
    merged, _ = merge_(model)(packed)
    assert_same(ours.data, merged.data)


# -------------------------------------------------------------------------------- composed once, compiled, fused


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that grows with every composition by a FedPara."""
    calls: list[int] = []
    monkeypatch.setattr(
        FedPara, "compose", lambda self, *factors, **given: (calls.append(1), _compose(self, *factors, **given))[1]
    )
    return calls


def test_micro_batches_share_one_composition(case: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs, names = case
    parametrize_(model, FedPara(gamma=0.2))
    model.zero_grad()
    for _ in range(3):
        sum(part.square().sum() for part in flat(model(*inputs))).backward()
    expected = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad()
    calls = counted(monkeypatch)
    with composed_once(model) as same:
        assert same is model
        for _ in range(3):
            sum(part.square().sum() for part in flat(model(*inputs))).backward()
        assert all(factor.grad is None for key, factor in model.named_parameters() if "parametrizations" in key)
    assert len(calls) == len(names)
    for name, parameter in model.named_parameters():
        assert_same(parameter.grad, expected[name], 1e-5)
    assert not any("held" in key for module in model.modules() for key in vars(module))
    # After the optimiser's step the weight is another one.
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1)
    with composed_once(model):
        changed = flat(model(*inputs))
    assert_same(changed, model(*inputs), 1e-5)


def test_an_evaluation_composes_once_and_keeps_no_graph(case: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs, names = case
    parametrize_(model, FedPara(gamma=0.2)).eval()
    before = model(*inputs)
    calls = counted(monkeypatch)
    with torch.no_grad(), composed_once(model):
        assert not composed(model, names[0]).requires_grad
        for _ in range(2):
            assert_same(model(*inputs), before, 1e-5)
    assert len(calls) == len(names)


def test_torchs_own_cache_serves_an_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    model = parametrize_(nn.Sequential(nn.Linear(64, 64), nn.LSTM(64, 64)), FedPara(gamma=0.2))
    inputs = torch.randn(3, 2, 64)
    before = model(inputs)
    calls = counted(monkeypatch)
    with torch.no_grad(), torch_parametrize.cached():
        for _ in range(3):
            assert_same(model(inputs), before, 1e-5)
    assert len(calls) == 3


def test_composing_once_nests_and_survives_errors_and_copies() -> None:
    model = parametrize_(nn.Sequential(nn.Linear(64, 64), nn.GRU(64, 64)), FedPara(gamma=0.2))
    inputs = torch.randn(3, 2, 64)

    def interrupted() -> None:
        with composed_once(model):
            model(inputs)[0].sum().backward()
            raise KeyError

    with pytest.raises(KeyError):
        interrupted()
    assert model[0].parametrizations.weight.original0.grad is None
    with composed_once(model):
        with composed_once(model[0]):
            held = model[0].weight
        assert model[0].weight is held
        twin, loaded = copy.deepcopy(model), pickle.loads(pickle.dumps(model))
        model(inputs)[0].sum().backward()
    assert model[0].weight is not held
    for other in (twin, loaded):
        # The copies compose for themselves.
        before = other(inputs)[0]
        with torch.no_grad():
            other[0].parametrizations.weight.original0.add_(1)
        assert not torch.allclose(other(inputs)[0], before)


def test_composing_once_under_autocast_sums_gradients_in_full_precision() -> None:
    model, inputs = parametrize_(nn.Linear(64, 64), FedPara(gamma=0.2)), torch.randn(5, 64)
    with torch.autocast("cpu", torch.bfloat16), composed_once(model):
        assert model.weight.dtype == torch.float32
        for _ in range(2):
            outputs = model(inputs)
            assert outputs.dtype == torch.bfloat16
            outputs.float().square().sum().backward()
    rough = {name: parameter.grad for name, parameter in model.named_parameters()}
    for name, gradient in gradients(model, (inputs,)).items():
        assert_same(rough[name], 2 * gradient, 0.05)


def test_merging_under_autocast_keeps_the_precision() -> None:
    model = parametrize_(nn.Linear(64, 64), FedPara(gamma=0.2))
    weight = model.weight.detach().clone()
    with torch.autocast("cpu", torch.bfloat16):
        merge_(model)
    assert torch.equal(model.weight, weight)


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_a_linear_layer_with_and_without_its_weight_is_the_same(config: Any) -> None:
    model = parametrize_(nn.Linear(400, 300), config)
    inputs = torch.randn(2, 400, requires_grad=True)
    upstream = torch.randn(2, 300)
    leaves = [inputs, *model.parameters()]
    with_weight = nn.functional.linear(inputs, model.weight, model.bias)
    assert_same(model(inputs), with_weight, 1e-5)
    expected = torch.autograd.grad(with_weight, leaves, upstream)
    for own, other in zip(torch.autograd.grad(model(inputs), leaves, upstream), expected, strict=True):
        assert_same(own, other, 1e-5)


def test_a_small_batch_goes_without_the_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    model = parametrize_(nn.Linear(400, 300), FedPara(gamma=0.1))
    calls = counted(monkeypatch)
    model(torch.randn(1, 400))
    assert len(calls) == 0
    model(torch.randn(500, 400))
    assert len(calls) == 1
    with torch.autocast("cpu", torch.bfloat16):
        assert model(torch.randn(1, 400)).dtype == torch.bfloat16
    assert len(calls) == 2


@pytest.mark.parametrize("config", CONFIGS, ids=str)
@pytest.mark.parametrize("name", ["linear", "conv2d", "transposed2d", "embedding", "attention"])
def test_compiles_without_a_graph_break(name: str, config: Any) -> None:
    make, inputs, _ = ZOO[name]
    model, arguments = parametrize_(make(), config), inputs()
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert_same(compiled(*arguments), model(*arguments), 1e-5)
    expected = gradients(model, arguments)
    for parameter, gradient in zip(
        gradients(compiled, arguments).values(), [own.clone() for own in expected.values()], strict=True
    ):
        assert_same(parameter, gradient, 1e-4)


def test_second_derivatives_through_a_layer() -> None:
    # Many samples and few: with the weight, and without.
    for samples in (1, 200):
        layer = parametrize_(nn.Linear(20, 30, dtype=torch.float64), FedPara(gamma=0.1))
        inputs = torch.randn(samples, 20, dtype=torch.float64)
        factors = list(layer.parameters())
        first = torch.autograd.grad(layer(inputs).square().sum(), factors, create_graph=True)
        second = torch.autograd.grad(sum(own.square().sum() for own in first), factors)
        plain = nn.functional.linear(inputs, (factors[1] @ factors[2].T) * (factors[3] @ factors[4].T), factors[0])
        first = torch.autograd.grad(plain.square().sum(), factors, create_graph=True)
        for own, other in zip(second, torch.autograd.grad(sum(g.square().sum() for g in first), factors), strict=True):
            torch.testing.assert_close(own, other)


# ------------------------------------------------------------------------------------------- reshaped and residual


def test_a_reshaped_kernel_is_proposition_1_on_out_by_in_times_kernel() -> None:
    layer = parametrize_(nn.Conv2d(32, 48, 3), FedPara(gamma=0.2, reshape=True))
    rank = reference.rank_rule((48, 288), 0.2)
    assert describe(layer)[0].rank == rank
    assert describe(layer)[0].parameters == parameter_count(layer) - 48 == 2 * rank * (48 + 288)
    assert [tuple(own.shape) for own in layer.parametrizations.weight.parameters()] == [(48, rank), (288, rank)] * 2
    assert layer.weight.is_contiguous()
    # Depth does not count twice: the rank may exceed what Prop. 3 reaches.
    assert torch.linalg.matrix_rank(layer.weight.flatten(1)) == 48
    # What was too thin for Prop. 3 may not be for Prop. 1.
    stem = nn.Conv2d(3, 64, 7)
    assert describe(parametrize_(copy.deepcopy(stem), FedPara(gamma=0.1)))[0].kind == "dense"
    assert describe(parametrize_(stem, FedPara(gamma=0.1, reshape=True)))[0].kind == "fedpara"


@pytest.mark.parametrize("activation", [None, "tanh"])
@pytest.mark.parametrize("reshape", [False, True])
def test_a_residual_starts_at_the_given_weights_and_trains_beside_them(
    case: Any, activation: str | None, reshape: bool
) -> None:
    model, inputs, names = case
    model.eval()
    before, dense = model(*inputs), {name: composed(model, name).detach().clone() for name in names}
    parametrize_(model, FedPara(gamma=0.2, activation=activation, reshape=reshape, residual=True))
    rows = {row.name: row for row in describe(model)}
    for name in names:
        assert torch.equal(composed(model, name), dense[name])
        assert rows[name].frozen_numbers == rows[name].dense_parameters == dense[name].numel()
    assert_same(model(*inputs), before)
    optimizer = torch.optim.SGD(model.parameters(), 1e-2)
    for _ in range(2):
        gradients(model, inputs)
        optimizer.step()
    for owner, module in model.named_modules():
        for tensor, form in factorised(module).items():
            name = f"{owner}.{tensor}" if owner else tensor
            assert torch.equal(form.base, dense[name])
            assert not torch.equal(composed(model, name), dense[name])
    assert all(gradient.abs().max() > 0 for key, gradient in gradients(model, inputs).items() if "original" in key)
    after = model(*inputs)
    assert_same(pickle.loads(pickle.dumps(model))(*inputs), after)
    assert_same(merge_(copy.deepcopy(model))(*inputs), after)


def test_a_residuals_frozen_weights_are_kept_but_neither_trained_nor_sent() -> None:
    model = parametrize_(nn.Sequential(nn.Linear(64, 64), nn.LSTM(64, 64)), FedPara(gamma=0.2, residual=True))
    frozen = [
        "0.parametrizations.weight.0.base",
        "1.parametrizations.weight_ih_l0.0.base",
        "1.parametrizations.weight_hh_l0.0.base",
    ]
    assert set(local_names(model)) == set(frozen)
    assert [name for name in model.state_dict() if "base" in name] == frozen
    assert not any("base" in name for name in shared_names(model))
    assert not any("base" in name for name, _ in model.named_parameters())
    assert parameter_count(model) == sum(row.parameters for row in describe(model)) + 64 + 8 * 64
    assert dense_parameters(model) == 64 * 64 + 64 + 2 * 256 * 64 + 8 * 64
    assert model.double()[0].parametrizations.weight[0].base.dtype == torch.float64


# ------------------------------------------------------------------------------------------- values and inits


@pytest.mark.parametrize("config", [*CONFIGS, LowRank(gamma=0.3), FedPara(gamma=0.9, activation="tanh")], ids=str)
@pytest.mark.parametrize("name", ["linear", "conv2d", "conv3d", "conv2d-1x1", "transposed2d-grouped", "gru"])
def test_the_weight_is_the_papers_equation_of_its_factors(name: str, config: Any) -> None:
    model = parametrize_(ZOO[name][0](), config)
    for row in describe(model):
        factors = list(model.parametrizations[row.name].parameters())
        base = 0.0 if (own := model.parametrizations[row.name][0].base) is None else own.clone()
        with torch.no_grad():
            factors[0].normal_(std=factors[1].std().item())  # a residual starts at zero
        assert sum(factor.numel() for factor in factors) == row.parameters < row.dense_parameters
        pairs = [factors[i : i + 2] for i in range(0, 2 * config.pairs, 2)]
        for pair, core in zip(pairs, factors[2 * config.pairs :], strict=False):
            pair.append(core.movedim(-1, 1))
        if isinstance(config, LowRank):
            literal = reference.low_rank(*pairs[0])
        elif isinstance(config, PFedPara):
            literal = reference.pfedpara(*map(tuple, pairs))
        else:
            literal = reference.fedpara(*map(tuple, pairs), config.activation)
        assert_same(composed(model, row.name), base + literal.reshape(row.shape), 1e-5)


@pytest.mark.parametrize(
    "config",
    [*CONFIGS, FedPara(gamma=0.1), FedPara(gamma=0.1, activation="tanh"), PFedPara(), LowRank(gamma=0.1)],
    ids=str,
)
def test_every_vgg16_layer_starts_with_the_dense_layers_std(config: Any) -> None:
    model = VGG16()
    dense = {name: (rms(weight), weight.mean().item()) for name, weight in model.named_parameters() if weight.ndim > 1}
    parametrize_(model, config, lambda module, name: True)
    rows = [row for row in describe(model) if row.rank]
    assert len(rows) >= 14
    for row in rows:
        weight, (std, _) = composed(model, row.name), dense[row.name]
        assert rms(weight) / std == pytest.approx(1, abs=0.01), row.name
        assert abs(weight.mean().item()) < 0.05 * std, row.name


@pytest.mark.parametrize(("shape", "exponent"), [((512, 300), 1 / 4), ((256, 128, 3, 3), 1 / 6)])
def test_all_factors_have_the_derived_std(shape: tuple[int, ...], exponent: float) -> None:
    weight = torch.randn(shape) * 0.03
    rank = rank_for(shape, 0.1)
    scale = 0.03 / rank if len(shape) == 2 else 0.03 / rank**2
    for factor in draw_factors(FedPara(gamma=0.1), weight, rank):
        assert factor.std().item() == pytest.approx(scale**exponent, rel=0.08)


@pytest.mark.parametrize("shape", [(96, 80), (64, 48, 3, 3)])
@pytest.mark.parametrize("config", [FedPara(gamma=0.3), LowRank(gamma=0.3)])
def test_a_step_of_sgd_on_the_factors_moves_the_weight_by_what_the_docs_derive(
    config: Any, shape: tuple[int, ...]
) -> None:
    """−η J Jᵀ G for −η G, J the factors' Jacobian: on average over G, n s² / σ² of it (docs/methods.md)."""
    generator = torch.Generator().manual_seed(3)
    weight = 0.05 * torch.randn(shape, generator=generator)
    factors = [own.requires_grad_() for own in draw_factors(config, weight, config.rank(shape), generator)]
    shares = []
    for _ in range(8):
        gradient = torch.randn(shape, generator=generator)
        moved = torch.autograd.grad((config.compose(*factors) * gradient).sum(), factors)
        shares.append(sum(float(own.square().sum()) for own in moved) / float(gradient.square().sum()))
    variances = [float(own.detach().square().mean()) for own in factors]
    assert sum(shares) / len(shares) == pytest.approx(sum(0.05**2 / own for own in variances), rel=0.2)
    assert sum(shares) / len(shares) < 0.7


def test_a_shifted_or_trained_weight_counts_by_its_rms() -> None:
    layer = nn.Linear(64, 64)
    with torch.no_grad():
        layer.weight.fill_(0.2)
    parametrize_(layer, FedPara(gamma=0.1))
    assert rms(layer.weight) == pytest.approx(0.2, rel=0.01)


@pytest.mark.parametrize("config", CONFIGS, ids=str)
@pytest.mark.parametrize("name", ["linear", "conv2d"])
def test_a_zero_layer_stays_zero_and_learns(name: str, config: Any) -> None:
    make, inputs, _ = ZOO[name]
    layer, arguments = make(), inputs()
    nn.init.zeros_(layer.weight)
    parametrize_(layer, config)
    assert torch.equal(layer.weight, torch.zeros_like(layer.weight))
    for _ in range(2):
        grads = gradients(layer, arguments)
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.sub_(parameter.grad, alpha=0.01)
    assert layer.weight.abs().max() > 0
    assert all(gradient.abs().max() > 0 for gradient in grads.values())


def test_zero_rows_stay_zero_and_do_not_count_in_the_std() -> None:
    layer = nn.Linear(64, 80)
    with torch.no_grad():
        layer.weight[::2] = 0
    std = rms(layer.weight[1::2])
    parametrize_(layer, FedPara(gamma=0.2))
    assert torch.equal(layer.weight[::2], torch.zeros(40, 64))
    assert rms(layer.weight[1::2]) == pytest.approx(std, rel=0.15)


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_an_embeddings_padding_row_stays_zero(config: Any) -> None:
    layer = nn.Embedding(60, 40, padding_idx=3)
    nn.init.normal_(layer.weight, std=0.1)
    with torch.no_grad():
        layer.weight[3] = 0
    std = rms(layer.weight[torch.arange(60) != 3])
    parametrize_(layer, config)
    assert rms(layer.weight[torch.arange(60) != 3]) == pytest.approx(std, rel=0.05)
    optimizer = torch.optim.SGD(layer.parameters(), 0.1, weight_decay=0.01, momentum=0.9)
    for _ in range(3):
        optimizer.zero_grad()
        layer(torch.arange(60)).square().sum().backward()
        optimizer.step()
    assert torch.equal(layer.weight[3], torch.zeros(40))


def test_draws_follow_the_generator_else_the_global_seed() -> None:
    def drawn(seed: int | None) -> dict[str, Tensor]:
        torch.manual_seed(5)
        model = CNN()
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        state_before = torch.get_rng_state()
        parametrize_(model, FedPara(gamma=0.1), generator=generator)
        assert (seed is None) != torch.equal(torch.get_rng_state(), state_before)
        return model.state_dict()

    for seed in (None, 1):
        first, second = drawn(seed), drawn(seed)
        assert all(torch.equal(first[key], second[key]) for key in first)
    one, other = drawn(1), drawn(2)
    assert not any(torch.equal(one[key], other[key]) for key in one if "parametrizations" in key)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtype_is_kept(dtype: torch.dtype) -> None:
    layer = nn.Linear(64, 64, dtype=dtype)
    std = rms(layer.weight.double())
    parametrize_(layer, FedPara(gamma=0.1))
    assert {parameter.dtype for parameter in layer.parameters()} == {dtype}
    assert rms(layer.weight.double()) == pytest.approx(std, rel=0.02)
    assert merge_(layer).weight.dtype == dtype


def test_device_is_kept_and_a_meta_model_is_only_counted() -> None:
    with torch.device("meta"):
        model = VGG16()
    parametrize_(model, FedPara(gamma=0.1, activation="tanh"))
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    assert merge_(model).features[3].weight.shape == (64, 64, 3, 3)


# ------------------------------------------------------------------------------------ what is chosen, what not


def only(rows: list[LayerReport], name: str) -> LayerReport:
    [row] = [row for row in rows if row.name == name]
    return row


def test_filter_fn_sees_modules_by_name_and_replaces_keep_dense() -> None:
    class Kept(nn.Sequential):
        keep_dense = ("1*",)

    model = Kept(nn.Linear(64, 64), nn.Sequential(nn.Linear(64, 64)), nn.Linear(64, 64))
    seen = []
    chosen = copy.deepcopy(model)
    parametrize_(chosen, FedPara(gamma=0.1), lambda module, name: seen.append((module, name)) or name != "2")
    assert seen == [(chosen[0], "0"), (chosen[1][0], "1.0"), (chosen[2], "2")]
    assert [row.kind for row in describe(chosen)] == ["fedpara", "fedpara", "dense"]
    assert "filter_fn" in only(describe(chosen), "2.weight").reason
    assert [row.kind for row in describe(parametrize_(model, FedPara(gamma=0.1)))] == ["fedpara", "dense", "fedpara"]
    # A model inside another keeps its own say.
    wrapped = parametrize_(nn.Sequential(merge_(model), nn.Linear(64, 64)), FedPara(gamma=0.1))
    assert [row.kind for row in describe(wrapped)] == ["fedpara", "dense", "fedpara", "fedpara"]


@pytest.mark.parametrize("keep_dense", ["classifier.*", 3, (1,)])
def test_a_malformed_keep_dense_is_refused(keep_dense: object) -> None:
    model = nn.Sequential(nn.Linear(64, 64))
    model.keep_dense = keep_dense
    with pytest.raises(ConfigError, match="keep_dense"):
        parametrize_(model, FedPara(gamma=0.1))


def test_tied_weights_stay_dense_and_count_once() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = nn.Embedding(100, 64)
            self.middle = nn.Linear(64, 64)
            self.decoder = nn.Linear(64, 100)
            self.decoder.weight = self.encoder.weight

    model = parametrize_(Tied(), FedPara(gamma=0.1))
    assert model.decoder.weight is model.encoder.weight
    rows = describe(model)
    assert [row.name for row in rows] == ["encoder.weight", "middle.weight"]
    assert only(rows, "encoder.weight").reason.startswith("tied")
    assert parameter_count(model) == 6400 + 100 + 64 + factor_parameters((64, 64), 9)
    assert dense_parameters(model) == 6400 + 100 + 64 + 64 * 64


def test_one_module_under_two_names_is_factorised_once() -> None:
    layer = nn.Linear(64, 64)
    model = parametrize_(nn.Sequential(layer, nn.ReLU(), layer), FedPara(gamma=0.1))
    assert [row.name for row in describe(model)] == ["0.weight"]
    assert model[0] is model[2]
    inputs = torch.randn(2, 64)
    before = model(inputs)
    assert_same(merge_(model)(inputs), before)


def test_foreign_layers_are_left_alone_with_a_reason() -> None:
    normed = parametrizations.weight_norm(nn.Linear(64, 64))
    pruned = prune.l1_unstructured(nn.Linear(64, 64), "weight", 0.5)
    bias_parametrized = nn.Linear(64, 64)
    torch_parametrize.register_parametrization(bias_parametrized, "bias", nn.Identity())
    frozen = nn.Linear(64, 64).requires_grad_(False)
    model = nn.Sequential(
        normed, pruned, bias_parametrized, frozen, nn.Bilinear(8, 8, 8), nn.Embedding(64, 64, sparse=True)
    )
    inputs = torch.randn(2, 64)
    before = model[:4](inputs)
    rows = describe(parametrize_(model, FedPara(gamma=0.1)))
    assert {row.kind for row in rows} == {"dense"}
    reasons = {row.name: row.reason for row in rows}
    assert "supported" in reasons["1.weight_orig"]
    assert "parametrized by something else" in reasons["2.weight"]
    assert "frozen" in reasons["3.weight"]
    assert "Bilinear" in reasons["4.weight"]
    assert "sparse" in reasons["5.weight"]
    assert_same(model[:4](inputs), before)
    merge_(model)
    assert torch_parametrize.is_parametrized(model[0])
    assert_same(model[:4](inputs), before)


def test_a_model_that_gains_nothing_is_left_as_it_was() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 64, 3), nn.Conv2d(64, 64, 3, groups=64), nn.GroupNorm(4, 64), nn.Linear(9, 9), nn.Linear(64, 2)
    )
    keys, classes = list(model.state_dict()), [type(module) for module in model]
    rows = describe(parametrize_(model, FedPara(gamma=0.1)))
    assert list(model.state_dict()) == keys
    assert [type(module) for module in model] == classes
    assert [row.name for row in rows] == ["0.weight", "1.weight", "3.weight", "4.weight"]
    assert [row.reason.partition(":")[0] for row in rows] == ["thin", "thin", "no gain", "thin"]
    assert parameter_count(model) == dense_parameters(model)
    assert describe(nn.ReLU()) == []
    assert parametrize_(nn.ReLU(), LowRank(ratio=0.5)) is not None


def test_equal_counts_are_no_gain() -> None:
    # 2·R·(m + n) = m·n exactly: 16 × 16 at R = 4.
    model = parametrize_(nn.Linear(16, 16), FedPara(gamma=1.0))
    assert describe(model)[0].reason.startswith("no gain: factors of rank 4 hold 256 numbers, the weight 256")


def test_tanh_leaves_weights_that_it_cannot_reach_dense() -> None:
    [row] = describe(parametrize_(nn.Embedding(100, 64), FedPara(gamma=0.1, activation="tanh")))
    assert "tanh" in row.reason
    [row] = describe(parametrize_(nn.Embedding(100, 64), FedPara(gamma=0.1)))
    assert row.kind == "fedpara"


def test_low_rank_gamma_matches_fedparas_parameters() -> None:
    for shape in [(128, 96), (128, 64, 3, 3)]:
        ours = factor_parameters(shape, FedPara(gamma=0.3).rank(shape))
        rank = LowRank(gamma=0.3).rank(shape)
        assert factor_parameters(shape, rank, 1) <= ours < factor_parameters(shape, rank + 1, 1)


def test_describe_tells_what_stays_with_the_client() -> None:
    model = nn.Sequential(nn.Linear(64, 64), nn.Conv2d(32, 32, 3))
    assert {row.reason for row in describe(model)} == {"not parametrized"}
    linear, conv = describe(parametrize_(model, PFedPara(gamma=0.0)))
    assert linear == LayerReport("0.weight", "Linear", "pfedpara", (64, 64), 8, 2048, 4096, 1024)
    assert conv == LayerReport("1.weight", "Conv2d", "pfedpara", (32, 32, 3, 3), 6, 1416, 9216, 708)


# --------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (FedPara, "exactly one"),
        (lambda: FedPara(gamma=0.1, ratio=0.1), "exactly one"),
        (lambda: FedPara(gamma=1.5), r"FedPara: gamma=1.5 is not allowed; give a number in \[0, 1\]"),
        (lambda: FedPara(gamma="0.1"), "gamma='0.1'"),
        (lambda: FedPara(gamma=True), "gamma=True"),
        (lambda: FedPara(gamma=float("nan")), "gamma=nan"),
        (lambda: FedPara(ratio=0), r"ratio=0 is not allowed; give a number in \(0, 1\]"),
        (lambda: FedPara(ratio=1.01), "ratio=1.01"),
        (lambda: FedPara(gamma=0.1, activation="relu"), "activation='relu' is not known; give None or"),
        (lambda: FedPara(gamma=0.1, reshape=1), "reshape=1 is not allowed; give True or False"),
        (lambda: FedPara(gamma=0.1, residual="yes"), "residual='yes' is not allowed"),
        (lambda: PFedPara(gamma=-1), "PFedPara: gamma=-1"),
        (lambda: PFedPara(gamma=None), "gamma=None"),
        (LowRank, "exactly one"),
        (lambda: FedPara(gamma=0.1, payload_bytes=1000), "exactly one"),
        (lambda: FedPara(payload_bytes=0), "payload_bytes=0 is not allowed; give a whole number of bytes"),
        (lambda: FedPara(payload_bytes=1e6), "payload_bytes=1000000.0"),
        (lambda: LowRank(payload_bytes=True), "LowRank: payload_bytes=True"),
        (lambda: LowRank(ratio=-0.5), "LowRank: ratio=-0.5"),
    ],
)
def test_bad_configurations_are_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


def test_configurations_are_frozen_values() -> None:
    assert FedPara(gamma=0.1) == FedPara(gamma=0.1) != FedPara(gamma=0.2)
    assert PFedPara() == PFedPara(gamma=0.5)
    with pytest.raises(AttributeError):
        FedPara(gamma=0.1).gamma = 0.2  # type: ignore[misc]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((nn.Linear(64, 64), FedPara), "is not a configuration"),
        ((nn.Linear(64, 64), 0.1), "is not a configuration"),
        (([nn.Linear(64, 64)], FedPara(gamma=0.1)), "a list was given"),
        ((nn.Linear(64, 64), FedPara(gamma=0.1), "fc"), "cannot be called"),
        ((nn.Sequential(nn.Linear(64, 64), nn.LazyLinear(64)), FedPara(gamma=0.1)), "1.weight has no shape yet"),
    ],
)
def test_bad_arguments_are_refused(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parametrize_(*arguments)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_is_refused_before_anything_changes(value: float) -> None:
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))
    nn.init.constant_(model[1].weight, value)
    with pytest.raises(ConfigError, match="weight holds values that are not finite"):
        parametrize_(model, FedPara(gamma=0.1))
    assert not factorised(model[0])


def test_factorising_twice_is_refused_but_other_layers_may_follow() -> None:
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))
    parametrize_(model, FedPara(gamma=0.1), lambda module, name: name == "0")
    with pytest.raises(ConfigError, match=r"0.weight is factorised already .*merge_"):
        parametrize_(model, LowRank(ratio=0.5))
    parametrize_(model, LowRank(ratio=0.5), lambda module, name: name == "1")
    assert [row.kind for row in describe(model)] == ["fedpara", "lowrank"]


@pytest.mark.parametrize(
    "config", [FedPara(gamma=0.3, activation="tanh"), FedPara(gamma=0.3, residual=True), PFedPara(gamma=0.3)]
)
@pytest.mark.parametrize("reshape", [False, True])
def test_on_a_gpu_kernels_lie_as_its_convolutions_take_them_and_ranks_are_filled_up(
    config: Any, reshape: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if reshape:
        config = FedPara(gamma=0.3, reshape=True, residual=config == FedPara(gamma=0.3, residual=True))
    torch.manual_seed(0)
    layer = parametrize_(nn.Sequential(nn.Conv2d(40, 50, 3)), config)[0]
    own = layer.parametrizations.weight[0]
    for factor in layer.parametrizations.weight.parameters():
        nn.init.normal_(factor)
    weight = layer.weight.detach()
    monkeypatch.setattr(compose, "_on_gpu", lambda like: True)
    there = layer.weight.detach()
    torch.testing.assert_close(there, weight, rtol=1e-4, atol=1e-3)
    assert weight.is_contiguous()
    assert reshape or there.is_contiguous(memory_format=torch.channels_last)
    factors = [filled_up(factor.detach()) for factor in layer.parametrizations.weight.parameters()]
    assert {factor.shape[-1] % 8 for factor in factors} == {0}
    base = {} if own.base is None else {"base": own.base}
    torch.testing.assert_close(own.config.compose(*factors, **base).reshape(own.shape), weight, rtol=1e-4, atol=1e-3)


def test_assigning_a_factorised_weight_is_refused() -> None:
    layer = parametrize_(nn.Linear(64, 64), FedPara(gamma=0.1))
    with pytest.raises(ConfigError, match="cannot be assigned"):
        layer.weight = torch.zeros(64, 64)


def test_merge_refuses_a_layer_with_another_parametrization_on_top() -> None:
    model = parametrize_(nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64)), FedPara(gamma=0.1))
    torch_parametrize.register_parametrization(model[1], "bias", nn.Identity())
    with pytest.raises(ConfigError, match="layer '1' carries another"):
        merge_(model)
    assert factorised(model[0])


def test_merge_of_a_plain_model_changes_nothing() -> None:
    model = nn.Linear(64, 64)
    weight = model.weight
    assert merge_(model).weight is weight


def test_merge_keeps_a_frozen_layer_frozen() -> None:
    layer = parametrize_(nn.Linear(64, 64), FedPara(gamma=0.1)).requires_grad_(False)
    assert not merge_(layer).weight.requires_grad
