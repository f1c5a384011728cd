"""A trained run on a user's own photographs: other exposures and white balances, and high dynamic range."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedpara.checkpoint import replace_file
from fedpara.errors import ConfigError, DataError

from .calibrate import calibrate, radiance
from .files import read_bracket, read_photograph
from .network import BlackBox, SelfCalibrating
from .predict import predict
from .radiance_file import write_radiance

COOLEST, WARMEST, NEUTRAL = 25000.0, 1667.0, 6500.0  # kelvin
_PICTURES = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".tif": "TIFF", ".tiff": "TIFF", ".webp": "WEBP"}


def retake_photograph(model: nn.Module, source: Path, output: Path, stops: float, kelvin: float) -> list[str]:
    """The photograph with ``stops`` EV more exposure and another white balance, as a picture of 8 bits a channel."""
    kind = _PICTURES.get(output.suffix.lower())
    if kind is None:
        raise DataError(f"{output} is neither a picture ({', '.join(_PICTURES)}) nor a radiance map (.hdr)")
    gain = white_balance(kelvin) if kelvin else torch.zeros(3)
    if isinstance(model, BlackBox) and kelvin:
        raise ConfigError("--wb needs a camera between the networks; this run was trained with constraint = 'none'")
    photo = read_photograph(source)
    picture = predict(model, photo, stops, gain=gain)
    _save(picture, output, kind)
    how = _how(model) if isinstance(model, SelfCalibrating) else "no camera"
    return [
        f"{photo.name} at {stops:+g} EV" + (f", {kelvin:g} K" if kelvin else "") + f" ({how})",
        f"written: {output}",
    ]


def radiance_map(model: nn.Module, source: Path, output: Path) -> list[str]:
    """Radiance of a bracket, or of one photograph, as .hdr; beside it a preview and the response curve's plot."""
    if not isinstance(model, SelfCalibrating):
        raise ConfigError("a radiance map needs a camera between the networks; this run has constraint = 'none'")
    if output.suffix.lower() != ".hdr":
        raise DataError(f"{output}: a radiance map is written as .hdr (Radiance RGBE); name OUTPUT so")
    photographs = read_bracket(source) if source.is_dir() else [read_photograph(source)]
    lines = []
    if not model.camera.calibrated:
        model.camera = calibrate(photographs)
        if model.camera.calibrated:
            lines.append(f"camera calibrated on {len(photographs)} exposures")
    if not lines:
        lines.append(_how(model))
    with torch.no_grad():
        log_radiance = radiance(model, photographs)
    light = log_radiance.exp().permute(1, 2, 0).numpy()
    write_radiance(output, light)
    preview, plot = output.with_suffix(".preview.png"), output.with_suffix(".response.svg")
    _save(torch.from_numpy(tone_mapped(light)).permute(2, 0, 1), preview, "PNG")
    model.camera.plot(plot)
    span = np.quantile(light.mean(-1), (0.001, 0.999))
    lines.append(f"{len(photographs)} photographs, {np.log2(span[1] / span[0]):.1f} stops of radiance")
    return [*lines, f"written: {output}, {preview}, {plot}"]


def _how(model: SelfCalibrating) -> str:
    return "the camera's own response" if model.camera.calibrated else "default response, x^(1/2.2)"


def white_balance(kelvin: float) -> Tensor:
    """ln of the gains (3,) of a camera set to this temperature, against one set to 6500 K; mean 0.

    Light of that temperature comes out grey: its colour is on the Planckian locus in the cubic approximation of Kang et
    al. (Journal of the Korean Physical Society 41, 2002), taken to linear sRGB.

    Raises:
        ConfigError: the temperature is outside 1667 to 25000 K.
    """
    if not WARMEST <= kelvin <= COOLEST:
        raise ConfigError(f"--wb {kelvin:g} is outside its range: {WARMEST:g} to {COOLEST:g} K, or 0 for as it was")
    gain = torch.log(_planckian(NEUTRAL) / _planckian(kelvin))
    return gain - gain.mean()


def _planckian(kelvin: float) -> Tensor:
    """Linear sRGB (3,) of a black body's light."""
    t = 1000 / kelvin
    if kelvin <= 4000:
        x = -0.2661239 * t**3 - 0.2343589 * t**2 + 0.8776956 * t + 0.179910
    else:
        x = -3.0258469 * t**3 + 2.1070379 * t**2 + 0.2226347 * t + 0.240390
    if kelvin <= 2222:
        y = -1.1063814 * x**3 - 1.34811020 * x**2 + 2.18555832 * x - 0.20219683
    elif kelvin <= 4000:
        y = -0.9549476 * x**3 - 1.37418593 * x**2 + 2.09137015 * x - 0.16748867
    else:
        y = 3.0817580 * x**3 - 5.87338670 * x**2 + 3.75112997 * x - 0.37001483
    xyz = torch.tensor([x / y, 1.0, (1 - x - y) / y], dtype=torch.float64)
    to_rgb = torch.tensor(
        [[3.2404542, -1.5371385, -0.4985314], [-0.9692660, 1.8760108, 0.0415560], [0.0556434, -0.2040259, 1.0572252]],
        dtype=torch.float64,
    )
    return (to_rgb @ xyz).clamp(min=1e-3).float()


def tone_mapped(light: NDArray[np.floating]) -> NDArray[np.float32]:
    """Radiance (H, W, 3) to values in [0, 1]: L(1 + L/white²)/(1 + L), key 0.18 (Reinhard et al., SIGGRAPH 2002)."""
    luminance = light @ np.array([0.2126, 0.7152, 0.0722]) + 1e-12
    scaled = 0.18 * luminance / np.exp(np.log(luminance).mean())
    white = np.quantile(scaled, 0.995)
    mapped = scaled * (1 + scaled / white**2) / (1 + scaled)
    linear = light * (mapped / luminance)[..., None]
    return np.clip(linear, 0, 1).astype(np.float32) ** np.float32(1 / 2.2)


def _save(picture: Tensor, path: Path, kind: str) -> None:
    """Write a picture (3, H, W) in [0, 1]."""
    import io

    from PIL import Image

    pixels = (picture.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    content = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(content, kind, **({"quality": 95} if kind == "JPEG" else {}))
    replace_file(path, content.getvalue())
