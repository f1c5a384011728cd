"""What needs no training: sizes and seconds on links, from the paper's own inputs."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from fedpara.cost import paper_round_seconds
from fedpara.models import VGG16
from fedpara.parametrize import FedPara, parameter_count, parametrize_

Found = Mapping[str, Mapping[str, Mapping[str, float]]]  # quantity → setting → method → figure


def vgg16_parameters(classes: int, gamma: float | None = None) -> int:
    """Parameters of VGG16, dense or as FedPara; nothing is allocated."""
    with torch.device("meta"):
        model = VGG16(classes)
        return parameter_count(model if gamma is None else parametrize_(model, FedPara(gamma=gamma)))


def sizes(published: Found) -> Found:
    """Millions of parameters of VGG16 for every γ that the table prints."""

    def millions(setting: str, method: str) -> float:
        gamma = None if method == "original" else float(method.removeprefix("γ = "))
        return vgg16_parameters(int(setting.split(maxsplit=1)[0]), gamma) / 1e6

    return {
        "million": {
            setting: {method: millions(setting, method) for method in row}
            for setting, row in published["million"].items()
        }
    }


def links(published: Found) -> Found:
    """Seconds of a round, from our own counts of the parameters and the paper's seconds of computing."""
    parameters = {"original": vgg16_parameters(10), "FedPara": vgg16_parameters(10, 0.1)}
    compute = published["compute"]
    return {
        "seconds": {
            speed: {
                method: paper_round_seconds(4 * parameters[method], float(speed.split()[0]), compute[method])  # type: ignore[arg-type]
                for method in row
            }
            for speed, row in published["seconds"].items()
        }
    }


COMPUTED = {"sizes": sizes, "links": links}
