"""Models of every kind, written by others in their own ways: converted, trained a step, merged, the same outputs."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedpara.parametrize import FedPara, LowRank, PFedPara, describe, factorised, merge_, parameter_count, parametrize_
from fedpara.sharing import load_shared_, shared_state

CONFIGS = [
    FedPara(gamma=0.1),
    FedPara(gamma=0.3, activation="tanh"),
    FedPara(gamma=0.1, reshape=True),
    FedPara(ratio=0.8),
    PFedPara(gamma=0.1),
    LowRank(gamma=0.1),
]


class ViT(nn.Module):
    """Patches by a strided convolution, a class token, torch's own encoder layers."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(4, 64, 4, stride=4)
        self.token = nn.Parameter(torch.zeros(1, 1, 64))
        self.positions = nn.Parameter(0.02 * torch.randn(1, 17, 64))
        layer = nn.TransformerEncoderLayer(64, 4, 128, dropout=0.0, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Sequential(nn.LayerNorm(64), nn.Linear(64, 10))

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.patches(images).flatten(2).mT
        tokens = torch.cat([self.token.expand(len(images), -1, -1), tokens], 1) + self.positions
        return self.head(self.encoder(tokens)[:, 0])


class UNet(nn.Module):
    """Down by strided, up by transposed convolutions, a skip at each level."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), nn.GroupNorm(4, 32), nn.SiLU())
        self.down = nn.Sequential(nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.BatchNorm2d(64), nn.SiLU())
        self.bottom = nn.Conv2d(64, 64, 3, padding=2, dilation=2)
        self.up = nn.ConvTranspose2d(64, 32, 2, stride=2)
        self.last = nn.Conv2d(64, 32, 3, padding=1, padding_mode="reflect")
        self.out = nn.Conv2d(32, 5, 1)

    def forward(self, images: Tensor) -> Tensor:
        first = self.first(images)
        inner = F.silu(self.bottom(self.down(first)))
        return self.out(F.silu(self.last(torch.cat([first, self.up(inner)], 1))))


class LanguageModel(nn.Module):
    """An embedding, a two-layer LSTM, a decoder over characters."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(80, 32, padding_idx=0)
        nn.init.normal_(self.embedding.weight, std=0.1)
        self.lstm = nn.LSTM(32, 64, num_layers=2, batch_first=True)
        self.decoder = nn.Linear(64, 80)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.decoder(self.lstm(self.embedding(tokens))[0])


class Mobile(nn.Module):
    """Inverted residuals: 1 × 1, depthwise, 1 × 1, with batch norm and squeeze-and-excite."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 32, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(32), nn.Hardswish()
        )
        self.expand = nn.Sequential(nn.Conv2d(32, 96, 1, bias=False), nn.BatchNorm2d(96), nn.Hardswish())
        self.depthwise = nn.Sequential(nn.Conv2d(96, 96, 3, padding=1, groups=96, bias=False), nn.BatchNorm2d(96))
        self.squeeze = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(96, 24, 1), nn.ReLU(), nn.Conv2d(24, 96, 1))
        self.project = nn.Sequential(nn.Conv2d(96, 32, 1, bias=False), nn.BatchNorm2d(32))
        self.head = nn.Linear(32, 10)

    def forward(self, images: Tensor) -> Tensor:
        stem = self.stem(images)
        inner = F.hardswish(self.depthwise(self.expand(stem)))
        inner = inner * F.hardsigmoid(self.squeeze(inner))
        return self.head((stem + self.project(inner)).mean((2, 3)))


class GPT(nn.Module):
    """A causal block with fused projections, written by hand; the head is the embedding (tied)."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(80, 64), nn.Embedding(24, 64)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(64) for _ in range(3))
        self.qkv, self.proj = nn.Linear(64, 192), nn.Linear(64, 64)
        self.mlp = nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 64))
        self.head = nn.Linear(64, 80, bias=False)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
        self.head.weight = self.tokens.weight

    def forward(self, tokens: Tensor) -> Tensor:
        batch, length = tokens.shape
        inner = self.tokens(tokens) + self.positions(torch.arange(length))
        parts = self.qkv(self.norm1(inner)).view(batch, length, 3, 4, 16).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(*parts, is_causal=True)
        inner = inner + self.proj(mixed.transpose(1, 2).reshape(batch, length, 64))
        return self.head(self.norm3(inner + self.mlp(self.norm2(inner))))


def images(channels: int) -> Callable[[], Tensor]:
    return lambda: torch.randn(4, channels, 16, 16)


def tokens() -> Tensor:
    return torch.randint(1, 80, (4, 20))


