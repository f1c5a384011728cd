"""The models' published sizes, the shapes they accept, and finding them by name."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fedpara.errors import ConfigError
from fedpara.models import CNN, MLP, MODELS, VGG8, VGG16, ResNet18, build_model
from fedpara.parametrize import FedPara, describe, parameter_count, parametrize_


def test_published_parameter_counts() -> None:
    with torch.device("meta"):
        # McMahan et al., 2017, section 3: 199,210 for the 2NN, 1,663,370 for the CNN.
        assert parameter_count(MLP()) == 199_210
        assert parameter_count(CNN()) == 1_663_370
        # FedPara, Table 5: 15.25 M and 15.30 M.
        assert parameter_count(VGG16(10)) == pytest.approx(15.25e6, abs=5e3)
        assert parameter_count(VGG16(100)) == pytest.approx(15.30e6, abs=5e3)
        assert parameter_count(VGG8(width=16)) == 280_074
        # The usual CIFAR ResNet18: 11.17 M, whichever norm.
        assert parameter_count(ResNet18()) == parameter_count(ResNet18(norm="batch")) == 11_173_962


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("channels", "size"), [(3, 32), (1, 28), (1, 8), (2, (20, 36))])
def test_every_model_takes_every_image_size(name: str, channels: int, size: int | tuple[int, int]) -> None:
    model = build_model(name, num_classes=7, in_channels=channels, image_size=size).eval()
    height, width = (size, size) if isinstance(size, int) else size
    with torch.no_grad():
        logits = model(torch.randn(2, channels, height, width))
    assert logits.shape == (2, 7)
    assert logits.isfinite().all()
    assert logits.std() > 0


@pytest.mark.parametrize(
    ("name", "rate"), [("vgg16", 1e-3), ("vgg8", 1e-3), ("resnet18", 1e-3), ("cnn", 5e-3), ("2nn", 5e-3)]
)
def test_every_model_learns_when_factorised(name: str, rate: float) -> None:
    torch.manual_seed(0)
    model = build_model(name, num_classes=4, in_channels=1, image_size=8)
    parametrize_(model, FedPara(gamma=0.1))
    images, labels = torch.randn(8, 1, 8, 8), torch.arange(8) % 4
    optimizer = torch.optim.Adam(model.parameters(), rate)
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]


def kept(model: nn.Module) -> set[str]:
    return {row.name.removesuffix(".weight") for row in describe(model) if "keep_dense" in (row.reason or "")}


def test_what_the_paper_left_dense_stays_dense() -> None:
    with torch.device("meta"):
        vgg = parametrize_(VGG16(), FedPara(gamma=0.1))
        resnet = parametrize_(ResNet18(), FedPara(gamma=0.1))
    assert kept(vgg) == {"classifier.1", "classifier.4", "classifier.6"}
    assert sum(row.kind == "fedpara" for row in describe(vgg)) == 12
    assert kept(resnet) == {
        "conv1",
        "layer1.0.conv1",
        "layer2.0.shortcut.0",
        "layer3.0.shortcut.0",
        "layer4.0.shortcut.0",
    }
    # The other fifteen 3 × 3 convolutions and the classifier.
    assert sum(row.kind == "fedpara" for row in describe(resnet)) == 16


def test_vgg_convolutions_start_with_hes_std() -> None:
    torch.manual_seed(0)
    for module in VGG16().features[7:]:
        if isinstance(module, nn.Conv2d):
            fan_in = module.in_channels * 9
            assert module.weight.std().item() == pytest.approx((2 / fan_in) ** 0.5, rel=0.02)


def test_options_reach_the_model() -> None:
    model = build_model("2nn", num_classes=3, in_channels=1, image_size=4, hidden=(5,))
    assert [tuple(p.shape) for p in model.parameters()] == [(5, 16), (5,), (3, 5), (3,)]
    resnet = build_model("resnet18", num_classes=3, in_channels=1, image_size=32, norm="batch")
    assert any(isinstance(module, nn.BatchNorm2d) for module in resnet.modules())
    assert not any(isinstance(module, nn.BatchNorm2d) for module in ResNet18().modules())
    vgg = build_model("vgg16", num_classes=3, in_channels=1, image_size=8, dropout=0.5)
    assert {module.p for module in vgg.modules() if isinstance(module, nn.Dropout)} == {0.5}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "vgg61"}, "'vgg61' is not known.*'vgg16'"),
        ({"name": "resnet"}, "'resnet' is not known.*'resnet18'"),
        ({"name": "ZZZ"}, "known are vgg16, vgg8, resnet18, cnn, 2nn"),
        ({"name": "resnet18", "nrom": "batch"}, "no option 'nrom'.*'norm'"),
        ({"name": "resnet18", "norm": "layer"}, "norm='layer'"),
        ({"name": "cnn", "in_features": 3}, "no option 'in_features'"),
        ({"name": "cnn", "num_classes": 0}, "positive"),
        ({"name": "cnn", "image_size": 3}, "too small"),
        ({"name": "vgg8", "width": 12}, "width=12"),
        ({"name": "resnet18", "width": 24}, "width=24"),
    ],
)
def test_bad_names_options_and_sizes_are_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_model(**{"num_classes": 10, "in_channels": 1, "image_size": 28, **arguments})