# name: (the model, its input, weights that must be factorised at γ = 0.1, weights that must stay dense)
MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor], set[str], set[str]]] = {
    "vit": (
        ViT,
        images(4),
        {
            "patches.weight",
            *(f"encoder.layers.{i}.self_attn.in_proj_weight" for i in (0, 1)),
            "encoder.layers.1.linear2.weight",
        },
        {"positions", "token"},
    ),
    "unet": (UNet, images(3), {"down.0.weight", "bottom.weight", "up.weight", "last.weight"}, {"first.0.weight"}),
    "lstm": (
        LanguageModel,
        tokens,
        {"embedding.weight", "lstm.weight_ih_l0", "lstm.weight_hh_l1", "decoder.weight"},
        set(),
    ),
    "mobile": (Mobile, images(3), {"expand.0.weight", "project.0.weight"}, {"stem.0.weight", "depthwise.0.weight"}),
    "gpt": (GPT, tokens, {"qkv.weight", "proj.weight", "mlp.0.weight", "mlp.2.weight"}, {"tokens.weight"}),
}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(params=MODELS)
def case(request: pytest.FixtureRequest) -> Any:
    make, inputs, factors, dense = MODELS[request.param]
    return make(), inputs(), factors, dense


def loss_of(model: nn.Module, inputs: Tensor) -> Tensor:
    """A loss that every model has."""
    return model(inputs).square().mean() + model(inputs).mean()


def train_a_step(model: nn.Module, inputs: Tensor) -> tuple[float, float]:
    """The loss before and after a step of SGD, whose gradients must all be there and finite."""
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    before = loss_of(model, inputs)
    before.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        if "parametrizations" in name:
            assert parameter.grad.abs().max() > 0, name
    optimizer.step()
    return before.item(), loss_of(model, inputs).item()


@torch.no_grad()
def outputs(model: nn.Module, inputs: Tensor) -> Tensor:
    return model.eval()(inputs)


def assert_same(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * expected.abs().max().item())


def test_the_expected_weights_are_factorised_and_no_others(case: Any) -> None:
    model, _, factors, dense = case
    rows = {row.name: row for row in describe(parametrize_(model, FedPara(gamma=0.1)))}
    assert all(rows[name].rank for name in factors)
    assert not any(rows[name].rank for name in dense)
    assert all(row.rank or row.reason for row in rows.values())


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_convert_train_merge(case: Any, config: Any) -> None:
    model, inputs, _, _ = case
    keys = list(model.state_dict())
    dense = parameter_count(model)
    parametrize_(model, config)
    assert parameter_count(model) < dense
    before, after = train_a_step(model, inputs)
    assert after < before
    expected = outputs(model, inputs)
    twin = copy.deepcopy(model)
    assert_same(outputs(merge_(model), inputs), expected)
    assert list(model.state_dict()) == keys
    assert parameter_count(model) == dense
    assert not any(factorised(module) for module in model.modules())
    # What a client would receive gives the same model.
    other = load_shared_(copy.deepcopy(twin), shared_state(twin))
    assert_same(outputs(other, inputs), expected)


def test_fit_keeps_what_fresh_factors_lose(case: Any) -> None:
    model, inputs, _, _ = case
    # Outputs in training mode: the statistics of a batch norm that saw nothing yet would leave biases alone visible.
    expected = model(inputs).detach()

    def lost(**options: Any) -> float:
        fitted = parametrize_(copy.deepcopy(model), FedPara(ratio=0.75), **options)
        assert any(row.rank for row in describe(fitted))
        return ((fitted(inputs).detach() - expected).norm() / expected.norm()).item()

    assert lost(fit=True) < 0.75 * lost()


def test_tied_embeddings_stay_tied_and_are_sent_once() -> None:
    model = parametrize_(GPT(), FedPara(gamma=0.1))
    assert model.head.weight is model.tokens.weight
    assert "head.weight" not in shared_state(model)
    train_a_step(model, tokens())
    assert merge_(model).head.weight is model.tokens.weight


# ------------------------------------------------------------------------------------------------ models of others


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "convnext_tiny", "efficientnet_b0"])
def test_torchvision(name: str) -> None:
    models = pytest.importorskip("torchvision.models")
    model, inputs = models.get_model(name, weights=None), torch.randn(2, 3, 224, 224)
    convert_and_merge(model, inputs)


@pytest.mark.parametrize("name", ["resnet10t", "vit_tiny_patch16_224", "mixer_s32_224"])
def test_timm(name: str) -> None:
    timm = pytest.importorskip("timm")
    convert_and_merge(timm.create_model(name, pretrained=False), torch.randn(2, 3, 224, 224))


def convert_and_merge(model: nn.Module, inputs: Tensor) -> None:
    keys, dense = list(model.state_dict()), parameter_count(model)
    parametrize_(model, FedPara(gamma=0.1))
    assert parameter_count(model) < dense
    model.train()
    loss_of(model, inputs).backward()
    torch.optim.SGD(model.parameters(), 1e-3).step()
    expected = outputs(model, inputs)
    assert_same(outputs(merge_(model), inputs), expected)
    assert list(model.state_dict()) == keys
